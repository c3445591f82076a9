"""kill -9 at random moments, and damaged files: the run ends as if nothing had happened, bit for bit.

DSE_TEST_KILLS sets how many kills (`make test-kills`), DSE_TEST_KILLS_SEED repeats a failed run's choices.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from nursery import Life, Nursery  # type: ignore[import-not-found]
from same_run import assert_same_run, rows  # type: ignore[import-not-found]
from tiny_run import tiny_flags  # type: ignore[import-not-found]

from deepseek_ext.train import checkpoint

KILLS = int(os.environ.get("DSE_TEST_KILLS", "5"))
STEPS_A_KILL = 8  # a life goes on for at most four rows, and then keeps at most those


def complete(run: Path) -> list[Path]:
    return checkpoint.list_checkpoints(run / "checkpoints")


def wait_for_rows(life: Life, run: Path, more: int) -> None:
    """Until so many rows were added; metrics.jsonl is cut back when the run resumes, so count from there."""
    assert life.reaches(lambda: life.said().count("run: ") == 1), life.said()
    before = len(rows(run)) if (run / "metrics.jsonl").exists() else 0
    assert life.reaches(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) >= before + more), (
        life.said()
    )


def wait_for_a_save(life: Life, run: Path) -> None:
    """Until a checkpoint is being written, or an old one deleted."""
    folder = run / "checkpoints"
    assert life.reaches(
        lambda: folder.exists() and any(name.endswith(f".tmp-{life.pid}") for name in os.listdir(folder))
    ), life.said()


def damage(how: str, folder: Path, choose: random.Random) -> str:
    path = choose.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    at = choose.randrange(len(content))
    if how == "truncate":
        del content[at:]
    else:
        content[at] ^= 1 << choose.randrange(8)
    path.write_bytes(content)
    return path.name


def test_killed_runs_end_like_an_undisturbed_one(nursery: Nursery, text_folder: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("DSE_TEST_KILLS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"DSE_TEST_KILLS_SEED={seed}")  # pytest shows it where the test fails
    choose = random.Random(seed)

    def flags(run: Path) -> list[str]:
        settings = {"run_dir": run, "data": text_folder, "precision": "fp8", "ema_decay": 0.9, "prompts": ()}
        steps = STEPS_A_KILL * KILLS
        return tiny_flags(**settings, tokens=128 * steps, checkpoint_every=3, validate_every=2 * STEPS_A_KILL)

    whole, run = tmp_path / "whole", tmp_path / "run"
    life = nursery.start(flags(whole), tmp_path / "whole.txt")
    started = time.perf_counter()
    assert life.reaches((whole / "metrics.jsonl").exists), life.said()
    start_up = time.perf_counter() - started
    assert life.wait() == 0, life.said()
    expected = rows(whole)
    assert len(expected) == STEPS_A_KILL * KILLS

    kinds = ["start", "save", "truncate", "flip"] + ["save"] * (KILLS // 5)
    kinds += ["step"] * (KILLS - len(kinds))
    choose.shuffle(kinds)
    killed, half_written = 0, 0
    damaged: set[int] = set()  # until a run that lives long enough sets it aside; another then has its name

    def undamaged() -> list[Path]:
        return [folder for folder in complete(run) if folder.stat().st_ino not in damaged]

    while kinds:
        kind = kinds.pop()
        life = nursery.start(flags(run), tmp_path / f"life{killed}.txt")
        if kind == "start":
            time.sleep(choose.uniform(0, 1.2 * start_up))
        elif kind == "save":
            wait_for_a_save(life, run)
            time.sleep(choose.uniform(0, 0.03))
        else:
            wait_for_rows(life, run, choose.randint(1, 3))
            time.sleep(choose.uniform(0, 0.05))
            if kind in ("truncate", "flip"):
                assert life.reaches(lambda: len(complete(run)) >= 2), life.said()
        life.kill(signal.SIGKILL)
        assert life.wait() == -signal.SIGKILL, life.said()
        killed += 1
        # What has its final name is whole, and what was written is what an undisturbed run writes.
        for folder in undamaged():
            checkpoint.read_state(folder)
        if (run / "metrics.jsonl").exists():
            assert rows(run) == expected[: len(rows(run))]
        half = bool(list((run / "checkpoints").glob(f"*.tmp-{life.pid}")))
        half_written += half
        if kind == "save" and not half and not half_written and killed < 3 * KILLS:
            kinds.append("save")  # it was done before the signal came
        if kind in ("truncate", "flip"):
            newest = undamaged()[-1]
            damaged.add(newest.stat().st_ino)
            name = damage(kind, newest, choose)
            print(f"kill {killed}: {kind} {newest.name}/{name}")

    assert killed >= KILLS
    assert half_written
    life = nursery.start(flags(run), tmp_path / "last.txt")
    assert life.wait() == 0, life.said()
    assert_same_run(run, whole)
    assert sum(path.name.endswith(".damaged") for path in (run / "checkpoints").iterdir()) >= 1
    assert not list((run / "checkpoints").glob("*.tmp-*"))
