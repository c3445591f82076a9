"""Rows packed for other ranks and unpacked from them: bit for bit against the reference, and what is sent."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from permute_inputs import any_bits, assert_same_bits, on_one_and_two_threads, some_indices
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops
from deepseek_ext.reference import exchange as reference

OPS = torch.ops.deepseek_ext
E4M3 = torch.float8_e4m3fn
ANY_BACKEND = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
CSRC = Path(__file__).parents[2] / "csrc"


@settings(max_examples=100, **ANY_BACKEND)
@given(
    ranks=st.integers(1, 9),
    held=st.integers(1, 5),
    shape=st.tuples(st.integers(0, 9), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_ranks_of_tokens(backend: str, ranks: int, held: int, shape: tuple[int, int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, ranks * held, shape, generator=rng, dtype=torch.int32)
    got = OPS.exchange_ranks(indices, held, ranks)
    wanted = reference.exchange_ranks(indices, held, ranks)
    assert got.dtype == torch.int32
    assert got.tolist() == wanted.tolist()
    for row, chosen in zip(got.tolist(), indices.tolist(), strict=True):
        there = sorted({c // held for c in chosen if c >= 0})
        assert row == there + [-1] * (len(row) - len(there))


def test_ranks_of_many_tokens(backend: str, rng: torch.Generator) -> None:
    wide = torch.randint(-1, 64, (5000, 16), generator=rng, dtype=torch.int32)
    for indices in (wide, wide[:, ::2], wide.T.contiguous().T):
        wanted = reference.exchange_ranks(indices, 8, 8)
        for got in on_one_and_two_threads(lambda indices=indices: OPS.exchange_ranks(indices, 8, 8)):
            assert torch.equal(got, wanted)


def order(rng: torch.Generator) -> Tensor:
    return ops.expert_order(some_indices(rng), 9).rows


@pytest.mark.parametrize("width", [0, 1, 5, 16, 130, 512, 1030])
def test_pack_rows(width: int, backend: str, rng: torch.Generator) -> None:
    """One matrix of every size of element, and several; contiguous, with gaps, and column by column."""
    rows = order(rng)
    bytes_ = any_bits(rng, 37, width, dtype=torch.uint8)
    floats = any_bits(rng, 37, width, dtype=torch.float32)
    halves = any_bits(rng, 37, width, dtype=torch.bfloat16)
    some = torch.where(rows < 0, 0, rows)
    for parts in ([bytes_], [halves], [floats], [bytes_, floats, halves[:, :3]], [halves, floats]):
        wanted = reference.pack_rows([part.view(torch.uint8) for part in parts], some, 3)
        wanted[rows < 0] = 0
        gaps = [torch.cat([part, part], 1)[:, : part.shape[1]] for part in parts]
        by_column = [part.T.contiguous().T for part in parts]
        for given_parts in (parts, gaps, by_column):
            for got in on_one_and_two_threads(lambda p=given_parts: OPS.pack_rows(p, rows, 3)):
                assert got.shape[1] % 16 == 0
                assert_same_bits(got, wanted)
        in_turn = reference.pack_rows(parts, torch.arange(37), 1)
        assert_same_bits(OPS.pack_rows(parts, None, 1), in_turn)


@pytest.mark.parametrize("dtype", [E4M3, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_unpack_is_the_inverse(
    dtype: torch.dtype, weighted: bool, backend: str, rng: torch.Generator
) -> None:
    rows = order(rng)
    for width in (0, 1, 5, 128, 130, 512):
        x = any_bits(rng, 37, width, dtype=torch.uint8 if dtype == E4M3 else dtype).view(dtype)
        scales, weights = torch.rand(37, (width + 127) // 128), torch.rand(37, 3)
        parts = [x, *([scales] if dtype == E4M3 else []), *([weights] if weighted else [])]
        packed = OPS.pack_rows(parts, None, 1)
        for got in on_one_and_two_threads(
            lambda packed=packed, width=width: OPS.unpack_rows(packed, rows, 3, width, dtype, weighted)
        ):
            assert_same_bits(
                got[0].view(torch.uint8),
                ops.gather_rows(x.view(torch.uint8).float(), rows, 3).to(torch.uint8),
            )
            if dtype == E4M3:
                assert_same_bits(got[1], ops.gather_tiles(x, scales, rows, 3)[1])
            else:
                assert got[1].shape == (len(rows), 0)
            chosen = torch.where(rows < 0, 0, weights.flatten()[rows.clamp(min=0).long()])
            assert_same_bits(got[2], chosen if weighted else chosen[:0])


def test_nothing_to_pack(backend: str) -> None:
    none = torch.empty(0, dtype=torch.int32)
    assert OPS.exchange_ranks(none.view(0, 3), 2, 4).shape == (0, 3)
    packed = OPS.pack_rows([torch.ones(3, 5), torch.ones(3, 0)], none, 2)
    assert packed.shape == (0, 32)
    got = OPS.unpack_rows(packed, none, 2, 5, torch.float32, False)
    assert [t.shape for t in got] == [(0, 5), (0, 0), (0,)]


ERRORS = [
    (lambda: OPS.exchange_ranks(torch.ones(2, 2), 1, 1), "indices must be int32, got float32"),
    (lambda: OPS.exchange_ranks(_int(2, 2), 0, 1), "experts_per_rank must be at least 1 and below"),
    (lambda: OPS.exchange_ranks(_int(2, 2), 1, 0), "num_ranks must be at least 1 and below 2^31, got 0"),
    (lambda: OPS.pack_rows([torch.ones(2, 2)] * 5, None, 1), "parts must be 1 to 4 matrices, got 5"),
    (lambda: OPS.pack_rows([torch.ones(2, 2), torch.ones(3, 2)], None, 1),
     "parts must be [T, *] with T = 2 as in the first, got [3, 2]"),
    (lambda: OPS.pack_rows([torch.ones(2)], None, 1), "parts must be [T, *] with T = 2"),
    (lambda: OPS.pack_rows([torch.ones(2, 2)], _int(2).long(), 1), "rows must be int32, got int64"),
    (lambda: OPS.pack_rows([torch.ones(2, 2)], _int(2), 0), "pack_rows: top_k must be at least 1, got 0"),
    (lambda: _unpack(torch.ones(2, 32)), "packed must be contiguous uint8 [R, bytes], got float32"),
    (lambda: _unpack(_bytes(2, 16)), "unpack_rows: packed must have rows of 32 bytes, got [2, 16]"),
    (lambda: _unpack(_bytes(2, 32), dtype=torch.int32), "dtype must be float8_e4m3fn, bfloat16, float16 or"),
    (lambda: _unpack(_bytes(2, 32), columns=-1), "unpack_rows: columns must not be negative, got -1"),
]  # fmt: skip


def _int(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _bytes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def _unpack(packed: Tensor, columns: int = 5, dtype: torch.dtype = torch.float32) -> object:
    return OPS.unpack_rows(packed, torch.zeros(3, dtype=torch.int32), 1, columns, dtype, False)


@pytest.mark.parametrize("number", range(len(ERRORS)))
@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake"])
def test_arguments_that_do_not_fit(number: int, fake: bool) -> None:
    call, message = ERRORS[number]
    if fake:
        with FakeTensorMode(), pytest.raises(ValueError, match=re.escape(message)):
            call()
    else:
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


def test_values_out_of_range(backend: str) -> None:
    with pytest.raises(ValueError, match=re.escape("create_routing: indices must lie in [-1, 4), got 4")):
        OPS.exchange_ranks(_int(2, 2) + 4, 2, 2)
    with pytest.raises(ValueError, match=re.escape("pack_rows: rows must lie in [-1, 4), got 4 at position")):
        OPS.pack_rows([torch.ones(2, 2)], _int(2) + 4, 2)
    with pytest.raises(ValueError, match=re.escape("unpack_rows: rows must lie in [-1, 2), got 2")):
        OPS.unpack_rows(_bytes(2, 32), _int(2) + 2, 1, 5, torch.float32, False)


def route_in_groups(tokens: int, rng: torch.Generator, kept: int) -> Tensor:
    """The paper's routing: 256 experts in 8 groups of which `kept` are chosen, 8 experts a token."""
    logits = torch.randn(tokens, 256, generator=rng)
    return ops.route(logits, torch.zeros(256), top_k=8, n_groups=8, topk_groups=kept,
                     routed_scaling_factor=2.5).indices  # fmt: skip


def test_rows_sent_a_token(rng: torch.Generator) -> None:
    """One for each (token, rank), so at 8 ranks no more than the chosen groups; not one for each expert."""
    indices = route_in_groups(4096, rng, kept=4)
    expected = {8: 3.95, 16: 5.73, 32: 6.86, 64: 7.49}  # by the hypergeometric odds of a group's ranks
    for ranks, mean in expected.items():
        sent = (OPS.exchange_ranks(indices, 256 // ranks, ranks) >= 0).sum(1)
        assert abs(sent.float().mean().item() - mean) < 0.03
        if ranks == 8:
            assert int(sent.max()) == 4
    everywhere = (OPS.exchange_ranks(route_in_groups(4096, rng, kept=8), 32, 8) >= 0).sum(1)
    assert abs(everywhere.float().mean().item() - 5.30) < 0.03


def test_bytes_on_the_wire(rng: torch.Generator) -> None:
    """Of one token of width 7168 at 8 ranks: at most 4 rows of codes, scales and 8 gate weights."""
    x, weights = torch.randn(64, 7168, generator=rng).bfloat16(), torch.rand(64, 8, generator=rng)
    indices = route_in_groups(64, rng, kept=4)
    ranks = OPS.exchange_ranks(indices, 32, 8)
    rows = ops.expert_order(ranks, 8)
    sent = int(rows.offs[-1])
    packed = OPS.pack_rows([*ops.quantize_tiles(x), weights], rows.rows[:sent], ranks.shape[1])
    assert packed.shape == (sent, 7168 + 56 * 4 + 8 * 4)
    assert packed.numel() <= 64 * 4 * 7424
    assert packed.numel() < 0.27 * 64 * 8 * x[0].nbytes  # a quarter of BF16 rows sent to every expert


def test_what_arrives_is_not_read_through_the_read_only_cache(tmp_path: Path) -> None:
    """ld.global.nc may answer with what was there before another device wrote."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not in PATH")
    ptx = tmp_path / "exchange.ptx"
    flags = ["-O3", "-std=c++20", "-fmad=false", "-arch=compute_80", f"-I{CSRC}", "-ptx", "-o", str(ptx)]
    subprocess.run([nvcc, *flags, str(CSRC / "cuda/exchange.cu")], check=True, capture_output=True)
    loads = re.findall(r"ld\.global\S*", ptx.read_text())
    assert len(loads) > 10
    assert [load for load in loads if ".nc" in load] == []
