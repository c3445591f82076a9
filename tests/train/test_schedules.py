"""Every breakpoint of the paper's schedules (section 4.2), and of their small copies."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from deepseek_ext.train.schedules import (
    BatchRamp,
    LearningRate,
    deepseek_v3,
    extension,
    scaled,
    tokens_after,
)

T, B = 10**12, 10**9


def test_deepseek_v3_learning_rate() -> None:
    lr = deepseek_v3().lr
    assert lr(0) == 0.0
    assert lr(lr.warmup // 2) == pytest.approx(1.1e-4, rel=1e-6)
    assert lr(lr.warmup - 1) < lr(lr.warmup) == 2.2e-4
    assert lr(10 * T - 1) == lr(10 * T) == 2.2e-4
    assert lr(10 * T + 2150 * B) == pytest.approx((2.2e-4 + 2.2e-5) / 2)
    assert lr(14_300 * B - 1) == pytest.approx(2.2e-5)
    assert lr(14_300 * B) == lr(14_633 * B - 1) == 2.2e-5
    assert lr(14_633 * B) == lr(14_800 * B - 1) == lr(14_800 * B) == 7.3e-6
    # What the paper says in words: 500 B tokens after the cosine, 333 B and 167 B of them.
    assert [end - 14_300 * B for end, _ in lr.tail] == [333 * B, 500 * B]
    assert lr.cosine_until - lr.constant_until == 4_300 * B


def test_deepseek_v3_cosine_point_by_point() -> None:
    """Against the half-angle form, cos(x) = 1 - 2 sin(x / 2)^2, at sixteenths of the 4.3 T tokens."""
    lr = deepseek_v3().lr
    for sixteenth in range(17):
        share = sixteenth / 16
        expected = 2.2e-4 - (2.2e-4 - 2.2e-5) * math.sin(math.pi * share / 2) ** 2
        assert lr(10 * T + 4_300 * B * sixteenth // 16) == pytest.approx(expected, rel=1e-9)
    assert lr(10 * T + 1) < 2.2e-4 or lr(10 * T + 10**6) < 2.2e-4


def test_deepseek_v3_warmup_is_2000_steps() -> None:
    s = deepseek_v3()
    tokens = steps = 0
    while s.lr(tokens) < s.lr.peak:
        tokens += s.sequences(tokens) * s.seq_len
        steps += 1
    assert steps == 2000
    # The 1999th step is still below the peak, the 2000th is at it.
    assert s.lr(tokens) == 2.2e-4
    assert s.lr(tokens - 1) == pytest.approx(2.2e-4 * (1 - 1 / tokens), rel=1e-15)
    # At least 2000 batches of the first size, and the ramp has hardly begun.
    assert 2000 * 3072 * 4096 <= s.lr.warmup < 1.15 * 2000 * 3072 * 4096


def test_deepseek_v3_batch_ramp() -> None:
    sequences = deepseek_v3().sequences
    assert sequences(0) == 3072
    assert sequences(469 * B // 2) == (3072 + 15360) // 2
    assert sequences(469 * B - 1) < sequences(469 * B) == sequences(14 * T) == 15360
    step = 1_832_031_250  # (15360 - 3072) / 48 = 256 growths in equal shares of the 469 B
    assert sequences(step - 1) == 3072
    assert sequences(step) == 3072 + 48
    assert sequences(255 * step - 1) == 15360 - 96
    assert sequences(255 * step) == sequences(256 * step - 1) == 15360 - 48
    sizes = [sequences(tokens) for tokens in range(0, 470 * B, B)]
    assert sizes == sorted(sizes)
    assert all(size % sequences.quantum == 0 for size in sizes)
    assert max(b - a for a, b in pairwise(sizes)) == sequences.quantum


def test_deepseek_v3_balance_and_mtp() -> None:
    s = deepseek_v3()
    assert s.bias_update_speed(0) == s.bias_update_speed(14_300 * B - 1) == 0.001
    assert s.bias_update_speed(14_300 * B) == 0.0
    assert s.mtp_weight(0) == s.mtp_weight(10 * T - 1) == 0.3
    assert s.mtp_weight(10 * T) == s.mtp_weight(14_800 * B) == 0.1
    assert s.balance_alpha == 1e-4
    assert s.total == 14_800 * B


def test_scaled_keeps_the_shares_of_the_paper() -> None:
    paper = deepseek_v3()
    s = scaled(1_480_000, lr=3e-3, sequences=8, seq_len=256, bias_update_speed=0.01, balance_alpha=1e-4)
    assert s.lr.constant_until == 1_000_000
    assert s.lr.cosine_until == 1_430_000
    assert s.mtp_weight.until == 1_000_000
    assert s.bias_update_speed.until == 1_430_000
    assert s.lr(s.lr.warmup) == 3e-3
    assert s.bias_update_speed(1_429_999) == 0.01
    assert s.bias_update_speed(1_430_000) == 0.0
    for tokens in range(s.lr.warmup, s.total + 1, 10_000):
        if tokens % 1000 == 0 and tokens < s.total:
            assert s.lr(tokens) / s.lr.peak == pytest.approx(
                paper.lr(tokens * 10**7) / paper.lr.peak, rel=0.01
            )


def test_a_small_run_ramps_its_batch_over_the_papers_share() -> None:
    s = scaled(
        1_480_000,
        lr=3e-3,
        sequences=16,
        seq_len=32,
        bias_update_speed=0.01,
        balance_alpha=1e-4,
        sequences_start=4,
        quantum=2,
        warmup_steps=10,
    )
    assert s.sequences.ramp == 46_900
    assert [s.sequences(t) for t in (0, 7_816, 7_817, 46_899, 46_900)] == [4, 4, 6, 14, 16]
    assert s.lr.warmup == 10 * 4 * 32  # the ramp grows after 7,817 tokens
    assert s.lr(s.lr.warmup) == 3e-3
    assert s.lr(1_463_300) == pytest.approx(3e-3 * 7.3e-6 / 2.2e-4, rel=1e-12)


def test_an_extension_holds_its_rate_after_the_warm_up() -> None:
    s = extension(
        1000, lr=1e-3, sequences=2, seq_len=5, bias_update_speed=0.0, balance_alpha=1e-4, warmup_steps=None
    )
    assert [s.lr(t) for t in (0, 20, 40, 41, 999, 1000, 5000)] == [0.0, 5e-4] + [1e-3] * 5
    assert {s.mtp_weight(t) for t in (0, 500, 1000, 2000)} == {0.1}
    assert {s.bias_update_speed(t) for t in (0, 500, 1000)} == {0.0}
    assert s.sequences(0) == s.sequences(999) == 2


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--warmup-steps 2000 are 10,000 tokens, and of 1,000 the learning"):
        scaled(
            1000,
            lr=1e-3,
            sequences=1,
            seq_len=5,
            bias_update_speed=0.0,
            balance_alpha=0.0,
            warmup_steps=2000,
        )


def test_a_shrinking_ramp_is_refused() -> None:
    with pytest.raises(ValueError, match="4 sequences at its end are fewer than 8 at its start"):
        BatchRamp(start=8, end=4, ramp=10)


@pytest.mark.parametrize("steps", [1, 7, 2000])
def test_tokens_after_follows_the_ramp(steps: int) -> None:
    ramp = BatchRamp(start=2, end=10, ramp=1000, quantum=2)
    tokens = 0
    for _ in range(steps):
        tokens += ramp(tokens) * 5
    assert tokens_after(steps, ramp, 5) == tokens


def test_cosine_is_monotonous_and_meets_both_ends() -> None:
    lr = LearningRate(peak=1.0, warmup=10, constant_until=20, cosine_until=120, final=0.1)
    values = [lr(tokens) for tokens in range(20, 121)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 1.0
    assert values[-1] == lr(10**9) == 0.1
    assert values[50] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))


def test_breakpoints_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"breakpoints \[10, 5, 20\].*must not decrease"):
        LearningRate(peak=1.0, warmup=10, constant_until=5, cosine_until=20, final=0.1)


def test_a_ramp_off_its_quantum_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 8 sequences must be positive multiples of the quantum 2"):
        BatchRamp(start=3, end=8, ramp=10, quantum=2)
