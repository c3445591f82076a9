"""docs/simulator.md: its example runs, its error is real, and its table names every option."""

import re
from pathlib import Path

import numpy as np
import ptxsim
import pytest

TEXT = (ptxsim.ROOT / "docs/simulator.md").read_text()


def options() -> dict[str, int]:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", TEXT, re.MULTILINE)
    return {name: int(float(default)) for name, default in rows}


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ptxsim.ROOT)
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(example, "docs/simulator.md", "exec"), {})
    assert " 512" in capsys.readouterr().out


def test_the_report_reads_as_shown() -> None:
    x, y = np.arange(128, dtype=np.int32), np.zeros(128, np.int32)
    kernels = ptxsim.compile("tests/ptxsim/kernels/races.cu")
    with ptxsim.Simulator(seed=3) as sim:
        sim.launch(kernels, "rounds_fault", 1, 128, [ptxsim.In(x), ptxsim.Out(y)])
        with pytest.raises(ptxsim.SimulatorError) as error:
            sim.run()
    (shown,) = re.findall(r"^    RACE.*\n    .*$", TEXT, re.MULTILINE)

    def shape(text: str) -> str:  # which lane, warp and line is the compiler's and the seed's to say
        return re.sub(r"%?\w*\d+\w*", "n", " ".join(text.split()))

    assert shape(str(error.value)) == shape(shown)


def test_the_table_of_options_is_complete() -> None:
    here = Path(__file__).parent
    declared = re.findall(r'\{"(\w+)", &(?:Options|Device)::', (here / "options.cpp").read_text())
    declared += re.findall(r'\{"(\w+)", &(?:Options|Device)::', (here / "capi.cpp").read_text())
    assert sorted(declared) == sorted(options())


@pytest.mark.parametrize("name", sorted(options()))
def test_defaults_are_as_stated(name: str) -> None:
    with ptxsim.Simulator(**{name: options()[name]}):
        pass
    fields = (ptxsim.HERE / "options.h").read_text() + (ptxsim.HERE / "device.h").read_text()
    field = "count" if name == "devices" else name
    (default,) = re.findall(rf"int64_t {field} = ([\d']+);", fields)
    assert int(default.replace("'", "")) == options()[name]
