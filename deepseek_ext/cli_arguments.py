"""Command-line arguments to a dataclass by tyro, whose boxed complaints become one sentence each."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from textwrap import dedent
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def parse(kind: type[T], args: Sequence[str], program: str, **settings: Any) -> T:
    """An instance of the dataclass `kind`, each field of which is an option; settings are tyro's.

    Raises ValueError, in one sentence, for arguments that do not fit.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=list(args), prog=program, **settings)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise ValueError(_sentence(complaint.getvalue(), kind, args, program)) from None


def _sentence(complaint: str, kind: type[Any], args: Sequence[str], program: str) -> str:
    """What tyro complains of, in our words where its own are known.

    It draws a box where the terminal can show one: title in the border, sections between rules. Elsewhere
    the title is a section too.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint)
    lines = [line.replace("│", " ").rstrip() for line in plain.splitlines() if line[:1] not in ("╭", "╰")]
    sections = re.split(r"^ *(?:─{4,}|-{4,})$", "\n".join(lines), flags=re.MULTILINE)
    body = dedent(sections["╭" not in plain and len(sections) > 1])
    text = " ".join(body.split())
    more = f"`{program} --help` lists what there is"
    unknown = _unknown(kind, args)
    if unknown and re.search(r"Unrecognized options|Missing value for argument '[^-]", complaint):
        close = get_close_matches(unknown, _options(kind), 1, 0.7)
        return f"there is no option {unknown}; " + (f"did you mean {close[0]}?" if close else more)
    if match := re.match(r"Unrecognized options: (.*)", text):
        return f"too many arguments: {match[1]}; {more}"
    if match := re.match(r"Missing value for argument '(.*)'", text):
        return f"{match[1]} needs a value; {more}"
    if text.startswith("Missing from"):
        names = re.findall(r"^ {4}(\S+)", body, re.MULTILINE)
        return f"missing: {', '.join(names)}; {more}"
    if match := re.match(r"invalid choice '(.*)' for argument '(.*)'. Expected one of \((.*)\)", text):
        choices = sorted(set(re.findall(r"'(.*?)'", match[3])) - {"None"})
        return f"{match[2]} must be one of {', '.join(choices)}, got {match[1]!r}"
    if match := re.match(rf"Error parsing {kind.__name__}: (.*)", text):
        return match[1]
    if match := re.match(r"Error parsing (-\S+): .*(base 10|to float): '(.*)'", text):
        return f"{match[1]} must be a {'whole ' * (match[2] == 'base 10')}number, got {match[3]!r}"
    return text


def _options(kind: type[Any]) -> list[str]:
    names = {f.name.replace("_", "-"): str(f.type) for f in fields(kind) if "Positional" not in str(f.type)}
    switches = [f"--no-{name}" for name, type_ in names.items() if type_ == "bool"]
    return ["--help", *(f"--{name}" for name in names), *switches]


def _unknown(kind: type[Any], args: Sequence[str]) -> str | None:
    """The first word that looks like an option and is none."""
    known = _options(kind)
    for word in args:
        name = word.split("=", 1)[0]
        if re.match(r"--?[A-Za-z]", name) and name.replace("_", "-") not in known:
            return name
    return None
