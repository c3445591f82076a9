"""Builds the extension modules. Metadata and tool settings are in pyproject.toml.

DSE_BUILD_CUDA=0|1   leave out or demand the CUDA kernels (default: built if torch has CUDA)
DSE_SKIP_EXTENSIONS=1   install metadata only; `make setup` builds incrementally afterwards
"""

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError as error:
    raise SystemExit(
        "deepseek-ext builds against the torch you use: install torch >= 2.11 first, "
        "then run: pip install --no-build-isolation ."
    ) from error

ROOT = Path(__file__).parent.resolve()
VERSION = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]

# The stable ABI of torch 2.11: one binary serves every later torch. The define also turns any
# include of a classic ATen header into an error.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# No contraction: GCC must fuse nothing across intrinsics, so that every tier gives the same bits.
# No errno, which nobody reads: for its sake sqrt could not become a vector instruction. Results are the same.
NUMBERS = ["-ffp-contract=off", "-fno-math-errno"]
CXX_FLAGS = ["-O3", "-std=c++20", *NUMBERS, "-fvisibility=hidden", "-g0", "-Wall", "-Wextra"]
HEADERS = sorted(
    str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".inc", ".cuh"}
)
DEPENDS = [*HEADERS, "setup.py"]  # a change to any of them makes ninja look again
INCLUDES = [str(ROOT / "csrc"), *include_paths()]


def sources(*folders: str, suffix: str = ".cpp") -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for f in folders for p in (ROOT / "csrc" / f).glob(f"*{suffix}"))


def cpu_extension() -> Extension:
    return Extension(
        "deepseek_ext._C",
        [s for s in sources("ops", "cpu") if not s.endswith("_cuda.cpp")],
        depends=DEPENDS,
        language="c++",
        py_limited_api=True,
        include_dirs=INCLUDES,
        library_dirs=library_paths(),
        libraries=["torch", "torch_cpu", "c10"],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        extra_compile_args={"cxx": [*CXX_FLAGS, *STABLE_ABI]},
    )


def native_extension() -> Extension:
    return Extension(
        "deepseek_ext._native",
        sources("native"),
        depends=DEPENDS,
        language="c++",
        include_dirs=INCLUDES,  # torch ships pybind11
        define_macros=[("DSE_VERSION", f'"{VERSION}"')],
        extra_compile_args={"cxx": [*CXX_FLAGS, "-fvisibility-inlines-hidden"]},
    )


def cuda_toolkit() -> Path:
    """The toolkit's root as nvcc itself knows it: the nvcc in PATH may be a wrapper script elsewhere."""
    if home := os.environ.get("CUDA_HOME"):
        return Path(home)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit(
            "DSE_BUILD_CUDA=1 needs nvcc in PATH or CUDA_HOME; install the toolkit, or use DSE_BUILD_CUDA=0"
        )
    dry_run = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    found = re.search(r"_HERE_=(\S+)/bin", dry_run.stderr)
    return Path(found[1]) if found else Path(nvcc).resolve().parent.parent


def digest(paths: list[str]) -> str:
    return hashlib.sha256(b"".join((ROOT / p).read_bytes() for p in paths)).hexdigest()[:16]


def cuda_extensions() -> list[Extension]:
    mode = os.environ.get("DSE_BUILD_CUDA", "auto")
    if mode not in {"auto", "0", "1"}:
        raise SystemExit(f"DSE_BUILD_CUDA={mode!r} is not understood; write 0, 1 or auto")
    if mode == "0" or (mode == "auto" and torch.version.cuda is None):
        return []
    home = cuda_toolkit()
    if cpp_extension.CUDA_HOME is None:  # torch sets it only on a CUDA build of torch
        cpp_extension.CUDA_HOME = str(home)
    # setuptools knows flags of an extension, not of a file: the gemm, for which Hopper has a kernel of its
    # own, is another extension than the rest.
    gemm = {"csrc/cuda/gemm.cu", "csrc/ops/gemm_cuda.cpp", *sources("cuda/hopper", suffix=".cu")}
    rest = {*sources("cuda", suffix=".cu"), *sources("ops", suffix="_cuda.cpp")} - gemm
    return [
        cuda_extension("_C_cuda", rest, home, [PORTABLE, HOPPER]),
        cuda_extension("_C_cuda_gemm", gemm | {"csrc/ops/module_cuda.cpp"}, home, [PORTABLE, HOPPER_ALONE]),
    ]


PORTABLE = "arch=compute_80,code=[sm_80,compute_80]"
# Hopper converts to E4M3 in one instruction; its machine code spares the first call a translation.
HOPPER = "arch=compute_90,code=[sm_90,compute_90]"
# With the instructions that no later device has. Not beside HOPPER: a device could take either.
HOPPER_ALONE = "arch=compute_90a,code=sm_90a"


def cuda_extension(name: str, files: set[str], home: Path, targets: list[str]) -> Extension:
    return Extension(
        f"deepseek_ext.{name}",
        sorted(files),
        depends=DEPENDS,
        language="c++",
        py_limited_api=True,
        include_dirs=[*INCLUDES, str(home / "include"), str(home / "include" / "cccl")],
        library_dirs=[*library_paths(), str(home / "lib64")],
        libraries=["torch_cpu", "c10", "cudart"],
        extra_link_args=["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"],
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *STABLE_ABI, "-DUSE_CUDA"],
            "nvcc": [
                "-O3",
                "-std=c++20",
                "-fmad=false",
                *(f"-gencode={target}" for target in targets),
                "-Xcompiler=-fvisibility=hidden",
                # Beside a torch without CUDA, ninja learns nothing of a kernel's headers: the command shows
                # a change.
                f"-DDSE_HEADERS={digest(HEADERS)}",
            ],
        },
    )


skip = os.environ.get("DSE_SKIP_EXTENSIONS") == "1"
setup(
    ext_modules=[] if skip else [cpu_extension(), native_extension(), *cuda_extensions()],
    cmdclass={"build_ext": BuildExtension},
)
