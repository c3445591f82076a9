"""A whole training step beside transformers' DeepseekV3ForCausalLM: tokens a second and peak memory.

    python benchmarks/step.py                     both shapes, two threads
    python benchmarks/step.py --shape small       one of them
    python benchmarks/step.py --profile           where our step's time goes, and how much to no operator

Each contestant lives in a process of its own, which imports nothing of the other, so that each has a peak
memory of its own; they take turns. The same shape and tokens, cross entropy, gradient norm clipped at 1,
AdamW: ours trains FP32 weights in FP8 arithmetic, transformers' in the dtype named, with grouped_mm for the
experts and torch's fused AdamW. Without MTP, which transformers does not have; with it ours is timed besides.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SHAPES = {"small": (4, 512), "recipe": (8, 256)}  # sequences, tokens of each
CONTESTANTS = ("ours", "ours-mtp", "ours-bf16", "transformers-bf16", "transformers-fp32")
ROUNDS, STEPS, PROFILED = 3, 2, 12
COMPUTES_NOTHING = {
    "aten": {
        *("as_strided", "chunk", "conj", "_conj", "contiguous", "detach", "empty", "empty_like"),
        *("empty_strided", "expand", "expand_as", "flatten", "item", "linear", "_local_scalar_dense"),
        *("matmul", "mT", "narrow", "new_empty", "new_zeros", "numpy_T", "permute", "reshape"),
        *("_reshape_alias", "resolve_conj", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
        *("to", "_to_copy", "transpose", "unflatten", "unsqueeze", "_unsafe_view", "view", "view_as"),
        *("view_as_complex", "view_as_real", "zeros", "zeros_like"),
    },
    "deepseek_ext": {"moe_ffn", "moe_ffn_experts"},
}
"""Views, allocation, and operators that call others, which are counted for themselves."""


def model_config(shape: str, mtp: int) -> Any:
    """The 76 M-parameter preset, or what `make pretrain` trains."""
    from deepseek_ext import ModelConfig
    from deepseek_ext.train import TrainConfig

    if shape == "small":
        return ModelConfig.preset("small", num_nextn_predict_layers=mtp)
    return TrainConfig(mtp_depth=mtp).model_config()


def our_step(shape: str, precision: Any, mtp: int) -> Callable[[Tensor, Tensor], None]:
    """One step of ours, as the trainer takes it."""
    from deepseek_ext import DeepseekV3, ops
    from deepseek_ext.train import build_optimizer
    from deepseek_ext.train.environment import keep_freed_memory

    model = DeepseekV3(model_config(shape, mtp), precision=precision)
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, lr=1e-3)
    keep_freed_memory()

    def step(tokens: Tensor, targets: Tensor) -> None:
        with ops.accumulate_weight_gradients():
            loss = model.loss(tokens, targets).total
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        optimizer.step(grad_scale=min(1.0, 1.0 / (norm + 1e-6)))
        model.update_router_bias(0.001)
        optimizer.zero_grad()

    return step


def their_step(fields: dict[str, Any], dtype: torch.dtype) -> Callable[[Tensor, Tensor], None]:
    """One step of transformers' model, its configuration from `fields`."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(**fields)
    config._attn_implementation, config._experts_implementation = "sdpa", "grouped_mm"
    model = DeepseekV3ForCausalLM(config).to(dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)

    def step(tokens: Tensor, targets: Tensor) -> None:
        logits = model(input_ids=tokens, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(contestant: str, shape: str, fields: dict[str, Any]) -> Callable[[Tensor, Tensor], None]:
    library, _, variant = contestant.partition("-")
    if library == "ours":
        return our_step(shape, "bf16" if variant == "bf16" else "fp8", 1 if variant == "mtp" else 0)
    return their_step(fields, {"bf16": torch.bfloat16, "fp32": torch.float32}[variant])


def batch(shape: str, step: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    sequences, length = SHAPES[shape]
    generator = torch.Generator().manual_seed(step)
    rows = torch.randint(vocabulary, (sequences, length + 1), generator=generator)
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def work(contestant: str, shape: str, threads: int) -> None:
    """A contestant's process: transformers' configuration in, then a line in, seconds and peak memory out."""
    torch.set_num_threads(threads)
    fields = json.loads(sys.stdin.readline())
    step, vocabulary = build(contestant, shape, fields), fields["vocab_size"]
    step(*batch(shape, 0, vocabulary))
    print("ready", flush=True)
    for n, _ in enumerate(sys.stdin):
        inputs = [batch(shape, 1 + n * STEPS + i, vocabulary) for i in range(STEPS)]
        started = time.perf_counter()
        for tokens, targets in inputs:
            step(tokens, targets)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps([seconds / STEPS, peak]), flush=True)


def race(shape: str, threads: int) -> dict[str, tuple[float, float]]:
    """Tokens a second (median of the rounds) and peak bytes of each contestant."""
    fields = model_config(shape, 0).to_hf()
    fields.pop("quantization_config", None)
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--shape", shape, "--threads", str(threads), "--work", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in CONTESTANTS
    }
    try:
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for worker in workers.values():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(json.dumps(fields) + "\n")
            worker.stdin.flush()
            if worker.stdout.readline() != "ready\n":
                raise SystemExit("a contestant could not start; its message is above")
        for _ in range(ROUNDS):
            for name, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                samples[name].append(json.loads(worker.stdout.readline()))
    finally:
        for worker in workers.values():
            worker.terminate()
    tokens = SHAPES[shape][0] * SHAPES[shape][1]
    return {
        name: (tokens / statistics.median(s for s, _ in taken), max(p for _, p in taken))
        for name, taken in samples.items()
    }


def report(shape: str, threads: int) -> None:
    from deepseek_ext import ops

    sequences, length = SHAPES[shape]
    results = race(shape, threads)
    rival, memory = (
        max(results[n][0] for n in results if n.startswith("transformers")),
        min(results[n][1] for n in results if n.startswith("transformers")),
    )
    print(f"\n{shape}: {sequences} x {length} tokens a step, {threads} threads, tier {ops.cpu_capability()}")
    print(f"{'':20}{'tokens/s':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}")
    for name, (rate, peak) in results.items():
        print(f"{name:20}{rate:10,.0f}{rate / rival:8.2f}{peak / 2**20:10,.0f}{peak / memory:8.2f}")


def profile(shape: str, threads: int) -> None:
    """Where the time of one step goes: operators by the time they take themselves."""
    torch.set_num_threads(threads)
    step, vocabulary = our_step(shape, "fp8", 0), model_config(shape, 0).vocab_size
    for n in range(2):
        step(*batch(shape, n, vocabulary))
    fastest: Any = None
    times, shares = [], []
    for n in range(PROFILED):
        inputs = batch(shape, 2 + n, vocabulary)
        step(*inputs)  # a step as in training between two that are profiled
        with torch.profiler.profile() as run:
            started = time.perf_counter()
            step(*inputs)
            times.append(time.perf_counter() - started)
        shares.append(1 - in_operators(run) / times[-1])
        if times[-1] == min(times):
            fastest = run
    print(fastest.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
    print(
        f"{shape}: {1000 * min(times):.1f} ms (above), the fastest of {PROFILED} profiled steps; "
        f"{statistics.median(shares):.1%} of a step outside operators (median)"
    )


def in_operators(run: Any) -> float:
    """Seconds of a profiled step in operators that compute, allocation of their results included."""
    seconds, end = 0.0, 0.0
    for event in sorted(run.events(), key=lambda event: event.time_range.start):
        library, _, name = event.name.partition("::")
        if library in COMPUTES_NOTHING and name not in COMPUTES_NOTHING[library]:
            begin, until = max(event.time_range.start, end), event.time_range.end
            seconds += 1e-6 * max(until - begin, 0.0)
            end = max(end, until)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--work", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for shape in options.shape or SHAPES:
        if options.work:
            work(options.work, shape, options.threads)
        elif options.profile:
            profile(shape, options.threads)
        else:
            report(shape, options.threads)


if __name__ == "__main__":
    main()
