"""Each setting of recipe and data in a whole run: it trains, resumes bit for bit, and can be extended."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from test_run import assert_same_run, rows  # type: ignore[import-not-found]
from tiny_run import Flags, tiny_flags  # type: ignore[import-not-found]

from deepseek_ext import cli, load_hf
from deepseek_ext.model import DeepseekV3
from deepseek_ext.train import TrainConfig, checkpoint, load_run
from deepseek_ext.train.data import bits_per_byte, prepare_data
from deepseek_ext.train.packing import IGNORED

ON = "on"  # a switch, which takes no value
FEATURES: dict[str, dict[str, object]] = {
    # Of a short text, to read it three times: earlier epochs have to be measured again on resuming.
    "fim": {"fim_rate": 0.5, "data": "note1?.txt", "seq_len": 64, "sequences": 16, "tokens": 10_240},
    "masking": {"document_masking": ON, "precision": "fp8"},
    "ramp": {"sequences_start": 2, "sequences": 8, "tokens": 2_560, "warmup_steps": 4},
    "all": {"fim_rate": 0.5, "document_masking": ON, "sequences_start": 2, "micro_sequences": 2},
}


def start(args: list[str]) -> int:
    return cli.train(TrainConfig(), [word for word in args if word != ON], program="test")


def without_its_later_checkpoints(run: Path, copy: Path) -> Path:
    """The run as it stood at its first checkpoint."""
    shutil.copytree(run, copy)
    _, *later = checkpoint.list_checkpoints(copy / "checkpoints")
    assert later
    for path in later:
        shutil.rmtree(path)
    return copy


@pytest.mark.parametrize("feature", FEATURES)
def test_it_goes_on_bit_for_bit(feature: str, flags: Flags, text_folder: Path, tmp_path: Path) -> None:
    settings = {"checkpoint_every": 4, **FEATURES[feature]}
    if "data" in settings:
        settings["data"] = text_folder / str(settings["data"])
    assert start(flags(**settings)) == 0
    whole, run = tmp_path / "run", tmp_path / "copy"
    without_its_later_checkpoints(whole, run)
    assert start(flags(**settings, run_dir=run)) == 0
    assert_same_run(run, whole)
    if feature == "fim":
        _, _, config = load_run(run)
        data = prepare_data(config)
        data.batches.drawn = checkpoint.read_state(checkpoint.list_checkpoints(run / "checkpoints")[-1])[
            "drawn"
        ]
        assert data.batches.epoch() > 3
    if feature == "ramp":
        sizes = [(b["tokens"] - a["tokens"]) // 32 for a, b in pairwise([{"tokens": 0}, *rows(run)])]
        assert sizes == sorted(sizes)
        assert sizes[0] == 2
        assert sizes[-1] == 8


def test_masked_validation_scores_each_document_alone(flags: Flags, tmp_path: Path) -> None:
    """Where a window holds whole documents, the score is the mean over documents that see nothing else."""
    assert start(flags(document_masking=ON)) == 0
    model, _, config = load_run(tmp_path / "run")
    data = prepare_data(config)
    (tokens, targets), eos = data.validation, data.eos
    whole = replace(data, validation=(tokens.view(1, -1), targets.view(1, -1)))
    nats, bounds = 0.0, [*(tokens.flatten() == eos).nonzero().flatten().tolist(), tokens.numel()]
    with torch.no_grad():
        for begin, end in pairwise(bounds):
            wanted = targets.view(1, -1)[:, begin:end]
            if (count := int((wanted != IGNORED).sum())) > 0:
                loss = model.loss(tokens.view(1, -1)[:, begin:end], wanted, use_mtp=False)
                nats += loss.main.item() * count
    expected = nats / (0.6931471805599453 * data.held_out_bytes)
    assert bits_per_byte(model, whole) == pytest.approx(expected, rel=1e-5)
    assert bits_per_byte(model, replace(whole, document_masking=False)) != pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def first_phase(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    assert start(tiny_flags(data=text_folder, run_dir=run, tokens=6400)) == 0
    return run


def extend(run: Path, *args: object) -> int:
    return cli.main(["extend", str(run), *map(str, args), "--checkpoint-every", "4", "--lr", "1e-3"])


def test_an_extension_trains_resumes_and_exports(first_phase: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    longer = tmp_path / "longer"
    args = ("--seq-len", 128, "--tokens", 1280)
    assert extend(first_phase, *args, "--run-dir", longer) == 0
    metrics = rows(longer)
    assert [row["tokens"] for row in metrics] == [128 * n for n in range(1, 11)]
    assert {row["lr"] for row in metrics} == {1e-3}
    assert metrics[-1]["val_bits_per_byte"] < metrics[2]["val_bits_per_byte"]
    copy = without_its_later_checkpoints(longer, tmp_path / "copy")
    assert extend(first_phase, *args, "--run-dir", copy) == 0
    assert_same_run(copy, longer)

    model, tokenizer, config = load_run(longer)
    assert config.init_from == first_phase
    assert model.config.rope_scaling is not None
    assert model.config.rope_scaling["factor"] == 4.0
    assert model.config.rope_scaling["original_max_position_embeddings"] == 32
    out = tmp_path / "hf"
    assert cli.main(["export-hf", str(longer), str(out), "--dtype", "float32"]) == 0
    assert json.loads((out / "config.json").read_text())["rope_scaling"]["type"] == "yarn"
    tokens = torch.tensor([tokenizer.encode("the value of item 3 in list 2 is 6.\n" * 8).ids[:120]])
    assert torch.equal(load_hf(out, "fp32").eval()(tokens).logits, model(tokens).logits)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert (theirs(tokens).logits - model(tokens).logits).abs().max() <= 1e-4


def test_an_extension_begins_with_the_weights_of_its_run(
    first_phase: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its defaults: everything but length, rate and rotary positions is as in the first phase."""
    started: list[DeepseekV3] = []
    real = DeepseekV3.loss

    def loss(model: DeepseekV3, *args: object, **settings: object) -> object:
        if not started:
            assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), weights, strict=True))
            assert tuple(args[0].shape) == (2, 64)  # type: ignore[attr-defined]
            started.append(model)
        return real(model, *args, **settings)  # type: ignore[arg-type]

    weights = list(load_run(first_phase)[0].state_dict().values())
    monkeypatch.setattr(DeepseekV3, "loss", loss)
    run = tmp_path / "run"
    newest = checkpoint.list_checkpoints(first_phase / "checkpoints")[-1]
    assert cli.main(["extend", str(newest), "--seq-len", "64", "--run-dir", str(run)]) == 0
    assert started
    assert f"starting from the weights of {newest}, trained on 6,400 tokens" in capsys.readouterr().out
    last = rows(first_phase)[-1]["lr"]
    assert [row["lr"] for row in rows(run)] == [pytest.approx(last)] * 5


def test_an_extension_needs_no_flag(first_phase: Path) -> None:
    assert cli.main(["extend", str(first_phase)]) == 0
    longer = first_phase.with_name(f"{first_phase.name}-128")
    assert [row["tokens"] for row in rows(longer)] == [128 * n for n in range(1, 6)]


def test_the_help_of_extend_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-h", "--help"):
        with pytest.raises(SystemExit):
            cli.main(["extend", flag])
        assert "trains a run on in longer sequences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name the run first: deepseek-ext extend RUN --seq-len N"),
        (("--seq-len", "64"), "name the run first"),
        (("RUN", "--seq-len", "long"), "long"),
        (("RUN", "--seq-len", "16"), "--seq-len 16 extends nothing: "),
        (("RUN", "--seq-len", "64", "--hidden-size", "128"), "its model has hidden_size 64, this run 128"),
        (("nowhere", "--seq-len", "64"), "nowhere holds no checkpoint that can be read"),
    ],
)
def test_what_cannot_be_extended_is_said(
    args: tuple[str, ...], message: str, first_phase: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(first_phase) if word == "RUN" else word for word in args]
    into = ["--run-dir", str(tmp_path / "run")] if words else []
    assert cli.main(["extend", *words, *into]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_samples_continue_what_the_configuration_says_or_held_out_text(
    config: TrainConfig, tmp_path: Path
) -> None:
    held_out = replace(config, prompts=None)
    data = prepare_data(held_out)
    texts = [document.text for document in data.corpus.held_out]
    assert len(data.prompts) == min(3, len(texts))
    for prompt, text in zip(data.prompts, texts, strict=False):
        assert prompt
        assert text.startswith(prompt)
        assert len(prompt) < len(text)
    assert prepare_data(replace(config, prompts=("a", "b"))).prompts == ("a", "b")
    assert prepare_data(config).prompts == ()
    # A character that the cut falls into is left out.
    euros = tmp_path / "euros"
    euros.mkdir()
    for n in range(40):
        (euros / f"{n}.txt").write_text("\N{GRINNING FACE}€" * (n + 4), encoding="utf-8")
    for prompt in prepare_data(replace(held_out, data=(str(euros),))).prompts:
        assert set(prompt) <= set("\N{GRINNING FACE}€")
    assert TrainConfig.from_json(held_out.to_json()) == held_out
    assert TrainConfig.from_json(config.to_json()) == config
