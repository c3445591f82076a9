"""A built wheel works where there is no checkout and no compiler."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_wheel_works_without_compiler_or_checkout(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-w",
        str(tmp_path),
        ".",
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"deepseek_ext/_C.abi3.so", "deepseek_ext/py.typed", "deepseek_ext/reference/quantize.py"} <= set(
        names
    )
    assert not [n for n in names if n.startswith(("tests/", "benchmarks/", "csrc/"))]

    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    code = (
        "import torch, deepseek_ext; from deepseek_ext import ops; x = torch.randn(3, 300);"
        "w = torch.randn(5, 300, requires_grad=True); ops.fp8_linear(x, w).sum().backward();"
        "assert w.grad is not None; print(deepseek_ext.__file__)"
    )
    # An empty PATH: nothing may look for a compiler.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(site), "PATH": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().startswith(str(site))
