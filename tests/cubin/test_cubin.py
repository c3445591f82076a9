"""What ptxas makes of every kernel: no spills, no local memory, registers within a budget."""

from __future__ import annotations

from pathlib import Path

import ptxas

# What a thread gets at most, so that 768 threads fit on an SM.
BUDGET = 80
# Kernels that hold more in registers, by the beginning of their names, and what they are granted.
GRANTED = {
    "hopper::gemm_kernel": 168,  # 384 threads an SM, which divide them anew
    "gemm_kernel<Tile<0>": 168,  # 384 threads an SM
    "gemm_kernel<Tile<1>": 168,
    "gemm_kernel<Tile<2>": 255,  # 256 threads with twice 64 sums each
    "rms_norm_kernel": 104,  # a thread keeps its part of the row between the two passes
    "rms_norm_backward_kernel": 128,
}


def budget_of(name: str) -> int:
    return next((most for start, most in GRANTED.items() if name.startswith(start)), BUDGET)


def test_every_file_has_kernels_on_every_architecture(kernels: list[ptxas.Kernel]) -> None:
    compiled = {(k.file, k.architecture) for k in kernels}
    assert compiled == {(ptxas.file_name(s), a) for s in ptxas.sources() for a in ptxas.architectures(s)}


def test_no_kernel_spills_or_uses_local_memory(kernels: list[ptxas.Kernel]) -> None:
    assert [k for k in kernels if k.stack or k.spill_stores or k.spill_loads] == []


def test_registers_stay_within_the_budget(kernels: list[ptxas.Kernel]) -> None:
    assert [(k, budget_of(k.name)) for k in kernels if k.registers > budget_of(k.name)] == []


def test_what_is_granted_is_needed(kernels: list[ptxas.Kernel]) -> None:
    """A grant that names no kernel, or more than a kernel without one may have, is out of date."""
    for start in GRANTED:
        most = max((k.registers for k in kernels if k.name.startswith(start)), default=0)
        assert most > BUDGET, f"{start} uses {most} registers: it needs no grant"


def test_a_spill_would_be_seen(tmp_path: Path, kernels: list[ptxas.Kernel]) -> None:
    """64 sums a thread in 32 registers."""
    source = tmp_path / "spill.cu"
    source.write_text(
        """
        __global__ void __launch_bounds__(1024, 2) spill(float* x) {
            float v[64];
            for (int i = 0; i < 64; ++i) v[i] = x[i * 1024 + threadIdx.x];
            for (int j = 0; j < 64; ++j)
                for (int i = 0; i < 64; ++i) v[i] = v[i] * v[(i + j) % 64] + 1.0f;
            for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = v[i];
        }
        """
    )
    spilled = ptxas.compile_one(source, tmp_path)
    assert [k.name for k in spilled] == ["spill", "spill"]
    assert all(k.spill_stores > 0 and k.stack > 0 for k in spilled)


def test_names_are_shortened() -> None:
    long = (
        "void dse::cuda::_GLOBAL__N__c2_7_gemm_cu_ce::gemm_kernel<dse::cuda::(anonymous namespace)::"
        "Tile<(dse::cuda::GemmTileIndex)2>, (bool)1>(dse::cuda::GemmArguments)"
    )
    assert ptxas.shorten(long) == "gemm_kernel<Tile<2>, 1>"
    assert ptxas.shorten("dse::cuda::fill(float*, long)") == "fill"


def test_what_ptxas_says_is_read() -> None:
    output = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPf' for 'sm_80'
ptxas info    : Function properties for _Z3addPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1056 bytes smem, 360 bytes cmem[0]
"""
    assert ptxas.parse("add.cu", output) == [ptxas.Kernel("add.cu", "add", "sm_80", 40, 1056, 8, 4, 12)]
