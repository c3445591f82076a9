"""The simulator's own tests need g++ and nvcc; without them they are skipped as a whole."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import ptxsim


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tool = ptxsim.missing_tool()
    if tool is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"the simulator's tests need {tool} in PATH"))
