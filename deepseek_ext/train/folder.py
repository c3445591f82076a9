"""The run directory: made, moved aside where a run is to begin anew, and held by one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = ".lock"
TOKENIZER = "tokenizer.json"


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder."""
    return (folder / _LOCK).is_file() and (folder / TOKENIZER).is_file()


@contextmanager
def held(folder: Path, *, anew: bool) -> Iterator[None]:
    """Makes `folder` and holds it until the block, or the process, ends; `anew` moves an old run aside.

    Raises ValueError if it cannot be written, or if another process holds it.
    """
    try:
        if anew and folder.exists() and any(path.name != _LOCK for path in folder.iterdir()):
            if not folder.name:  # the current folder, or the root
                raise ValueError(f"--resume never cannot move {folder} aside; choose a --run-dir with a name")
            lock = _lock(folder)
            aside = next(
                p for n in range(1, 10**6) if not (p := folder.with_name(f"{folder.name}.{n}")).exists()
            )
            folder.rename(aside)
            os.close(lock)
            print(f"--resume never: the run that was in {folder} is now in {aside}")
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise ValueError(
            f"--run-dir {folder} cannot be written ({error.strerror}); choose another"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """The open file that holds the folder: the kernel lets go of it however the process ends."""
    file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode().strip()
        os.close(file)
        raise ValueError(
            f"--run-dir {folder} is in use by process {holder}; stop that one, or choose another folder"
        ) from None
    except OSError:
        pass  # a file system without locks
    with suppress(OSError):  # on a full disk the number is missing, and no more
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
