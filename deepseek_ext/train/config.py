"""What a run is: one dataclass, every field a flag, and one dial, depth, that derives the rest."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config import BalanceLoss, ModelConfig
from ..nn.linear import Precision
from .profiling import window
from .schedules import Schedules, extension, scaled

Preset = Literal["deepseek-v3", "deepseek-v3-16b", "small", "tiny"]

# A resumed run may change these; everything else is part of what the run is.
FREE_TO_CHANGE = {
    *("tokens", "minutes", "data", "tokenizer"),  # checked by what they stand for
    *("run_dir", "checkpoint_every", "keep_last", "resume", "threads", "ep", "timeout"),
    *("validate_every", "prompts", "telemetry", "log", "profile"),
}
_POSITIVE = (
    *("depth", "tokens", "minutes", "vocab_size", "checkpoint_every", "keep_last", "threads", "seq_len"),
    *("sequences", "micro_sequences", "lr", "grad_clip", "hidden_size", "heads", "experts", "expert_size"),
    *("ep", "timeout", "validate_every", "telemetry"),
    *("sequences_start", "warmup_steps", "rope_factor", "rope_original"),
)
_NOT_NEGATIVE = ("weight_decay", "bias_update_speed", "balance_alpha", "mtp_depth", "seed", "fim_rate")
_SHAPE = ("hidden_size", "heads", "experts", "expert_size")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A pre-training run; the defaults are the small but complete DeepSeek-V3 that `make pretrain` trains.

    Fields that default to None are derived from `depth`. Raises ValueError for values that cannot work.
    """

    depth: int = 4
    """Layers of the model; width, heads, experts, batch and learning rate follow from it unless given."""
    tokens: int = 2_500_000
    """Length of the run: tokens of text to train on."""
    minutes: float | None = None
    """Instead of --tokens: times ten steps and fixes as many tokens as fit into so many minutes."""
    data: tuple[str, ...] = ()
    """PATH or PATH=WEIGHT each: text, .jsonl, tokens (.npy, .bin), folders or globs. Default: Python's own
    sources."""
    tokenizer: Path | None = None
    """A tokenizer.json to use. Default: a byte-level BPE trained on the training split at first use."""
    vocab_size: int = 4096
    """Rows of the model's embedding, and tokens of the BPE where one is trained."""
    precision: Precision = "fp8"
    """Arithmetic of the Linear layers: fp8 (the paper's), bf16 or fp32."""
    run_dir: Path = Path("runs/pretrain")
    """Where checkpoints, metrics.jsonl and the tokenizer are written."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    keep_last: int = 3
    """Checkpoints kept; older ones are deleted."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest checkpoint of run_dir; never: begin anew, moving an old run aside."""
    seed: int = 0
    """Of the initial weights and of the order of the data."""
    threads: int | None = None
    """Threads of torch and of the kernels; None leaves it to torch."""
    ep: int = 1
    """Processes over which the routed experts of a layer are spread, of those that torchrun started; each
    process holds 1/ep of the experts. The others hold copies."""
    timeout: float = 300.0
    """Seconds after which a run of several processes ends when one of them no longer answers."""

    fim_rate: float = 0.0
    """Share of training documents read as prefix, suffix, middle; the paper's is 0.1."""
    document_masking: bool = False
    """Confine attention to documents. Without it a sequence is packed from documents that see one another."""
    init_from: Path | None = None
    """A run whose weights to start from: a second phase, with an optimizer that begins anew and the learning
    rate held constant after its warm-up; see `deepseek-ext extend`."""
    rope_factor: float | None = None
    """How much longer the context is than rope_original: extends the rotary positions by YaRN."""
    rope_original: int | None = None
    """Length of the sequences that the model was first trained on, for rope_factor."""

    seq_len: int = 256
    """Tokens of a sequence."""
    sequences: int | None = None
    """Sequences of an optimizer step."""
    sequences_start: int | None = None
    """Sequences of the first steps: grows to --sequences over the first 3.2 % of the tokens, as in the paper
    (from 3072 to 15360 over 469 billion)."""
    micro_sequences: int | None = None
    """Sequences of one forward and backward pass; None runs the whole step in one."""
    lr: float | None = None
    """Peak learning rate."""
    warmup_steps: int | None = None
    """Steps until the learning rate has reached its peak; None: 4 % of the tokens. The paper's are 2000."""
    weight_decay: float = 0.1
    """Of AdamW, on matrices only."""
    grad_clip: float = 1.0
    """Norm to which the gradient is clipped."""
    bias_update_speed: float = 0.01
    """gamma of the router's load balancing. The paper's 0.001 is for runs of a million steps; 0 leaves the
    bias at zero."""
    balance_loss: BalanceLoss = "sequence"
    """Evens out the experts within each sequence (the paper's), within each micro-batch, or not at all."""
    balance_alpha: float = 1e-4
    """Weight of the balance loss."""

    ema_decay: float | None = None
    """Keeps a moving average of the weights, with this decay (0.999, say), and validates it too."""

    preset: Preset | None = None
    """A named shape of the model (`ModelConfig.preset`) instead of the one that depth derives."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    heads: int | None = None
    """Attention heads."""
    experts: int | None = None
    """Routed experts, in 4 groups of which a token uses 2; each token goes to 4 experts and 1 shared one."""
    expert_size: int | None = None
    """Width of one expert."""
    mtp_depth: int = 1
    """Multi-token prediction modules."""

    validate_every: int | None = None
    """Steps between validations with samples; None: a quarter of the run, and its end."""
    prompts: tuple[str, ...] | None = None
    """Prompts whose greedy continuation is shown after each validation. Default: three of Python; with --data
    the beginnings of three held-out documents."""

    telemetry: int | None = None
    """Steps between rows of telemetry.jsonl: what FP8 does to each operand, and each router's load."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside metrics.jsonl."""
    profile: str | None = None
    """FIRST:COUNT, e.g. 20:5: writes torch.profiler's trace of these steps to the run's folder profile."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{flag(name)} must be positive, got {value}")
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{flag(name)} must not be negative, got {getattr(self, name)}")
        for name in (*_POSITIVE, *_NOT_NEGATIVE):
            if getattr(self, name) == math.inf:
                raise ValueError(f"{flag(name)} must be finite, got inf")
        if self.seed >= 2**63:
            raise ValueError(f"--seed must be below 2^63, got {self.seed}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"--ema-decay must lie between 0 and 1, got {self.ema_decay}")
        if self.profile is not None:
            window(self.profile)
        if self.seq_len <= self.mtp_depth:
            raise ValueError(
                f"--seq-len {self.seq_len} leaves nothing to predict for --mtp-depth {self.mtp_depth}"
            )
        if self.experts is not None and (self.experts % 4 or self.experts < 8):
            raise ValueError(f"--experts must be a multiple of 4, at least 8 (4 groups), got {self.experts}")
        if self.micro_sequences and self.sequences and self.sequences % self.micro_sequences:
            raise ValueError(
                f"--sequences {self.sequences} must be a multiple of --micro-sequences {self.micro_sequences}"
            )

        if self.fim_rate > 1:
            raise ValueError(f"--fim-rate is a share of documents, at most 1, got {self.fim_rate}")
        if (self.rope_factor is None) != (self.rope_original is None):
            raise ValueError("--rope-factor and --rope-original go together; give both or neither")
        if self.preset and (given := [name for name in _SHAPE if getattr(self, name) is not None]):
            raise ValueError(f"--preset {self.preset} is a whole shape; leave {flag(given[0])} out")
        self._check_ramp()

    def _check_ramp(self) -> None:
        if self.sequences_start is None:
            return
        if self.init_from is not None:
            raise ValueError(
                "--sequences-start is for a first phase; leave it out where --init-from is given"
            )
        sequences, quantum = self._pace()[0], self.micro_sequences or 1
        if self.sequences_start > sequences or self.sequences_start % quantum:
            raise ValueError(
                f"--sequences-start must be at most --sequences ({sequences}) and a multiple of "
                f"--micro-sequences ({quantum}), got {self.sequences_start}"
            )

    def check_processes(self, processes: int) -> None:
        """Raises ValueError if so many processes cannot share this run, saying which numbers can."""
        if processes % self.ep:
            possible = [n for n in range(1, processes + 1) if processes % n == 0]
            raise ValueError(
                f"--ep {self.ep} does not divide the {processes} processes; choose one of {possible}, or "
                f"start a multiple of {self.ep} processes"
            )
        if (experts := self.model_config().n_routed_experts) % self.ep:
            raise ValueError(f"--ep {self.ep} must divide the {experts} routed experts of a layer")
        quantum = processes * (self.micro_sequences or 1)
        for name, sequences in (("sequences", self._pace()[0]), ("sequences_start", self.sequences_start)):
            if sequences is not None and sequences % quantum:
                of_each = f" of {self.micro_sequences} sequences a pass" if self.micro_sequences else ""
                raise ValueError(
                    f"{flag(name)} {sequences} cannot be shared by {processes} processes{of_each}; choose a "
                    f"multiple of {quantum}, such as {quantum * max(1, round(sequences / quantum))}"
                )

    def derived(self) -> TrainConfig:
        """A copy in which every field that depth derives has its value."""
        hidden, heads, experts, expert_size = self._shape()
        sequences, lr = self._pace()
        if self.preset:
            return replace(self, sequences=sequences, lr=lr)
        return replace(
            self,
            hidden_size=hidden,
            heads=heads,
            experts=experts,
            expert_size=expert_size,
            sequences=sequences,
            lr=lr,
        )

    def _shape(self) -> tuple[int, int, int, int]:
        """Width, heads, experts and width of an expert."""
        hidden = self.hidden_size or 64 * max(self.depth, 2)
        experts = self.experts or (32 if self.depth <= 8 else 64)
        return hidden, self.heads or max(hidden // 64, 2), experts, self.expert_size or max(64, hidden // 2)

    def _pace(self) -> tuple[int, float]:
        """Sequences a step and peak learning rate."""
        hidden = ModelConfig.preset(self.preset).hidden_size if self.preset else self._shape()[0]
        return self.sequences or self.micro_sequences or 8, self.lr or 2e-3 * (256 / hidden) ** 0.5

    def model_config(self) -> ModelConfig:
        """The shape of the model."""
        if self.preset:
            longest = ModelConfig.preset(self.preset).max_position_embeddings
            return ModelConfig.preset(self.preset, **self._common(longest))
        hidden, heads, experts, expert_size = self._shape()
        return ModelConfig(
            hidden_size=hidden,
            num_hidden_layers=self.depth,
            first_k_dense_replace=1 if self.depth > 1 else 0,
            intermediate_size=5 * expert_size,  # what a token passes in an MoE layer
            num_attention_heads=heads,
            q_lora_rank=max(64, hidden // 2),
            kv_lora_rank=max(64, hidden // 4),
            qk_nope_head_dim=32,
            qk_rope_head_dim=32,
            v_head_dim=64,
            n_routed_experts=experts,
            n_shared_experts=1,
            moe_intermediate_size=expert_size,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            # The paper's 0.006 at width 7168 is 0.5 / sqrt(7168).
            initializer_range=0.5 / hidden**0.5,
            **self._common(4096),
        )

    def _common(self, longest: int) -> dict[str, Any]:
        """What the model is given whatever its shape; longest: positions of the shape."""
        yarn = None
        if self.rope_factor is not None and self.rope_original is not None:
            yarn = {  # the released model's settings
                "type": "yarn",
                "factor": self.rope_factor,
                "original_max_position_embeddings": self.rope_original,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            }
            longest = max(longest, math.ceil(self.rope_factor * self.rope_original))
        return {
            "vocab_size": self.vocab_size,
            "balance_loss": self.balance_loss,
            "balance_alpha": self.balance_alpha,
            "num_nextn_predict_layers": self.mtp_depth,
            "max_position_embeddings": max(longest, self.seq_len),
            "rope_scaling": yarn,
        }

    def schedules(self, *, processes: int = 1) -> Schedules:
        """The paper's schedules with their shapes scaled to this run's tokens; a second phase has its own."""
        sequences, lr = self._pace()
        settings: dict[str, Any] = {
            "lr": lr,
            "sequences": sequences,
            "seq_len": self.seq_len,
            "bias_update_speed": self.bias_update_speed,
            "balance_alpha": self.balance_alpha,
            "warmup_steps": self.warmup_steps,
        }
        if self.init_from is not None:
            return extension(self.tokens, **settings)
        return scaled(
            self.tokens,
            sequences_start=self.sequences_start,
            quantum=processes * (self.micro_sequences or 1),
            **settings,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as what json can hold."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TrainConfig:
        """The inverse of to_json."""
        values = dict(fields)
        for name in ("data", "log"):
            values[name] = tuple(values.get(name, ()))
        values["prompts"] = None if values.get("prompts") is None else tuple(values["prompts"])
        values["run_dir"] = Path(values["run_dir"])
        for name in ("tokenizer", "init_from"):
            values[name] = Path(values[name]) if values.get(name) else None
        return cls(**values)


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def differences(stored: TrainConfig, asked: TrainConfig) -> list[str]:
    """The flags, with both values, that make `asked` another run than `stored`."""
    before, now = stored.to_json(), asked.to_json()
    return [
        f"{flag(name)} {before[name]} there, {now[name]} here"
        for name in before
        if name not in FREE_TO_CHANGE and before[name] != now[name]
    ]


def describe(config: TrainConfig) -> str:
    """One line: what depth derived."""
    c = config.derived()
    m = c.model_config()
    s = c.schedules()
    batch = f"{c.sequences} sequences"
    if c.sequences_start:
        batch = f"{c.sequences_start} to {c.sequences} sequences"
    shape = f"--preset {c.preset}" if c.preset else f"--depth {c.depth}"
    return (
        f"{shape}: {m.num_hidden_layers} layers of width {m.hidden_size}, "
        f"{m.num_attention_heads} heads, {m.n_routed_experts} experts of width {m.moe_intermediate_size} "
        f"(top-{m.num_experts_per_tok} in {m.topk_group} of {m.n_group} groups, {m.n_shared_experts} "
        f"shared), MTP depth {m.num_nextn_predict_layers}; {batch} of {c.seq_len} tokens "
        f"a step, peak learning rate {s.lr.peak:.2g} after "
        f"{s.lr.warmup:,} tokens"
    )
