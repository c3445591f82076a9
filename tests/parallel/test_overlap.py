"""Work between start and finish overlaps the exchange: with a delay put into it, the two take no longer than
the longer one."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from ranks import WORLD, Place, Ranks

from deepseek_ext import DeepseekV3, ModelConfig, parallel
from deepseek_ext.nn.moe import MoE, SwiGLU
from deepseek_ext.nn.recompute import as_it_is
from deepseek_ext.parallel import ExpertGroup

DELAY = 0.05
HIDDEN = 64


class _Late(dist.Work):
    """Done no earlier than `when`."""

    def __init__(self, work: dist.Work, when: float) -> None:
        super().__init__()
        self._work, self._when = work, when

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        time.sleep(max(0.0, self._when - time.monotonic()))
        return bool(self._work.wait())


class Delayed(dist.ProcessGroup):
    """A group whose exchanges of rows take DELAY longer; it counts them."""

    def __init__(self, group: dist.ProcessGroup, rows_from: int) -> None:
        super().__init__(group.rank(), group.size())
        self._group, self._rows_from = group, rows_from
        self.exchanges = 0

    def alltoall_base(self, out: Any, given: Any, out_sizes: Any, in_sizes: Any, options: Any) -> dist.Work:
        work = self._group.alltoall_base(out, given, out_sizes, in_sizes, options)
        if given.shape[-1] < self._rows_from:  # the few numbers of create_routing
            return work
        self.exchanges += 1
        return _Late(work, time.monotonic() + DELAY)

    def getBackendName(self) -> str:
        return "delayed"


@contextlib.contextmanager
def delayed(group: dist.ProcessGroup) -> Iterator[tuple[Delayed, ExpertGroup]]:
    slow: Any = Delayed(group, rows_from=HIDDEN)
    torch._C._distributed_c10d._register_process_group("delayed", slow)
    try:
        yield slow, ExpertGroup(("delayed",), (group.size(),))
    finally:
        torch._C._distributed_c10d._unregister_process_group("delayed")


def overlaps(place: Place) -> list[tuple[float, float]]:
    """Seconds of forward and of backward with work of a known length beside them, the best of some."""
    results = []
    with delayed(place.groups[WORLD]) as (slow, group):
        x = torch.randn(32, HIDDEN, requires_grad=True)
        weights = torch.rand(32, 2, requires_grad=True)
        indices = torch.rand(32, 8).argsort(1)[:, :2].int()
        for _ in range(5):
            before = slow.exchanges
            routing = parallel.create_routing(indices, 8, group)
            dist.barrier(group=place.groups[WORLD])
            start = time.monotonic()
            sent = parallel.dispatch_start(x, weights, routing)
            shared = _Sleeps.apply(x)
            rows, _, _ = parallel.dispatch_finish(sent)
            forward = time.monotonic() - start
            (rows.sum() + shared.sum()).backward(inputs=(x, weights))
            backward = time.monotonic() - start - forward
            assert slow.exchanges == before + 2
            results.append((forward, backward))
    return results


class _Sleeps(torch.autograd.Function):
    """Work that takes as long as an exchange, both ways."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        time.sleep(DELAY)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        time.sleep(DELAY)
        return grad


def test_what_runs_between_start_and_finish_is_free(ranks: Ranks) -> None:
    """Forward beside the tokens' way out, backward beside the gradients' way home: the longer of the two, and
    15 %."""
    for times in ranks.run(overlaps):
        assert min(forward for forward, _ in times) <= 1.15 * DELAY
        assert min(backward for _, backward in times) <= 1.15 * DELAY


CONFIG = {
    "vocab_size": 32, "hidden_size": HIDDEN, "intermediate_size": 64, "moe_intermediate_size": 16,
    "num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": 1, "q_lora_rank": None,
    "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "num_nextn_predict_layers": 0, "max_position_embeddings": 64,
}  # fmt: skip


class _Slow(torch.nn.Module):
    """The shared expert, each of its two parts longer by DELAY, and its backward too."""

    def __init__(self, shared: SwiGLU) -> None:
        super().__init__()
        self.shared = shared

    def begin(self, x: Any) -> Any:
        time.sleep(DELAY)
        return self.shared.begin(x)

    def forward(self, begun: Any) -> torch.Tensor:
        return _Sleeps.apply(self.shared(begun))


@contextlib.contextmanager
def slow_weight_gradients() -> Iterator[None]:
    """That of a routed expert's gate and up takes DELAY longer."""
    moe_ffn: Any = importlib.import_module("deepseek_ext.ops.moe_ffn")  # ops has a function of its name
    undisturbed = moe_ffn.gate_up_wgrad

    def late(*args: Any) -> torch.Tensor:
        time.sleep(DELAY)
        return undisturbed(*args)

    moe_ffn.gate_up_wgrad = late
    try:
        yield
    finally:
        moe_ffn.gate_up_wgrad = undisturbed


def layer_overlaps(place: Place) -> list[tuple[float, float, float]]:
    """Seconds of a MoE layer: forward, backward, and of both without delays."""
    results = []
    with delayed(place.groups[WORLD]) as (slow, group):
        model = DeepseekV3(ModelConfig(**CONFIG), precision="fp8")
        parallel.shard_experts(model, group)
        moe = next(module for module in model.modules() if isinstance(module, MoE))
        shared = moe.shared_experts
        assert shared is not None
        late: Any = _Slow(shared)
        context: Any = type("Context", (), {"valid": None, "balance_alpha": 0.0})
        plain = ExpertGroup.flat(place.groups[WORLD])

        def run(chosen: ExpertGroup, expert: Any) -> tuple[float, float]:
            moe.experts.group, moe.shared_experts = chosen, expert
            x = torch.randn(1, 32, HIDDEN, requires_grad=True)
            dist.barrier(group=place.groups[WORLD])
            start = time.monotonic()
            y, _ = moe(as_it_is(x), context)
            forward = time.monotonic() - start
            y.sum().backward()
            return forward, time.monotonic() - start - forward

        for _ in range(5):
            before = slow.exchanges
            with slow_weight_gradients():
                forward, backward = run(group, late)
            assert slow.exchanges == before + 4
            results.append((forward, backward, sum(run(plain, shared))))
    return results


def test_a_layer_overlaps_all_four_exchanges(ranks: Ranks) -> None:
    """Each way has two exchanges of DELAY, and as much to do beside them: forward the shared expert's two
    parts, backward the shared expert and the weight gradients of the routed ones."""
    for times in ranks.run(layer_overlaps):
        forward, backward, undelayed = (min(column) for column in zip(*times, strict=True))
        assert forward <= 1.15 * (2 * DELAY + undelayed)
        assert backward <= 1.15 * (2 * DELAY + undelayed)
        assert undelayed < DELAY  # or a hidden delay could not be told from a fast layer
