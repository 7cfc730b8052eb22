"""What is kept of samples that come back: the store, and the teacher's attention in it."""

import json
from pathlib import Path

import pytest
import torch
from helpers import small_training
from helpers.launching import launch
from helpers.models import Video, prompt_inputs
from helpers.small_training import Collator, Gradients, assert_same_policy, trainer
from transformers import TrainerCallback

from cacovid_hf.training.resuming import ATTENTION
from cacovid_hf.training.sample_store import SampleStore
from cacovid_hf.training.trainer import ContributionTrainer

# One sample a step; three passes over four samples.
TAUGHT = dict(teacher="attention", num_iterations=1, num_frame_rollouts=0, samples=4, steps=12)
TAUGHT |= dict(per_device_train_batch_size=1)
SAVED = TAUGHT | dict(save_strategy="steps", save_steps=5)


def reads(engine):
    """How many prompts each pass of a trainer's teacher reads, from now on."""
    seen, read = [], engine.imitation._attention

    def noting(prompt):
        seen.append(len(prompt.layout.videos))
        return read(prompt)

    engine.imitation._attention = noting
    return seen


# ---------------------------------------------------------------- the store


def filled():
    store = SampleStore("kept.safetensors", "tokens", "values")
    store.put(7, 9, torch.tensor([1, 2, 4]), torch.tensor([0.5, -1.0, 2.0]))
    store.put(3, 4, torch.tensor([0]), torch.tensor([0.25]))
    return store


def test_a_store_gives_what_it_was_told_of_a_sample_of_that_size():
    store = filled()
    tokens, values = store.get(7, 9)
    assert tokens.tolist() == [1, 2, 4]
    assert values.tolist() == [0.5, -1.0, 2.0]
    assert store.get(7, 8) is None
    assert store.get(8, 9) is None
    assert store.get(None, 9) is None
    store.put(None, 9, tokens, values)
    assert len(store) == 2
    store.clear()
    assert store.get(7, 9) is None


def test_a_store_is_read_as_it_was_written(tmp_path):
    filled().save(tmp_path)
    again = SampleStore("kept.safetensors", "tokens", "values")
    again.put(5, 2, torch.tensor([1]), torch.tensor([1.0]))
    assert again.load(str(tmp_path))
    assert len(again) == 2
    assert again.get(5, 2) is None
    for index, size in ((7, 9), (3, 4)):
        for ours, theirs in zip(again.get(index, size), filled().get(index, size), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.dtype == theirs.dtype
    assert not again.load(str(tmp_path / "none"))
    assert len(again) == 0


def test_an_empty_store_is_written_and_read(tmp_path):
    SampleStore("kept.safetensors", "attention").save(tmp_path)
    again = SampleStore("kept.safetensors", "attention")
    assert again.load(str(tmp_path))
    assert len(again) == 0


# ---------------------------------------------------------------- the teacher's attention


class Forgetful(ContributionTrainer):
    """Reads the attention in every pass."""

    def _comes_back_to_teacher(self):
        return False


def test_the_teacher_is_read_once_a_sample_and_teaches_the_same(tmp_path):
    once, _, engine = trainer(tmp_path, **TAUGHT)
    seen = reads(engine)
    engine.train()
    assert seen == [1] * 4
    always, _, engine = trainer(tmp_path, kind=Forgetful, **TAUGHT)
    seen = reads(engine)
    engine.train()
    assert seen == [1] * 12
    assert_same_policy(always, once)


class Counting(TrainerCallback):
    """Notes behind every step of how many samples the attention is kept."""

    def __init__(self):
        self.kept, self.engine = [], None

    def on_step_end(self, args, state, control, **kwargs):
        self.kept.append(len(self.engine.imitation._known))


@pytest.mark.parametrize(("teacher_steps", "is_kept"), [(4, False), (5, True), (0.25, False), (0.5, True)])
def test_attention_is_kept_of_samples_that_come_back_until_the_teacher_ends(teacher_steps, is_kept, tmp_path):
    watch = Counting()
    settings = SAVED | {"teacher_steps": teacher_steps, "save_steps": 4, "callbacks": [watch]}
    _, _, watch.engine = trainer(tmp_path, **settings)
    watch.engine.train()
    taught = int(watch.engine.args.taught_steps(12))
    assert watch.kept == [min(step, 4) if is_kept and step <= taught else 0 for step in range(1, 13)]
    is_there = [(tmp_path / f"checkpoint-{step}" / ATTENTION).exists() for step in (4, 8, 12)]
    assert is_there == [is_kept, False, False]


def test_a_checkpoint_of_the_model_alone_has_no_attention(tmp_path):
    _, _, engine = trainer(tmp_path, **SAVED, save_only_model=True)
    engine.train()
    assert (tmp_path / "checkpoint-5" / "model.safetensors").exists()
    assert not (tmp_path / "checkpoint-5" / ATTENTION).exists()


def test_a_resumed_run_reads_nothing_again_and_ends_alike(tmp_path):
    whole, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-5"
    assert ATTENTION in json.loads((checkpoint / "checksums.json").read_text())
    resumed, _, engine = trainer(tmp_path, **SAVED)
    seen = reads(engine)
    engine.train(resume_from_checkpoint=str(checkpoint))
    assert seen == []
    assert engine.state.global_step == 12
    assert_same_policy(whole, resumed)


def test_a_checkpoint_without_attention_is_resumed_and_read_again(tmp_path):
    trainer(tmp_path, **SAVED)[2].train()
    checkpoint = tmp_path / "checkpoint-5"
    for name in (ATTENTION, "checksums.json"):
        Path(checkpoint, name).unlink()
    _, _, engine = trainer(tmp_path, **SAVED)
    seen = reads(engine)
    engine.train(resume_from_checkpoint=str(checkpoint))
    assert sum(seen) == 4


class Longer(Collator):
    """Odd samples have 6 frames."""

    def __call__(self, samples):
        rows = [[3, Video(4 + 2 * (samples[0] % 2)), 4 + samples[0] % 3]]
        return {**super().__call__(samples), "inputs": [prompt_inputs(self.model, rows, seed=samples[0])]}


def test_a_sample_of_another_size_is_read_again(tmp_path):
    trainer(tmp_path, **SAVED)[2].train()
    _, collator, engine = trainer(tmp_path, **SAVED)
    collator.__class__ = Longer
    seen = reads(engine)
    engine.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert sum(seen) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [({"teacher_layer": 1}, "teacher_layer=None, now it is 1"), ({"teacher_query": "last"}, "now it is last")],
)
def test_a_run_of_another_teacher_is_not_resumed(change, message, tmp_path):
    trainer(tmp_path, **SAVED)[2].train()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **(SAVED | change))[2].train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_a_second_run_knows_nothing_of_the_first(tmp_path):
    _, _, engine = trainer(tmp_path, **TAUGHT)
    seen = reads(engine)
    engine.train()
    engine.train()
    assert sum(seen) == 8


def test_samples_of_a_stream_are_read_in_every_pass(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(2))

    _, _, engine = trainer(tmp_path, **(TAUGHT | {"samples": Stream(), "steps": 6}))
    seen = reads(engine)
    engine.train()
    assert seen == [1] * 6


@pytest.mark.slow
def test_two_processes_share_what_the_teacher_showed(tmp_path):
    """As one process that accumulates twice as long, over passes in which samples change processes; one sample cannot be read."""
    done = launch(small_training.__file__, "--out", tmp_path, "--samples", 7, "--broken", 5, "--objective", "imitation")
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "result.pt", weights_only=False)
    watch = Gradients()
    settings = {name: TAUGHT[name] for name in ("teacher", "num_iterations", "num_frame_rollouts")}
    settings |= dict(samples=7, broken=[5], gradient_accumulation_steps=2, max_grad_norm=0.0, callbacks=[watch])
    _, _, one = trainer(tmp_path / "one", **settings)
    one.train()
    assert two["kept"] == [6, 6]
    assert len(two["gradients"]) == len(watch.seen) == 8
    for theirs, ours in zip(two["gradients"], watch.seen, strict=True):
        for name, gradient in ours.items():
            scale = gradient.abs().max()
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=float(1e-4 * scale + 1e-9))
