"""docs/operators.md is what the sources say, and every public operator has all that belongs to one."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deepseek_ext import ops

ROOT = Path(__file__).parent.parent
# What these mean is said by the operators that they call, forward and backward.
COMPOSITIONS = {"fp8_linear", "moe_ffn"}


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_operators", ROOT / "docs/generate_operators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()
OPERATORS = [name for name in ops.__all__ if generator.is_operator(name)]


def test_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", generator.HEAD, re.S)
    exec(compile(code, "operators.md", "exec"), {})


def mentions(name: str, pattern: str, skip: str = "") -> list[str]:
    """Files under a glob that use the operator."""
    files = [file for file in sorted(ROOT.glob(pattern)) if file.name != skip]
    return [file.name for file in files if re.search(rf"ops\.{name}\b|\b{name}\(", file.read_text())]


def has_kernel(name: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"deepseek_ext::{name}", key)


def has_autograd(name: str) -> bool:
    """Whether autograd has a kernel for the operator; those without may have a fallthrough."""
    kernels = torch._C._dispatch_dump(f"deepseek_ext::{name}").splitlines()
    return any(line.startswith("Autograd") and "fallthrough" not in line for line in kernels)


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert page == generator.page(), "docs/operators.md is not what the sources say: run `make docs`"


def test_the_page_shows_every_public_name() -> None:
    page = generator.page()
    assert len(OPERATORS) >= 28
    for name in ops.__all__:
        assert page.count(f"\n### {name}\n") == 1
        assert (f"[`{name}`](#{name})" in page) == (name in OPERATORS)


def test_text_is_shown_as_it_is() -> None:
    assert generator.markdown("a*b*c -> `d*e`") == r"a\*b\*c -\> `d*e`"


@pytest.mark.parametrize("name", ops.__all__)
def test_docstring(name: str) -> None:
    """One sentence first; every argument is named, and what is raised."""
    function = getattr(ops, name)
    text = " ".join((inspect.getdoc(function) or "").split())
    assert generator.first_sentence(function)
    for argument in inspect.signature(function).parameters:
        shared = re.search(r"(are|is) those of |arguments and errors are ", text)
        assert re.search(rf"\b{argument}\b", text) or shared, f"{argument} is not documented"
    if name in OPERATORS:
        assert re.search(r"Raises ValueError|errors are", text)
        if generator.is_differentiable(name) or "Not differentiable again" in text:
            assert has_autograd(name), "the docstring says that it is differentiable, or refuses to be"
        else:
            assert not has_autograd(name), "the docstring does not say that it is differentiable"


@pytest.mark.parametrize("name", OPERATORS)
def test_what_belongs_to_an_operator(name: str) -> None:
    """A kernel, a fake, a reference of the same name and arguments, a test and a benchmark."""
    family = generator.family_of(name)
    assert has_kernel(name, "Meta"), "no fake is registered"
    if name in COMPOSITIONS:
        assert has_kernel(name, "CompositeExplicitAutograd")
    else:
        assert has_kernel(name, "CPU"), "no kernel"
        reference = getattr(importlib.import_module(f"deepseek_ext.reference.{family}"), name)
        ours = inspect.signature(getattr(ops, name)).parameters
        assert set(ours) <= set(inspect.signature(reference).parameters)
    assert mentions(name, "benchmarks/bench_*.py"), "no benchmark"
    assert mentions(name, "tests/ops/test_*.py", skip="test_compile.py"), "no test of its own"


def test_reference_imports_nothing_of_ours() -> None:
    for file in (ROOT / "deepseek_ext" / "reference").glob("*.py"):
        imports = re.findall(r"^(?:from|import) ([.\w]+)", file.read_text(), re.M)
        ours = [module for module in imports if module.startswith(("..", "deepseek_ext"))]
        assert ours == [], f"{file.name} imports {ours}"
