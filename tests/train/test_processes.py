"""A run in several processes is the run of one, and goes on in any other number of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery  # type: ignore[import-not-found]
from many import run, start  # type: ignore[import-not-found]
from same_run import assert_same_run, rows, weights  # type: ignore[import-not-found]
from tiny_run import tiny_flags  # type: ignore[import-not-found]
from torch.testing import assert_close

STEPS = 50
# So gentle a run that rounding does not grow: at a higher rate two orders of summation soon part.
GENTLE = {
    "lr": "1e-4",
    "tokens": STEPS * 128,
    "checkpoint_every": 25,
    "validate_every": 25,
    "ema_decay": "0.9",
}


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


@pytest.fixture(scope="module")
def undisturbed(
    nursery: Nursery, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, Path]]:
    """The gentle run by 1, 2 and 4 processes."""
    folders = {}
    for size in (1, 2, 4):
        folder = tmp_path_factory.mktemp(f"run{size}")
        flags = tiny_flags(data=text_folder, run_dir=folder / "run", **GENTLE)
        said = run(nursery, flags, folder, size).lives
        assert all(life.said() == "" or "Warning: No backend" in life.said() for life in said[1:])
        folders[size] = folder / "run"
    return folders


@pytest.mark.parametrize("size", [2, 4])
def test_losses_are_those_of_one_process(undisturbed: dict[int, Path], size: int) -> None:
    alone, together = rows(undisturbed[1]), rows(undisturbed[size])
    assert len(alone) == len(together) == STEPS
    for ours, theirs in zip(together, alone, strict=True):
        for name in ("loss", "grad_norm", "mtp_acceptance", "val_bits_per_byte", "val_bits_per_byte_ema"):
            assert (name in ours) == (name in theirs)
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (ours["step"], name)
        assert ours["max_vio_by_router"] == theirs["max_vio_by_router"]
    # AdamW divides by the root of a mean square: where that is tiny, rounding shows.
    ours, theirs = weights(undisturbed[size]), weights(undisturbed[1])
    assert ours.keys() == theirs.keys()
    for name in ours:
        if "rng" not in name:
            assert_close(ours[name].float(), theirs[name].float(), rtol=1e-2, atol=2e-4, msg=name)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_goes_on_in_another_number_of_processes(
    nursery: Nursery, text_folder: Path, undisturbed: dict[int, Path], tmp_path: Path, size: int
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[4], folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000050")
    flags = tiny_flags(data=text_folder, run_dir=folder, **GENTLE)
    lives = run(nursery, flags, tmp_path, size).lives
    assert "step 25, 3,200 tokens seen" in lives[0].said()
    assert losses(folder) == pytest.approx(losses(undisturbed[4]), rel=1e-5)
    if size == 4:
        assert_same_run(folder, undisturbed[4])


def test_one_process_goes_on_in_two(
    nursery: Nursery, text_folder: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[1], folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000050")
    run(nursery, tiny_flags(data=text_folder, run_dir=folder, **GENTLE), tmp_path, 2)
    assert losses(folder) == pytest.approx(losses(undisturbed[1]), rel=1e-5)


def test_micro_batches_gather_gradients_once(
    nursery: Nursery, text_folder: Path, undisturbed: dict[int, Path], tmp_path: Path
) -> None:
    changes: dict[str, Any] = GENTLE | {"tokens": 10 * 128, "micro_sequences": 1, "ema_decay": "0.5"}
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        run(nursery, tiny_flags(data=text_folder, run_dir=folder / "run", **changes), folder, size)
    assert losses(tmp_path / "2" / "run") == pytest.approx(losses(tmp_path / "1" / "run"), rel=1e-5)


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
        ({"data": "/nowhere"}, "/nowhere"),
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
