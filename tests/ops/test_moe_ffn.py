"""moe_ffn against a loop over experts in FP64: on the dequantised operands, and on the unquantised ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import silu

from deepseek_ext import ops
from deepseek_ext.ops.moe_ffn import (
    combine,
    combine_backward,
    dispatch,
    dispatch_backward,
    down_wgrad,
    experts,
    experts_dgrad,
    gate_up_wgrad,
)

OPS = torch.ops.deepseek_ext
PRODUCT = 2.0**-24  # a rounded FP32 operation
BF16 = 2.0**-8  # rounding to BF16, relative to the value
E4M3 = 2.0**-4  # rounding to E4M3, relative to the value, above 2^-6 of the tile's scale


class Layer(NamedTuple):
    x: Tensor
    weights: Tensor
    indices: Tensor
    gate_up: Tensor
    down: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.x, self.weights, self.gate_up, self.down]

    def requiring_grad(self) -> Layer:
        detached = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in self]
        return Layer(*detached)

    def __call__(self) -> Tensor:
        return ops.moe_ffn(*self)


def layer(
    rng: torch.Generator,
    tokens: int = 75,
    hidden: int = 200,
    width: int = 136,
    experts: int = 6,
    top_k: int = 3,
    dtype: torch.dtype = torch.bfloat16,
) -> Layer:
    """Expert 2 stays empty, one index in ten is -1."""
    choice = torch.rand(tokens, experts, generator=rng)
    choice[:, 2] = -1
    indices = choice.argsort(1, descending=True)[:, :top_k].int()
    return Layer(
        torch.randn(tokens, hidden, generator=rng).to(dtype),
        torch.rand(tokens, top_k, generator=rng) + 0.1,
        indices.masked_fill(torch.rand(tokens, top_k, generator=rng) < 0.1, -1),
        torch.randn(experts, 2 * width, hidden, generator=rng) * hidden**-0.5,
        torch.randn(experts, hidden, width, generator=rng) * width**-0.5,
    )


def in_fp64(case: Layer) -> Tensor:
    """The same FFN, one token and one expert at a time, without any quantisation."""
    x, weights, indices, gate_up, down = (t.double() if t.is_floating_point() else t for t in case)
    out = []
    for t in range(x.shape[0]):
        total = torch.zeros_like(x[t])
        for k, e in enumerate(indices[t].tolist()):
            if e >= 0:
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                total = total + weights[t, k] * (down[e] @ (silu(gate) * up))
        out.append(total)
    return torch.stack(out)


def test_forward_within_a_bound_of_the_dequantised_loop(rng: torch.Generator) -> None:
    """Element by element, for what happens after the operands were quantised.

    With exact gate and up of the dequantised operands (error d from FP32 sums and the rounding to BF16),
    the product p = silu(gate) * up * weight is off by |silu'| <= 1.1 times |up| d_gate, plus |silu| d_up;
    quantising it adds 2^-4 |p| or 2^-10 of its scale; the sum over down's columns carries these over by
    |down|, and adds its own rounding and that of each row, of the sum over k and of the result to BF16.
    """
    case = layer(rng)
    out = ops.moe_ffn(*case).double()
    x = ops.dequantize_tiles(*ops.quantize_tiles(case.x, power_of_2=True)).double()
    gate_up = ops.dequantize_blocks(*ops.quantize_blocks(case.gate_up)).double()
    down = ops.dequantize_blocks(*ops.quantize_blocks(case.down)).double()
    hidden, width = case.down.shape[1:]
    for t, chosen in enumerate(case.indices.tolist()):
        expected, bound = torch.zeros(hidden).double(), torch.zeros(hidden).double()
        for k, e in enumerate(chosen):
            if e < 0:
                continue
            weight = case.weights[t, k].double()
            both = gate_up[e] @ x[t]
            slack = (128 + 2 + 4) * PRODUCT * (gate_up[e].abs() @ x[t].abs()) + BF16 * both.abs()
            (gate, up), (slack_gate, slack_up) = both.chunk(2), slack.chunk(2)
            product = silu(gate) * up * weight
            error = 1.1 * weight * (1.1 * up.abs() * slack_gate + silu(gate).abs() * slack_up)
            largest = torch.zeros(width).double()
            for start in range(0, width, 128):
                tile = slice(start, start + 128)
                largest[tile] = (product.abs() + error)[tile].max()
            # the scale is largest / 448, and below 2^-6 of it codes are 2^-9 apart
            error = error + torch.maximum(E4M3 * (product.abs() + error), largest / 448 * 2**-10)
            row = down[e] @ product
            slack_row = down[e].abs() @ error + 134 * PRODUCT * (down[e].abs() @ (product.abs() + error))
            expected = expected + row
            bound = bound + slack_row + BF16 * (row.abs() + slack_row) + 3 * PRODUCT * row.abs()
        bound = bound + BF16 * (expected.abs() + bound)
        assert bool(((out[t] - expected).abs() <= bound).all()), f"token {t}"
        # The bound is for the worst case; it must still say something.
        assert bool((bound <= 0.5 * expected.abs().max() + 1e-9).all()) or all(e < 0 for e in chosen)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_and_all_gradients_are_as_near_as_fp8_allows(dtype: torch.dtype, rng: torch.Generator) -> None:
    """Against FP64 without quantisation, in the Euclidean norm over each result.

    A value rounded to 4 significant bits is off by 2^-4 at most and by about 2^-5.2 = 2.7 % in the root
    mean square; independent errors of the factors of a sum of products add in squares. From input to output
    5 roundings meet (x, gate_up twice through its two halves' product, the product, down): sqrt(5) * 2.7 %
    = 6.1 %, and the nonlinearity raises gate's share by up to 1.3. A gradient meets at most 3 more (the
    output's gradient, the cached gate_up, the re-tiled operand): sqrt(8) * 2.7 % = 7.7 %. Hence 10 % for
    all; a gradient that lacked a factor, an expert or its weight would be off by far more.
    """
    case = layer(rng, tokens=120, hidden=256, width=128, dtype=dtype)
    ours, exact = case.requiring_grad(), case.requiring_grad()
    grad = torch.randn(case.x.shape, generator=rng).to(dtype)
    out, wanted = ours(), in_fp64(exact)
    assert out.dtype == dtype
    assert relative(out, wanted) < 0.10
    out.backward(grad)
    wanted.backward(grad.double())
    for name, a, b in zip(("x", "weights", "gate_up", "down"), ours.leaves(), exact.leaves(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == a.dtype
        assert relative(a.grad, b.grad.double()) < 0.10, name
        if name in ("gate_up", "down"):
            assert not a.grad[2].any(), "an expert without tokens gets exact zeros"
            for e in (0, 1, 3, 4, 5):
                assert relative(a.grad[e], b.grad[e].double()) < 0.12, f"{name} of expert {e}"
    absent = case.indices < 0
    assert ours.weights.grad is not None
    assert not ours.weights.grad[absent].any()


def backward(case: Layer, grad: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    leaves = case.requiring_grad()
    out = ops.moe_ffn(*leaves, **options)
    return out, list(torch.autograd.grad(out, leaves.leaves(), grad))


def test_the_order_of_tokens_does_not_matter(rng: torch.Generator) -> None:
    """Permuted tokens give the same bits, permuted; weight gradients sum other tiles, hence the FP8 bound."""
    case = layer(rng, tokens=70)  # more than 64 rows in all, and the same number
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    order = torch.randperm(70, generator=rng)
    shuffled = case._replace(x=case.x[order], weights=case.weights[order], indices=case.indices[order])
    out, (grad_x, grad_weights, *grads) = backward(case, grad)
    out_s, (grad_x_s, grad_weights_s, *grads_s) = backward(shuffled, grad[order])
    assert torch.equal(out[order], out_s)
    assert torch.equal(grad_x[order], grad_x_s)
    assert torch.equal(grad_weights[order], grad_weights_s)
    for a, b in zip(grads, grads_s, strict=True):
        assert relative(a, b.double()) < 0.06


def test_the_same_bits_every_run_and_for_every_number_of_threads(rng: torch.Generator) -> None:
    case = layer(rng)
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        out, grads = backward(case, grad)
        results.append([out, *grads])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_codes_made_once_give_the_same_bits(rng: torch.Generator) -> None:
    case = layer(rng)
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    codes = ops.quantize_blocks(case.gate_up), ops.quantize_blocks(case.down)
    out, grads = backward(case, grad)
    out_c, grads_c = backward(case, grad, codes=codes)
    assert torch.equal(out, out_c)
    assert all(torch.equal(a, b) for a, b in zip(grads, grads_c, strict=True))


@pytest.mark.parametrize("index", [-1, 3])
def test_all_tokens_to_one_expert_or_to_none(index: int, rng: torch.Generator) -> None:
    case = layer(rng, tokens=40, top_k=1)
    case = case._replace(indices=torch.full((40, 1), index, dtype=torch.int32))
    out, grads = backward(case, torch.ones(40, 200).bfloat16())
    if index < 0:
        assert not any(bool(t.any()) for t in (out, *grads))
    else:
        assert relative(out, in_fp64(case)) < 0.10
        assert [bool(g.any()) for g in grads[2]] == [e == index for e in range(6)]


def test_no_tokens(rng: torch.Generator) -> None:
    case = layer(rng, tokens=0)
    out, grads = backward(case, torch.ones(0, 200).bfloat16())
    assert out.shape == (0, 200)
    assert not any(bool(t.any()) for t in grads)


def test_nan_stays_with_its_token(rng: torch.Generator) -> None:
    case = layer(rng)
    x = case.x.clone()
    x[7, 3] = torch.nan
    case.indices[7] = torch.tensor([0, 1, 3])
    out = ops.moe_ffn(*case._replace(x=x))
    assert out.isnan().any(1).nonzero().flatten().tolist() == [7]


def test_the_phases_are_the_whole(rng: torch.Generator) -> None:
    """Called one by one, as a schedule would call them, they give the operator's bits."""
    case = layer(rng)
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    codes = ops.quantize_blocks(case.gate_up), ops.quantize_blocks(case.down)
    out, grads = backward(case, grad, codes=codes)
    order = ops.expert_order(case.indices, 6)
    tiles = ops.quantize_tiles(case.x, power_of_2=True)
    rows = dispatch(*tiles, case.weights, order.rows)
    rows_out, cache = experts(rows, order.offs, codes, torch.bfloat16)
    assert torch.equal(combine(rows_out, order.slots), out)
    grad_rows_out = combine_backward(grad, order.rows, 3)
    grad_rows, grad_row_weights, operands = experts_dgrad(
        grad_rows_out, cache, rows.weights, order.offs, codes, torch.bfloat16
    )
    grad_x, grad_weights = dispatch_backward(grad_rows, grad_row_weights, order.slots)
    grad_gate_up = gate_up_wgrad(rows, operands, order.offs)
    grad_down = down_wgrad(grad_rows_out, operands, order.offs)
    by_phases = [grad_x, grad_weights, grad_gate_up, grad_down]
    assert all(torch.equal(a, b) for a, b in zip(grads, by_phases, strict=True))


def test_what_is_saved_for_backward(rng: torch.Generator) -> None:
    """Per token the FP8 tiles of x, per row those of gate_up, routing, weight codes: nothing wider."""
    case = layer(rng, tokens=256, hidden=256, width=128).requiring_grad()
    codes = ops.quantize_blocks(case.gate_up.detach()), ops.quantize_blocks(case.down.detach())
    ours = {t.untyped_storage().data_ptr() for pair in codes for t in pair}
    saved: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in ours:
            saved[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = ops.moe_ffn(*case, codes=codes)
    assert out.requires_grad
    size = sum(t.untyped_storage().nbytes() for t in saved.values())
    tokens, rows = 256, 256 * 3
    tiles = tokens * (256 + 2 * 4) + rows * (256 + 2 * 4)
    routing = rows * (4 + 4 + 4) + 6 * 4  # weights, rows, slots; offs
    assert size == tiles + routing


@pytest.mark.parametrize("needs", ["x", "weights", "gate_up", "down"])
def test_one_gradient_alone(needs: str, rng: torch.Generator) -> None:
    case = layer(rng)
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    everything = dict(zip(("x", "weights", "gate_up", "down"), backward(case, grad)[1], strict=True))
    leaf = getattr(case, needs).clone().requires_grad_()
    ops.moe_ffn(*case._replace(**{needs: leaf})).backward(grad)
    assert torch.equal(leaf.grad, everything[needs])


def test_compiles_without_graph_breaks(rng: torch.Generator) -> None:
    case = layer(rng)
    grad = torch.randn(case.x.shape, generator=rng).bfloat16()
    compiled = torch.compile(ops.moe_ffn, fullgraph=True, backend="aot_eager", dynamic=True)
    leaves = case.requiring_grad()
    out = compiled(*leaves)
    grads = torch.autograd.grad(out, leaves.leaves(), grad)
    expected, expected_grads = backward(case, grad)
    assert torch.equal(out, expected)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected_grads, strict=True))


def test_opcheck(rng: torch.Generator) -> None:
    case = layer(rng)
    codes = *ops.quantize_blocks(case.gate_up), *ops.quantize_blocks(case.down)
    # test_schema compares inputs before and after, and test_aot_dispatch_dynamic sums outputs where gradients
    # are wanted: torch can do neither for FP8 tensors. test_compiles_without_graph_breaks does the second.
    torch.library.opcheck(
        OPS.moe_ffn.default,
        (*case.requiring_grad(), *codes),
        test_utils=("test_autograd_registration", "test_faketensor"),
    )
    torch.library.opcheck(
        OPS.moe_ffn.default,
        (*case, *codes),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def wrong(codes: Any = None, exchange: Any = None, **changes: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        good = Layer(
            torch.zeros(4, 128), torch.zeros(4, 2), torch.zeros(4, 2).int(), torch.zeros(3, 256, 128),
            torch.zeros(3, 128, 128),
        )  # fmt: skip
        return ops.moe_ffn(*good._replace(**changes), codes=codes, exchange=exchange)

    return run


Z = torch.zeros
ERRORS = [
    (wrong(exchange="group"), "moe_ffn: exchange must be of type Routing, got str"),
    (wrong(x=Z(4, 128).half()), "moe_ffn: x must be bfloat16 or float32, got float16"),
    (wrong(x=Z(2, 2, 128)), r"x must be \[T, H\], got shape \[2, 2, 128\]; flatten"),
    (wrong(indices=Z(4, 2).long()), "indices must be int32, got int64; pass the indices of route"),
    (wrong(indices=Z(5, 2).int()), r"indices must be \[T, K\] with T = 4 and K >= 1, got \[5, 2\]"),
    (wrong(weights=Z(4, 2).bfloat16()), "weights must be float32, got bfloat16"),
    (wrong(weights=Z(4, 3)), r"weights must be \[T, K\] = \[4, 2\], got \[4, 3\]"),
    (wrong(gate_up=Z(3, 256, 64)), r"gate_up must be \[E, 2I, H\], H = 128 as in x, got \[3, 256, 64\]"),
    (wrong(gate_up=Z(3, 255, 128)), r"gate_up must be \[E, 2I, H\]"),
    (wrong(down=Z(3, 128, 256)), r"down must be \[E, H, I\] = \[3, 128, 128\], got \[3, 128, 256\]"),
    (
        wrong(codes=((Z(1), Z(1)), (Z(1), Z(1)))),
        r"codes of gate_up must be float8_e4m3fn of its shape \[3, 256, 128\], got float32 \[1\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)
