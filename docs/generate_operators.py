"""Writes docs/operators.md from the docstrings and schemas of deepseek_ext.ops: `make docs`.

tests/test_docs.py compares the file with what this makes of the sources, so it cannot fall behind them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deepseek_ext import ops

PAGE = Path(__file__).with_name("operators.md")
WIDTH = 100  # of a signature, beyond which every argument gets its line
HEAD = """\
# Operators

Every operator is a function of `deepseek_ext.ops` and, under the same name, `torch.ops.deepseek_ext.<name>`,
whose schema is given below it. All of them work inside `torch.compile(fullgraph=True)` for any number of
rows, give the same bits for any number of threads, and raise `ValueError` in one sentence for arguments that
do not fit. A name that ends in an underscore writes into its arguments. [Numbers](numerics.md) says what the
formats are and what is promised bit by bit. "Section" and "equation" without more refer to the DeepSeek-V3
technical report (arXiv:2412.19437).

After installing another version of this package, empty torch.compile's cache on disk (the folder
`TORCHINDUCTOR_CACHE_DIR`, by default `torchinductor_<user>` among the temporary files): it knows operators by
name alone, and may answer with a graph that has the old version's backward.

`make docs` makes this page from the sources.

## How they fit together

The experts of one layer, forward: what `moe_ffn` does in one call, with a backward of its own. Tokens are
quantised once, before they are copied to their experts, with scales that are powers of two.

```python
import torch
from deepseek_ext import ops

x = torch.randn(512, 256, dtype=torch.bfloat16)  # T tokens of width H
router = torch.randn(16, 256) * 0.02  # E experts
gate_up = torch.randn(16, 2 * 128, 256) * 0.06  # [E, 2I, H], gate first
down = torch.randn(16, 256, 128) * 0.09  # [E, H, I]

bias = torch.zeros(16)  # update_router_bias_ moves it after each step, by the load
groups = {"n_groups": 4, "topk_groups": 2}  # 1 and 1: no groups
weights, indices, load = ops.route(x.float() @ router.t(), bias, top_k=4, **groups, routed_scaling_factor=1.0)
rows, slots, offs = ops.expert_order(indices, num_experts=16)
tiles = ops.gather_tiles(*ops.quantize_tiles(x, power_of_2=True), rows, 4)
row_weights = ops.gather_rows(weights.view(-1, 1), rows, 1).view(-1)  # each row's own
hidden = ops.grouped_gemm(*tiles, *ops.quantize_blocks(gate_up), offs)
product = ops.swiglu_quantize(hidden, row_weights)
out = ops.combine_rows(ops.grouped_gemm(*product, *ops.quantize_blocks(down), offs), slots)
assert torch.equal(out, ops.moe_ffn(x, weights, indices, gate_up, down))
```
"""


def family_of(name: str) -> str:
    """The family of a public operator: the module of deepseek_ext.ops that defines it."""
    return str(getattr(ops, name).__module__).removeprefix("deepseek_ext.ops.")


def families() -> dict[str, list[str]]:
    """The public operators of each family, as the sources order them; what most users call comes first."""
    first = [
        "fp8_linear",
        "moe_ffn",
        "quantize",
        "gemm",
        "swiglu",
        "routing",
        "permute",
        "rope",
        "attention",
        "optimizer",
    ]
    last = ["norm", "cross_entropy", "optimizer", "wgrad", "_library"]
    found = {family_of(name) for name in ops.__all__}
    order = [*first, *sorted(found - {*first, *last}), *last]

    def line(name: str) -> int:
        return inspect.getsourcelines(getattr(ops, name))[1]

    return {
        family: sorted((name for name in ops.__all__ if family_of(name) == family), key=line)
        for family in order
    }


def is_operator(name: str) -> bool:
    """Whether a public name is an operator on tensors, not a plain function such as cpu_capability."""
    return family_of(name) != "_library" and hasattr(torch.ops.deepseek_ext, name)


def is_differentiable(name: str) -> bool:
    """Whether the docstring says so; tests/test_docs.py asks autograd whether that is true."""
    return re.search(r"(?<!Not )\b[Dd]ifferentiable", " ".join(paragraphs(getattr(ops, name)))) is not None


def phases(family: str) -> dict[str, Callable[..., Any]]:
    """Documented functions of a family's module that are not exported by deepseek_ext.ops."""
    module = importlib.import_module(f"deepseek_ext.ops.{family}")
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and name not in ops.__all__
        and inspect.getdoc(value)
    }


def signature(name: str, function: Callable[..., Any]) -> str:
    """name(argument: type = default, ...) -> type, on several lines if long."""
    shown = inspect.signature(function)
    parts: list[str] = []
    for p in shown.parameters.values():
        if p.kind is p.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(re.sub(r"'([^']*)'", r"\1", str(p)) if p.annotation is not p.empty else str(p))
    result = f" -> {shown.return_annotation}" if shown.return_annotation is not shown.empty else ""
    short = f"{name}({', '.join(parts)}){result}"
    if len(short) <= WIDTH:
        return short
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def markdown(text: str) -> str:
    """Plain text as Markdown that shows the same characters."""
    pieces = text.split("`")  # odd ones are code already
    pieces[::2] = [re.sub(r"([*<>|])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def paragraphs(function: Any) -> list[str]:
    """The paragraphs of a docstring, each on one line; an indented one stays as it is, in a code block."""
    blocks = (inspect.getdoc(function) or "").split("\n\n")
    return [
        "```\n" + inspect.cleandoc(block) + "\n```"
        if block.startswith("    ")
        else markdown(" ".join(block.split()))
        for block in blocks
    ]


def first_sentence(function: Any) -> str:
    sentence = re.match(r".*?[.](?=\s|$)", paragraphs(function)[0])
    assert sentence is not None, f"the docstring of {function.__name__} has no sentence"
    return sentence.group()


def table() -> list[str]:
    lines = ["| family | operator | what it does | gradient |", "|---|---|---|---|"]
    for family, names in families().items():
        for name in filter(is_operator, names):
            gradient = "yes" if is_differentiable(name) else ""
            what = first_sentence(getattr(ops, name))
            lines.append(f"| [{family}](#family-{family}) | [`{name}`](#{name}) | {what} | {gradient} |")
    return lines


MORE = {"moe_ffn": "Over several processes: [Experts on several processes](parallel.md)."}
"""Where else a family is told of."""


def section(family: str, names: list[str]) -> list[str]:
    if family == "_library":
        lines = ["## CPU tiers", ""]
    else:
        title = f"Family {family}" if any(map(is_operator, names)) else f"Module {family}"
        module = importlib.import_module(f"deepseek_ext.ops.{family}")
        where = f"[deepseek_ext/ops/{family}.py](../deepseek_ext/ops/{family}.py)"
        if (PAGE.parent.parent / "deepseek_ext" / "reference" / f"{family}.py").exists():
            where += f"; in plain PyTorch: [reference/{family}.py](../deepseek_ext/reference/{family}.py)"
        more = f" {MORE[family]}" if family in MORE else ""
        lines = [f"## {title}", "", "\n\n".join(paragraphs(module)), "", f"Source: {where}.{more}", ""]
    for name in names:
        function = getattr(ops, name)
        lines += [f"### {name}", "", "```python", signature(name, function), "```", ""]
        lines += ["\n\n".join(paragraphs(function)), ""]
        if is_operator(name):
            schema = str(getattr(torch.ops.deepseek_ext, name).default._schema)
            schema = schema.removeprefix("deepseek_ext::")
            gradient = "Differentiable" if is_differentiable(name) else "Not differentiable"
            lines += [f"{gradient}. Schema: `{schema}`", ""]
    if family != "_library" and (others := phases(family)):
        lines += [f"Also in `deepseek_ext.ops.{family}`:", "", "| function | what it does |", "|---|---|"]
        lines += [
            f"| `{name}({', '.join(inspect.signature(function).parameters)})` | {first_sentence(function)} |"
            for name, function in others.items()
        ]
        lines.append("")
    return lines


def page() -> str:
    lines = [HEAD, *table(), ""]
    for family, names in families().items():
        lines += section(family, names)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
