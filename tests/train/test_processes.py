"""A run in several processes is the run of one, and goes on in any other number of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from many import run, start  # type: ignore[import-not-found]
from nursery import Nursery  # type: ignore[import-not-found]
from same_run import assert_same_run, rows, weights  # type: ignore[import-not-found]
from tiny_run import ROOT, tiny_flags  # type: ignore[import-not-found]
from torch.testing import assert_close

pytestmark = pytest.mark.processes
STEPS = 50
# So gentle a run that rounding does not grow: at a higher rate two orders of summation soon part.
GENTLE = {
    "lr": "1e-4",
    "tokens": STEPS * 128,
    "checkpoint_every": 25,
    "validate_every": 25,
    "ema_decay": "0.9",
}


LAYOUTS = ((2, 1), (2, 2), (4, 1), (4, 2), (4, 4))
"""Processes, and those of them that share the experts."""


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def flags(text: Path, folder: Path, ep: int, **changes: object) -> list[str]:
    return tiny_flags(**{"data": text, "run_dir": folder, "ep": ep, **GENTLE, **changes})


@pytest.fixture(scope="module")
def runs(
    nursery: Nursery, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], Path]:
    """The gentle run by so many processes, the experts over so many of them."""
    folders = {}
    for size, ep in ((1, 1), *LAYOUTS):
        folder = tmp_path_factory.mktemp(f"run-{size}-{ep}")
        lives = run(nursery, flags(text_folder, folder / "run", ep), folder, size).lives
        for life in lives[1:]:  # only the first speaks
            assert life.said() == ""
        if size > 1:
            copies = {1: "1 copy", 2: "2 copies", 4: "4 copies"}[size // ep]
            assert f"over {ep}, {copies}; all else sharded over {size} " in lives[0].said()
        folders[size, ep] = folder / "run"
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_process(runs: dict[tuple[int, int], Path], layout: tuple[int, int]) -> None:
    alone, together = rows(runs[1, 1]), rows(runs[layout])
    assert len(alone) == len(together) == STEPS
    for ours, theirs in zip(together, alone, strict=True):
        for name in ("loss", "grad_norm", "mtp_acceptance", "val_bits_per_byte", "val_bits_per_byte_ema"):
            assert (name in ours) == (name in theirs)
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (ours["step"], name)
        assert ours["max_vio_by_router"] == theirs["max_vio_by_router"]
    # AdamW divides by the root of a mean square: where that is tiny, rounding shows.
    ours, theirs = weights(runs[layout]), weights(runs[1, 1])
    assert ours.keys() == theirs.keys()
    for name in ours:
        if "rng" not in name:
            assert_close(ours[name].float(), theirs[name].float(), rtol=1e-2, atol=2e-4, msg=name)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(((4, 2), after) for after in ((1, 1), (2, 2), (4, 1), (4, 2), (4, 4))),
        ((4, 1), (2, 1)),
        ((4, 1), (1, 1)),
        ((1, 1), (2, 1)),
        ((1, 1), (4, 2)),
    ],
)
def test_goes_on_in_another_layout(
    nursery: Nursery,
    text_folder: Path,
    runs: dict[tuple[int, int], Path],
    tmp_path: Path,
    before: tuple[int, int],
    after: tuple[int, int],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[before], folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000050")
    size, ep = after
    lives = run(nursery, flags(text_folder, folder, ep), tmp_path, size).lives
    assert "step 25, 3,200 tokens seen" in lives[0].said()
    assert losses(folder) == pytest.approx(losses(runs[before]), rel=1e-5)
    if after == before:
        assert_same_run(folder, runs[before])


def test_micro_batches_gather_gradients_once(nursery: Nursery, text_folder: Path, tmp_path: Path) -> None:
    for size, ep in ((1, 1), (2, 1), (2, 2)):
        folder = tmp_path / f"{size}-{ep}"
        folder.mkdir()
        settings = flags(text_folder, folder / "run", ep, tokens=10 * 128, micro_sequences=1)
        run(nursery, settings, folder, size)
        assert losses(folder / "run") == pytest.approx(losses(tmp_path / "1-1" / "run"), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"sequences": 3},
            "--sequences 3 cannot be shared by 2 processes; choose a multiple of 2, such as 4",
        ),
        ({"ep": 3}, "--ep 3 does not divide the 2 processes; choose one of [1, 2], or start a multiple of 3"),
        (
            {"sequences": 6, "micro_sequences": 2},
            "--sequences 6 cannot be shared by 2 processes of 2 sequences",
        ),
        ({"ep": 2, "experts": 9 * 4, "sequences": 2, "micro_sequences": 2}, "of 2 sequences a pass"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"init_from": "/nowhere"}, "--init-from: /nowhere is no folder"),
        ({"init_from": ROOT / "tests"}, "tests holds no checkpoint that can be read"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(
    nursery: Nursery, text_folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    flags = tiny_flags(**({"data": text_folder, "run_dir": tmp_path / "run"} | changes))
    ranks = start(nursery, flags, tmp_path, 2)
    assert ranks.wait() == [2, 2], ranks.said()
    assert said in ranks.lives[0].said()
    assert said not in ranks.lives[1].said()


def test_an_expert_that_replicas_cannot_share_is_refused_once(
    nursery: Nursery, text_folder: Path, tmp_path: Path
) -> None:
    changes = {"hidden_size": 65, "precision": "fp8"}
    ranks = start(nursery, flags(text_folder, tmp_path / "run", 2, **changes), tmp_path, 4)
    assert ranks.wait() == [2] * 4, ranks.said()
    assert "has 65 rows, which 2 ranks that hold the same experts cannot share" in ranks.lives[0].said()
    assert all(life.said() == "" for life in ranks.lives[1:])


def test_a_run_directory_of_one_process_alone_is_refused(
    nursery: Nursery, text_folder: Path, tmp_path: Path
) -> None:
    """On two machines with disks of their own, say: half of each checkpoint would be missing."""
    (tmp_path / "elsewhere").mkdir()
    settings = flags(text_folder, Path("run"), 1)
    here = [("in_folder", str(tmp_path)), ("in_folder", str(tmp_path / "elsewhere"))]
    ranks = start(nursery, settings, tmp_path, 2, dict(enumerate(here)))
    assert ranks.wait() == [2, 2], ranks.said()
    assert f"process {ranks.lives[1].pid}; choose one that all processes share" in ranks.lives[0].said()
    assert ranks.lives[1].said() == ""


def test_another_run_is_refused_once(
    nursery: Nursery, text_folder: Path, runs: dict[tuple[int, int], Path], tmp_path: Path
) -> None:
    shutil.copytree(runs[2, 1], tmp_path / "run")
    ranks = start(nursery, flags(text_folder, tmp_path / "run", 1, seed=7), tmp_path, 2)
    assert ranks.wait() == [2, 2], ranks.said()
    assert "holds another run (--seed 0 there, 7 here)" in ranks.lives[0].said()
    assert "another run" not in ranks.lives[1].said()
