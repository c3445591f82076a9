"""Every form of the opcode tables, in every choice of its qualifiers, decodes; every lane-wise one runs."""

import ctypes
import itertools
import json
import random
import re

import numpy as np
import pytest
from alu import Refused, describe, library

BITS = {"8": 16, "16": 16, "32": 32, "64": 64}
REGISTERS = (
    ".reg .pred p<3>; .reg .b16 h<9>; .reg .b32 r<260>; .reg .b64 d<5>; .shared .align 16 .b8 area[64];"
)
# What a form admits word by word but its check refuses in combination.
COMBINATIONS = "the vector exceeds|two scopes|must be the same|must have 16 bits|gives no state"


def forms() -> list:
    library().ptxsim_inspect_forms.restype = ctypes.c_char_p
    return json.loads(library().ptxsim_inspect_forms())


def choices(slots: list, limit: int = 400) -> list[list[str]]:
    """All combinations of qualifiers, or a random sample that has each choice of each slot."""
    options = [(["", *words] if optional else words) for optional, *words in slots]
    count = np.prod([len(o) for o in options], dtype=float)
    if count <= limit:
        return [list(c) for c in itertools.product(*options)]
    rng = random.Random(1)
    sample = [[rng.choice(o) for o in options] for _ in range(limit // 2)]
    for i, words in enumerate(options):
        sample += [
            [*[rng.choice(o) for o in options[:i]], w, *[rng.choice(o) for o in options[i + 1 :]]]
            for w in words
        ]
    return sample


def type_bits(name: str) -> int | None:
    """The register width of a type qualifier, None for other words."""
    if name == ".pred":
        return 1
    if re.fullmatch(r"\.(f16x2|bf16x2|tf32)", name):
        return 32
    if re.fullmatch(r"\.(bf16|e[45]m[23]x2)", name):
        return 16
    match = re.fullmatch(r"\.[busf](8|16|32|64)", name)
    return BITS[match[1]] if match else None


def register(bits: int, index: int) -> str:
    return {1: "p", 16: "h", 32: "r", 64: "d"}[bits] + str(index)


def vector(count: int, bits: int = 32) -> str:
    return "{" + ", ".join(register(bits, i) for i in range(count)) + "}"


def matrix_registers(opcode: str, words: list[str]) -> list[int]:
    """Registers of the matrices of mma, wgmma, ldmatrix and stmatrix, in the order of the operands."""
    if opcode.endswith("matrix"):
        return [int(words[[w in (".x1", ".x2", ".x4") for w in words].index(True)][2:])]
    shape = next(
        re.fullmatch(r"\.m(\d+)n(\d+)k(\d+)", w) for w in words if re.fullmatch(r"\.m\d+n\d+k\d+", w)
    )
    m, n, k = map(int, shape.groups())
    bits = 8 if ".e4m3" in words or ".e5m2" in words else 16
    lanes = 128 if opcode == "wgmma" else 32
    return [m * n // lanes, m * k * bits // 32 // lanes, n * k * bits // 32 // lanes, m * n // lanes]


def operand(kind: str, index: int, opcode: str, words: list[str], matrices: list[int]) -> str | None:
    types = [type_bits(w) for w in words if type_bits(w)]
    first = types[0] if types else 32
    second = types[1] if len(types) > 1 else first
    count = next((int(w[2]) for w in words if w in (".v2", ".v4", ".v8")), 1)
    dimensions = next((int(w[1]) for w in words if re.fullmatch(r"\.\dd", w)), 0)
    if kind in ("ci", "co"):
        return None  # the carry flag is not written
    if kind == "x":
        return "h1" if ".multicast::cluster" in words else None
    if kind == "h":
        return "d3" if ".L2::cache_hint" in words else None
    if kind in ("dV", "aV"):
        return vector(matrices.pop(0))
    if kind == "p|p":
        return "p0|p1"
    if kind in ("d|p", "d32|p", "d32_|p"):
        return register(first if kind == "d|p" else 32, 0) + "|p1"
    immediate = {"ldmatrix": "0", "cp": "16", "setmaxnreg": "40", "wgmma": "0" if index > 5 else "1"}
    fixed = {
        "u": "r3", "f": "0f3F800000", "q": "p2", "k": "r4", "i": immediate.get(opcode, "1"), "m": "[d2+16]",
        "l": "here", "b64": "d2", "d32": "r0", "d_": "d0", "p": "p0",
        "t": "[d2, " + vector(dimensions) + "]",
    }  # fmt: skip
    if kind in fixed:
        return "_" if kind == "d_" and ".shared::cluster" in words else fixed[kind]
    if kind in ("ds", "as"):
        return vector(count, max(first, 16)) if count > 1 else register(first, index)
    bits = {"d": first, "d+": first, "D": first, "a": first, "A": first, "dw": 2 * first, "w": 2 * first,
            "s": second, "s+": second}[kind]  # fmt: skip
    return register(bits, index % 3)


def instruction(opcode: str, words: list[str], kinds: list[str]) -> str:
    words = [w for w in words if w]
    words = [re.sub("nNk", "n16k", w) for w in words]
    matrices = matrix_registers(opcode, words) if "dV" in kinds or "aV" in kinds else []
    operands = [operand(kind, i, opcode, words, matrices) for i, kind in enumerate(kinds)]
    return f"{opcode}{''.join(words)} {', '.join(o for o in operands if o)};"


@pytest.fixture(scope="module")
def instances() -> dict[str, list[str]]:
    """By form: its instructions."""
    by_form: dict[str, list[str]] = {}
    for opcode, slots, alternatives in forms():
        name = f"{opcode} {' '.join('|'.join(words) for _, *words in slots)} {alternatives}"
        for words, kinds in itertools.product(choices(slots), alternatives):
            by_form.setdefault(name, []).append(instruction(opcode, words, kinds))
    return by_form


def decoded(text: str) -> str | None:
    """The opcode the instruction decodes to, None if its combination of qualifiers is refused."""
    body = f"{REGISTERS} here: {text}"
    if text.startswith("brx"):
        body = f"{REGISTERS} start: {text} here: .branchtargets start;"
    try:
        module = describe(f".version 9.0\n.target sm_90a\n.entry k() {{ {body} }}")
    except Refused as refusal:
        if not re.search(COMBINATIONS, str(refusal)):
            raise
        return None
    return module["kernels"][0]["code"][0]["opcode"]


def test_every_form_decodes(instances):
    assert len(instances) > 200
    for form, texts in instances.items():
        results = [decoded(text) for text in texts]
        assert any(results), f"no instruction of {form}"


def test_every_lane_wise_instruction_runs(instances):
    run = 0
    for opcode_form, texts in instances.items():
        for text in texts[:: max(1, len(texts) // 8)]:
            if decoded(text) != "Plain":
                continue
            column = np.arange(40, dtype=np.uint64)
            names = (ctypes.c_char_p * 1)(b"r1")
            columns = (ctypes.c_void_p * 1)(column.ctypes.data)
            failed = library().ptxsim_inspect_alu(
                (REGISTERS + text).encode(), names, columns, 1, 1, ctypes.c_size_t(40)
            )
            message = library().ptxsim_inspect_error().decode() if failed else ""
            assert not failed or message.startswith("DIV0"), f"{opcode_form}: {text}: {message}"
            run += 1
    assert run > 500
