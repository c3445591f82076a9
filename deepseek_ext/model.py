"""DeepSeek-V3: embedding, blocks, head, and the multi-token prediction modules behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .nn.block import Block, MTPModule
from .nn.context import Context, LatentCache
from .nn.derived import Derived
from .nn.head import IGNORED, Head
from .nn.init import initialise
from .nn.linear import PRECISIONS, Precision, high_precision, stream_dtype
from .nn.moe import MoE, Router
from .nn.norm import RMSNorm
from .nn.rope import rotations


@dataclass(frozen=True, slots=True)
class Output:
    """What a call of the model returns."""

    logits: Tensor
    """[B, T, V]: row i predicts token i + 1."""
    mtp_logits: list[Tensor]
    """One per MTP module: entry k - 1 is [B, max(T - k, 0), V], and its row i predicts token i + k + 1."""


@dataclass(frozen=True, slots=True)
class Loss:
    """The losses of one call, FP32 scalars that carry gradient, in nats."""

    total: Tensor
    """main + mtp_weight / D * sum of mtp + balance: what to call backward on."""
    main: Tensor
    """Cross-entropy of the next token, summed over this call and divided by num_targets."""
    mtp: list[Tensor]
    """The same for each MTP module, divided by the same num_targets."""
    balance: Tensor
    """Sum over routers of the balance loss; each is summed over sequences and divided by num_sequences."""
    acceptance: list[Tensor]
    """Per MTP module the share of this call's targets where it and the main model choose the same token."""


class Embedding(nn.Module):
    """Rows of a table [V, H] by token, FP32."""

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class _Trunk(nn.Module):
    """The parts of the main model below its head; MTP module k is layer num_hidden_layers + k - 1."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        main, depths = config.num_hidden_layers, config.num_nextn_predict_layers
        self.layers = nn.ModuleList(
            [Block(config, layer, precision) for layer in range(main)]
            + [MTPModule(config, main + k, precision) for k in range(depths)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DeepseekV3(nn.Module):
    """The model of the DeepSeek-V3 paper (arXiv:2412.19437): MLA, mixture of experts, multi-token prediction.

    precision: "fp8" (every Linear of attention and FFN in E4M3; paper, section 3.3), "bf16" or "fp32".
    Parameters and their gradients are FP32 in all three. precision_overrides changes it for the layers whose
    module name matches a pattern, e.g. {"model.layers.0.*": "bf16"}; the last match counts. Initial values
    depend only on `seed` and each parameter's name; on device "meta" there are none.

    One optimizer step of training:

        for tokens, targets in micro_batches:                       # int64 [B, T] each
            loss = model.loss(tokens, targets, num_targets=..., num_sequences=...)   # of the whole step
            loss.total.backward()
        optimizer.step()                     # FP8 codes and BF16 copies are made anew at the next use
        load = model.router_load()           # int32 [number of routers, E]
        model.update_router_bias(rate)       # balances by the load, and restarts its count

    Raises ValueError for an unknown precision, and for an override that matches no layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        precision: Precision = "fp8",
        precision_overrides: Mapping[str, Precision] | None = None,
        device: torch.device | str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(
                f"DeepseekV3: config must be a ModelConfig, got {type(config).__name__}; make one with "
                "ModelConfig(...), or ModelConfig.preset(name)"
            )
        _check_precision("precision", precision)
        self.config = config
        self.precision = precision
        with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
            self.model = _Trunk(config, precision)
            self.lm_head = Head(config.hidden_size, config.vocab_size, high_precision(precision))
        for pattern, value in (precision_overrides or {}).items():
            _check_precision(f"precision_overrides[{pattern!r}]", value)
            self._override(pattern, value)
        initialise(self, seed=seed, std=config.initializer_range)
        self.register_load_state_dict_post_hook(_after_load)

    def forward(
        self, tokens: Tensor, *, document_starts: Tensor | None = None, use_mtp: bool = True
    ) -> Output:
        """Logits of every position: tokens int64 [B, T] to `Output`, whose dtype is the residual stream's.

        document_starts: int32 [B, T] confines attention to the documents that are packed into a sequence: for
        each position the index of the first one that it may attend to. What a document then says is what it
        would say alone, except for rows of MTP module k that look past its end, i + k being in the next one.
        use_mtp=False skips the MTP modules and returns no mtp_logits. The same call serves inference, in eval
        mode and under no_grad. Raises ValueError for tokens of another shape or dtype, for more than
        max_position_embeddings of them, for ids outside the vocabulary (on the CPU, where looking at them
        waits for nothing), and for document_starts that are none.
        """
        self._check_tokens(tokens)
        context = self._context(tokens, document_starts=document_starts)
        embedded = self.model.embed_tokens(tokens)
        hidden, _ = self._main(embedded, context)
        logits = self.lm_head(hidden)
        depths = self._depths(embedded, hidden, context) if use_mtp else iter(())
        return Output(logits, [self.lm_head(normed) for normed, _ in depths])

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        num_targets: int | Tensor | None = None,
        num_sequences: int | Tensor | None = None,
        valid: Tensor | None = None,
        document_starts: Tensor | None = None,
        mtp_weight: float | None = None,
        balance_alpha: float | None = None,
        use_mtp: bool = True,
    ) -> Loss:
        """The training loss of one micro-batch (paper, eq. 17-20 and 24-25); full logits are never made.

        tokens, targets: int64 [B, T], targets[:, i] being the token after tokens[:, i], or -100 where it does
        not count. num_targets: the targets that count in the whole optimizer step, over all micro-batches and
        ranks, num_sequences: its sequences; None means those of this call. With them the gradient of a step
        does not depend on how it is split into micro-batches, unless balance_loss is "batch". valid: bool
        [B, T], False for padding, which counts neither in the router load nor in the balance loss.
        document_starts: as in forward; MTP predictions past the end of a document then count nowhere.
        mtp_weight, balance_alpha: None means the configuration's. use_mtp=False leaves the MTP modules out.

        Raises ValueError for arguments whose shapes, dtypes or (on the CPU) ids do not fit, and for a
        balance_alpha where the configuration has no balance loss.
        """
        self._check_tokens(tokens)
        _check_like("targets", targets, tokens, torch.int64)
        _check_ids("targets", targets, self.config.vocab_size, besides=IGNORED)
        if valid is not None:
            _check_like("valid", valid, tokens, torch.bool)
        if num_targets is None:
            num_targets = (targets != IGNORED).sum()
        scale = 1.0 / torch.as_tensor(num_targets, dtype=torch.float32, device=tokens.device).clamp_min(1.0)
        alpha = self._balance_alpha(balance_alpha)
        context = self._context(tokens, valid, alpha, document_starts=document_starts)
        use_mtp = use_mtp and self.config.num_nextn_predict_layers > 0

        embedded = self.model.embed_tokens(tokens)
        hidden, balances = self._main(embedded, context)
        main, main_choice = self.lm_head.cross_entropy(hidden, targets, scale, choose=use_mtp)
        mtp: list[Tensor] = []
        acceptance: list[Tensor] = []
        depths = self._depths(embedded, hidden, context) if use_mtp else iter(())
        for k, (normed, depth_balances) in enumerate(depths, start=1):
            # Row i of depth k and row i + k of the main model predict the same token.
            ahead = targets[:, k:]
            if document_starts is not None:
                ahead = ahead.masked_fill(~_same_document(document_starts, k), IGNORED)
            depth_loss, choice = self.lm_head.cross_entropy(normed, ahead, scale, choose=True)
            mtp.append(depth_loss)
            assert main_choice is not None
            counted = ahead != IGNORED
            same = (choice == main_choice[:, k:]) & counted
            acceptance.append(same.sum() / counted.sum().clamp_min(1))
            balances += depth_balances

        # Each balance loss is the mean over this call's sequences.
        share = 1.0 if num_sequences is None else tokens.shape[0] / num_sequences
        balance = torch.stack(balances).sum() * share if balances else scale.new_zeros(())
        total = main + balance
        if mtp:
            weight = self.config.mtp_weight if mtp_weight is None else mtp_weight
            total = total + weight / len(mtp) * torch.stack(mtp).sum()
        return Loss(total, main, mtp, balance, acceptance)

    def router_load(self) -> Tensor:
        """Tokens that each expert got in training mode since the last update_router_bias: int32 [routers, E].

        Summed over micro-batches; rows are the MoE layers in order, MTP's last. A copy.
        """
        loads = [router.load for router in self._routers()]
        if not loads:
            return torch.zeros(0, self.config.n_routed_experts, dtype=torch.int32)
        return torch.stack(loads)

    def set_router_load(self, load: Tensor) -> None:
        """Puts another count [routers, E] in the place of router_load's: the sum over processes, say."""
        for router, row in zip(self._routers(), load, strict=True):
            router.load.copy_(row)

    def update_router_bias(self, rate: float) -> None:
        """Moves each router's bias by `rate` against its load (paper, section 2.1.2), and zeroes the load."""
        for router in self._routers():
            router.update_bias(rate)

    def weights_changed(self) -> None:
        """Says that parameters were written: FP8 codes and BF16 copies are made anew at their next use.

        Needed only after writes that the layers do not notice (see `Derived`): they notice the steps of
        torch.optim optimizers, in-place writes, and loading.
        """
        for module in self.modules():
            if isinstance(module, Derived):
                module.weights_changed()

    def new_cache(self, batch: int, capacity: int) -> LatentCache:
        """An empty cache for `batch` sequences of at most `capacity` tokens; see `decode`."""
        weight = self.lm_head.weight
        return LatentCache(self.config, batch, capacity, stream_dtype(self.precision), weight.device)

    def decode(self, tokens: Tensor, cache: LatentCache) -> Tensor:
        """Logits [B, V] of the token after `tokens` int64 [B, T], which follow those that `cache` holds.

        Appends them to the cache. Raises ValueError where they do not fit into it.
        """
        self._check_tokens(tokens)
        length = tokens.shape[1]
        if cache.length + length > cache.capacity:
            raise ValueError(
                f"DeepseekV3.decode: {cache.length} cached and {length} new tokens exceed the cache's "
                f"capacity of {cache.capacity}; make a larger one with new_cache"
            )
        context = self._context(tokens, cache=cache)
        hidden, _ = self._main(self.model.embed_tokens(tokens), context)
        cache.advance(length)
        return self.lm_head(hidden[:, -1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DeepseekV3:
        if fn(torch.empty(0, dtype=torch.float32)).dtype != torch.float32:
            raise ValueError(
                "DeepseekV3: parameters and router biases stay float32 whatever the precision; "
                'write DeepseekV3(config, precision="bf16") instead of converting the model'
            )
        return super()._apply(fn, recurse)

    def _context(
        self,
        tokens: Tensor,
        valid: Tensor | None = None,
        balance_alpha: float = 0.0,
        cache: LatentCache | None = None,
        document_starts: Tensor | None = None,
    ) -> Context:
        if document_starts is not None:
            _check_starts(document_starts, tokens)
        start = 0 if cache is None else cache.length
        rotation = rotations(self.config, start, tokens.shape[1], tokens.device)
        return Context(rotation, valid, balance_alpha, cache, document_starts)

    def _main(self, embedded: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """The hidden state after the final norm [B, T, H], and the balance loss of each router."""
        x = embedded.to(stream_dtype(self.precision))
        balances = []
        for block in islice(self.model.layers, self.config.num_hidden_layers):
            x, balance = block(x, context)
            if balance is not None:
                balances.append(balance)
        return self.model.norm(x), balances

    def _depths(
        self, embedded: Tensor, hidden: Tensor, context: Context
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Per MTP module what the head reads of it, [B, T - k, H], and its router's balance loss.

        hidden is depth 0, the main model after its final norm.
        """
        embedded = embedded.to(hidden.dtype)
        modules = cast("list[MTPModule]", self.model.layers[self.config.num_hidden_layers :])
        for k, module in enumerate(modules, start=1):
            rows = embedded.shape[1] - k
            if rows < 1:  # the sequence ends before this depth predicts anything
                yield embedded[:, :0], []
                continue
            valid = None if context.valid is None else context.valid[:, :rows] & context.valid[:, k:]
            starts = context.document_starts
            if starts is not None:
                inside = _same_document(starts, k)
                valid, starts = inside if valid is None else valid & inside, starts[:, :rows]
            depth = Context(context.rotation[:rows], valid, context.balance_alpha, document_starts=starts)
            hidden, balance = module(hidden[:, :rows], embedded[:, k:], depth)
            yield module.normed(hidden), [] if balance is None else [balance]

    def _balance_alpha(self, asked: float | None) -> float:
        """The weight of the balance loss in one call."""
        if self.config.balance_loss != "none":
            return self.config.balance_alpha if asked is None else asked
        if asked:
            raise ValueError(
                f'DeepseekV3.loss: balance_alpha must be left out of a model with balance_loss="none", got '
                f'{asked}; configure "sequence" or "batch"'
            )
        return 0.0

    def _routers(self) -> Iterator[Router]:
        blocks = cast("list[Block]", self.model.layers)
        return (block.mlp.gate for block in blocks if isinstance(block.mlp, MoE))

    def _override(self, pattern: str, precision: Precision) -> None:
        matched: list[Any] = [
            module
            for name, module in self.named_modules()
            if isinstance(module, Derived) and hasattr(module, "precision") and fnmatchcase(name, pattern)
        ]
        if not matched:
            raise ValueError(
                f"DeepseekV3: precision_overrides pattern {pattern!r} matches no layer; "
                'patterns are module names such as "model.layers.0.mlp*"'
            )
        for module in matched:
            module.precision = precision

    def _check_tokens(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor):
            raise ValueError(
                f"DeepseekV3: tokens must be an int64 tensor [B, T], got a {type(tokens).__name__}; "
                "write torch.tensor([...])"
            )
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            remedy = "one sequence is tokens[None]" if tokens.dtype == torch.int64 else "write tokens.long()"
            raise ValueError(
                f"DeepseekV3: tokens must be int64 [B, T], got {tokens.dtype} {list(tokens.shape)}; {remedy}"
            )
        if tokens.numel() == 0:
            raise ValueError(
                f"DeepseekV3: tokens must hold at least one sequence of one token, got {list(tokens.shape)}; "
                "leave empty batches out"
            )
        longest = self.config.max_position_embeddings
        if tokens.shape[1] > longest:
            raise ValueError(
                f"DeepseekV3: a sequence must have 1 to {longest} tokens (max_position_embeddings), "
                f"got {tokens.shape[1]}; split it, or raise max_position_embeddings"
            )
        _check_ids("tokens", tokens, self.config.vocab_size)


def _after_load(model: DeepseekV3, _: Any) -> None:
    model.weights_changed()


def _check_precision(argument: str, value: Any) -> None:
    if value not in PRECISIONS:
        raise ValueError(f"DeepseekV3: {argument} must be one of {', '.join(PRECISIONS)}, got {value!r}")


def _check_ids(argument: str, ids: Tensor, vocabulary: int, besides: int | None = None) -> None:
    """Raises ValueError unless ids are in [0, vocabulary) or `besides`; does not wait for another device."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    wrong = wrong if besides is None else wrong[wrong != besides]
    if len(wrong):
        exception = "" if besides is None else f" or {besides}"
        raise ValueError(
            f"DeepseekV3: {argument} must be ids from 0 to {vocabulary - 1} (vocab_size){exception}, got "
            f"{int(wrong[0])}; encode the text with the model's own tokenizer"
        )


def _same_document(starts: Tensor, ahead: int) -> Tensor:
    """Whether position i + ahead belongs to the document of position i: bool [B, T - ahead]."""
    return starts[:, ahead:] == starts[:, : starts.shape[1] - ahead]


def _check_starts(starts: Tensor, tokens: Tensor) -> None:
    _check_like("document_starts", starts, tokens, torch.int32)
    if starts.is_cuda:  # values are not worth waiting for the device
        return
    at = torch.arange(starts.shape[1])
    if (starts < 0).any() or (starts > at).any() or (starts.diff(dim=1) < 0).any():
        raise ValueError(
            "DeepseekV3: document_starts must hold, for each position, the first one of its document: not "
            "negative, not after the position itself, and nowhere less than the one before"
        )


def _check_like(argument: str, tensor: Tensor, tokens: Tensor, dtype: torch.dtype) -> None:
    if tensor.shape != tokens.shape or tensor.dtype != dtype:
        raise ValueError(
            f"DeepseekV3: {argument} must be {dtype} {list(tokens.shape)} like tokens, "
            f"got {tensor.dtype} {list(tensor.shape)}"
        )
