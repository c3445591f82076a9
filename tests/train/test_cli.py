"""The command line: what a user can put right ends in one line on stderr and exit code 2."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import ROOT, Flags, start_example, tiny_flags  # type: ignore[import-not-found]

import deepseek_ext
from deepseek_ext import cli, load_hf
from deepseek_ext.train import TrainConfig, load_run
from deepseek_ext.train.corpus import load_corpus
from deepseek_ext.train.tokenizer import train_tokenizer


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("info now", "too many arguments: now; `deepseek-ext info --help` lists what there is"),
        ("train --wings 2", "there is no option --wings; `deepseek-ext train --help` lists what there is"),
        ("train --dept 2", "there is no option --dept; did you mean --depth?"),
        ("train --mtp_dep=2 --wings", "there is no option --mtp_dep; did you mean --mtp-depth?"),
        ("train --depth", "--depth needs a value; `deepseek-ext train --help` lists what there is"),
        ("train --depth two", "--depth must be a whole number, got 'two'"),
        ("train --minutes two", "--minutes must be a number, got 'two'"),
        ("train --depth 0", "--depth must be positive, got 0"),
        ("train --minutes -1", "--minutes must be positive, got -1"),
        ("train --seed -1", "--seed must not be negative, got -1"),
        (f"train --seed {2**63}", f"--seed must be below 2^63, got {2**63}"),
        ("train --minutes inf", "--minutes must be finite, got inf"),
        ("train --weight-decay inf", "--weight-decay must be finite, got inf"),
        ("train --data --depth 2", "--data needs a value; leave it out to train on Python's own sources"),
        ("train --data", "--data needs a value; leave it out to train on Python's own sources"),
        (
            "train --hidden-size 68 --precision bf16",
            "DeepseekV3: precision bf16 needs hidden_size to be a multiple of 8, got 68; write 72, or",
        ),
        (
            "train --expert-size 50 --precision fp32",
            "DeepseekV3: precision fp32 needs moe_intermediate_size to be a multiple of 4, got 50; write 52",
        ),
        ("train --run-dir a --init-from ./a", "--run-dir a is the run whose weights to start from; choose"),
        ("train --precision fp4", "--precision must be one of bf16, fp32, fp8, got 'fp4'"),
        ("train --resume maybe", "--resume must be one of auto, never, got 'maybe'"),
        ("train --experts 10", "--experts must be a multiple of 4, at least 8"),
        ("train --seq-len 1", "--seq-len 1 leaves nothing to predict for --mtp-depth 1"),
        (
            "train --sequences 8 --micro-sequences 3",
            "--sequences 8 must be a multiple of --micro-sequences 3",
        ),
        ("generate", "missing: RUN, --prompt; `deepseek-ext generate --help` lists what there is"),
        ("generate --promt x", "there is no option --promt; did you mean --prompt?"),
        ("generate --run-dir nowhere --prompt x", "there is no option --run-dir; `deepseek-ext generate"),
        ("generate a b --prompt x", "too many arguments: b; "),
        ("generate nowhere --prompt x", "nowhere is no folder; name a local one that holds a run or a"),
        ("generate . --prompt x", ". holds no checkpoint that can be read; name the run directory"),
        ("generate . --prompt x --precision fp8", "--precision fp8: . has no config.json"),
        ("generate a-team/model --prompt x", "a-team/model is no folder; name a local one that holds a run"),
        ("generate nowhere --prompt x --max-new-tokens 0", "--max-new-tokens must be positive"),
        ("generate nowhere --prompt x --temperature -1", "--temperature must not be negative, got -1.0"),
        ("generate nowhere --prompt ''", "--prompt must not be empty"),
        ("generate nowhere --prompt x --seed -1", "--seed must be from 0 to 2^63 - 1, got -1"),
        ("generate nowhere --prompt x --precision fp4", "--precision must be one of bf16, fp32, fp8, got"),
        ("eval nowhere", "nowhere holds no checkpoint that can be read"),
        ("export-hf nowhere", "missing: OUT; "),
        ("export-hf nowhere out --no-mtpp", "there is no option --no-mtpp; did you mean --no-mtp?"),
        ("export-hf nowhere out", "nowhere holds no checkpoint that can be read"),
        ("export-hf nowhere out --dtype fp4", "--dtype must be one of bfloat16, float32, fp8, got 'fp4'"),
        ("plot nowhere --out a.xyz", "--out a.xyz must end in .png, .svg or .pdf"),
        ("plot nowhere --out folder", "--out folder must end in .png, .svg or .pdf"),
    ],
)
def test_a_users_error_is_one_line(
    args: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(args)) == 2
    assert one_line(capsys).startswith(f"deepseek-ext {args.split()[0]}: {message}")
    assert not list(tmp_path.iterdir())


def test_what_may_not_be_opened_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_dir(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert cli.main(["generate", "a-run", "--prompt", "x"]) == 2
    said = "a-run cannot be opened (Permission denied); check the path and its permissions"
    assert one_line(capsys) == f"deepseek-ext generate: {said}\n"


def test_text_that_does_not_fit_is_one_line(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("too short\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    cases = {
        "less than one sequence of 1000": flags(data=tmp_path / "short.txt", seq_len=1000),
        "no such file or folder": flags(data=tmp_path / "none.txt"),
        "--run-dir": flags(run_dir=tmp_path / "file" / "run"),
        "no such tokenizer file": flags(tokenizer=tmp_path / "none.json"),
        "none is no folder; name a local one that holds a training run": flags(init_from=tmp_path / "none"),
        "hf is a Hugging Face checkpoint, and a run starts from": flags(init_from=tmp_path / "hf"),
    }
    for message, args in cases.items():
        assert cli.train(TrainConfig(), args, program="test") == 2
        assert message in one_line(capsys)


def test_a_tokenizer_too_large_for_the_model_is_named(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], text_folder: Path
) -> None:
    path = tmp_path / "large.json"
    train_tokenizer(load_corpus([str(text_folder)]).train, 400).save(str(path))
    assert cli.train(TrainConfig(), flags(tokenizer=path, vocab_size=300), program="test") == 2
    line = one_line(capsys)
    assert f"{path} has " in line
    assert "tokens, the model's vocabulary 300; write --vocab-size 384" in line


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """The tiny run, with checkpoints of steps 4, 8 and 10."""
    run = tmp_path_factory.mktemp("finished") / "run"
    args = tiny_flags(data=text_folder, run_dir=run, checkpoint_every=4)
    assert cli.train(TrainConfig(), args, program="test") == 0
    return run


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "fp8"])
def test_an_exported_run_is_read_by_us_and_by_transformers(
    dtype: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert cli.main(["export-hf", str(finished_run), str(out), "--dtype", dtype]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"wrote {out}: ")
    assert ("transformers needs accelerate" if dtype == "fp8" else "and transformers read it") in said
    model, tokenizer, _ = load_run(finished_run)
    exported = load_hf(out, "fp32").eval()
    tokens = torch.tensor([tokenizer.encode("the value of item 3").ids])
    difference = (exported(tokens).logits - model(tokens).logits).abs().max()
    assert difference <= {"float32": 0.0, "bfloat16": 0.02, "fp8": 0.2}[dtype]

    theirs = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs("the value of item 3").input_ids == tokens[0].tolist()
    assert theirs.eos_token == "<|eos|>"
    assert theirs.decode(tokens[0]) == "the value of item 3"
    if dtype == "fp8" and importlib.util.find_spec("accelerate") is None:
        with pytest.raises(ImportError, match="requires accelerate"):
            transformers.AutoModelForCausalLM.from_pretrained(out)
    if dtype != "fp8":
        their_model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        assert type(their_model).__name__ == "DeepseekV3ForCausalLM"
        assert (their_model(tokens).logits - exported(tokens).logits).abs().max() <= 1e-4
        assert their_model.generation_config.eos_token_id == tokenizer.token_to_id("<|eos|>")


def test_generate_takes_an_exported_folder(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export-hf", str(finished_run), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    capsys.readouterr()
    ask = ["--prompt", "the value", "--max-new-tokens", "8"]
    assert cli.main(["generate", str(finished_run), *ask]) == 0
    of_the_run = capsys.readouterr().out
    assert cli.main(["generate", str(tmp_path / "out"), *ask, "--precision", "fp32"]) == 0
    assert capsys.readouterr().out == of_the_run
    assert of_the_run.startswith("the value")


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert f"{tmp_path} has no tokenizer.json; put there the one that came with" in one_line(capsys)


def test_one_checkpoint_of_a_run_is_exported(finished_run: Path, tmp_path: Path) -> None:
    first = sorted((finished_run / "checkpoints").iterdir())[0]
    assert first.name == "step-00000004"
    for source, out in ((first, "first"), (finished_run, "last")):
        flags = ["--dtype", "float32", "--no-mtp", "--max-shard-size", "100000"]
        assert cli.main(["export-hf", str(source), str(tmp_path / out), *flags]) == 0
    model, _, _ = load_run(first)
    loaded = load_hf(tmp_path / "first", "fp32")
    assert loaded.config.num_nextn_predict_layers == 0
    assert len(list((tmp_path / "first").glob("*.safetensors"))) > 2
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(load_hf(tmp_path / "last", "fp32").lm_head.weight, model.lm_head.weight)


def test_export_refuses_in_one_line(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    damaged = tmp_path / "run" / "checkpoints" / "step-00000004"
    shutil.copytree(finished_run / "checkpoints" / damaged.name, damaged)
    (damaged / ".metadata").write_bytes(b"torn")
    run = str(finished_run)
    cases: dict[str, list[str]] = {
        f"{tmp_path / 'full'} is not empty; name a folder that": [
            run,
            str(tmp_path / "full"),
        ],
        "power_of_2 is about scales": [run, str(tmp_path / "a"), "--power-of-2"],
        "max_shard_size must be a positive number of bytes, got 0": [
            *(run, str(tmp_path / "a"), "--max-shard-size", "0")
        ],
        f"{tmp_path / 'full' / 'file' / 'a'} cannot be written": [run, str(tmp_path / "full" / "file" / "a")],
        f"{damaged}: .metadata differs from its checksum": [str(damaged), str(tmp_path / "a")],
    }
    for message, args in cases.items():
        assert cli.main(["export-hf", *args]) == 2
        assert message in one_line(capsys)
    assert not (tmp_path / "a").exists()


def test_the_example_and_the_command_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from pretrain import recipe  # type: ignore[import-not-found]

    assert recipe() == TrainConfig()


def test_the_fixed_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    for name in [
        "depth",
        "tokens",
        "minutes",
        "data",
        "precision",
        "run-dir",
        "checkpoint-every",
        "resume",
        "seed",
    ]:
        assert f"--{name} " in help_text


def test_info_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ["torch", "CPU tier in use", "CUDA devices"]:
        assert word in out


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([], ""),
        (["fly"], "deepseek-ext: no command is called 'fly'\n"),
        (["export"], "deepseek-ext: no command is called 'export'; did you mean export-hf?\n"),
    ],
)
def test_without_a_known_command_the_usage_is_shown(
    args: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{complaint}usage: deepseek-ext {{info,train,generate,eval,export-hf")
    for command in ("info", "train", "generate", "eval", "export-hf"):
        assert f"\n  {command} " in captured.err
    assert captured.err.count("\n") < 15


def test_help_and_version_are_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: deepseek-ext {info,train")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"deepseek-ext {deepseek_ext.__version__}\n"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"PYTHONIOENCODING": "utf-8"},
            "deepseek-ext train: there is no option --dept; did you mean --depth?",
        ),
        (
            {"DSE_CPU_CAPABILITY": "sse"},
            "deepseek-ext: DSE_CPU_CAPABILITY: 'sse' is not a tier; write generic, ",
        ),
    ],
)
def test_python_m_is_the_command(environment: dict[str, str], message: str) -> None:
    command = [sys.executable, "-m", "deepseek_ext", "train", "--dept", "2"]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_the_example_refuses_in_one_line(flags: Flags) -> None:
    process = start_example(flags(data="/nowhere.txt"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith(f"python {ROOT}/examples/pretrain.py: --data /nowhere.txt: no such file or folder;")
    assert err.count("\n") == 1
