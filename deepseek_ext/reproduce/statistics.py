"""How far two sets of training curves are apart, and whether that can be told from chance.

Steps of one run are correlated, so a run counts as one sample, whatever its length: means are taken over a
run's steps first, and the standard error is that of these means over seeds. Three seeds may agree by luck, so
chance has a second witness: pairs of runs that differ by nothing but a rounding.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LIMIT = 0.0025
"""The paper's bound on the relative loss error of FP8 against BF16 (section 3.3)."""
SMOOTHING = 0.9
Verdict = Literal["pass", "miss", "not resolvable"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    The standard error is infinite for a single one, which says nothing of chance; where a run diverged, both
    are NaN.
    """

    mean: float
    standard_error: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Estimate:
        n = len(samples)
        if not all(map(math.isfinite, samples)):
            return cls(math.nan, math.nan)
        error = statistics.stdev(samples) / math.sqrt(n) if n > 1 else math.inf
        return cls(statistics.fmean(samples), error)

    def __str__(self) -> str:
        """The mean and two standard errors in percent."""
        return f"{100 * self.mean:+.3f} % ± {200 * self.standard_error:.3f} %"

    @property
    def bound(self) -> float:
        return abs(self.mean) + 2 * self.standard_error


@dataclass(frozen=True, slots=True)
class Comparison:
    """Relative loss error of one variant against another, over seeds."""

    second_half: Estimate
    """Of the mean over the second half of the steps."""
    seed_means: list[float]
    smoothed: list[list[float]]
    """Per seed the relative error of the EMA-smoothed curves, a value a step."""
    smoothed_max: float
    """Its largest magnitude after warm-up, over all seeds; NaN where a run diverged."""


def ema(values: Sequence[float]) -> list[float]:
    """The exponential moving average by which the paper smooths loss curves, started at the first value."""
    out = [values[0]]
    for value in values[1:]:
        out.append(SMOOTHING * out[-1] + (1 - SMOOTHING) * value)
    return out


def relative_errors(losses: Sequence[float], base: Sequence[float]) -> list[float]:
    """(loss - base) / base at each step."""
    return [(a - b) / b for a, b in zip(losses, base, strict=True)]


def second_half(values: Sequence[float]) -> float:
    """The mean over the second half."""
    return statistics.fmean(values[len(values) // 2 :])


def compare_curves(
    curves: Sequence[Sequence[float]], bases: Sequence[Sequence[float]], warmup: int
) -> Comparison:
    """A variant's losses and its base's, one curve a seed; warmup: the steps that the maximum leaves out."""
    pairs = list(zip(curves, bases, strict=True))
    means = [second_half(relative_errors(a, b)) for a, b in pairs]
    smoothed = [relative_errors(ema(a), ema(b)) for a, b in pairs]
    after = [abs(error) for curve in smoothed for error in curve[warmup:]]
    largest = math.nan if any(map(math.isnan, after)) else max(after)
    return Comparison(Estimate.of(means), means, smoothed, largest)


def judged(comparison: Comparison, floor: Comparison) -> Estimate:
    """A comparison's estimate, with a standard error not below that of `floor`, whose true mean is zero."""
    samples = floor.seed_means
    chance = math.sqrt(statistics.fmean(mean * mean for mean in samples) / len(samples))
    found = comparison.second_half
    return Estimate(found.mean, max(found.standard_error, chance))


def verdict(estimate: Estimate, limit: float = LIMIT) -> Verdict:
    """pass: |mean| + 2 standard errors below the limit. not resolvable: even a mean of zero would not pass.

    A mean that lies beyond the limit by more than two standard errors is a miss however large these are.
    """
    if not math.isfinite(estimate.mean):
        return "miss"
    if estimate.bound < limit:
        return "pass"
    beyond = abs(estimate.mean) - 2 * estimate.standard_error >= limit
    return "not resolvable" if 2 * estimate.standard_error >= limit and not beyond else "miss"
