"""Every kind of fault the simulator reports has a row in docs/simulator.md and a test that expects it."""

import ast
import json
import re
from collections.abc import Iterator

import ptxsim

library = ptxsim.library()
library.ptxsim_inspect_fault_kinds.restype = ptxsim.ctypes.c_char_p
KINDS = set(json.loads(library.ptxsim_inspect_fault_kinds()))
# The simulator's own errors, which no input provokes.
OWN = {"INTERNAL"}


def words(source: str) -> Iterator[str]:
    """Words of the strings that stand alone: neither alternatives ("A|B", {"A", "B"}) nor docstrings."""
    tree = ast.parse(source)
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Set) and len(node.elts) > 1:
            skipped.update(node.elts)
        elif isinstance(node, ast.Expr):
            skipped.add(node.value)
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and node not in skipped else None
        if isinstance(text, str) and "|" not in text:
            yield from re.findall(r"[A-Z][A-Z0-9_]+", text)


def test_every_kind_is_expected_by_a_test():
    sources = [path for path in ptxsim.HERE.glob("test_*.py") if path.name != "test_kinds.py"]
    expected = {word for path in sources for word in words(path.read_text())}
    assert KINDS - OWN - expected == set()


def test_every_kind_has_its_row():
    text = (ptxsim.ROOT / "docs/simulator.md").read_text()
    table = re.findall(r"^\| (`[A-Z].*?) \|", text, re.MULTILINE)
    stated = {kind for row in table for kind in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert stated == KINDS - OWN


def test_words_that_stand_alone():
    source = '"""RACE"""\nx = {"A_1", "B_2"}\ny = "C_3|D_4", {"E_5"}, r"^F_6: x"'
    assert set(words(source)) == {"E_5", "F_6"}
