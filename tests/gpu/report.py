"""What a run of tests/gpu/check.py found, and the page it becomes."""

from __future__ import annotations

import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from typing import Any

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


@dataclass
class Step:
    """One command: what it was, how it ended, and what it said of itself."""

    name: str
    command: str
    seconds: float
    code: int | None  # None: not run
    summary: str
    failed: list[str] = field(default_factory=list)  # names of tests

    def outcome(self) -> str:
        return "not run" if self.code is None else "passed" if self.code == 0 else f"FAILED ({self.code})"


@dataclass
class Report:
    """All steps of one run on one machine."""

    machine: dict[str, str]
    steps: list[Step] = field(default_factory=list)
    benchmarks: list[dict[str, Any]] = field(default_factory=list)

    def passed(self) -> bool:
        return all(step.code == 0 for step in self.steps)


def pytest_summary(junit: str) -> str:
    """Counts of a junit file: 10 passed, 1 failed, 2 skipped."""
    suites = ElementTree.fromstring(junit).iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    parts = [f"{total - failed - skipped} passed"]
    return ", ".join(parts + [f"{n} {word}" for n, word in ((failed, "failed"), (skipped, "skipped")) if n])


def failed_tests(junit: str) -> list[str]:
    """Names of the tests of a junit file that failed or could not run."""
    cases = ElementTree.fromstring(junit).iter("testcase")
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def sanitizer_summary(output: str) -> str:
    """The last ERROR SUMMARY or RACECHECK SUMMARY of compute-sanitizer."""
    found = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: (.+)", output)
    return found[-1].strip() if found else "no summary: compute-sanitizer did not finish"


def benchmark_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, time, rate and ratios of each case in pytest-benchmark's JSON."""
    rows = []
    for benchmark in results["benchmarks"]:
        info = benchmark["extra_info"]
        rows.append(
            {
                "name": info.get("case", benchmark["name"]),
                "microseconds": info["ours_seconds"] * 1e6,
                "rate": info["rate"],
                "unit": info["unit"],
                "share": info.get("share_of_copy_bandwidth"),
                "ratios": info["ratios"],
                "missing": info.get("missing", {}),
            }
        )
    return rows


FP8_RIVALS = {"scaled_mm", "DeepGEMM"}


def fp8_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For each benchmark with rivals that multiply FP8, how it compares with the faster one of each case."""
    found: dict[str, list[float]] = {}
    for row in rows:
        ratios = [ratio for rival, ratio in row["ratios"].items() if rival in FP8_RIVALS]
        if ratios:
            found.setdefault(row["name"].partition("[")[0], []).append(min(ratios))
    return [
        f"- {name}: {math.exp(statistics.fmean(map(math.log, ratios))):.2f} of the faster FP8 rival in the "
        f"geometric mean, {min(ratios):.2f} at least"
        for name, ratios in found.items()
    ]


def render(report: Report) -> str:
    """docs/gpu-report.md."""
    lines = ["# On a GPU", "", "Made by `make gpu-check`.", ""]
    lines += [f"- {key}: {value}" for key, value in report.machine.items()]
    lines += ["", "| step | outcome | said | seconds | command |", "|---|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.outcome()} | {s.summary} | {s.seconds:.0f} | `{s.command}` |" for s in report.steps
    ]
    for step in report.steps:
        if step.failed:
            more = [f"and {len(step.failed) - 20} more"] if len(step.failed) > 20 else []
            lines += ["", f"Failed in {step.name}:", ""]
            lines += [f"- {name}" for name in [*(f"`{f}`" for f in step.failed[:20]), *more]]
    if report.benchmarks:
        lines += [
            "",
            "Times lie between events around a call, the L2 cache filled with other data before.",
        ]
        lines += ["Ratios are the rival's time over ours: above 1, ours is faster.", ""]
        lines += [*fp8_lines(report.benchmarks), ""] if fp8_lines(report.benchmarks) else []
        lines += ["| case | time | rate | share of copy bandwidth | ratios |", "|---|---|---|---|---|"]
        for row in report.benchmarks:
            share = "" if row["share"] is None else f"{row['share']:.0%}"
            ratios = ", ".join(
                [f"{rival} {ratio:.2f}" for rival, ratio in row["ratios"].items()]
                + [f"no {rival}: {reason}" for rival, reason in row["missing"].items()]
            ).replace("|", "/")
            rate = f"{row['rate']:.0f} {row['unit']}"
            lines.append(f"| {row['name']} | {row['microseconds']:.1f} us | {rate} | {share} | {ratios} |")
    return "\n".join(lines) + "\n"
