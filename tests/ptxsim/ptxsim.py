"""The simulator from Python: compile kernels, launch them on numpy or torch memory, see what went wrong.

    module = ptxsim.compile("tests/ptxsim/kernels/add.cu")
    with ptxsim.Simulator(seed=3) as sim:
        sim.launch(module, "add", grid=2, block=128, args=[In(x), In(y), Out(z), x.size])
        sim.run()
    print(sim.counters[0]["instructions"])

docs/simulator.md says what is checked. A process has one simulated machine: one Simulator is open at a time.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "ptxsim"
NVCC_FLAGS = ("-std=c++20", "-O3", "-fmad=false", "-ptx")

READABLE, WRITABLE, UNINITIALISED = 1, 2, 4


class SimulatorError(RuntimeError):
    """What a run or a call reported; `kind` is the capitals it begins with (RACE, LAUNCH)."""

    def __init__(self, text: str):
        super().__init__(text)
        self.kind = text.split(":", 1)[0]


# ---------------------------------------------------------------- building


def make(*targets: str) -> None:
    """Brings targets of build.mk up to date; several processes may ask at once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        jobs = str(min(os.cpu_count() or 1, 4))
        command = ["make", "-s", "-j", jobs, "-f", "tests/ptxsim/build.mk", *targets]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def missing_tool() -> str | None:
    """Which of the tools that the simulator's tests need is absent, if any."""
    return next((tool for tool in ("make", "g++", "nvcc") if shutil.which(tool) is None), None)


def program(name: str) -> ctypes.CDLL:
    """tests/ptxsim/kernels/NAME.cu built as an extension is, with host code, on the stand-in libcudart."""
    make("ptxsim", f"build/ptxsim/kernels/{name}.so")
    library()
    return ctypes.CDLL(str(BUILD / "kernels" / f"{name}.so"))


@functools.cache
def _toolchain() -> str:
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    headers = sorted(
        p for folder in (ROOT / "csrc", HERE) for p in folder.rglob("*") if p.suffix in {".h", ".cuh"}
    )
    digest = hashlib.sha256(version.encode())
    for header in headers:
        digest.update(header.read_bytes())
    return digest.hexdigest()


def ptx(source: str | Path, defines: Iterable[str] = (), arch: str = "80") -> str:
    """The PTX nvcc makes of a .cu file, kept in build/ptxsim/ptx by what went into it."""
    source = ROOT / source
    flags = [
        *NVCC_FLAGS,
        f"-gencode=arch=compute_{arch},code=compute_{arch}",
        f"-I{ROOT / 'csrc'}",
        f"-I{HERE}",
    ]
    flags += [f"-D{define}" for define in defines]
    key = hashlib.sha256(f"{_toolchain()}{flags}{source.read_text()}".encode()).hexdigest()[:24]
    kept = BUILD / "ptx" / f"{source.stem}-{key}.ptx"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(f".{os.getpid()}")
        done = subprocess.run(["nvcc", *flags, "-o", made, source], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"nvcc could not compile {source} {list(defines)}:\n{done.stdout}{done.stderr}"
            )
        made.replace(kept)
    return kept.read_text()


# ---------------------------------------------------------------- the library


@functools.cache
def library() -> ctypes.CDLL:
    make("ptxsim")
    lib = ctypes.CDLL(str(BUILD / "libptxsim.so"))
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    lib.ptxsim_buffer.argtypes = [pointer, size, integer]
    lib.ptxsim_unwritten.argtypes = [pointer, ctypes.POINTER(size)]
    lib.ptxsim_option.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    lib.ptxsim_module.argtypes = [ctypes.c_char_p, size]
    lib.ptxsim_module.restype = pointer
    lib.ptxsim_unload.argtypes = [pointer]
    lib.ptxsim_kernels.argtypes = [pointer]
    lib.ptxsim_launch.argtypes = [
        pointer,
        ctypes.c_char_p,
        pointer,
        ctypes.c_uint32,
        pointer,
        size,
        integer,
        integer,
    ]
    for function in (lib.ptxsim_error, lib.ptxsim_counters, lib.ptxsim_kernels):
        function.restype = ctypes.c_char_p
    return lib


def _raise() -> None:
    raise SimulatorError(library().ptxsim_error().decode())


class Module:
    """Kernels of one PTX text."""

    def __init__(self, text: str):
        lib = library()
        data = text.encode()
        self._handle = lib.ptxsim_module(data, len(data))
        if not self._handle:
            _raise()
        self.kernels: dict[str, list[tuple[int, int]]] = json.loads(lib.ptxsim_kernels(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().ptxsim_unload(self._handle)


@functools.cache
def _module(source: str | Path, defines: tuple[str, ...], arch: str) -> Module:
    return Module(ptx(source, defines, arch))


def compile(source: str | Path, defines: Iterable[str] = (), arch: str = "80") -> Module:
    """A module from a .cu file (path from the repository's root); compiled once, parsed once a process."""
    return _module(source, tuple(defines), arch)


# ---------------------------------------------------------------- arguments


@dataclass(frozen=True)
class _Buffer:
    memory: Any
    flags: int


def In(memory: Any) -> _Buffer:
    """Memory that kernels may only read."""
    return _Buffer(memory, READABLE)


def Out(memory: Any) -> _Buffer:
    """Memory that counts as uninitialised until a kernel has written it."""
    return _Buffer(memory, READABLE | WRITABLE | UNINITIALISED)


def InOut(memory: Any) -> _Buffer:
    """Initialised memory that kernels may read and write."""
    return _Buffer(memory, READABLE | WRITABLE)


def address(memory: Any) -> int:
    """Where a numpy array or torch tensor starts."""
    return memory.ctypes.data if isinstance(memory, np.ndarray) else memory.data_ptr()


def byte_size(memory: Any) -> int:
    return memory.nbytes


SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
# CUtensorMapDataType by bytes an element: elements are copied, never interpreted.
DATA_TYPES = {1: 0, 2: 1, 4: 2, 8: 4}


def tensor_map(
    memory: Any,
    sizes: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    swizzle: int = 128,
    element_bytes: int | None = None,
) -> bytes:
    """A tensor map as cuTensorMapEncodeTiled makes it.

    Sizes and box are in elements, innermost first; strides in bytes, of all dimensions but the innermost;
    swizzle in bytes, 0 for none.
    """
    lib = library()
    entry = ctypes.c_void_p()
    lib.cudaGetDriverEntryPointByVersion(
        b"cuTensorMapEncodeTiled", ctypes.byref(entry), 12000, ctypes.c_ulonglong(0), None
    )
    rank = len(sizes)
    storage = (ctypes.c_char * 192)()
    aligned = (ctypes.addressof(storage) + 63) // 64 * 64
    width = element_bytes or (memory.itemsize if isinstance(memory, np.ndarray) else memory.element_size())
    integers = [ctypes.c_int, ctypes.c_uint32]
    signature = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, *integers, *[ctypes.c_void_p] * 5, *[ctypes.c_int] * 4
    )
    failed = signature(entry.value)(
        aligned,
        DATA_TYPES[width],
        rank,
        address(memory),
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * max(1, rank - 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
        0,
        SWIZZLES.get(swizzle, swizzle),
        0,
        0,
    )
    if failed:
        _raise()
    return ctypes.string_at(aligned, 128)


def _encode(value: Any, size: int) -> bytes:
    """A parameter's bytes."""
    if isinstance(value, (bytes, bytearray)):
        data = bytes(value)
    elif isinstance(value, np.generic):
        data = value.tobytes()
    elif isinstance(value, float):
        data = (np.float32 if size == 4 else np.float64)(value).tobytes()
    else:
        data = int(value).to_bytes(size, "little", signed=int(value) < 0)
    if len(data) != size:
        raise ValueError(f"a parameter of {size} bytes was given {len(data)}: {value!r}")
    return data


def _dims(value: int | Sequence[int]) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return [*given, 1, 1][:3]


# ---------------------------------------------------------------- running


class Simulator:
    """A fresh machine: no buffers, default options but those given (docs/simulator.md lists them)."""

    _open: ClassVar[bool] = False

    def __init__(self, **options: int):
        self.options = options
        self.counters: list[dict[str, Any]] = []
        self._keep: list[Any] = []

    def __enter__(self) -> Simulator:
        if Simulator._open:
            raise RuntimeError("a Simulator is open already: a process has one simulated machine")
        library().ptxsim_reset()
        for name, value in self.options.items():
            if library().ptxsim_option(name.encode(), value):
                raise ValueError(f"the simulator takes no option {name}={value!r}")
        Simulator._open = True
        return self

    def __exit__(self, *exception: object) -> None:
        Simulator._open = False
        library().ptxsim_reset()
        self._keep.clear()

    def buffer(self, memory: Any) -> int:
        """Lets kernels use memory (an array, a tensor, or In, Out, InOut of one); returns its address."""
        if not isinstance(memory, _Buffer):
            memory = InOut(memory)
        start = address(memory.memory)
        library().ptxsim_buffer(start, byte_size(memory.memory), memory.flags)
        self._keep.append(memory.memory)
        return start

    def unwritten(self, memory: Any) -> int | None:
        """The offset of the first byte of an Out buffer that no kernel wrote."""
        offset = ctypes.c_size_t()
        found = library().ptxsim_unwritten(address(memory), ctypes.byref(offset))
        if found < 0:
            raise ValueError("no buffer registered with Out starts there")
        return offset.value if found else None

    def launch(
        self,
        module: Module,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        args: Sequence[Any] = (),
        *,
        shared: int = 0,
        cluster: int | Sequence[int] | None = None,
        stream: int = 0,
        rank: int = 0,
    ) -> None:
        """Queues a launch. Those of one stream and rank run one after the other, others at the same time."""
        if kernel not in module.kernels:
            raise ValueError(f"the module has no kernel {kernel}; it has {', '.join(module.kernels)}")
        layout = module.kernels[kernel]
        if len(layout) != len(args):
            raise ValueError(f"kernel {kernel} takes {len(layout)} parameters, not {len(args)}")
        block_bytes = bytearray(layout[-1][0] + layout[-1][1] if layout else 0)
        for (offset, size), value in zip(layout, args, strict=True):
            if isinstance(value, _Buffer) or (hasattr(value, "nbytes") and not isinstance(value, np.generic)):
                value = self.buffer(value)
            block_bytes[offset : offset + size] = _encode(value, size)
        dims = (ctypes.c_uint32 * 9)(*_dims(grid), *_dims(block), *(_dims(cluster) if cluster else (0, 0, 0)))
        if library().ptxsim_launch(
            module._handle, kernel.encode(), dims, shared, bytes(block_bytes), len(block_bytes), stream, rank
        ):
            _raise()
        self._keep.append(module)

    def run(self) -> list[dict[str, Any]]:
        """Runs all that is queued; returns and keeps the counters, one entry a launch."""
        failed = library().ptxsim_synchronize()
        if failed:
            _raise()
        self.counters = json.loads(library().ptxsim_counters())
        return self.counters
