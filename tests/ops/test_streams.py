"""Every CUDA operator runs on its tensors' device in the current stream, and can be captured into a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemm_inputs import random_codes, random_scales
from streams import Gpu, Replay, Simulated, machine
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

pytestmark = pytest.mark.gpu_backends

# T tokens, K choices of E experts, M rows in expert order, H wide; weights [E, N, H].
T, K, E, H, N = 24, 2, 3, 160, 144
M = T * K
M_TRANSPOSED = 128 * (M // 128 + E)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def given(seed: int) -> dict[str, Arguments]:
    """Arguments of every operator with a CUDA kernel; another seed changes offsets and indices too."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    def codes(*shape: int) -> Tensor:
        return random_codes(shape, rng)

    def scales(*shape: int) -> Tensor:
        return random_scales(shape, rng)

    def permutation(count: int) -> Tensor:
        return torch.randperm(count, generator=rng).int()

    half = torch.bfloat16
    x, weights = normal(T, H, dtype=half), normal(T, K).abs()
    indices = torch.stack([permutation(E)[:K] for _ in range(T)])
    offs = torch.tensor([10, 10, M] if seed else [0, 31, M - 5], dtype=torch.int32)
    rows, slots = permutation(M), permutation(M).view(T, K)
    packed = torch.randint(0, 256, (T, H * 12 // 8), generator=rng, dtype=torch.int32).to(torch.uint8)
    packed_rows = torch.randint(0, 256, (T, 2 * H + 16), generator=rng, dtype=torch.int32).to(torch.uint8)
    transposed = codes(N, M_TRANSPOSED), scales(N, M_TRANSPOSED // 128)
    transposed += codes(H, M_TRANSPOSED), scales(H, M_TRANSPOSED // 128)
    product = codes(M, H), scales(M, 2), codes(N, H), scales(2, 2)
    route = {"top_k": K, "n_groups": 1, "topk_groups": 1, "routed_scaling_factor": 2.5}
    balance = {"num_sequences": 2, "alpha": 0.5}
    valid = torch.rand(T, generator=rng) < 0.8
    steps = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    moments = [normal(7, 33, dtype=half)], [normal(7, 33, dtype=half).abs()]
    angles = torch.polar(torch.ones(T, 8), normal(T, 8))
    heads = [normal(1, E, T, width) for width in (40, 40, 24)]
    return {
        "adamw_step_": (([normal(7, 33)], [normal(7, 33)], *moments), steps),
        "combine_rows": ((normal(M, H, dtype=half), slots, weights, x), {}),
        "cross_entropy_": ((normal(T, 300), torch.randint(0, 300, (T,), generator=rng)), {}),
        "dequantize_blocks": ((codes(E, N, H), scales(E, 2, 2), torch.float32), {}),
        "dequantize_e5m6": ((packed, scales(T, 2), H, torch.float32), {}),
        "dequantize_tiles": ((codes(T, H), scales(T, 2), half), {}),
        "exchange_ranks": ((indices, 1, E), {}),
        "expert_order": ((indices, E), {}),
        "gather_rows": ((x, rows, K, weights), {}),
        "gather_tiles": ((codes(T, H), scales(T, 2), rows, K), {}),
        "gemm": (product, {}),
        "gemm_accumulate_": ((normal(M, N), *product), {}),
        "grouped_gemm": ((*product[:2], codes(E, N, H), scales(E, 2, 2), offs), {}),
        "grouped_gemm_wgrad": ((*transposed, offs), {}),
        "grouped_gemm_wgrad_accumulate_": ((normal(E, N, H), *transposed, offs), {}),
        "inverse_order": ((rows, M), {}),
        "pack_rows": (([codes(T, H), scales(T, 2), weights], rows, K), {}),
        "quantize_blocks": ((normal(E, N, H),), {}),
        "quantize_e5m6": ((x,), {}),
        "quantize_tiles": ((x,), {}),
        "quantize_tiles_both": ((normal(M, H), offs), {}),
        "quantize_tiles_transposed": ((normal(M, H), offs), {}),
        "retile": ((codes(M, H), scales(M, 2), offs), {}),
        "retile_e5m6": ((packed, scales(T, 2), H), {}),
        "rms_norm": ((x, normal(H), 1e-6), {}),
        "rms_norm_again": ((x, normal(H), normal(T).abs()), {}),
        "rms_norm_backward": ((x, x, normal(H), normal(T).abs()), {}),
        "rope_heads_": ((normal(2, T, E * 40), normal(2, T, E * 48), normal(2, T, 16), angles, E), {}),
        "rope_heads_backward_": ((*heads, angles), {}),
        "route": ((normal(T, E), normal(E), valid), route),
        "route_backward": (
            (normal(T, K), normal(T, E), indices),
            {"routed_scaling_factor": 2.5, "norm_topk_prob": True},
        ),
        "row_dots": ((x, normal(M, H, dtype=half), slots), {}),
        "sequence_balance_loss": ((normal(T, E), indices, valid), balance),
        "sequence_balance_loss_backward": ((normal(()), normal(T, E), indices, valid), balance),
        "swiglu": ((normal(T, 2 * H), normal(T)), {}),
        "swiglu_backward": ((x, codes(T, 2 * H), scales(T, 3), normal(T)), {}),
        "swiglu_gradient": ((normal(T, H), normal(T, 2 * H), normal(T)), {}),
        "swiglu_quantize": ((normal(T, 2 * H), normal(T)), {"cache": True}),
        "transpose_blocks": ((codes(E, N, H), scales(E, 2, 2)), {}),
        "unpack_rows": ((packed_rows, rows, K, H, half, True), {}),
        "update_router_bias_": ((normal(2, E), torch.randint(0, 99, (2, E), generator=rng), 0.01), {}),
    }


OPERATORS = sorted(given(0))


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Simulated | Gpu:
    monkeypatch.delenv("DSE_CHECK", raising=False)
    return machine(request.config.getoption("--backend"))


def call(device: Simulated | Gpu, name: str, arguments: Arguments) -> Any:
    args, options = arguments
    return getattr(getattr(torch.ops, device.namespace), name)(*args, **options)


def place(device: Simulated | Gpu, arguments: Arguments) -> Arguments:
    return tree_map_only(Tensor, device.place, arguments)


def bits(tree: Any) -> list[Any]:
    return [
        x.cpu().contiguous().view(-1).view(torch.uint8) for x in tree_leaves(tree) if isinstance(x, Tensor)
    ]


def test_every_operator_is_here(device: Simulated | Gpu) -> None:
    from backends import operators

    in_python = {"causal_attention", "causal_attention_backward"}
    assert (
        set(OPERATORS)
        == operators("CPU" if isinstance(device, Simulated) else "CUDA", device.namespace) - in_python
    )


@pytest.mark.parametrize("name", OPERATORS)
def test_on_a_stream_of_the_tensors_device(name: str, device: Simulated | Gpu) -> None:
    """Into a stream of another device than the current one no kernel can be launched."""
    wanted, arguments = place(device, given(0)[name]), place(device, given(0)[name])
    results = call(device, name, wanted)
    with device.stream():
        found = call(device, name, arguments)
        assert device.current_device() == 0
    for right, got in zip(bits((results, wanted)), bits((found, arguments)), strict=True):
        assert torch.equal(right, got)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_captured_operator_replays_with_other_values(name: str, device: Simulated | Gpu) -> None:
    """Nothing runs while it is captured, nothing goes to another stream, and the host reads no values."""
    later, arguments = place(device, given(1)[name]), place(device, given(0)[name])
    replays: list[Replay] = []
    with device.stream():
        before = bits(arguments)
        with device.captured(replays):
            results = call(device, name, arguments)
        assert all(map(torch.equal, before, bits(arguments)))
        for argument, value in zip(tree_leaves(arguments), tree_leaves(later), strict=True):
            if isinstance(argument, Tensor):
                argument.copy_(value)
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                result.untyped_storage().fill_(0xA5)
        replays[0]()
        found = bits((results, arguments))
    wanted = bits((call(device, name, later), later))
    for right, got in zip(wanted, found, strict=True):
        assert torch.equal(right, got)


@pytest.mark.parametrize("name", ["quantize_tiles", "grouped_gemm"])
def test_checks_that_wait_are_refused_in_a_capture(
    name: str, device: Simulated | Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = place(device, given(0)[name])
    monkeypatch.setenv("DSE_CHECK", "1")
    with (
        device.stream(),
        device.captured([]),
        pytest.raises(RuntimeError, match=f"{name}: DSE_CHECK=1 waits"),
    ):
        call(device, name, arguments)
