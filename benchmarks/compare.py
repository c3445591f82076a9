"""Compares two saved benchmark runs: for each case the change of its ratio to each rival.

Times of two runs are not comparable on a shared machine; the ratios, measured in turns inside each run, are.
"""

import json
import sys
from pathlib import Path


def load(path: str) -> dict[str, dict]:
    file = Path(path)
    if not file.exists():
        raise SystemExit(f"{path} is missing: run `make bench`, then `cp .benchmarks/latest.json {path}`")
    return {b["fullname"]: b["extra_info"] for b in json.loads(file.read_text())["benchmarks"]}


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/compare.py BASE.json NEW.json")
    base, new = load(sys.argv[1]), load(sys.argv[2])
    print(f"{'case':80} {'rival':18} {'base':>7} {'new':>7} {'change':>7}")
    for case in sorted(new.keys() & base.keys()):
        for rival, ratio in new[case]["ratios"].items():
            if rival in base[case]["ratios"]:
                before = base[case]["ratios"][rival]
                change = ratio / before - 1
                print(f"{case.split('/')[-1]:80} {rival:18} {before:6.2f}x {ratio:6.2f}x {change:+7.0%}")
    for case in sorted(base.keys() ^ new.keys()):
        print(f"only in {'base' if case in base else 'new'}: {case}")


if __name__ == "__main__":
    main()
