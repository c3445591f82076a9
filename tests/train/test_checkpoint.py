"""Checkpoints: whole or not there, verified, and never a way to run code."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from planted import Planted, sign_again, torch_saved  # type: ignore[import-not-found]
from torch import Tensor
from torch.distributed.checkpoint import metadata as metadata_module

from deepseek_ext.train import checkpoint
from deepseek_ext.train.checkpoint import DamagedCheckpoint


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "model.weight": torch.randn(7, 5, generator=generator),
        "optimizer.model.weight.exp_avg": torch.randn(7, 5, generator=generator).bfloat16(),
        "rng.cpu": torch.get_rng_state(),
        "bias": torch.zeros(3),
    }


STATE: dict[str, Any] = {"step": 4, "tokens": 1024, "name": "ünïcode"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path, 4, tensors(), STATE, keep_last=3)


def empty_like(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in values.items()}


def test_what_is_saved_is_loaded(saved: Path) -> None:
    assert checkpoint.read_state(saved) == STATE
    loaded = empty_like(tensors())
    addresses = {name: tensor.data_ptr() for name, tensor in loaded.items()}
    checkpoint.load_tensors(saved, loaded)
    for name, tensor in tensors().items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].data_ptr() == addresses[name]


def test_a_part_can_be_loaded(saved: Path) -> None:
    loaded = {"model.weight": torch.zeros(7, 5)}
    checkpoint.load_tensors(saved, loaded)
    assert torch.equal(loaded["model.weight"], tensors()["model.weight"])


def test_sha256sum_agrees(saved: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=saved, check=True)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        checkpoint.save(tmp_path, step, tensors(), STATE, keep_last=2)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000009", "step-00000010"]


def test_temporary_folders_are_ignored_and_cleared(tmp_path: Path, saved: Path) -> None:
    leftover = tmp_path / "step-00000008.tmp-123"
    leftover.mkdir()
    (leftover / "state.json").write_text("{}")
    assert checkpoint.list_checkpoints(tmp_path) == [saved]
    checkpoint.save(tmp_path, 12, tensors(), STATE, keep_last=3)
    assert not leftover.exists()


def test_a_failed_save_leaves_the_earlier_ones(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 8, tensors(), STATE, keep_last=3)
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    assert checkpoint.read_state(saved) == STATE


def test_files_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    final = checkpoint.save(tmp_path, 4, tensors(), STATE, keep_last=3)
    at = len(events) - 1 - events[::-1].index("rename")
    assert {path.name for path in final.iterdir()} <= set(events[:at])
    assert events[at + 1 :] == [tmp_path.name]


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=saved.name):
        checkpoint.read_state(saved)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("encode", [pickle.dumps, torch_saved])
def test_a_planted_pickle_does_not_run(
    tmp_path: Path, saved: Path, name: str, encode: Callable[[object], bytes]
) -> None:
    mark = tmp_path / "planted"
    payload = encode(Planted(mark))
    size = (saved / name).stat().st_size
    (saved / name).write_bytes(payload.ljust(size, b"\0") if name == "__0_0.distcp" else payload)
    if name != "SHA256SUMS":
        sign_again(saved)

    def load() -> None:
        checkpoint.read_state(saved)
        checkpoint.load_tensors(saved, empty_like(tensors()))

    with pytest.raises(DamagedCheckpoint, match=saved.name):
        load()
    assert not mark.exists()
    pickle.loads(pickle.dumps(Planted(mark)))  # it would have
    assert mark.exists()


def test_a_tensor_turned_object_is_refused(tmp_path: Path, saved: Path) -> None:
    """Metadata of allowed classes only, which sends the reader to an object instead of a tensor."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    mark = tmp_path / "planted"
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    payload = torch_saved(Planted(mark))
    (index,) = [i for i in metadata.storage_data if i.fqn == "bias"]
    (saved / "__0_0.distcp").write_bytes(payload)
    info = metadata.storage_data[index]
    info.offset, info.length = 0, len(payload)
    for kind in ("tensor", "object"):
        if kind == "object":
            metadata.state_dict_metadata["bias"] = BytesStorageMetadata()
        (saved / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(DamagedCheckpoint):
            checkpoint.load_tensors(saved, {"bias": torch.zeros(3)})
        assert not mark.exists()


def test_metadata_may_not_point_outside(tmp_path: Path, saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere.distcp"
    (saved / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(DamagedCheckpoint, match="points outside the checkpoint"):
        checkpoint.load_tensors(saved, empty_like(tensors()))


def test_a_missing_tensor_is_named(saved: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match=r"other\.weight"):
        checkpoint.load_tensors(saved, {"other.weight": torch.zeros(3)})


class ByName:
    """A member of an enumeration as Python 3.11.0 to 3.11.3 pickle it, or any other attribute."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (self.owner, self.name)


def test_metadata_of_every_python_is_read_and_no_other_attribute(saved: Path) -> None:
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    member = metadata_module._MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    for owner, allowed in ((metadata_module._MEM_FORMAT_ENCODING, True), (torch.Size, False)):
        metadata.planner_data = ByName(owner, member.name if allowed else "numel")
        (saved / ".metadata").write_bytes(pickle.dumps(metadata))
        if allowed:
            checkpoint.load_tensors(saved, empty_like(tensors()))
        else:
            with pytest.raises(DamagedCheckpoint, match="calls getattr"):
                checkpoint.load_tensors(saved, empty_like(tensors()))


def test_an_interrupt_in_the_middle_of_a_save_is_one(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.distributed.checkpoint catches it too, wrapped; it must not pass for a full disk."""

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 8, tensors(), STATE, keep_last=3)
    assert checkpoint.list_checkpoints(tmp_path) == [saved]
    monkeypatch.undo()
    checkpoint.save(tmp_path, 12, tensors(), STATE, keep_last=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [saved.name, "step-00000012"]


def test_an_old_checkpoint_loses_its_name_before_its_files(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the process is killed in between."""

    def killed(path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 8, tensors(), STATE, keep_last=1)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step-00000008"]
    assert not saved.exists()
    monkeypatch.undo()
    checkpoint.save(tmp_path, 12, tensors(), STATE, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]


def test_state_nested_too_deep_is_damage(saved: Path) -> None:
    (saved / "state.json").write_text("[" * 10**6)
    sign_again(saved)
    with pytest.raises(DamagedCheckpoint, match="recursion"):
        checkpoint.read_state(saved)
