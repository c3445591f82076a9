"""The golden vectors: the dependency-free decoder accepts them, and so do our operators on every tier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    with np.load(HERE / "vectors.npz") as file:
        return dict(file)


def floats(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.view(np.float32))


def codes(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).view(torch.float8_e4m3fn)


def test_decoder_accepts_them() -> None:
    """In an interpreter that sees neither numpy nor torch (-S leaves out site-packages)."""
    run = subprocess.run([sys.executable, "-S", str(HERE / "decode.py")], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len((HERE / "decode.py").read_text().splitlines()) < 200


def test_decoder_notices_a_wrong_bit(vectors: dict[str, np.ndarray], tmp_path: Path) -> None:
    changed = {name: array.copy() for name, array in vectors.items()}
    changed["retile_codes"][7, 3] ^= 1
    np.savez(tmp_path / "vectors.npz", **changed)
    run = subprocess.run(
        [sys.executable, "-S", str(HERE / "decode.py"), str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 1
    assert [line for line in run.stdout.splitlines() if line.startswith("DIFFERS")] == [
        "DIFFERS retile_codes [20, 640]"
    ]


def test_operators(cpu_tier: str, vectors: dict[str, np.ndarray]) -> None:
    x, w = floats(vectors["x"]), floats(vectors["w"])
    offs = torch.from_numpy(vectors["offs"])
    retile_in = codes(vectors["retile_in_codes"]), floats(vectors["retile_in_scales"])
    results = {
        "tiles": ops.quantize_tiles(x),
        "tiles_p2": ops.quantize_tiles(x, power_of_2=True),
        "blocks": ops.quantize_blocks(w),
        "transposed": ops.quantize_tiles_transposed(w),
        "grouped": ops.quantize_tiles_transposed(w, offs),
        "retile_in": ops.quantize_tiles(w),
        "retile": ops.retile(*retile_in, offs),
    }
    for name, (got, scales) in results.items():
        assert np.array_equal(got.view(torch.uint8).numpy(), vectors[f"{name}_codes"]), name
        assert np.array_equal(scales.numpy().view(np.uint32), vectors[f"{name}_scales"]), name
    packed, scales = ops.quantize_e5m6(x)
    assert np.array_equal(packed.numpy(), vectors["e5m6_packed"])
    assert np.array_equal(scales.numpy().view(np.uint32), vectors["e5m6_scales"])
    values = ops.dequantize_tiles(codes(vectors["tiles_codes"]), floats(vectors["tiles_scales"]))
    values = torch.where(values.isnan(), torch.nan, values)
    assert np.array_equal(values.numpy().view(np.uint32), vectors["tiles_dequantized"])


def test_routing(vectors: dict[str, np.ndarray]) -> None:
    top_k, n_groups, topk_groups = vectors["routing_shape"].tolist()
    _, indices, _ = ops.route(
        floats(vectors["routing_logits"]),
        floats(vectors["routing_bias"]),
        top_k=top_k,
        n_groups=n_groups,
        topk_groups=topk_groups,
        routed_scaling_factor=1.0,
    )
    assert np.array_equal(indices.numpy(), vectors["routing_indices"])


def test_generator_writes_these_vectors(
    vectors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HERE)
    import generate

    written = generate.vectors()
    assert written.keys() == vectors.keys()
    for name, array in written.items():
        assert np.array_equal(array, vectors[name]), name
