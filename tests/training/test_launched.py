"""`cacovid train` in two processes, as `accelerate launch` starts it: one policy, one voice, and an end for all."""

import json
import shutil

import pytest
import torch
import transformers
from helpers.configs import write
from helpers.launching import launch
from packaging.version import Version
from safetensors.torch import load_file

from cacovid_cli import main as cli
from cacovid_hf.tiny import model_path
from cacovid_hf.training.config import read_config
from cacovid_hf.training.from_yaml import make_trainer, run_training

STEPS = {"learning_rate": 1e-3, "max_steps": 8, "save_steps": 4, "eval_steps": 4, "max_grad_norm": 5.0}


def configured(folder, **settings):
    """A config of ten samples, the third of which names a video that is not there."""
    folder.mkdir()
    file = write(folder, training={**STEPS, **settings})
    lines = (folder / "samples.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "path": "missing.mp4"})
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return file


def policy(folder):
    weights = load_file(folder / "run" / "model.safetensors")
    return {name: weight for name, weight in weights.items() if name.startswith("policy.")}


@pytest.mark.slow
def test_two_processes_train_as_one_that_accumulates(tmp_path):
    done = launch("-m", "cacovid_hf", "train", configured(tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    # What one process would say, and nothing twice.
    assert done.stdout == f"The policy of step 8 is in {tmp_path / 'two' / 'run'}\n"
    told = [line.partition("  ")[0] for line in done.stderr.splitlines() if line.startswith("step ")]
    assert told == [f"step {step} of 8" for step in (2, 4, 4, 6, 8, 8, 8)]
    assert done.stderr.count("Skipped missing.mp4") == 1
    assert "destroy_process_group" not in done.stderr

    file = configured(tmp_path / "one", gradient_accumulation_steps=2)
    run_training(file, default_model=model_path())
    one, two = policy(tmp_path / "one"), policy(tmp_path / "two")
    start = make_trainer(read_config(file, model_path())).full_model.policy.state_dict()
    assert any((weight - start[name.removeprefix("policy.")]).abs().max() > 1e-3 for name, weight in one.items())
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-4)
    logs = [
        json.loads((tmp_path / name / "run" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1])
    for ours, theirs in zip(*logs, strict=True):
        for name in ("reward", "eval_accuracy", "eval_samples", "skipped_samples"):
            assert (name in theirs) == (name in ours)
            assert theirs.get(name, 0.0) == pytest.approx(ours.get(name, 0.0), rel=1e-3)

    if Version(transformers.__version__) < Version("5.23"):
        return  # 5.17 looks for the optimiser's state of several CPU processes on a device "cpu:0"
    file = configured(tmp_path / "resumed")
    shutil.copytree(tmp_path / "two" / "run" / "checkpoint-4", tmp_path / "resumed" / "run" / "checkpoint-4")
    done = launch("-m", "cacovid_hf", "train", file, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2 of 8" not in done.stderr
    for name, weight in policy(tmp_path / "resumed").items():
        torch.testing.assert_close(weight, two[name], rtol=1e-5, atol=1e-6)


def unknown_name(folder):
    file = configured(folder, learning_rate=1e-4)
    file.write_text(file.read_text().replace("learning_rate", "learning_rat"))
    return file


def no_videos(folder):
    file = configured(folder)
    (folder / "samples.jsonl").write_text((folder / "samples.jsonl").read_text().replace("clip", "no_clip"))
    return file


def nothing_readable(folder):
    folder.mkdir()
    file = write(folder, training=STEPS, data={"allowed_roots": [str(folder)]})
    (folder / "broken.mp4").write_bytes(b"no video")
    sample = {"problem": "What?", "solution": "red", "path": str(folder / "broken.mp4")}
    (folder / "samples.jsonl").write_text("\n".join([json.dumps(sample)] * 4))
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unknown_name, "did you mean learning_rate"),
        (no_videos, "none exists"),
        (nothing_readable, "None of 4 samples can be read"),
    ],
)
def test_what_fails_in_both_processes_is_told_once(make, message, tmp_path):
    done = launch("-m", "cacovid_hf", "train", make(tmp_path / "run"))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("cacovid: error:")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "process 1" not in errors[0]
    assert not (tmp_path / "run" / "run" / "model.safetensors").exists()


def test_a_process_that_fails_alone_says_which_it_is(tmp_path, monkeypatch, capsys):
    waited = []
    monkeypatch.setattr(cli.time, "sleep", waited.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "9")
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(tmp_path / "none.yaml")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"cacovid: error: process 9: {tmp_path / 'none.yaml'} does not exist")
    assert waited == [cli._TOGETHER]
