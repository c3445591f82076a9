"""The progress line on terminals of several widths and kinds, and where there is none."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from deepseek_ext.train.environment import Peak, slow_fallbacks
from deepseek_ext.train.progress import Progress, clock, fold

FIGURES = (
    *("step 7", "10.0 %", "loss 4.321", "1.987 bits/byte", "lr 1.00e-03", "norm 0.75", "6,000 tokens/s"),
    *("300 GFLOP/s (60 % of bf16 matmul)", "MaxVio 0.55", "MTP 12 %", "left"),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(stream: io.StringIO) -> Progress:
    return Progress(
        total_tokens=1000, flops_per_token=5e7, peak=Peak(5e11, "a peak", "bf16 matmul"), stream=stream
    )


def row(shown: Progress, **changes: Any) -> dict[str, Any]:
    made = {
        **{"step": 7, "tokens": 100, "loss": 4.321, "bits_per_byte": 1.987, "lr": 1e-3, "grad_norm": 0.75},
        **{"tokens_per_second": 6000.0, "max_vio": 0.55, "mtp_acceptance": 0.12},
        **changes,
    }
    return made | shown.speed(made)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """Everything that two steps and a message between them write."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress(stream) as shown:
        shown.show(row(shown))
        shown.say("step 7: validation 1.9 bits/byte " + 30 * "and a long sample ")
        shown.show(row(shown, step=8))
    return stream.getvalue()


def test_the_speed_of_a_row() -> None:
    shown = progress(io.StringIO())
    speed = shown.speed({"tokens_per_second": 6000.0})
    assert speed["gflops_per_second"] == pytest.approx(300)
    assert speed["share_of_peak"] == pytest.approx(0.6)
    assert 0 <= speed["seconds"] < 60


def test_every_figure_is_named() -> None:
    shown = progress(io.StringIO())
    line = "  ".join(shown.figures(row(shown)))
    for figure in FIGURES:
        assert figure in line
    assert "MTP" not in "  ".join(shown.figures(row(shown, mtp_acceptance=None)))


@pytest.mark.parametrize("columns", [30, 80, 120, 300])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """The terminal itself never wraps what is renewed, so moving up by lines erases what was there."""
    written = on_a_terminal(monkeypatch, columns)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    lines = [line for line in re.split(r"[\r\n]+", text) if "sample" not in line]
    assert all(len(line) < columns for line in lines)
    if columns >= 40:
        for figure in FIGURES[1:]:
            assert sum(figure in line for line in lines) >= 2
    rows = len(fold(progress(io.StringIO()).figures(row(progress(io.StringIO()))), columns - 1))
    assert rows == 1 or f"\x1b[{rows - 1}A" in written or written.count("\x1b[1A") >= rows - 1


def test_a_terminal_that_was_closed_stops_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Terminal):
        closed_ = False

        def write(self, text: str) -> int:
            if self.closed_:
                raise OSError(5, "Input/output error")
            return super().write(text)

    monkeypatch.setenv("TERM", "xterm")
    stream = Closed()
    with progress(stream) as shown:
        shown.show(row(shown))
        stream.closed_ = True
        shown.show(row(shown, step=8))
        shown.say("step 8: validation 1.9 bits/byte")
    assert "step 7" in stream.getvalue()


def test_no_colour_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not re.search(r"\x1b\[[0-9;]*m", on_a_terminal(monkeypatch, 100))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with progress(stream) as shown:
        shown.show(row(shown))
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_a_file_gets_plain_lines_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    with progress(stream) as shown:
        shown.show(row(shown))
        shown.show(row(shown, step=8))  # within ten seconds: not shown
        shown.show(row(shown, step=9, tokens=1000))  # the last: shown
        shown.say("x" * 300)
    first, last, said = stream.getvalue().splitlines()
    assert first.startswith("step 7  10.0 %")
    assert last.startswith("step 9  100.0 %")
    assert said == "x" * 300


def test_a_step_past_the_budget() -> None:
    shown = progress(io.StringIO())
    shown.started -= 1000
    figures = shown.figures(row(shown, tokens=1100))
    assert "100.0 %" in figures
    assert figures[-1].endswith(", 0:00 left")


@pytest.mark.parametrize(
    ("tier", "host", "precision", "said"),
    [
        ("avx512_bf16", "avx512_bf16", "bf16", []),
        ("avx512", "avx512", "bf16", []),
        ("avx512", "avx512_bf16", "fp8", ["tier avx512 is in use, this CPU has avx512_bf16"]),
        ("avx2", "avx2", "fp8", []),
        ("avx2", "avx2", "bf16", ["this CPU lacks AVX-512, so BF16 products"]),
        ("generic", "generic", "fp32", ["this CPU lacks AVX2 and FMA"]),
    ],
)
def test_slow_fallbacks_are_named(tier: str, host: str, precision: str, said: list[str]) -> None:
    found = slow_fallbacks(tier, host, precision)
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_fold_breaks_between_parts() -> None:
    assert fold(["ab", "cd", "ef"], 6) == ["ab  cd", "ef"]
    assert fold(["ab", "longer than that", "ef"], 6) == ["ab", "longer", "ef"]
    assert fold([], 6) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3600, "1:00:00"), (7325, "2:02:05")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
