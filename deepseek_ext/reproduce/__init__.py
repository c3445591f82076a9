"""Claims of the paper that a CPU can show: for each one experiment, one figure and one pass mark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from . import accumulation, gradients, memory, outliers, retile, training
from .claim import Claim, Settings
from .figures import table, write_result
from .runs import Interrupted

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        accumulation.CLAIM,
        outliers.CLAIM,
        gradients.CLAIM,
        retile.CLAIM,
        memory.CLAIM,
        *training.CLAIMS,
    )
}
NOT_SHOWN = 3
INTERRUPTED = 130


@dataclass(kw_only=True, slots=True)
class ReproduceOptions:
    """Runs experiments for claims of the paper, all of them if none is named.

    Exit code: 0 if every claim was shown, 3 if one was not shown at this size.
    """

    claims: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLAIM")] = ()
    """accumulation, outliers, gradients, retile, memory, precision, balance, mtp, moments."""
    out: Path = Path("runs/reproduce")
    """Folder of the results; finished training runs in it are not run again."""
    quick: bool = False
    """Sizes of seconds, which exercise the code and show little."""
    data: tuple[str, ...] = ()
    """As of train: PATH or PATH=WEIGHT each. Default: Python's standard library."""
    threads: int | None = None
    """Threads of torch and of the kernels."""

    def __post_init__(self) -> None:
        for name in self.claims:
            if name not in CLAIMS:
                raise ValueError(f"no claim is called {name!r}; choose from {', '.join(CLAIMS)}")


def reproduce(options: ReproduceOptions) -> int:
    """Runs the claims, writes a folder of results for each, prints all marks, and returns the exit code."""
    settings = Settings(out=options.out, quick=options.quick, data=options.data, threads=options.threads)
    marks = []
    for name in options.claims or CLAIMS:
        claim = CLAIMS[name]
        print(f"\n{name} (section {claim.section}): {claim.says}\nshown if: {claim.passes}", flush=True)
        try:
            finding = claim.measure(settings)
        except Interrupted as stopped:
            print(stopped)
            return INTERRUPTED
        text = "\n".join([table(finding.header, finding.rows), f"{finding.mark}: {finding.sentence}"])
        numbers = {"claim": claim.says, "mark": finding.mark, "found": finding.sentence, **finding.numbers}
        write_result(options.out / name, text, numbers, finding.draw, panels=finding.panels)
        marks.append([name, finding.mark])
    print("\n" + table(["claim", "mark"], marks))
    return 0 if all(mark == "shown" for _, mark in marks) else NOT_SHOWN
