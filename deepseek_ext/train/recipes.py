"""Recipes: functions that return the configuration of a run, to be changed with dataclasses.replace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .config import TrainConfig
from .folder import TOKENIZER


def small() -> TrainConfig:
    """The small but complete DeepSeek-V3 of `make pretrain`: the defaults of `TrainConfig`."""
    return TrainConfig()


def deepseek_v3() -> TrainConfig:
    """DeepSeek-V3's pre-training (paper, section 4.2): its model, schedules and data settings.

    Says what the paper did; 671 B parameters fit into no single machine. With another `preset`, `tokens`
    and batch it is the same recipe at a size of yours.
    """
    return TrainConfig(
        preset="deepseek-v3",
        vocab_size=129280,
        tokens=14_800 * 10**9,
        seq_len=4096,
        sequences_start=3072,
        sequences=15360,
        micro_sequences=48,  # the quantum in which the batch grows
        lr=2.2e-4,
        warmup_steps=2000,
        bias_update_speed=0.001,
        fim_rate=0.1,
        run_dir=Path("runs/deepseek-v3"),
    )


def extended(
    before: TrainConfig, *, seq_len: int | None = None, rope_factor: float | None = None
) -> TrainConfig:
    """The second phase of a run: longer sequences with YaRN, from its weights (paper, section 4.3).

    before: the configuration of the first. seq_len: None means four times as long; rope_factor: None keeps
    that of `before`, or takes just what seq_len needs. As in the paper the tokens of a step stay the same,
    the learning rate is the one that `before` ended with, and the routers' bias and the MTP weight stay as
    they ended; the length is a tenth of that of `before`. Phases can follow one another.
    Raises ValueError for a seq_len that is not longer, or that rope_factor does not reach.
    """
    done = before.derived()
    schedules, run = done.schedules(), done.run_dir
    original = done.rope_original or done.seq_len
    seq_len = seq_len or 4 * done.seq_len
    if seq_len <= done.seq_len:
        raise ValueError(f"--seq-len {seq_len} extends nothing: {run} was trained on {done.seq_len}")
    factor = rope_factor or max(done.rope_factor or 1.0, seq_len / original)
    if factor * original < seq_len:
        raise ValueError(
            f"--rope-factor {factor:g} makes {factor * original:g} positions of {original}, less than "
            f"--seq-len {seq_len}; write --rope-factor {seq_len / original:g}"
        )

    def shorter(sequences: int) -> int:
        return max(1, sequences * done.seq_len // seq_len)

    sequences = shorter(schedules.sequences.end)
    micro = shorter(done.micro_sequences) if done.micro_sequences else None
    return replace(
        done,
        init_from=run,
        tokenizer=run / TOKENIZER,
        run_dir=run.with_name(f"{run.name}-{seq_len}"),
        tokens=max(done.tokens // 10, sequences * seq_len),
        minutes=None,
        resume="auto",
        seq_len=seq_len,
        rope_factor=factor,
        rope_original=original,
        sequences=sequences,
        sequences_start=None,
        micro_sequences=micro if micro and sequences % micro == 0 else None,
        lr=schedules.lr(done.tokens),
        warmup_steps=None,
        bias_update_speed=schedules.bias_update_speed(done.tokens),
        validate_every=None,
    )
