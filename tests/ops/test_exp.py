"""exp and sigmoid of csrc/formats: a program of their own sweeps them, on every tier of this host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRIDE = 499  # of 2^32 floats, 8.6 million; 1 sweeps all of them, in about ten minutes
BOUND = {"exp": 1.1, "sigmoid": 1.66, "sigmoid_of_minus": 1.66}  # over all inputs: 1.092, 1.653, 1.653 ulp


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The program's output, line by line."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (ROOT / "csrc").exists():
        pytest.skip("needs a checkout and a C++ compiler")
    program = tmp_path_factory.mktemp("exp") / "sweep"
    sources = [ROOT / "tests/ops/exp_sweep.cpp", ROOT / "csrc/cpu/isa.cpp"]
    includes = [f"-I{ROOT / folder}" for folder in ("csrc", "tests/ops")]
    flags = ["-O2", "-std=c++20", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, *includes, *map(str, sources), "-o", str(program)], check=True)
    output = subprocess.run([program, str(STRIDE)], check=True, capture_output=True, text=True)
    return [line.split() for line in output.stdout.splitlines()]


def test_every_tier_gives_the_bits_of_the_scalar_form(sweep: list[list[str]]) -> None:
    tiers = sweep[: -len(BOUND)]
    assert tiers[0][0] == "generic"
    for tier, values, different in tiers:
        assert int(values) == -(-(2**32) // STRIDE)
        assert int(different) == 0, tier


def test_errors_in_units_of_the_last_place(sweep: list[list[str]]) -> None:
    """NaN, infinities, overflow and subnormal results included: 0 ulp where the exact result is a number that
    FP32 has, and infinite where one is NaN and the other not."""
    errors = {name: (float(error), float.fromhex(at)) for name, error, at in sweep[-len(BOUND) :]}
    assert errors.keys() == BOUND.keys()
    for name, (error, at) in errors.items():
        assert 0.5 < error < BOUND[name], f"{name} is off by {error} ulp at {at}"
