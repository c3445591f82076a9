"""What every test of a fault asks: it is reported on every seed, and its right twin raises nothing.

A run is a function of a seed and options of the simulator.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from ptxsim import SimulatorError

SEEDS = range(8)
Run = Callable[..., object]


def schedule(seed: int) -> dict[str, int]:
    """Options: how long turns are, who is held back, when asynchronous operations complete."""
    random = np.random.default_rng(seed)
    return {
        "seed": seed,
        "quantum": int(random.choice([1, 7, 50, 200, 2000])),
        "wgmma_mode": int(random.integers(3)),
        "async_delay": int(random.choice([0, 3, 30, 300])),
        "spurious": int(random.choice([0, 25, 75])),
        "chaos": int(random.integers(4) > 0),
    }


SCHEDULES = [schedule(seed) for seed in range(60)]


def stays_silent(run: Run) -> None:
    """60 random schedules without a report."""
    for options in SCHEDULES:
        run(**options)


def is_reported(run: Run, kinds: str | Iterable[str], *parts: str, seeds: Iterable[int] = SEEDS) -> None:
    """On every seed one of the kinds, with all of the parts in its text."""
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    for seed in seeds:
        with pytest.raises(SimulatorError) as error:
            run(seed=seed)
        text = str(error.value)
        assert error.value.kind in kinds, (seed, text)
        for part in parts:
            assert part in text, seed
