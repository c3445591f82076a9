"""A rank that dies, hangs or raises ends the run in time, named by the others; the next start goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from many import run, start  # type: ignore[import-not-found]
from nursery import Nursery  # type: ignore[import-not-found]
from same_run import assert_same_run, rows  # type: ignore[import-not-found]
from tiny_run import ROOT, tiny_flags  # type: ignore[import-not-found]

pytestmark = pytest.mark.processes
TIMEOUT = 12.0
SETTINGS: dict[str, Any] = {
    **{"checkpoint_every": 3, "validate_every": 8, "tokens": 128 * 8},
    **{"timeout": TIMEOUT, "ep": 2},
}


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(nursery, tiny_flags(data=text_folder, run_dir=folder / "run", **SETTINGS), folder, 4)
    return folder / "run"


@pytest.mark.parametrize(
    ("what", "saved"),
    [
        (("in_step", 5, "KILL"), 3),
        (("in_step", 5, "STOP"), 3),
        (("in_step", 5, "raise"), 3),
        (("in_save",), 3),
        (("in_dispatch", 2 * 5), 3),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_survivors_name_the_rank_and_the_next_start_goes_on(
    nursery: Nursery,
    text_folder: Path,
    tmp_path: Path,
    undisturbed: Path,
    what: tuple[object, ...],
    saved: int,
) -> None:
    culprit = 2
    flags = tiny_flags(data=text_folder, run_dir=tmp_path / "run", **SETTINGS)
    ranks = start(nursery, flags, tmp_path, 4, {culprit: what})
    survivors = [life for rank, life in enumerate(ranks.lives) if rank != culprit]
    assert ranks.lives[0].reaches(lambda: len(rows_so_far(tmp_path / "run")) >= 4), ranks.said()
    began = time.monotonic()
    assert [life.wait() for life in survivors] == [1, 1, 1], ranks.said()
    # The timeout, a few seconds to find out who is silent, and a machine that has other work.
    assert time.monotonic() - began < TIMEOUT + 30
    step = 6 if what[0] == "in_save" else 5
    for life in survivors:
        (line,) = [line for line in life.said().splitlines() if "ended in" in line]
        if what[-1] == "raise":
            assert f"ended in step {step}" in line
        else:
            assert f"rank {culprit} gives no sign of life" in line, line
    if what[-1] == "raise":
        assert f"rank {culprit}" in ranks.lives[culprit].said()
        assert f"ended in step {step}: the sums are off" in ranks.lives[culprit].said()
        assert any("the sums are off" in life.said() for life in survivors), ranks.said()
        said = [life.said() for life in ranks.lives]
        assert ["Traceback" in text for text in said] == [False, False, True, False]  # where the fault is
        assert not said[culprit].rstrip().endswith(";")
    if what[-1] == "STOP":
        ranks.lives[culprit].kill(signal.SIGKILL)
    ranks.lives[culprit].wait()

    lives = run(nursery, flags, tmp_path, 4).lives
    assert f"step {saved}, {saved * 128} tokens seen" in lives[0].said()
    assert_same_run(tmp_path / "run", undisturbed)


def rows_so_far(folder: Path) -> list[dict[str, Any]]:
    return rows(folder) if (folder / "metrics.jsonl").exists() else []


def test_a_checkpoint_that_one_rank_cannot_write_stops_no_run(
    nursery: Nursery, text_folder: Path, tmp_path: Path
) -> None:
    """The reason is the system's, though it is another rank that says it."""
    flags = tiny_flags(data=text_folder, run_dir=tmp_path / "run", tokens=128 * 2, checkpoint_every=2, ep=2)
    ranks = start(nursery, flags, tmp_path, 2, {1: ("with_small_files",)})
    assert ranks.wait() == [1, 1], ranks.said()
    said = ranks.lives[0].said()
    assert "WARNING: no checkpoint at step 2 ([Errno 27] File too large); there is none yet" in said
    assert len(rows(tmp_path / "run")) == 2
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_what_is_not_finite_on_one_rank_is_skipped_by_all(
    nursery: Nursery, text_folder: Path, tmp_path: Path
) -> None:
    """The layer is named whichever rank found it, and the third step in a row ends the run."""
    flags = tiny_flags(data=text_folder, run_dir=tmp_path / "run", **SETTINGS)
    ranks = start(nursery, flags, tmp_path, 2, {1: ("in_layer", "model.layers.1.mlp.experts", 5)})
    assert ranks.wait() == [1, 1], ranks.said()
    said = ranks.lives[0].said()
    for step in (5, 6):
        assert f"step {step}: loss or gradient is not finite, first in model.layers.1.mlp.experts" in said
    assert "not finite 3 steps in a row, up to step 7, first in model.layers.1.mlp.experts" in said
    assert "the last good checkpoint is" in said
    assert "step-00000003" in said
    assert [row["not_finite"] for row in rows(tmp_path / "run")] == [False] * 4 + [True] * 3


def test_an_interrupt_saves_and_all_stop(
    nursery: Nursery, text_folder: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """Ctrl-C reaches one process or all of them; they agree on the step."""
    flags = tiny_flags(data=text_folder, run_dir=tmp_path / "run", **SETTINGS)
    ranks = start(nursery, flags, tmp_path, 2, {1: ("in_step", 4, "INT")})
    assert ranks.wait() == [0, 0], ranks.said()
    assert "interrupted after step 4, which is saved" in ranks.lives[0].said()
    run(nursery, flags, tmp_path, 4)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 9))


def test_torchrun_starts_again_after_a_killed_rank(
    text_folder: Path, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    flags = tiny_flags(data=text_folder, run_dir=folder, **SETTINGS)
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"),
            *("--max-restarts", "1", "--monitor-interval", "0.1"),
            *(str(ROOT / "examples" / "pretrain.py"), *flags),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (folder / "checkpoints" / "step-00000003").exists():
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    said, _ = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    assert "gives no sign of life" in said
    assert "resuming from" in said
    assert "to continue     torchrun --nproc-per-node 4 " in said
    assert_same_run(folder, undisturbed)
