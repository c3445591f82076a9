"""Reading the files of a Hugging Face checkpoint: their headers, what does not fit, and their tensors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import ops
from .hf_layout import CONFIG, INDEX, Entry

_FLOATS = ("F64", "F32", "F16", "BF16")
_SCALES = ("F32", "BF16", "F8_E8M0")
_NAMED = 8  # names that an error lists before it counts the others


@dataclass(frozen=True, slots=True)
class Found:
    """A tensor of a checkpoint, as the header of its file describes it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:_NAMED]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def scan(folder: Path) -> dict[str, Found]:
    """What the headers of the checkpoint's files say, by tensor name."""
    index = folder / INDEX
    if index.is_file():
        files = _files_of(index)
    elif (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    elif parts := list(folder.glob("*.safetensors")):
        raise ValueError(
            f"load_hf: {folder} has {len(parts)} safetensors files and no {INDEX} to say what is in them; "
            "get it from where they came from"
        )
    else:
        raise ValueError(
            f"load_hf: {folder} holds neither {INDEX} nor model.safetensors; only safetensors are read"
        )
    found = {}
    for file in files:
        with _opened(file) as reader:
            for name in reader.keys():  # noqa: SIM118 - not a dict
                view = reader.get_slice(name)
                found[name] = Found(file, view.get_dtype(), tuple(view.get_shape()))
    return found


def _files_of(index: Path) -> list[Path]:
    """The files that an index names, all of them there."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        plain = all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"load_hf: {index} is not an index that can be read ({error!r})") from error
    if not plain or not names:
        raise ValueError(f"load_hf: {index} must name files of its own folder, it names {_listed(names)}")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise ValueError(f"load_hf: {index} names {len(absent)} files that are missing: {_listed(absent)}")
    return [index.parent / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"load_hf: {file} is truncated or no safetensors file ({error}); get it again"
        ) from error


def check_tensors(folder: Path, wanted: list[Entry], found: Mapping[str, Found]) -> None:
    """Raises ValueError naming every tensor that is missing, unexpected, or of another shape or dtype."""
    misfits: dict[str, list[str]] = {
        "missing": [],
        "unexpected": [],
        "of another shape": [],
        "of a dtype that is not read": [],
    }

    def check(name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
        stored = found.get(name)
        if stored is None:
            misfits["missing"].append(name)
        elif stored.shape != shape:
            misfits["of another shape"].append(f"{name} {list(stored.shape)} instead of {list(shape)}")
        elif stored.dtype not in dtypes:
            misfits["of a dtype that is not read"].append(f"{name} {stored.dtype}")

    # Old checkpoints hold the rotary frequencies, which follow from the configuration.
    unexpected = {name for name in found if not name.endswith("rotary_emb.inv_freq")}
    for entry in wanted:
        is_matrix = len(entry.shape) == 2
        check(entry.name, entry.shape, (*_FLOATS, "F8_E4M3") if is_matrix else _FLOATS)
        unexpected.discard(entry.name)
        if is_matrix and entry.name in found and found[entry.name].dtype == "F8_E4M3":
            check(entry.scale_name, entry.scale_shape, _SCALES)
            unexpected.discard(entry.scale_name)
    misfits["unexpected"] = list(unexpected)
    if any(misfits.values()):
        kinds = (f"{len(names)} {kind}: {_listed(names)}" for kind, names in misfits.items() if names)
        raise ValueError(f"load_hf: the tensors in {folder} do not fit its {CONFIG}: {'; '.join(kinds)}")


def fill(tensors: dict[str, Tensor], wanted: list[Entry], found: Mapping[str, Found]) -> bool:
    """Reads every weight into the model's state dict, one tensor after the other, file by file.

    Returns whether there are scales, and all of them powers of two.
    """
    # Scales first, for they may be in another file than their codes; they are 1/4096 of the model.
    quantised = [entry.scale_name for entry in wanted if found[entry.name].dtype == "F8_E4M3"]
    scales: dict[str, Tensor] = {}
    for file, names in _by_file(quantised, found):
        with _opened(file) as reader:
            scales.update({name: reader.get_tensor(name).float() for name in names})
    entries = {entry.name: entry for entry in wanted}
    # Copies last, when what they must equal is there.
    for is_copy in (False, True):
        for file, names in _by_file([e.name for e in wanted if e.is_copy == is_copy], found):
            with _opened(file) as reader:
                for name in names:
                    entry = entries[name]
                    _read(reader, entry, entry.of(tensors), scales.get(entry.scale_name))
    return bool(scales) and all(bool((torch.frexp(s).mantissa == 0.5).all()) for s in scales.values())


def _by_file(names: list[str], found: Mapping[str, Found]) -> Iterable[tuple[Path, list[str]]]:
    files: dict[Path, list[str]] = {}
    for name in names:
        files.setdefault(found[name].file, []).append(name)
    return files.items()


def _read(reader: Any, entry: Entry, target: Tensor, scales: Tensor | None) -> None:
    value = reader.get_tensor(entry.name)
    if scales is not None:
        value = ops.dequantize_blocks(value, scales)
    if not entry.is_copy:
        target.copy_(value)
    # In parts: a copy in FP32 could be larger than a file.
    elif not all(torch.equal(a, b.to(a)) for a, b in zip(target.split(1024), value.split(1024), strict=True)):
        raise ValueError(
            f"load_hf: {entry.name} differs from {entry.source}, of which it must be a copy; MTP modules "
            "share embedding and head with the main model"
        )
