"""Compiles csrc/cuda to machine code and reads what ptxas says of each kernel."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_90")
# The package's flags (setup.py).
FLAGS = ["-O3", "-std=c++20", "-fmad=false", f"-I{ROOT / 'csrc'}"]
TARGET = [f"-gencode=arch={a.replace('sm', 'compute')},code={a}" for a in ARCHITECTURES]
HOPPER_TARGET = ["-gencode=arch=compute_90a,code=sm_90a"]


@dataclass(frozen=True)
class Kernel:
    """What ptxas allots to one kernel; bytes."""

    file: str
    name: str  # demangled, without namespaces and parameters
    architecture: str
    registers: int
    shared: int  # static
    stack: int
    spill_stores: int
    spill_loads: int


def compiler() -> str | None:
    return shutil.which("nvcc")


def version() -> str:
    """Of nvcc, such as 13.0."""
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else "unknown"


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/cuda").rglob("*.cu"))


def file_name(source: Path) -> str:
    """Below csrc/cuda."""
    folder = ROOT / "csrc/cuda"
    return str(source.relative_to(folder)) if source.is_relative_to(folder) else source.name


def target(source: Path) -> list[str]:
    return HOPPER_TARGET if file_name(source).startswith("hopper/") else TARGET


def architectures(source: Path) -> tuple[str, ...]:
    return ("sm_90a",) if target(source) == HOPPER_TARGET else ARCHITECTURES


def short_names(mangled: list[str]) -> dict[str, str]:
    """C++ names as a table shows them."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), check=True, capture_output=True, text=True)
    return {
        name: shorten(demangled) for name, demangled in zip(mangled, text.stdout.splitlines(), strict=True)
    }


def shorten(demangled: str) -> str:
    """A demangled name without namespaces, parameters and casts: gemm_kernel<Tile<0>, true>."""
    name = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N__\w+::|\bdse::(cuda::)?", "", demangled)
    name = re.sub(r"\((?:dse::)?[\w:]+\)(?=-?\d)", "", name)  # casts of enumerators
    depth, end = 0, len(name)
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            end = i
            break
    return name[:end].removeprefix("void ").strip()


def parse(file: str, output: str) -> list[Kernel]:
    """The kernels in the output of nvcc -Xptxas=-v."""
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<architecture>\w+)'"
        r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    found = list(pattern.finditer(output))
    names = short_names([m["name"] for m in found])
    for m in found:
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        kernels.append(
            Kernel(
                file,
                names[m["name"]],
                m["architecture"],
                int(m["registers"]),
                int(shared[1]) if shared else 0,
                int(m["stack"]),
                int(m["stores"]),
                int(m["loads"]),
            )
        )
    return kernels


def compile_one(source: Path, folder: Path) -> list[Kernel]:
    """Raises CalledProcessError with the compiler's words in `stderr`."""
    name = file_name(source)
    made = folder / f"{name.replace('/', '_')}.fatbin"
    command = ["nvcc", *FLAGS, *target(source), "-fatbin", "-Xptxas=-v,--warn-on-spills"]
    output = subprocess.run(
        [*command, str(source), "-o", str(made)], check=True, capture_output=True, text=True
    )
    if "wgmma" in output.stderr:  # all that ptxas ever says of them is that it must run them one by one
        raise RuntimeError(f"{name}: {output.stderr}")
    return parse(name, output.stderr)


def compile_all(folder: Path, jobs: int = 2) -> list[Kernel]:
    """Every kernel of csrc/cuda on every architecture, in order of file and name."""
    with ThreadPoolExecutor(jobs) as pool:
        kernels = [k for part in pool.map(lambda s: compile_one(s, folder), sources()) for k in part]
    return sorted(kernels, key=lambda k: (k.file, k.name, k.architecture))
