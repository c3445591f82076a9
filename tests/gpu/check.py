"""Runs what only a GPU can show, and writes docs/gpu-report.md: `make gpu-check`.

The tests of the operators and of the model on the device; the benchmarks; the operators' tests once more
under each tool of compute-sanitizer, every allocation of torch its own so that accesses past a tensor's end
are seen. A step that fails does not stop the others, and what each said is kept in build/gpu-check. Exits
with 1 if any failed, and with 2 if none could run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from report import (
    SANITIZERS,
    Report,
    Step,
    benchmark_rows,
    failed_tests,
    pytest_summary,
    render,
    sanitizer_summary,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/gpu-report.md"
LOGS = ROOT / "build/gpu-check"
ON_GPU = ["-m", "pytest", "-q", "--backend", "cuda"]
OPERATORS = [*ON_GPU, "tests/ops"]
WHOLE = [*ON_GPU, "tests/gpu"]


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


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["nothing"])[-1].strip("= ")


def test_step(name: str, arguments: list[str], limit: float) -> Step:
    junit = LOGS / f"{name}.xml"
    command = [sys.executable, *arguments]
    code, output, seconds = run([*command, f"--junitxml={junit}"], limit)
    (LOGS / f"{name}.log").write_text(output)
    step = Step(name, shown(command), seconds, code, last_line(output))
    if junit.exists():
        step.summary, step.failed = pytest_summary(junit.read_text()), failed_tests(junit.read_text())
    return step


def sanitizer() -> str | None:
    """compute-sanitizer's path: of PATH, or beside nvcc."""
    beside = Path(shutil.which("nvcc") or "nvcc").resolve().with_name("compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


def sanitizer_step(tool: str, subset: str, limit: float) -> Step:
    program = sanitizer()
    options = ["--tool", tool, "--error-exitcode", "9"]
    if tool == "memcheck":  # tests ask for some errors of the runtime, and expect them
        options += ["--report-api-errors", "no"]
    command = [program or "compute-sanitizer", *options, sys.executable, *OPERATORS, "-k", subset]
    if program is None:
        return Step(tool, shown(command), 0, None, "compute-sanitizer is not in PATH")
    code, output, seconds = run(command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    (LOGS / f"{tool}.log").write_text(output)
    return Step(tool, shown(command), seconds, code, sanitizer_summary(output))


def benchmark_step(limit: float, report: Report) -> Step:
    results = LOGS / "benchmarks.json"
    options = ["--device", "cuda", f"--benchmark-json={results}"]
    step = test_step("benchmarks", ["-m", "pytest", "-q", "benchmarks", *options], limit)
    if results.exists() and results.stat().st_size > 0:  # it is empty where a run was cut off
        report.benchmarks = benchmark_rows(json.loads(results.read_text()))
    return step


def missing_kernels() -> set[str]:
    """Operators that the CPU has a kernel for and this build has none for on a GPU."""
    sys.path.append(str(ROOT / "tests"))
    import backends

    return backends.operators("CPU") - backends.operators("CUDA")


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
    if missing := missing_kernels():
        print(
            f"gpu-check: this build has no CUDA kernel for {len(missing)} operators, such as {min(missing)}; "
            "build it with nvcc in PATH: DSE_BUILD_CUDA=1 make build",
            file=sys.stderr,
        )
        return 2
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    report = Report(machine())

    def add(step: Step) -> None:
        """Writes the page anew after every step, so that a run that is cut off leaves what it found."""
        report.steps.append(step)
        PAGE.write_text(render(report))
        print(f"{step.name}: {step.outcome()}, {step.summary} ({step.seconds:.0f} s)", flush=True)

    add(test_step("operators", OPERATORS, arguments.limit))
    add(test_step("whole", WHOLE, arguments.limit))
    add(benchmark_step(arguments.limit, report))
    for tool in SANITIZERS:
        add(sanitizer_step(tool, arguments.sanitize, arguments.limit))
    print(f"wrote {PAGE.relative_to(ROOT)}; what each step said is in {LOGS.relative_to(ROOT)}")
    return 0 if report.passed() else 1


if __name__ == "__main__":
    sys.exit(main())
