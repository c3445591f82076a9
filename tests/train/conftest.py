"""A folder of text for the tiny run, and its flags."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import Flags, tiny_flags  # type: ignore[import-not-found]


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small documents with enough repetition to be learnt from."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(40):
        (folder / f"note{n}.txt").write_text(
            "".join(f"the value of item {k} in list {n} is {k * n % 7}.\n" for k in range(12))
        )
    return folder


@pytest.fixture
def flags(text_folder: Path, tmp_path: Path) -> Flags:
    """The flags of a tiny run in this test's folder, with changes by keyword."""

    def make(**changes: object) -> list[str]:
        return tiny_flags(**{"run_dir": tmp_path / "run", "data": text_folder, **changes})

    return make
