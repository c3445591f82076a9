"""README tells the truth: its Python examples run, and every make target and file it names exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.mark.parametrize("code", EXAMPLES, ids=lambda code: code.strip().splitlines()[0][:40])
def test_python_example_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 1


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", README, re.M))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M), (
            f"README names `make {target}`, the Makefile does not"
        )


def test_linked_files_exist() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), f"README links to {link}, which does not exist"


def test_named_hosts_and_paths() -> None:
    """No absolute path of a machine and no package-registry host in any tracked text."""
    forbidden = ("/work" + "/", "pypi" + ".org", "pytorch.org/" + "whl")
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        file = ROOT / name
        if file.suffix in {".npz", ".png"} or not file.exists():
            continue
        text = file.read_text(errors="replace")
        for word in forbidden:
            assert word not in text, f"{name} names {word}"
