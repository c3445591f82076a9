"""The CUDA modules as they ship: setup.py builds and links them, and they register every operator.

Without a GPU, and beside a torch without CUDA. Of all that the modules need, such a torch lacks one function,
which only gives the current stream and is never called here: a library of one line stands in for it. Python
binds all names when it loads a module, so that a second one that is missing is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STAND_IN = "int aoti_torch_get_current_cuda_stream(int device, void** stream) { return 1; }\n"
# Prints the operators that have a kernel: on the CPU, for CUDA before the modules are loaded, and after.
LOADS = """
import ctypes, importlib, json, sys
import deepseek_ext
from backends import operators

ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
deepseek_ext.__path__.insert(0, sys.argv[2])
before = operators("CUDA")
for name in ("_C_cuda", "_C_cuda_gemm"):
    importlib.import_module(f"deepseek_ext.{name}")
print(json.dumps([sorted(names) for names in (operators("CPU"), before, operators("CUDA"))]))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds the built modules; setup.py compiles what has changed."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc in PATH")
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "build/cuda"],
        cwd=ROOT,
        env=os.environ | {"DSE_BUILD_CUDA": "1", "DSE_SKIP_EXTENSIONS": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return ROOT / "build/cuda/deepseek_ext"


def test_the_built_modules_register_every_operator(package: Path, tmp_path: Path) -> None:
    source, library = tmp_path / "stream.c", tmp_path / "libstream.so"
    source.write_text(STAND_IN)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", LOADS, library, package],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    cpu, before, after = map(set, json.loads(done.stdout))
    assert after == cpu
    if torch.version.cuda is None:  # else the package itself may have loaded the module
        assert before == {"causal_attention", "causal_attention_backward"}  # written in Python
