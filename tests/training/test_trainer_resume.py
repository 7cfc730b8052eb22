"""A run that is killed at any point and resumed with as many threads ends with the same weights, bit for bit."""

import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_training import assert_same_policy, trainer
from transformers import TrainerCallback

from cacovid_hf.training.resuming import (
    check_position,
    checkpoint_to_resume,
    data_digest,
    is_complete,
    last_complete_checkpoint,
)
from cacovid_hf.training.trainer import ContributionTrainer

SETTINGS = dict(steps=12, samples=7, save_strategy="steps", save_steps=3, gradient_accumulation_steps=2)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            kill()


class KilledWhileSaving(ContributionTrainer):
    """Ends by SIGKILL in the middle of the checkpoint of step 10: at the place `point`."""

    point = ""

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        self._end("weights", output_dir)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        self._end("optimizer", output_dir, "optimizer.pt")

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self._end("state", f"{self.args.output_dir}/checkpoint-{self.state.global_step}", "trainer_state.json")
        self._end("after", "")

    def _end(self, point, folder, half_written=None):
        if self.point == point and self.state.global_step == 10:
            if half_written:
                file = Path(folder, half_written)
                os.truncate(file, file.stat().st_size // 2)
            kill()


# An epoch has 4 steps: step 4 ends one.
POINTS = {"step 1": [], "step 5": [4], "weights": [4, 6], "optimizer": [4, 6], "state": [4, 6], "after": [4, 6, 10]}


def run_until_killed(folder, point, threads):
    torch.set_num_threads(threads)  # Another number of threads adds up in another order: other bits.
    settings = dict(SETTINGS)
    if point.startswith("step"):
        settings["callbacks"] = [KillAt(int(point.removeprefix("step ")))]
    else:
        settings["kind"] = type("Killed", (KilledWhileSaving,), {"point": point})
    trainer(folder, **settings)[2].train()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model, _, engine = trainer(folder, **SETTINGS)
    engine.train()
    return engine, model.policy.state_dict()


def test_checkpoints_are_taken_between_samples(uninterrupted):
    engine, _ = uninterrupted
    folder = Path(engine.args.output_dir)
    # Steps 3 and 9 are in the middle of a sample's two iterations.
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert all(is_complete(path) for path in folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def processes():
    """Each a fork of one clean process that has imported all there is; forks of this one, which has threads, can hang."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.small_training"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield context


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_resumed(point, processes, uninterrupted, tmp_path):
    process = processes.Process(target=run_until_killed, args=(tmp_path, point, torch.get_num_threads()))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    complete = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*") if is_complete(path))
    assert complete == POINTS[point]

    for scramble in (torch.manual_seed, random.seed, np.random.seed):
        scramble(1234)
    model, _, engine = trainer(tmp_path, **SETTINGS)
    if complete:
        assert last_complete_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{complete[-1]}")
        engine.train(resume_from_checkpoint=True)
    else:
        with pytest.raises(ValueError, match="no complete checkpoint to resume from"):
            engine.train(resume_from_checkpoint=True)
        engine.train()
    whole, weights = uninterrupted
    assert engine.state.global_step == 12
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    expected, found = (
        {entry["step"]: (entry["loss"], entry["reward"]) for entry in log if "loss" in entry}
        for log in (whole.state.log_history, engine.state.log_history)
    )
    assert found == expected


def test_a_run_that_ended_is_resumed_without_another_step(uninterrupted):
    """Killed between its last checkpoint and the end."""
    whole, weights = uninterrupted
    model, collator, engine = trainer(whole.args.output_dir, **SETTINGS)
    engine.train(resume_from_checkpoint=True)
    assert engine.state.global_step == 12
    assert collator.calls == 0
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


class Stream(torch.utils.data.IterableDataset):
    """The same samples in every pass."""

    def __iter__(self):
        return iter(range(7))


def test_a_stream_is_resumed_in_its_third_pass(tmp_path):
    settings = {**SETTINGS, "samples": Stream(), "save_steps": 10}
    whole, _, engine = trainer(tmp_path, **settings)
    engine.train()
    resumed, collator, engine = trainer(tmp_path, **settings)
    engine.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-10")
    assert engine.state.global_step == 12
    assert collator.calls == 2  # what was trained on already is not read again
    assert_same_policy(whole, resumed)


CHANGES = [
    (dict(gradient_accumulation_steps=1), "samples_per_step=4, now it is 2"),
    (dict(seed=1), "seed=42, now it is 1"),
    (dict(samples=8), "dataset_size=7, now it is 8"),
    (dict(num_iterations=3), "num_iterations=2, now it is 3"),
    (dict(samples=list(range(100, 107))), r"data_digest=\w+, now it is \w+, so that its place in the data is lost"),
    (dict(num_token_rollouts=4), "num_token_rollouts=6, now it is 4"),
    (dict(sampler="random"), "sampler=ocss, now it is random"),
    (dict(target_ratios=[0.2, 0.1]), r"target_ratios=None, now it is \[0.2, 0.1\]"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_another_run_is_not_resumed(change, message, uninterrupted, tmp_path):
    checkpoint = f"{uninterrupted[0].args.output_dir}/checkpoint-6"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **{**SETTINGS, **change})[2].train(resume_from_checkpoint=checkpoint)


def test_checkpoints_of_former_versions_are_resumed(uninterrupted, tmp_path):
    """Their position says less."""
    shutil.copytree(uninterrupted[0].args.output_dir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "checkpoint-6" / "trainer_state.json"
    state = json.loads(path.read_text())
    position = state["stateful_callbacks"]["SampleBoundaries"]["args"]["position"]
    former = ("num_iterations", "seed", "data_seed", "samples_per_step", "dataset_size")
    assert set(position) > set(former)
    state["stateful_callbacks"]["SampleBoundaries"]["args"]["position"] = {name: position[name] for name in former}
    path.write_text(json.dumps(state))
    model, _, engine = trainer(tmp_path, **SETTINGS)
    engine.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, uninterrupted[1][name]), name


def test_what_tells_data_apart():
    rows = [{"problem": f"question {i}", "solution": "A", "path": f"a/{i}.mp4", "video": None} for i in range(100)]
    digest = data_digest(rows)
    assert digest == data_digest([{**row, "path": f"/moved/{row['path']}", "id": i} for i, row in enumerate(rows)])
    frames = [{**row, "video": np.zeros((1, 2, 2, 3), np.uint8)} for row in rows]
    assert digest == data_digest(frames)
    for change in ({"problem": "other"}, {"solution": "B"}, {"path": "a/other.mp4"}, {"options": ["x", "y"]}):
        assert data_digest([*rows[:-1], {**rows[-1], **change}]) != digest
    assert data_digest(rows[::-1]) != digest

    class Broken(list):
        def __getitem__(self, index):
            raise OSError("no such file")

    assert data_digest(Broken(rows)) != digest
    assert data_digest([3]) != data_digest([4])


def test_a_checkpoint_of_other_weights_is_refused(uninterrupted, tmp_path):
    checkpoint = f"{uninterrupted[0].args.output_dir}/checkpoint-6"
    _, _, engine = trainer(tmp_path, family="qwen2_5_vl", **SETTINGS)
    engine.full_model.policy.norm = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"do not fit its config \(unexpected: norm.weight\)"):
        engine._load_from_checkpoint(checkpoint)


class BestAtFour(ContributionTrainer):
    """Says that the accuracy was best after step 4."""

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        return metrics | {"eval_accuracy": 0.9 if self.state.global_step == 4 else 0.5}


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    model, _, engine = trainer(
        tmp_path,
        kind=BestAtFour,
        steps=8,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        eval_dataset=[100, 101, 102],
        eval_ratios=[0.5, 0.25],
    )
    last = {}
    keep = type(
        "Keep",
        (TrainerCallback,),
        {
            "on_step_end": lambda self, args, state, control, model=None, **_: last.update(
                {name: tensor.clone() for name, tensor in model.state_dict().items()}
            )
        },
    )
    engine.add_callback(keep())
    engine.train()
    best = Path(engine.state.best_model_checkpoint)
    assert best.name == "checkpoint-4"
    saved = type(model).from_pretrained(best, backbone=model.backbone).policy.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.policy.state_dict().items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in saved.items())
    tests = [entry for entry in engine.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in tests] == [2, 4, 6, 8]
    assert all({"eval_accuracy_at_0.5", "eval_accuracy_at_0.25"} <= set(entry) for entry in tests)
    assert all("reward" not in entry for entry in tests)


class Spoilt(TrainerCallback):
    """A gradient that is NaN at one step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(weight for weight in model.parameters() if weight.grad is not None).grad.fill_(math.nan)


@pytest.mark.parametrize(
    ("step", "saved", "remedy"),
    [(1, [], "there is no checkpoint yet"), (4, ["checkpoint-4"], "checkpoint-4, the last")],
)
def test_weights_that_are_not_finite_end_training_and_are_not_saved(step, saved, remedy, tmp_path):
    _, _, engine = trainer(tmp_path, steps=8, save_strategy="steps", save_steps=2, callbacks=[Spoilt(step)])
    with pytest.raises(ValueError, match=rf"weights that are NaN or infinite, and is not saved: .*{remedy}"):
        engine.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*"))[-1:] == saved
    assert all(is_complete(path) for path in tmp_path.glob("checkpoint-*"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        engine.save_model(str(tmp_path / "end"))
    assert not (tmp_path / "end" / "model.safetensors").exists()


def cut(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    """One bit in the middle: the file opens as before."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "cut": cut,
    "emptied": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "garbage": lambda file: file.write_bytes(random.Random(0).randbytes(file.stat().st_size)),
    "flipped": flip,
}
BINARY = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
JSON = ("config.json", "trainer_state.json", "checksums.json")
# Without checksums, in a checkpoint of a former version, one bit cannot be told, nor a file that may never have been there.
CASES = [
    (file, damage, summed)
    for file in (*BINARY, *JSON)
    for damage in DAMAGES
    for summed in (True, False)
    if not (file in JSON and damage == "flipped")
    and not (file == "checksums.json" and (damage == "missing" or not summed))
    and (summed or damage != "flipped")
    and (summed or damage != "missing" or file not in BINARY[1:])
]


@pytest.fixture
def two_checkpoints(uninterrupted, tmp_path):
    for step in (6, 10):
        name = f"checkpoint-{step}"
        shutil.copytree(f"{uninterrupted[0].args.output_dir}/{name}", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("file", "damage", "summed"), CASES)
def test_a_damaged_file_leads_to_the_checkpoint_before(file, damage, summed, two_checkpoints, caplog):
    last = two_checkpoints / "checkpoint-10"
    if not summed:
        (last / "checksums.json").unlink()
    assert checkpoint_to_resume(two_checkpoints) == str(last)
    DAMAGES[damage](last / file)
    assert checkpoint_to_resume(two_checkpoints) == str(two_checkpoints / "checkpoint-6")
    (line,) = caplog.messages
    assert line.startswith(f"{last} is passed over, because {file} is ")
    with pytest.raises(ValueError, match=f"checkpoint-10 cannot be resumed, because {file} is .*give another one"):
        check_position(last, {})


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_where_no_checkpoint_is_left(file, two_checkpoints):
    shutil.rmtree(two_checkpoints / "checkpoint-6")
    DAMAGES["cut"](two_checkpoints / "checkpoint-10" / file)
    with pytest.raises(ValueError, match=f"checkpoint-10 cannot be resumed, because {file} .*or move the folder away"):
        checkpoint_to_resume(two_checkpoints)


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_weights(two_checkpoints, uninterrupted):
    (two_checkpoints / "checkpoint-10" / "model.safetensors").unlink()
    flip(two_checkpoints / "checkpoint-10" / "optimizer.pt")
    model, _, engine = trainer(two_checkpoints, **SETTINGS)
    engine.train(resume_from_checkpoint=True)
    assert engine.state.global_step == 12
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, uninterrupted[1][name]), name
    assert is_complete(two_checkpoints / "checkpoint-10")


class Opened:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_files_that_resuming_does_not_read(two_checkpoints, uninterrupted):
    """Damaged, they change nothing. The arguments are those of the new run: `training_args.bin`, as others write it, is neither there nor opened."""
    last = two_checkpoints / "checkpoint-10"
    others = sorted({path.name for path in last.iterdir()} - {*BINARY, *JSON})
    assert others == ["README.md", "cacovid_auto.py"]
    for name in others:
        DAMAGES["garbage"](last / name)
    (last / "training_args.bin").write_bytes(pickle.dumps(Opened(two_checkpoints / "opened")))
    for damage in (lambda file: None, *DAMAGES.values()):
        damage(last / "training_args.bin")
        assert checkpoint_to_resume(two_checkpoints) == str(last)
        (last / "training_args.bin").write_bytes(pickle.dumps(Opened(two_checkpoints / "opened")))
    model, _, engine = trainer(two_checkpoints, **SETTINGS)
    engine.train(resume_from_checkpoint=True)
    assert engine.state.global_step == 12
    assert not (two_checkpoints / "opened").exists()
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, uninterrupted[1][name]), name


def train_with_limit(folder, answer):
    torch.set_num_threads(1)
    engine = trainer(folder, steps=4, samples=4, save_strategy="steps", save_steps=2)[2]
    # Between the policy's 150 kB and the optimiser's 320 kB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    try:
        engine.train()
    except Exception as error:
        answer.put((type(error).__name__, str(error)))


def test_a_disk_that_is_full_at_the_optimiser(processes, tmp_path):
    answer = processes.Queue()
    process = processes.Process(target=train_with_limit, args=(tmp_path, answer))
    process.start()
    kind, message = answer.get(timeout=120)
    process.join()
    assert kind == "OSError"
    assert message.startswith(f"The optimiser's state cannot be written to {tmp_path} (")
    assert message.endswith("free disk space, and resume from the last complete checkpoint.")
    assert (tmp_path / "checkpoint-2" / "optimizer.pt").stat().st_size == 200_000
    assert checkpoint_to_resume(tmp_path) is None


def test_a_half_written_state_is_no_checkpoint(two_checkpoints):
    """The first checkpoint of a run that was killed while it was written: training may begin anew."""
    shutil.rmtree(two_checkpoints / "checkpoint-6")
    folder = two_checkpoints / "checkpoint-10"
    (folder / "checksums.json").unlink()
    assert is_complete(folder)
    DAMAGES["cut"](folder / "trainer_state.json")
    assert not is_complete(folder)
    (two_checkpoints / "checkpoint-final").mkdir()
    assert checkpoint_to_resume(two_checkpoints) is None
