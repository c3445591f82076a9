"""The number formats: encoded by the operators on every tier, against oracles that share no line with them.

A tile that contains the format's largest finite value has scale 1 and multiplier 1, so the operators encode
every other element of it as it is.
"""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import formats
from deepseek_ext.reference import quantize as reference

E5M6_MAX = 65024.0


def e4m3_codes(values: Tensor) -> Tensor:
    """The operator's codes of 1-D `values`, |values| <= 448, at scale 1."""
    tiles = torch.nn.functional.pad(values, (0, -len(values) % 127)).view(-1, 127)
    anchored = torch.cat([torch.full((len(tiles), 1), 448.0, dtype=values.dtype), tiles], 1)
    codes, scales = ops.quantize_tiles(anchored)
    assert (scales == 1).all()
    return codes.view(torch.uint8)[:, 1:].reshape(-1)[: len(values)]


def e5m6_codes(values: Tensor) -> Tensor:
    tiles = torch.nn.functional.pad(values, (0, -len(values) % 127)).view(-1, 127)
    anchored = torch.cat([torch.full((len(tiles), 1), E5M6_MAX, dtype=values.dtype), tiles], 1)
    packed, scales = ops.quantize_e5m6(anchored)
    assert (scales == 1).all()
    return reference.unpack_e5m6(packed, 128)[:, 1:].reshape(-1)[: len(values)]


def ml_dtypes_codes(values: Tensor) -> Tensor:
    return torch.from_numpy(values.float().numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def around(values: Tensor) -> Tensor:
    """Each FP32 value, its neighbours up to three steps away, and their negatives."""
    bits = values.float().view(torch.int32)[:, None] + torch.arange(-3, 4, dtype=torch.int32)
    near = bits.clamp(min=0).view(torch.float32).reshape(-1)
    return torch.cat([near, -near])


def boundaries(code_values: Tensor) -> Tensor:
    """All codes' values and the midpoints between neighbours, where rounding decides."""
    ordered = code_values.double().unique()
    return torch.cat([ordered, (ordered[1:] + ordered[:-1]) / 2]).float()


class TestE4M3:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_every_16_bit_number(self, backend, dtype):
        values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        inside = values[values.abs() <= 448]
        assert torch.equal(e4m3_codes(inside), ml_dtypes_codes(inside))
        beyond = values[~values.isfinite()]
        assert (e4m3_codes(beyond) == 0x7F).all()

    def test_around_every_boundary(self, backend):
        magnitudes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        values = around(boundaries(magnitudes))
        values = values[values.abs() <= 448]
        assert torch.equal(e4m3_codes(values), ml_dtypes_codes(values))

    def test_reference_saturates_and_rounds_as_ml_dtypes(self):
        values = around(torch.logspace(-12, 9, 4000, base=2))
        codes = formats.encode_e4m3(values)
        inside = values.abs() < 464  # where ml_dtypes does not yet give NaN
        assert torch.equal(codes[inside], ml_dtypes_codes(values)[inside])
        assert (codes[~inside] & 0x7F == 0x7E).all()

    def test_every_code_decodes_to_its_value(self, backend):
        codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(2, 128)
        wanted = torch.from_numpy(codes.numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32))
        got = ops.dequantize_tiles(codes.view(torch.float8_e4m3fn), torch.ones(2, 1))
        assert torch.equal(got.nan_to_num(nan=1e9), wanted.nan_to_num(nan=1e9))
        assert torch.equal(got.signbit(), wanted.signbit() & ~wanted.isnan() | got.signbit() & wanted.isnan())


def e5m6_value(code: int) -> Fraction:
    """A finite code's value by the definition of the format."""
    exponent, mantissa = code >> 6 & 31, code & 63
    magnitude = Fraction(64 + mantissa, 64) * Fraction(2) ** (exponent - 15)
    if exponent == 0:
        magnitude = Fraction(mantissa, 64) * Fraction(2) ** -14
    return -magnitude if code & 0x800 else magnitude


def e5m6_nearest(value: float) -> int:
    """The nearest code, ties to the even one, found by exact comparison with all of them."""
    exact, sign = abs(Fraction(value)), 0x800 if np.signbit(value) else 0
    low, high = 0, 0x7BF
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if e5m6_value(middle) <= exact else (low, middle)
    below, above = exact - e5m6_value(low), e5m6_value(high) - exact
    return sign | (low if below < above or (below == above and low % 2 == 0) else high)


class TestE5M6:
    def test_around_every_boundary(self, backend):
        magnitudes = formats.decode_e5m6(torch.arange(0x7C0, dtype=torch.int32))
        values = around(boundaries(magnitudes)[::7])
        values = values[values.abs() <= E5M6_MAX]
        wanted = torch.tensor([e5m6_nearest(v) for v in values.tolist()], dtype=torch.int32)
        assert torch.equal(e5m6_codes(values), wanted)

    def test_reference_around_every_boundary(self):
        magnitudes = formats.decode_e5m6(torch.arange(0x7C0, dtype=torch.int32))
        values = around(boundaries(magnitudes)[3::11])
        wanted = torch.tensor([e5m6_nearest(v) for v in values.tolist()], dtype=torch.int32)
        assert torch.equal(formats.encode_e5m6(values), wanted)

    def test_rounding_once(self, backend):
        """1 + 2^-7 + 2^-20 lies above a midpoint; by way of a half it would fall on it, and then to even."""
        value = 1 + 2.0**-7 + 2.0**-20
        assert e5m6_codes(torch.tensor([value])).item() == e5m6_nearest(value) == (15 << 6 | 1)

    def test_what_is_not_finite(self, backend):
        assert e5m6_codes(torch.tensor([torch.nan, torch.inf, -torch.inf])).tolist() == [0x7FF] * 3

    def test_every_code_decodes_to_its_value(self, backend):
        codes = torch.arange(0x1000, dtype=torch.int32).view(-1, 128)
        values = ops.dequantize_e5m6(reference.pack_e5m6(codes), torch.ones(32, 1), 128).view(-1)
        for code, value in enumerate(values.tolist()):
            if code & 0x7C0 != 0x7C0:
                assert Fraction(value) == e5m6_value(code)
            elif code & 0x3F:
                assert value != value
            else:  # an infinity, which no encoder makes
                assert abs(value) == torch.finfo(torch.float32).max

    @pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 100, 128, 129, 136, 700])
    def test_packing(self, backend, rng, k):
        """Code i of every eight is bits 12i..12i+11 of a little-endian word; the tail is zero."""
        x = torch.randn(3, k, generator=rng)
        packed, scales = ops.quantize_e5m6(x)
        codes = formats.encode_e5m6(x / scales.repeat_interleave(128, 1)[:, :k])
        for row, row_codes in zip(packed.tolist(), codes.tolist(), strict=True):
            assert len(row) == 12 * -(-k // 8)
            for group in range(0, k, 8):
                word = int.from_bytes(bytes(row[group // 8 * 12 :][:12]), "little")
                wanted = (row_codes[group : group + 8] + [0] * 8)[:8]
                assert [word >> 12 * i & 0xFFF for i in range(8)] == wanted


AMAX = [
    2.0**-149,
    1e-40,
    2.0**-126,
    2.0**-111,
    2.0**-110,
    1e-30,
    1e-7,
    0.3,
    1.0,
    447.0,
    448.0,
    449.0,
    1e30,
    3.4e38,
]


class TestScaleRule:
    """Against exact rational arithmetic, for magnitudes from the smallest FP32 number to the largest."""

    @pytest.mark.parametrize("amax", AMAX)
    def test_fp32_scales(self, backend, amax):
        _, scales = ops.quantize_tiles(torch.tensor([[amax, -amax / 2, 0.0]]))
        floored = max(float(np.float32(amax)), 2.0**-110)
        assert scales.item() == float(
            np.float32(floored / 448)
        )  # a double quotient rounded to FP32: no double rounding
        assert abs(Fraction(scales.item()) * 448 / Fraction(floored) - 1) <= Fraction(1, 2**24)

    @pytest.mark.parametrize("amax", AMAX)
    @pytest.mark.parametrize("max_code", [448, 65024])
    def test_power_of_2_scales(self, backend, amax, max_code):
        x = torch.tensor([[amax, -amax / 2, 0.0]])
        _, scales = ops.quantize_tiles(x, power_of_2=True) if max_code == 448 else ops.quantize_e5m6(x)
        scale = Fraction(scales.item())
        floored = max(Fraction(float(np.float32(amax))), Fraction(1, 2**110))
        assert np.frexp(scales.item())[0] == 0.5  # a power of two
        assert scale / 2 < floored / max_code <= scale * (1 + Fraction(1, 2**23))

    def test_small_gradients_keep_their_precision(self, backend, rng):
        x = 1e-7 * torch.randn(64, 128, generator=rng)
        error = (ops.dequantize_tiles(*ops.quantize_tiles(x)) - x).abs()
        amax = x.abs().amax(1, keepdim=True)
        assert (error <= torch.maximum(x.abs() * 2.0**-4, amax / 448 * 2.0**-10) * 1.0001).all()
