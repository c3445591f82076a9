"""The processes of tests/parallel/ranks.py as a fixture; all its tests run in one worker, in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ranks import Ranks

_GROUP = pytest.mark.xdist_group("ranks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(_GROUP)
            item.add_marker(pytest.mark.processes)


class _Pool:
    """The running processes; started anew after a test that failed in them."""

    ranks: Ranks | None = None

    def get(self) -> Ranks:
        if self.ranks is None or not self.ranks.alive:
            self.ranks = Ranks()
        return self.ranks


@pytest.fixture(scope="session")
def _pool() -> Iterator[_Pool]:
    pool = _Pool()
    yield pool
    if pool.ranks is not None:
        pool.ranks.close()


@pytest.fixture
def ranks(_pool: _Pool) -> Ranks:
    return _pool.get()
