"""Quotients without division (csrc/formats/quotient.h) against IEEE division, for every significand."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_quotients_are_those_of_ieee_division(tmp_path: Path) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (ROOT / "csrc").exists():
        pytest.skip("needs a checkout and a C++ compiler")
    program = tmp_path / "sweep"
    source = ROOT / "tests/ops/quotient_sweep.cpp"
    flags = ["-O2", "-std=c++20", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    scales, multipliers, reciprocals = map(int, output.split())
    assert (scales, multipliers, reciprocals) == (0, 0, 0)
