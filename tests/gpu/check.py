"""Runs what only a GPU can show, and writes docs/gpu-report.md: `make gpu-check`.

The tests of the operators on the device; the same once more under each tool of compute-sanitizer, every
allocation of torch its own so that accesses past a tensor's end are seen; the benchmarks. A step that fails
does not stop the others. Exits with 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import (
    SANITIZERS,
    Report,
    Step,
    benchmark_rows,
    pytest_summary,
    render,
    sanitizer_summary,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gpu-report.md"
ON_GPU = ["-m", "pytest", "-q", "tests/ops", "--backend", "cuda"]


def machine() -> dict[str, str]:
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    properties = torch.cuda.get_device_properties(0)
    return {
        "GPU": f"{properties.name}, sm_{properties.major}{properties.minor}, "
        f"{properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.0f} GiB",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "host": f"{platform.machine()}, Python {platform.python_version()}",
        "commit": commit.stdout.strip() or "unknown",
    }


def run(command: list[str], limit: float, **environment: str) -> tuple[int, str, float]:
    """Exit status (124 if it took too long), output and seconds."""
    start = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            timeout=limit,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or ""
        return 124, said if isinstance(said, str) else said.decode(errors="replace"), limit
    return done.returncode, done.stdout, time.monotonic() - start


def shown(command: list[str]) -> str:
    return " ".join(Path(word).name if word == sys.executable else word for word in command)


def test_step(folder: Path, limit: float) -> Step:
    junit = folder / "tests.xml"
    command = [sys.executable, *ON_GPU]
    code, output, seconds = run([*command, f"--junitxml={junit}"], limit)
    summary = pytest_summary(junit.read_text()) if junit.exists() else output.strip().splitlines()[-1:]
    return Step("operators", shown(command), seconds, code, str(summary))


def sanitizer_step(tool: str, subset: str, limit: float) -> Step:
    command = [
        "compute-sanitizer",
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        *ON_GPU,
        "-k",
        subset,
    ]
    if shutil.which("compute-sanitizer") is None:
        return Step(tool, shown(command), 0, None, "compute-sanitizer is not in PATH")
    code, output, seconds = run(command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return Step(tool, shown(command), seconds, code, sanitizer_summary(output))


def benchmark_step(folder: Path, limit: float, report: Report) -> Step:
    results = folder / "benchmarks.json"
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", "--device", "cuda"]
    code, output, seconds = run([*command, f"--benchmark-json={results}"], limit)
    if results.exists():
        report.benchmarks = benchmark_rows(json.loads(results.read_text()))
    last = output.strip().splitlines()[-1:] or ["nothing"]
    return Step("benchmarks", shown(command), seconds, code, last[0].strip("= "))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sanitize", default="not far and not 2048", help="tests that run under sanitizers (-k)"
    )
    parser.add_argument("--limit", type=float, default=3600, help="seconds for each step")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU; it needs one, and a CUDA build of torch", file=sys.stderr)
        return 2
    report = Report(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.steps.append(test_step(folder, arguments.limit))
        for tool in SANITIZERS:
            report.steps.append(sanitizer_step(tool, arguments.sanitize, arguments.limit))
        report.steps.append(benchmark_step(folder, arguments.limit, report))
    PAGE.write_text(render(report))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return 0 if report.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
