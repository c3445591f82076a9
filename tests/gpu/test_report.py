"""The report of `make gpu-check`, written from outputs kept here: no GPU is needed for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import check
from report import (
    Report,
    Step,
    benchmark_rows,
    failed_tests,
    pytest_summary,
    render,
    sanitizer_summary,
)

JUNIT = """<?xml version="1.0"?><testsuites>
<testsuite name="pytest" errors="1" failures="2" skipped="3" tests="20" time="1.5">
<testcase classname="tests.ops.test_gemm" name="test_bound[cuda]"><failure message="off"/></testcase>
<testcase classname="tests.ops.test_gemm" name="test_a"><error message="no"/></testcase>
<testcase classname="tests.ops.test_gemm" name="test_b"/></testsuite></testsuites>"""
MEMCHECK = """========= COMPUTE-SANITIZER
........
========= ERROR SUMMARY: 0 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
BENCHMARKS = {
    "benchmarks": [
        {
            "name": "test_gemm_fp8[avx512_bf16-1thread-4096x4096x7168]",
            "extra_info": {
                "case": "test_gemm_fp8[4096x4096x7168]",
                "ours_seconds": 2.5e-3,
                "rate": 96211.0,
                "unit": "GFLOP/s",
                "share_of_copy_bandwidth": None,
                "ratios": {"scaled_mm": 0.5, "DeepGEMM": 0.4, "torch bf16": 0.93},
                "missing": {},
            },
        },
        {
            "name": "test_quantize_tiles[bf16]",
            "extra_info": {
                "ours_seconds": 1e-4,
                "rate": 1500.0,
                "unit": "GB/s",
                "share_of_copy_bandwidth": 0.914,
                "ratios": {"composed": 7.0},
                "missing": {"compiled": "no | compiler"},
            },
        },
        {
            "name": "test_gemm_fp8[64x4096x7168]",
            "extra_info": {
                "ours_seconds": 1e-5,
                "rate": 100.0,
                "unit": "GFLOP/s",
                "share_of_copy_bandwidth": None,
                "ratios": {"scaled_mm": 0.9},
                "missing": {},
            },
        },
    ]
}


def test_pytest_counts() -> None:
    assert pytest_summary(JUNIT) == "14 passed, 3 failed, 3 skipped"
    assert pytest_summary('<testsuite tests="5" failures="0" errors="0" skipped="0"/>') == "5 passed"


def test_failed_tests_are_named() -> None:
    assert failed_tests(JUNIT) == ["tests.ops.test_gemm::test_bound[cuda]", "tests.ops.test_gemm::test_a"]


def test_sanitizer_counts() -> None:
    assert sanitizer_summary(MEMCHECK) == "0 errors"
    assert sanitizer_summary(RACECHECK) == "2 hazards displayed (1 error, 1 warning)"
    assert "did not finish" in sanitizer_summary("Killed")


def test_the_page() -> None:
    report = Report({"GPU": "NVIDIA H100, sm_90"})
    report.steps = [
        Step("operators", "python -m pytest", 61.4, 0, "14 passed"),
        Step("memcheck", "compute-sanitizer", 0, None, "compute-sanitizer is not in PATH"),
        Step("racecheck", "compute-sanitizer", 100, 9, "2 hazards displayed"),
        Step("whole", "pytest", 5, 1, "1 failed", [f"test_{n}" for n in range(25)]),
    ]
    report.benchmarks = benchmark_rows(BENCHMARKS)
    page = render(report)
    for line in (
        "- GPU: NVIDIA H100, sm_90",
        "| operators | passed | 14 passed | 61 | `python -m pytest` |",
        "| memcheck | not run | compute-sanitizer is not in PATH | 0 | `compute-sanitizer` |",
        "| racecheck | FAILED (9) | 2 hazards displayed | 100 | `compute-sanitizer` |",
        "Failed in whole:",
        "- `test_19`",
        "- and 5 more",
        "- test_gemm_fp8: 0.60 of the faster FP8 rival in the geometric mean, 0.40 at least",
        "| test_gemm_fp8[4096x4096x7168] | 2500.0 us | 96211 GFLOP/s |  "
        "| scaled_mm 0.50, DeepGEMM 0.40, torch bf16 0.93 |",
        "| test_quantize_tiles[bf16] | 100.0 us | 1500 GB/s | 91% "
        "| composed 7.00, no compiled: no / compiler |",
    ):
        assert line in page.splitlines()
    assert not report.passed(), "a step that was not run has not passed"
    report.steps = report.steps[:1]
    assert report.passed()


def test_a_step_without_results_says_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a pytest that ends before it writes its junit file."""
    monkeypatch.setattr(check, "LOGS", tmp_path)
    step = check.test_step("operators", ["-c", "print('first'); print('== the end =='); exit(3)"], limit=60)
    assert (step.code, step.summary, step.failed) == (3, "the end", [])
    assert (tmp_path / "operators.log").read_text() == "first\n== the end ==\n"


def test_a_command_that_takes_too_long_is_a_failure() -> None:
    code, output, seconds = check.run([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.2)
    assert (code, output, seconds) == (124, "", 0.2)
    code, output, _ = check.run([sys.executable, "-c", "import os; print(os.environ['A'])"], limit=60, A="b")
    assert (code, output) == (0, "b\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    script = Path(check.__file__)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
