"""What one who may write the files of a checkpoint would put there."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch


class Planted:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def sign_again(folder: Path) -> None:
    """Makes the checksums fit."""
    names = sorted(path.name for path in folder.iterdir() if path.name != "SHA256SUMS")
    subprocess.run(f"sha256sum {' '.join(names)} > SHA256SUMS", shell=True, cwd=folder, check=True)
