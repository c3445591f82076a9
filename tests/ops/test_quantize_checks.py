"""What surrounds the kernels: argument errors (fakes raise the same), opcheck, strides, torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from deepseek_ext import ops

E4M3 = torch.float8_e4m3fn


def codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=E4M3)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


ONES, MATRIX = torch.ones, torch.ones(4, 200)
OFFS_TEXT = "offs must be int32 [E] with E >= 1, got {}; give the end offset of each group"
FLOAT_TEXT = "must be bfloat16, float16 or float32, got {}; convert it with .float()"

# operator, arguments, the text after "operator: "
BAD_CALLS: list[tuple[str, tuple[object, ...], str]] = [
    ("quantize_tiles", (torch.ones(()),), "x must be [..., K], got a scalar; reshape it to [1]"),
    ("quantize_tiles", (torch.ones(3, dtype=torch.int64),), "x " + FLOAT_TEXT.format("int64")),
    (
        "quantize_tiles_transposed",
        (ONES(2, 3, 4),),
        "x must be [M, K], got [2, 3, 4]; flatten the leading dimensions into M",
    ),
    ("quantize_tiles_transposed", (MATRIX.double(),), "x " + FLOAT_TEXT.format("float64")),
    ("quantize_tiles_transposed", (MATRIX, torch.tensor([4])), OFFS_TEXT.format("int64 [1]")),
    ("quantize_tiles_both", (ONES(5),), "x must be [M, K], got [5]; flatten the leading dimensions into M"),
    ("quantize_tiles_both", (codes(4, 4),), "x " + FLOAT_TEXT.format("float8_e4m3fn")),
    ("quantize_tiles_both", (MATRIX, int32()), OFFS_TEXT.format("int32 [0]")),
    ("quantize_blocks", (ONES(5),), "w must be [N, K] or [E, N, K], got [5]; reshape it to one of them"),
    ("quantize_blocks", (MATRIX.bool(),), "w " + FLOAT_TEXT.format("bool")),
    (
        "transpose_blocks",
        (codes(5), ONES(1)),
        "codes must be [N, K] or [E, N, K], got [5]; reshape it to one of them",
    ),
    ("transpose_blocks", (MATRIX, ONES(1, 2)), "codes must be float8_e4m3fn, got float32; quantise first"),
    (
        "transpose_blocks",
        (codes(130, 200), ONES(1, 2)),
        "scales must be float32 [2, 2] for codes [130, 200] in blocks of 128x128, got float32 [1, 2]; "
        "pass the scales that were made with them",
    ),
    ("dequantize_tiles", (codes(), ONES(1)), "codes must be [..., K], got a scalar; reshape it to [1]"),
    ("dequantize_tiles", (MATRIX, ONES(4, 2)), "codes must be float8_e4m3fn, got float32; quantise first"),
    (
        "dequantize_tiles",
        (codes(4, 200), torch.ones(4, 2, dtype=torch.bfloat16)),
        "scales must be float32 [4, 2] for codes [4, 200] in tiles of 128, got bfloat16 [4, 2]; "
        "pass the scales that were made with them",
    ),
    (
        "dequantize_tiles",
        (codes(4, 200), ONES(4, 2), torch.int32),
        "dtype must be bfloat16, float16 or float32, got int32; convert the result instead",
    ),
    (
        "dequantize_blocks",
        (codes(4, 200), ONES(1, 2), torch.float64),
        "dtype must be bfloat16, float16 or float32, got float64; convert the result instead",
    ),
    (
        "dequantize_blocks",
        (codes(2, 4, 200), ONES(2, 2)),
        "scales must be float32 [2, 1, 2] for codes [2, 4, 200] in blocks of 128x128, got float32 [2, 2]; "
        "pass the scales that were made with them",
    ),
    ("retile", (codes(5), ONES(1)), "codes must be [M, K], got [5]; flatten the leading dimensions into M"),
    (
        "retile",
        (codes(4, 200), ONES(4, 1)),
        "scales must be float32 [4, 2] for codes [4, 200] in tiles of 128, got float32 [4, 1]; "
        "pass the scales that were made with them",
    ),
    ("retile", (codes(4, 200), ONES(4, 2), ONES(2, 2)), OFFS_TEXT.format("float32 [2, 2]")),
    ("quantize_e5m6", (torch.ones(()),), "x must be [..., K], got a scalar; reshape it to [1]"),
    ("quantize_e5m6", (torch.ones(3, dtype=torch.uint8),), "x " + FLOAT_TEXT.format("uint8")),
    ("dequantize_e5m6", (ONES(3, 12), ONES(3, 1), 8), "packed must be uint8, got float32; use quantize_e5m6"),
    (
        "dequantize_e5m6",
        (torch.zeros(3, 12, dtype=torch.uint8), ONES(3, 1), -1),
        "k must not be negative, got -1; give the row length before packing",
    ),
    (
        "dequantize_e5m6",
        (torch.zeros(3, 12, dtype=torch.uint8), ONES(3, 1), 9),
        "packed must be [3, 24] for k = 9, got [3, 12]; give k as it was before packing",
    ),
    (
        "dequantize_e5m6",
        (torch.zeros(3, 12, dtype=torch.uint8), ONES(3, 2), 8),
        "scales must be float32 [3, 1] for k = 8 in tiles of 128, got float32 [3, 2]; "
        "pass the scales that were made with them",
    ),
    (
        "retile_e5m6",
        (torch.zeros(12, dtype=torch.uint8), ONES(1), 8),
        "packed must be [M, K], got [12]; flatten the leading dimensions into M",
    ),
    (
        "retile_e5m6",
        (torch.zeros(3, 24, dtype=torch.uint8), ONES(3, 1), 8),
        "packed must be [3, 12] for k = 8, got [3, 24]; give k as it was before packing",
    ),
]


@pytest.mark.parametrize(("name", "args", "text"), BAD_CALLS, ids=lambda v: v if isinstance(v, str) else "")
def test_argument_errors_real_and_fake(name: str, args: tuple[object, ...], text: str, backend: str) -> None:
    with pytest.raises(ValueError) as real:  # noqa: PT011  the whole text is compared below
        getattr(ops, name)(*args)
    assert str(real.value) == f"{name}: {text}"
    with FakeTensorMode() as mode, pytest.raises(ValueError) as fake:  # noqa: PT011
        getattr(ops, name)(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args])
    assert str(fake.value) == str(real.value)


@pytest.mark.parametrize("name", ["quantize_tiles_transposed", "quantize_tiles_both", "retile"])
@pytest.mark.parametrize(
    ("ends", "got"),
    [((2, 1), "offs[1] = 1 after 2"), ((-1,), "offs[0] = -1"), ((3, 5), "offs[1] = 5 after 3")],
)
def test_values_of_offs(backend: str, name: str, ends: tuple[int, ...], got: str) -> None:
    args = ops.quantize_tiles(MATRIX) if name == "retile" else (MATRIX,)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        getattr(ops, name)(*args, int32(*ends))
    assert str(error.value) == (
        f"{name}: offs must ascend from 0 to at most M = 4, got {got}; "
        "give the end offset of each group's rows"
    )


def good_calls() -> dict[str, tuple[tuple[object, ...], dict[str, object]]]:
    x = torch.randn(5, 200, requires_grad=True)
    offs = int32(2, 4)
    packed, packed_scales = ops.quantize_e5m6(x)
    return {
        "quantize_tiles": ((x,), {"power_of_2": True}),
        "quantize_tiles_transposed": ((x, offs), {}),
        "quantize_tiles_both": ((x, None), {"power_of_2": True}),
        "quantize_blocks": ((x,), {}),
        "transpose_blocks": (ops.quantize_blocks(x), {}),
        "dequantize_tiles": ((*ops.quantize_tiles(x), torch.bfloat16), {}),
        "dequantize_blocks": ((*ops.quantize_blocks(x), torch.float16), {}),
        "retile": ((*ops.quantize_tiles(x), offs), {"power_of_2": False}),
        "quantize_e5m6": ((x,), {}),
        "dequantize_e5m6": ((packed, packed_scales, 200, torch.float32), {}),
        "retile_e5m6": ((packed, packed_scales, 200), {}),
    }


@pytest.mark.parametrize("name", good_calls())
def test_opcheck(name: str) -> None:
    args, kwargs = good_calls()[name]
    tests = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if not any(isinstance(a, Tensor) and a.dtype == E4M3 for a in args):
        tests.append("test_schema")  # it compares inputs before and after, which torch cannot do for FP8
    torch.library.opcheck(getattr(torch.ops.deepseek_ext, name).default, args, kwargs, test_utils=tests)


@pytest.mark.parametrize("shape", [(5, 300), (2, 3, 300), (300,)], ids=str)
def test_fake_scales_have_the_strides_of_the_device(shape: tuple[int, ...]) -> None:
    """Contiguous on the CPU; on CUDA M-major, with the last dimension's stride padded to 4."""
    with FakeTensorMode():
        on_cpu = ops.quantize_tiles(torch.empty(shape))[1]
        on_cuda = ops.quantize_tiles(torch.empty(shape, device="cuda"))[1]
    assert on_cpu.is_contiguous()
    rows = on_cpu.numel() // on_cpu.shape[-1]
    assert on_cuda.shape == on_cpu.shape
    assert on_cuda.stride(-1) == -(-rows // 4) * 4
    if len(shape) > 1:
        assert on_cuda.stride(-2) == 1


def test_compile_fullgraph_with_dynamic_shapes() -> None:
    def step(x: Tensor, offs: Tensor) -> tuple[Tensor, ...]:
        codes, scales, codes_t, scales_t = ops.quantize_tiles_both(x.relu(), offs, power_of_2=True)
        return ops.dequantize_tiles(codes, scales), *ops.retile(codes, scales, offs), codes_t, scales_t

    compiled: Callable[..., tuple[Tensor, ...]] = torch.compile(step, fullgraph=True, dynamic=True)
    for m in (7, 200):
        x, offs = torch.randn(m, 130), int32(3, m)
        for got, wanted in zip(compiled(x, offs), step(x, offs), strict=True):
            assert torch.equal(got.float(), wanted.float())
