"""Checkpoints of torch.distributed.checkpoint: complete once renamed, read without running code from files.

A checkpoint is a folder `step-00000400`:

    .metadata, __0_0.distcp   the tensors, as torch.distributed.checkpoint writes them, a file a process
    state.json                everything that is not a tensor
    SHA256SUMS                of the files above; `sha256sum -c SHA256SUMS` reads it too

It is written under a temporary name, flushed to the disk and then renamed, so a folder with this name is
whole. Any number of processes reads what any other number wrote.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ..disk import flush
from ..parallel.world import World

STATE, SUMS = "state.json", "SHA256SUMS"
_NAME = re.compile(r"step-(\d{8,})")
_SUM = re.compile(r"([0-9a-f]{64})  ([\w.-]+)")


def _memory_format(cls: Any, name: Any) -> Any:
    """Stands in for getattr, by which Python 3.11.0 to 3.11.3 pickle the member of an enumeration."""
    if cls is not dcp_metadata._MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(".metadata calls getattr, which no checkpoint of ours does")
    return dcp_metadata._MEM_FORMAT_ENCODING[name]


# What .metadata is made of; a pickle that names anything else is refused before it is called.
_METADATA_CLASSES = {
    (dcp_metadata.__name__, name): getattr(dcp_metadata, name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    (_StorageInfo.__module__, "_StorageInfo"): _StorageInfo,
    ("builtins", "getattr"): _memory_format,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): lambda name: {str(torch.strided): torch.strided}[name],
}


class DamagedCheckpoint(ValueError):
    """A checkpoint that cannot be used; the message names the folder, the file and what is wrong."""


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    *,
    keep_last: int,
    world: World | None = None,
) -> Path:
    """Writes checkpoint `step` below folder, then deletes all but the keep_last newest; returns its path.

    tensors: flat, by name, of which DTensors are parts of what all processes of the world hold; state: what
    json can hold. Raises OSError (a full disk, say), leaving earlier checkpoints as they were.
    """
    world = world or World()
    final = folder / f"step-{step:08d}"
    temporary = world.lead(lambda: _new_temporary(final))
    try:
        with _quiet():
            writer = _Writer(temporary, sync_files=True)
            dcp_save(tensors, storage_writer=writer, no_dist=world.size == 1)
        world.lead(lambda: _complete(temporary, final, state))
    except (Exception, CheckpointException) as error:
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(_reason(error)) from error
    if world.is_main:
        for old in list_checkpoints(folder)[:-keep_last]:
            with suppress(OSError):  # half deleted it must not have its name
                shutil.rmtree(old.rename(f"{old}.tmp-{os.getpid()}"))
    return final


def _new_temporary(final: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_temporary(final.parent)
    return final.with_name(f"{final.name}.tmp-{os.getpid()}")


def _complete(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    """Adds what is not a tensor, and the checksums, and gives the folder its name."""
    (temporary / STATE).write_text(json.dumps(state, indent=1))
    names = sorted(path.name for path in temporary.iterdir())
    (temporary / SUMS).write_text("".join(f"{_sha256(temporary / name)}  {name}\n" for name in names))
    for path in (*temporary.iterdir(), temporary):
        flush(path)
    if final.exists():  # only a damaged one can stand there: a usable one would have been resumed from
        shutil.rmtree(final)
    temporary.rename(final)
    flush(final.parent)


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints below folder, oldest first; temporary folders are no checkpoints."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Verifies every file of a checkpoint against SHA256SUMS and returns state.json.

    Raises DamagedCheckpoint.
    """
    try:
        lines = (checkpoint / SUMS).read_text().splitlines()
        sums = {}
        for line in lines:
            match = _SUM.fullmatch(line)
            if match is None:
                raise DamagedCheckpoint(f"{checkpoint}: {SUMS} is not a list of checksums")
            sums[match[2]] = match[1]
        for name in (STATE, ".metadata"):
            if name not in sums:
                raise DamagedCheckpoint(f"{checkpoint}: {SUMS} does not list {name}")
        for name, expected in sums.items():
            if _sha256(checkpoint / name) != expected:
                raise DamagedCheckpoint(f"{checkpoint}: {name} differs from its checksum")
        state = json.loads((checkpoint / STATE).read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DamagedCheckpoint(f"{checkpoint}: {error}") from error
    if not isinstance(state, dict):
        raise DamagedCheckpoint(f"{checkpoint}: {STATE} is not a JSON object")
    return state


def load_tensors(checkpoint: Path, tensors: dict[str, Tensor], world: World | None = None) -> None:
    """Fills `tensors` in place from a checkpoint that read_state has verified; every name must be there.

    Of DTensors this process fills its part. Runs no code from the files. Raises DamagedCheckpoint.
    """
    try:
        with _quiet():
            dcp_load(
                tensors,
                storage_reader=_Reader(checkpoint),
                planner=_TensorsOnly(flatten_state_dict=False),
                no_dist=world is None or world.size == 1,
            )
    except (Exception, CheckpointException) as error:  # whatever torch says of a file it cannot read
        raise DamagedCheckpoint(f"{checkpoint}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """One line for an error, taken out of the wrapping that torch.distributed.checkpoint puts around it.

    What is no Exception, such as an interrupt, is wrapped there too, and raised again.
    """
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if not isinstance(error, Exception):
        raise error
    behind: list[BaseException] = [error]
    while context := behind[-1].__context__:
        behind.append(context)
    shown = next((e for e in behind if isinstance(e, OSError)), error)  # torch's writer hides a full disk
    return next(iter(str(shown).strip().splitlines()), type(shown).__name__)


class _Writer(FileSystemWriter):
    """Says that a disk is full before the error travels to the other ranks, which loses what is behind it."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except Exception as error:
            raise OSError(_reason(error)) from error


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_CLASSES:
            return _METADATA_CLASSES[module, name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f".metadata names {module}.{name}, which no checkpoint of ours contains")


class _Reader(FileSystemReader):
    """Reads .metadata through the allow-list; tensors its base class reads with weights_only=True."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with open(Path(self.path) / ".metadata", "rb") as file:
            metadata = _MetadataUnpickler(file).load()
        if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
            raise DamagedCheckpoint(".metadata holds no checkpoint metadata")
        for info in metadata.storage_data.values():
            if not isinstance(info, _StorageInfo) or Path(info.relative_path).name != info.relative_path:
                raise DamagedCheckpoint(".metadata points outside the checkpoint")
            if info.transform_descriptors:
                raise DamagedCheckpoint(".metadata asks for stream transforms, which we never write")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise DamagedCheckpoint(f"{read_item.dest_index.fqn} is stored as an object, where a tensor belongs")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return _digest(file)


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _remove_temporary(folder: Path) -> None:
    """Deletes what an interrupted save left behind."""
    for path in folder.glob("step-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
