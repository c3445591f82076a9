"""What the Hopper gemm's PTX and shared memory are made of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import ptxas
import pytest

SOURCE = ptxas.ROOT / "csrc/cuda/hopper/gemm.cu"
THREADS, LAUNCH_REGISTERS = {"loading": 128, "multiplying": 256}, 168


@pytest.fixture(scope="module")
def kernels_ptx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The text of each kernel, by its mangled name."""
    if ptxas.compiler() is None:
        pytest.skip("needs nvcc in PATH")
    made = tmp_path_factory.mktemp("ptx") / "gemm.ptx"
    command = ["nvcc", *ptxas.FLAGS, "-arch=compute_90a", "-ptx", str(SOURCE), "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True)
    parts = made.read_text().split(".visible .entry ")[1:]
    assert len(parts) == 20  # six tiles, four kinds of products, but weight gradients on two tiles
    return {part.partition("(")[0]: part for part in parts}


def test_every_kernel_copies_and_multiplies_in_hardware(kernels_ptx: dict[str, str]) -> None:
    for name, text in kernels_ptx.items():
        assert re.search(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.f32\.e4m3\.e4m3", text), name
        assert "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier" in text, name
        assert "mbarrier.try_wait.parity" in text, name
        assert "complete_tx::bytes.multicast::cluster" in text, name
        pair_by_pair = re.search(r"TileILi\d+ELi(24|48|96)E", name) is not None
        assert ("cp.async.bulk.tensor.3d.global.shared::cta" in text) != pair_by_pair, name


def test_no_kernel_edits_a_tensor_map(kernels_ptx: dict[str, str]) -> None:
    """Maps edited in place while loads were under way gave wrong codes: here they are parameters."""
    for name, text in kernels_ptx.items():
        assert "tensormap.replace" not in text, name
        assert "fence.proxy.tensormap" not in text, name
        assert re.search(r"\.param \.align (64|128) \.b8 \S+\[\d+\]", text), name


def test_registers_are_shared_out_within_the_launch_bounds(kernels_ptx: dict[str, str]) -> None:
    for name, text in kernels_ptx.items():
        (less,) = set(re.findall(r"setmaxnreg\.dec\.sync\.aligned\.u32 (\d+)", text))
        (more,) = set(re.findall(r"setmaxnreg\.inc\.sync\.aligned\.u32 (\d+)", text))
        wanted = THREADS["loading"] * int(less) + THREADS["multiplying"] * int(more)
        assert wanted <= sum(THREADS.values()) * LAUNCH_REGISTERS, name
        assert ".maxntid 384" in text, name


def test_every_tile_has_at_least_four_stages(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    source = tmp_path / "stages.cpp"
    source.write_text(
        """
        #include "cuda/hopper/gemm_tile.h"
        #include <cstdio>
        using namespace dse::cuda::hopper;
        template <class T> void print() { std::printf("%d %d\\n", T::kStages, T::kSharedBytes); }
        int main() {
            print<Tile<64, 24>>(), print<Tile<64, 48>>(), print<Tile<64, 64>>();
            print<Tile<128, 128>>(), print<Tile<256, 96>>(), print<Tile<256, 128>>();
        }
        """
    )
    program = tmp_path / "stages"
    subprocess.run([compiler, "-std=c++20", f"-I{ptxas.ROOT / 'csrc'}", source, "-o", program], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    tiles = [tuple(int(x) for x in line.split()) for line in lines]
    assert len(tiles) == 6
    for stages, shared in tiles:
        assert stages >= 4
        assert shared <= 227 * 1024
