"""Hugging Face checkpoints: safetensors with the names and config.json of the released models, both ways.

docs/checkpoints.md says what is written and what is read.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .config import ModelConfig, read_hf_config
from .disk import flush
from .hf_layout import CONFIG, INDEX, Entry, block_size, entries, layer_of, quantise_weight, stored_as
from .hf_read import Found, check_tensors, fill, scan
from .model import DeepseekV3
from .nn.linear import Linear, Precision
from .nn.moe import Experts, SwiGLU

Dtype = Literal["bfloat16", "float32", "fp8"]


def save_hf(
    model: DeepseekV3,
    path: str | Path,
    dtype: Dtype = "bfloat16",
    include_mtp: bool = True,
    *,
    power_of_2: bool | None = None,
    max_shard_size: int = 5_000_000_000,
    tokenizer: Any = None,
    eos_token_id: int | None = None,
) -> None:
    """Writes the model as a Hugging Face checkpoint; transformers' DeepseekV3ForCausalLM is its class.

    path: a folder that is new or empty. dtype: "bfloat16", "float32", or "fp8": projections in float8_e4m3fn
    with an FP32 scale per 128x128 block, all else in BF16; router biases are FP32 in all three. power_of_2:
    whether those scales are rounded up to powers of two (scale_fmt "ue8m0"); None means as in the files that
    the model was loaded from, if any. include_mtp=False leaves the MTP modules out, which transformers would
    skip and report as unexpected. It reads fp8 only where accelerate is installed.
    max_shard_size: bytes of a file, which only a single larger tensor exceeds. tokenizer: of the `tokenizers`
    package, written along with the end-of-document token eos_token_id, so that AutoTokenizer reads them.

    Beyond the model this takes the memory of one file. config.json is written last: a folder without it is
    no checkpoint. What a failed save has written is deleted again. An FP8 checkpoint that is loaded and saved
    again gives the same bytes.

    Raises ValueError for a folder with files in it and for arguments that do not fit, OSError where the disk
    refuses.
    """
    folder = Path(path)
    if dtype not in get_args(Dtype):
        raise ValueError(f"save_hf: dtype must be one of {', '.join(get_args(Dtype))}, got {dtype!r}")
    if power_of_2 and dtype != "fp8":
        raise ValueError(
            f'save_hf: power_of_2 is about scales, which dtype "{dtype}" has none of; write "fp8"'
        )
    if max_shard_size < 1:
        raise ValueError(f"save_hf: max_shard_size must be a positive number of bytes, got {max_shard_size}")
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError("save_hf: the model is on the meta device and has no values to save")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"save_hf: {folder} is not empty; name a folder that is new or empty")

    if power_of_2 is None:
        power_of_2 = dtype == "fp8" and any(layer.power_of_2 for layer in _quantised(model))
    config = model.config if include_mtp else replace(model.config, num_nextn_predict_layers=0)
    settings = {**config.to_hf(), "torch_dtype": "float32" if dtype == "float32" else "bfloat16"}
    if dtype == "fp8":
        settings["quantization_config"] = _quantization_settings(power_of_2)
    if eos_token_id is not None:
        settings |= {"bos_token_id": None, "eos_token_id": eos_token_id}

    shards = _shards(list(entries(model, include_mtp=include_mtp)), dtype, max_shard_size)
    with _undone_on_failure(folder) as written:
        weight_map: dict[str, str] = {}
        total = 0
        tensors = model.state_dict()
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            contents = _encoded(shard, tensors, dtype, power_of_2)
            weight_map |= dict.fromkeys(contents, name)
            total += sum(tensor.nbytes for tensor in contents.values())
            written.append(folder / name)
            _write_shard(folder / name, contents)
            del contents  # before the next file's tensors are made
        files = {INDEX: {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}}
        if tokenizer is not None:
            files |= _tokenizer_files(tokenizer, eos_token_id, config)
        for name, content in (files | {CONFIG: settings}).items():
            written.append(folder / name)
            _write_json(folder / name, content)


def load_hf(
    path: str | Path,
    precision: Precision = "fp8",
    *,
    precision_overrides: Mapping[str, Precision] | None = None,
    device: torch.device | str | None = None,
) -> DeepseekV3:
    """Reads a Hugging Face checkpoint: a folder with config.json and safetensors, one file or many.

    Weights may be BF16, FP16, FP32, or E4M3 with a scale per 128x128 block (FP32, or powers of two, which may
    be stored as E8M0); they become the model's FP32 parameters, from which `precision` makes what it
    multiplies by. "fp8" makes scales of the kind that the file has, so that FP8 weights are not rounded a
    second time (docs/checkpoints.md has the fine print). precision, precision_overrides and device are
    DeepseekV3's. The model is in training mode, like any that was just made.

    A checkpoint without MTP modules gives a model without, and a warning if its config.json speaks of some.
    Tensors are read one by one, so this takes the memory of the model and little more.

    Raises ValueError for files that cannot be read, and in one message for all tensors that are missing,
    unexpected or of another shape or dtype.
    """
    folder = Path(path)
    _check_folder(folder)
    settings = read_hf_config(folder)
    try:
        config = ModelConfig.from_hf(settings)
    except ValueError as error:
        reason = re.sub(r"^ModelConfig(\.from_hf)?: ", "", str(error))
        raise ValueError(f"load_hf: {folder / CONFIG}: {reason}") from error
    _check_quantization(folder, settings.get("quantization_config"))
    found = scan(folder)
    config = _with_modules_of(folder, config, found)
    model = DeepseekV3(config, precision=precision, precision_overrides=precision_overrides, device="meta")
    wanted = list(entries(model))
    check_tensors(folder, wanted, found)

    model.to_empty(device=torch.get_default_device() if device is None else device)
    persistent = model.state_dict()
    for name, buffer in model.named_buffers():
        if name not in persistent:
            buffer.zero_()  # the routers' counts
    powers_of_2 = fill(persistent, wanted, found)
    for layer in _quantised(model):
        layer.power_of_2 = powers_of_2
    model.weights_changed()
    return model


def _quantised(model: DeepseekV3) -> Iterator[Linear | SwiGLU | Experts]:
    """The layers that multiply by FP8 codes if their precision says so."""
    return (module for module in model.modules() if isinstance(module, Linear | SwiGLU | Experts))


def no_such_folder(folder: Path, wanted: str) -> ValueError:
    """The error for a folder that is not there, which may be meant as the name of a model on the Hub."""
    remedy = f"name a local one that holds {wanted}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) and not folder.parent.exists():
        remedy += f"; nothing is downloaded here, `hf download {folder} --local-dir DIR` does that"
    return ValueError(f"{folder} is no folder; {remedy}")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"load_hf: {no_such_folder(folder, CONFIG)}")
    if (folder / "checkpoints").is_dir() and not (folder / CONFIG).exists():
        raise ValueError(
            f"load_hf: {folder} holds a training run and no {CONFIG}; export it with "
            f"`deepseek-ext export-hf {folder} OUT`, and load OUT"
        )


def _quantization_settings(power_of_2: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": block_size(),
    }
    return settings | ({"scale_fmt": "ue8m0"} if power_of_2 else {})


def _check_quantization(folder: Path, settings: Any) -> None:
    if settings is None:
        return
    path = folder / CONFIG
    if not isinstance(settings, dict) or settings.get("quant_method") != "fp8":
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise ValueError(
            f'load_hf: {path}: quant_method {method!r} is not read; "fp8" is, and no quantisation'
        )
    for key, wanted in (("weight_block_size", block_size()), ("fmt", "e4m3")):
        if settings.get(key, wanted) != wanted:
            raise ValueError(f"load_hf: {path}: {key} must be {wanted}, got {settings[key]!r}")


def _shards(wanted: list[Entry], dtype: Dtype, max_size: int) -> list[list[Entry]]:
    """The weights in their order, cut into files; a weight and its scales are in the same one."""
    shards: list[list[Entry]] = []
    size = 0
    for entry in wanted:
        bytes_of_it = sum(shape.numel() * kind.itemsize for shape, kind in stored_as(entry, dtype).values())
        if not shards or size + bytes_of_it > max_size:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += bytes_of_it
    return shards


def _encoded(
    shard: list[Entry], tensors: dict[str, Tensor], dtype: Dtype, power_of_2: bool
) -> dict[str, Tensor]:
    """The tensors of one file, by name."""
    # All of them are allocated before any is computed: temporaries in between would leave holes behind, and
    # the heap would grow to three times the file.
    contents = {
        name: torch.empty(shape, dtype=kind, device="cpu")
        for entry in shard
        for name, (shape, kind) in stored_as(entry, dtype).items()
    }
    for entry in shard:
        weight = entry.of(tensors)
        if entry.scale_name in contents:
            codes, scales = quantise_weight(weight, power_of_2=power_of_2)
            contents[entry.name].copy_(codes)
            contents[entry.scale_name].copy_(scales)
        else:
            contents[entry.name].copy_(weight)
    return contents


@contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """Makes the folder; if the body fails, deletes the files that it put on the list."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        yield written
        flush(folder)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _write_shard(file: Path, contents: dict[str, Tensor]) -> None:
    try:
        save_file(contents, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"save_hf: {file} cannot be written ({error})") from error
    flush(file)


def _write_json(file: Path, content: Any) -> None:
    """Writes beside, then renames: the file is whole or not there."""
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        flush(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _tokenizer_files(tokenizer: Any, eos: int | None, config: ModelConfig) -> dict[str, Any]:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    files = {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": settings}
    if eos is not None:
        settings["eos_token"] = tokenizer.id_to_token(eos)
        files["generation_config.json"] = {"bos_token_id": None, "eos_token_id": eos}
    return files


def _with_modules_of(folder: Path, config: ModelConfig, found: Mapping[str, Found]) -> ModelConfig:
    """The configuration, without MTP modules if the checkpoint has none.

    transformers saves none, and writes num_nextn_predict_layers = 1 all the same.
    """
    layers = (layer_of(name) for name in found)
    if config.num_nextn_predict_layers == 0 or any(
        layer is not None and layer >= config.num_hidden_layers for layer in layers
    ):
        return config
    warnings.warn(
        f"load_hf: {folder} has no tensor of its {config.num_nextn_predict_layers} MTP modules, so the model "
        "has none (num_nextn_predict_layers = 0)",
        stacklevel=3,
    )
    return replace(config, num_nextn_predict_layers=0)
