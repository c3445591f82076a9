"""Learning rate, batch size, bias update speed and MTP weight as pure functions of tokens seen.

Nothing here keeps a state, so a resumed run asks the same questions and gets the same answers. The trainer
asks for the batch size with the tokens seen before the step, and for everything else with those seen after
it: the first step then has a learning rate above zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up, a constant stretch, a cosine, then a constant for each (tokens, lr) of `tail`.

    peak is reached at `warmup` tokens and held until `constant_until`; the cosine ends at `cosine_until` with
    `final`. Each entry of tail gives the rate before its token count; the last one holds for ever.
    """

    peak: float
    warmup: int
    constant_until: int
    cosine_until: int
    final: float
    tail: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        bounds = [0, self.warmup, self.constant_until, self.cosine_until, *(end for end, _ in self.tail)]
        if bounds != sorted(bounds):
            raise ValueError(
                f"learning rate: the breakpoints {bounds[1:]} (tokens) must not decrease; reorder them"
            )

    def __call__(self, tokens: int) -> float:
        if tokens < self.warmup:
            return self.peak * tokens / self.warmup
        if tokens < self.constant_until:
            return self.peak
        if tokens < self.cosine_until:
            progress = (tokens - self.constant_until) / (self.cosine_until - self.constant_until)
            return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        for end, lr in self.tail:
            if tokens < end:
                return lr
        return self.tail[-1][1] if self.tail else self.final


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A value until a token count, another one after it."""

    first: float
    until: int
    then: float

    def __call__(self, tokens: int) -> float:
        return self.first if tokens < self.until else self.then


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRamp:
    """Sequences a step: linear from `start` to `end` over `ramp` tokens, in multiples of `quantum`."""

    start: int
    end: int
    ramp: int = 0
    quantum: int = 1

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(
                f"batch ramp: {self.end} sequences at its end are fewer than {self.start} at its start; "
                "raise the one or lower the other"
            )
        if self.quantum < 1 or self.start % self.quantum or self.end % self.quantum or self.start < 1:
            raise ValueError(
                f"batch ramp: {self.start} and {self.end} sequences must be positive multiples of the "
                f"quantum {self.quantum}; change them or the quantum"
            )

    def __call__(self, tokens: int) -> int:
        if tokens >= self.ramp:
            return self.end
        grown = (self.end - self.start) * tokens // (self.ramp * self.quantum)
        return self.start + grown * self.quantum


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """All schedules of a run."""

    lr: LearningRate
    sequences: BatchRamp
    seq_len: int
    bias_update_speed: Steps
    mtp_weight: Steps
    balance_alpha: float
    total: int
    """Tokens after which the run ends."""


def tokens_after(steps: int, sequences: BatchRamp, seq_len: int) -> int:
    """Tokens seen after so many steps of a batch schedule."""
    tokens = 0
    for _ in range(steps):
        tokens += sequences(tokens) * seq_len
    return tokens


def deepseek_v3() -> Schedules:
    """The schedules of DeepSeek-V3's pre-training (paper, section 4.2)."""
    trillion, billion = 10**12, 10**9
    sequences = BatchRamp(start=3072, end=15360, ramp=469 * billion, quantum=48)
    return Schedules(
        lr=LearningRate(
            peak=2.2e-4,
            warmup=tokens_after(2000, sequences, 4096),
            constant_until=10 * trillion,
            cosine_until=14_300 * billion,
            final=2.2e-5,
            tail=((14_633 * billion, 2.2e-5), (14_800 * billion, 7.3e-6)),
        ),
        sequences=sequences,
        seq_len=4096,
        bias_update_speed=Steps(first=0.001, until=14_300 * billion, then=0.0),
        mtp_weight=Steps(first=0.3, until=10 * trillion, then=0.1),
        balance_alpha=1e-4,
        total=14_800 * billion,
    )


def scaled(
    total: int,
    *,
    lr: float,
    sequences: int,
    seq_len: int,
    bias_update_speed: float,
    balance_alpha: float,
    sequences_start: int | None = None,
    quantum: int = 1,
    warmup_steps: int | None = None,
) -> Schedules:
    """The shapes of `deepseek_v3` squeezed into a budget of `total` tokens.

    The breakpoints keep their share of the whole run, the learning rates their ratios. The batch grows from
    sequences_start where that is given. The warm-up takes 4 % of the run unless warmup_steps is given, since
    2000 steps would be longer than a short run.
    """

    def at(billions: int) -> int:
        return round(total * billions / 14_800)

    ramp = BatchRamp(start=sequences_start or sequences, end=sequences, ramp=at(469), quantum=quantum)
    warmup = round(total * 0.04) if warmup_steps is None else tokens_after(warmup_steps, ramp, seq_len)
    stable, decayed = at(10_000), at(14_300)
    if warmup > stable:
        raise ValueError(
            f"--warmup-steps {warmup_steps} are {warmup:,} tokens, and of {total:,} the learning rate falls "
            f"after {stable:,}; warm up for fewer steps, or train longer"
        )
    return Schedules(
        lr=LearningRate(
            peak=lr,
            warmup=warmup,
            constant_until=stable,
            cosine_until=decayed,
            final=lr / 10,
            tail=((at(14_633), lr / 10), (total, lr * 73 / 2200)),
        ),
        sequences=ramp,
        seq_len=seq_len,
        bias_update_speed=Steps(first=bias_update_speed, until=decayed, then=0.0),
        mtp_weight=Steps(first=0.3, until=stable, then=0.1),
        balance_alpha=balance_alpha,
        total=total,
    )


def extension(
    total: int,
    *,
    lr: float,
    sequences: int,
    seq_len: int,
    bias_update_speed: float,
    balance_alpha: float,
    warmup_steps: int | None = None,
) -> Schedules:
    """The schedules of a context extension (paper, section 4.3): what pre-training ended with, held constant.

    The optimizer begins anew, so the learning rate is warmed up, over 4 % of the tokens or over warmup_steps.
    """
    warmup = round(total * 0.04) if warmup_steps is None else warmup_steps * sequences * seq_len
    return Schedules(
        lr=LearningRate(
            peak=lr,
            warmup=warmup,
            constant_until=max(total, warmup),
            cosine_until=max(total, warmup),
            final=lr,
        ),
        sequences=BatchRamp(start=sequences, end=sequences),
        seq_len=seq_len,
        bias_update_speed=Steps(first=bias_update_speed, until=total, then=bias_update_speed),
        mtp_weight=Steps(first=0.1, until=total, then=0.1),
        balance_alpha=balance_alpha,
        total=total,
    )
