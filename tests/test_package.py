"""The package as an installer sees it: import, tiers from the environment, sources without stubs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_tiers import CPU_TIERS, host_has

ROOT = Path(__file__).parent.parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("tier", CPU_TIERS)
def test_capability_from_environment(tier: str) -> None:
    run = python("import deepseek_ext; print(deepseek_ext.ops.cpu_capability())", DSE_CPU_CAPABILITY=tier)
    if host_has(tier):
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip().removesuffix("-novbmi") == tier.removesuffix("-novbmi")
    else:
        assert "is above what this CPU has" in run.stderr


def test_unknown_capability_names_the_choices() -> None:
    run = python("import deepseek_ext", DSE_CPU_CAPABILITY="sse9")
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "ValueError: DSE_CPU_CAPABILITY: 'sse9' is not a tier; write generic, avx2, avx512"
    )


def test_import_leaves_the_heavy_parts_unloaded() -> None:
    code = (
        "import sys, deepseek_ext;"
        "print(*{'transformers', 'tokenizers', 'tyro', 'rich', 'deepseek_ext.model'} & set(sys.modules))"
    )
    run = python(code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == ""


def test_import_costs_little_beyond_torch() -> None:
    code = "import time, torch; s = time.time(); import deepseek_ext; print(time.time() - s)"
    seconds = min(float(python(code).stdout) for _ in range(3))
    assert seconds < 1.0, f"importing deepseek_ext took {seconds:.2f} s on top of torch; the goal is 0.3 s"


def test_set_capability_refuses_what_it_cannot_do() -> None:
    from deepseek_ext import ops

    before = ops.cpu_capability()
    expected = "^using_cpu_capability: name 'neon' is not a tier; write generic, avx2"
    with pytest.raises(ValueError, match=expected), ops.using_cpu_capability("neon"):
        pass
    assert ops.cpu_capability() == before


def test_no_stub_is_left_in_the_sources() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    for folder in ("deepseek_ext", "csrc", "examples", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".cpp", ".h", ".inc", ".cu", ".cuh"}:
                text = file.read_text()
                assert not any(mark in text for mark in marks), file


def test_make_bench_finds_the_benchmarks() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout
    for family in ("gemm", "quantize", "swiglu", "routing", "permute", "optimizer"):
        assert f"benchmarks/bench_{family}.py::" in run.stdout
