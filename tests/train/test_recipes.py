"""Recipes: the paper's numbers, reached through the same configuration as the small run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from deepseek_ext.config import _PRESETS, ModelConfig
from deepseek_ext.train import TrainConfig, Trainer, deepseek_v3, recipes
from deepseek_ext.train.config import Preset, describe
from deepseek_ext.train.data import prepare_data


def test_deepseek_v3_has_the_papers_model_and_schedules() -> None:
    config = recipes.deepseek_v3()
    assert config.model_config() == ModelConfig.preset("deepseek-v3")
    ours, paper = config.schedules(), deepseek_v3()
    assert ours == paper
    assert config.fim_rate == 0.1
    assert not config.document_masking
    assert (config.weight_decay, config.grad_clip, config.balance_alpha) == (0.1, 1.0, 1e-4)
    assert "--preset deepseek-v3: 61 layers of width 7168" in describe(config)
    assert "3072 to 15360 sequences of 4096 tokens" in describe(config)


def test_a_derived_recipe_survives_the_checkpoint() -> None:
    for config in (recipes.small(), recipes.deepseek_v3()):
        derived = config.derived()
        assert TrainConfig.from_json(derived.to_json()) == derived
        assert derived.derived() == derived


def test_every_preset_can_be_trained(tmp_path: Path, text_folder: Path) -> None:
    assert set(get_args(Preset)) == set(_PRESETS)
    config = TrainConfig(
        preset="tiny",
        vocab_size=384,
        seq_len=32,
        sequences=2,
        data=(str(text_folder),),
        run_dir=tmp_path / "run",
    ).derived()
    trainer = Trainer(config, prepare_data(config))
    assert trainer.model.config == ModelConfig.preset("tiny", vocab_size=384, max_position_embeddings=2048)
    first = trainer.train_step()["loss"]
    for _ in range(4):
        last = trainer.train_step()["loss"]
    assert last < first


def test_extension_follows_the_papers_two_phases() -> None:
    """Section 4.3: 1920 sequences of 32K, then 480 of 128K, at the last learning rate, 7.3e-6."""
    first = recipes.extended(recipes.deepseek_v3(), seq_len=32768, rope_factor=40)
    second = recipes.extended(first, seq_len=131072)
    for phase, sequences in ((first, 1920), (second, 480)):
        assert phase.sequences == sequences
        assert phase.lr == pytest.approx(7.3e-6, rel=1e-12)
        assert phase.bias_update_speed == 0.0
        assert phase.schedules().mtp_weight(0) == 0.1
        assert phase.schedules().lr(phase.tokens) == phase.lr
        yarn = phase.model_config().rope_scaling
        assert yarn == {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 4096,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        }
    assert second.init_from == first.run_dir == Path("runs/deepseek-v3-32768")
    assert second.model_config() == first.model_config()


def test_extension_of_the_small_recipe() -> None:
    longer = recipes.extended(replace(recipes.small(), resume="never"))
    assert (longer.seq_len, longer.sequences, longer.rope_factor) == (1024, 2, 4.0)
    assert longer.resume == "auto"
    assert longer.run_dir == Path("runs/pretrain-1024")
    assert longer.tokenizer == Path("runs/pretrain/tokenizer.json")
    assert longer.model_config().max_position_embeddings == 4096
    again = recipes.extended(longer, seq_len=8192)
    assert again.model_config().rope_scaling is not None
    assert again.model_config().rope_scaling["factor"] == 32.0
    assert again.model_config().max_position_embeddings == 8192


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 256}, "--seq-len 256 extends nothing: runs/pretrain was trained on 256"),
        (
            {"seq_len": 2048, "rope_factor": 2.0},
            "--rope-factor 2 makes 512 positions of 256, less than --seq-len 2048; write --rope-factor 8",
        ),
    ],
)
def test_what_extends_nothing_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipes.extended(recipes.small(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "small", "hidden_size": 64}, "--preset small is a whole shape; leave --hidden-size out"),
        ({"fim_rate": 1.5}, "--fim-rate is a share of documents, at most 1, got 1.5"),
        ({"fim_rate": -0.1}, "--fim-rate must not be negative"),
        ({"rope_factor": 2.0}, "--rope-factor and --rope-original go together"),
        ({"sequences_start": 9}, r"--sequences-start must be at most --sequences \(8\)"),
        ({"sequences_start": 3, "micro_sequences": 2}, r"a multiple of --micro-sequences \(2\), got 3"),
        ({"sequences_start": 2, "init_from": Path("a")}, "--sequences-start is for a first phase"),
        ({"warmup_steps": 0}, "--warmup-steps must be positive"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TrainConfig(), **changes)  # type: ignore[arg-type]
