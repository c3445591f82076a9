"""Routings and rows for the tests of the permute family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

Result = TypeVar("Result")

FLOATS = [torch.bfloat16, torch.float16, torch.float32]
# Nothing, one element, less than a vector, whole and ragged pieces of 64 columns.
WIDTHS = [0, 1, 7, 64, 130, 512, 1100]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(INTEGERS[x.element_size()])


def assert_same_bits(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    differ = (bits(got) != bits(wanted)).nonzero()
    if len(differ):
        at = tuple(differ[0].tolist())
        raise AssertionError(
            f"{len(differ)} elements differ; at {at}: {got[at].item()} not {wanted[at].item()}"
        )


def assert_same_numbers(got: Tensor, wanted: Tensor) -> None:
    """The same bits, but any NaN for a NaN."""
    assert torch.equal(got.isnan(), wanted.isnan())
    assert_same_bits(got.masked_fill(got.isnan(), 0), wanted.masked_fill(wanted.isnan(), 0))


def on_one_and_two_threads(function: Callable[[], Result]) -> list[Result]:
    """Its results; the caller's own torch operators keep to one thread, which suits their small tensors."""
    before, results = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(function())
    torch.set_num_threads(before)
    return results


def some_indices(rng: torch.Generator, tokens: int = 37, top_k: int = 3, experts: int = 9) -> Tensor:
    """Without repetition in a token, some of them -1, expert 4 never chosen."""
    choice = torch.rand(tokens, experts, generator=rng)
    choice[:, 4] = -1
    indices = choice.argsort(1, descending=True)[:, :top_k].int()
    return indices.masked_fill(torch.rand(tokens, top_k, generator=rng) < 0.2, -1)


def any_bits(rng: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Every kind of number, NaN with any payload among them."""
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), generator=rng, dtype=torch.uint8).view(dtype).view(shape)


def of_all_magnitudes(rng: torch.Generator, *shape: int, dtype: torch.dtype) -> Tensor:
    """Denormals, zeros of both signs, infinities and NaN among numbers near 1."""
    x = torch.randn(shape, generator=rng)
    scale = torch.randint(-140, 120, shape, generator=rng)
    x = torch.where(torch.rand(shape, generator=rng) < 0.5, x, x * 2.0**scale).flatten()
    x[::29], x[1::31] = 0.0, -0.0
    x[5::997], x[6::997], x[7::997] = torch.inf, -torch.inf, torch.nan
    return x.view(shape).to(dtype)


# (experts, indices, top_k): repeated choices, absent ones, empty experts, no tokens at all.
routings = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]),
        st.lists(
            st.lists(st.integers(-1, shape[0] - 1), min_size=shape[1], max_size=shape[1]),
            min_size=shape[2],
            max_size=shape[2],
        ),
        st.just(shape[1]),
    )
)
