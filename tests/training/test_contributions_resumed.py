"""Values of single tokens in checkpoints, in resumed runs and between processes."""

import json

import pytest
import torch
from helpers import small_training
from helpers.launching import launch
from helpers.small_training import BY_CONTRIBUTIONS, Gradients, TwoSizes, assert_same_policy, counted, trainer

from cacovid_hf.training.resuming import TOKEN_VALUES, last_complete_checkpoint
from cacovid_hf.training.trainer import ContributionTrainer

SAVED = BY_CONTRIBUTIONS | dict(num_iterations=1, steps=8, samples=4, save_strategy="steps", save_steps=3)


def test_a_resumed_run_measures_nothing_again_and_ends_alike(tmp_path):
    """Step 3 is within the second pass."""
    whole, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert TOKEN_VALUES in json.loads((checkpoint / "checksums.json").read_text())
    resumed, _, engine = trainer(tmp_path, **SAVED)
    asked = counted(engine)
    engine.train(resume_from_checkpoint=str(checkpoint))
    assert asked == []
    assert engine.state.global_step == 8
    assert_same_policy(whole, resumed)
    engine.save_model(str(tmp_path / "end"))
    assert not (tmp_path / "end" / TOKEN_VALUES).exists()


def test_a_checkpoint_without_values_is_resumed_and_measured_again(tmp_path, caplog):
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    (checkpoint / TOKEN_VALUES).unlink()
    (checkpoint / "checksums.json").unlink()
    _, _, engine = trainer(tmp_path, **SAVED)
    asked = counted(engine)
    with caplog.at_level("WARNING"):
        engine.train(resume_from_checkpoint=str(checkpoint))
    assert sum(asked) == 4 * 6
    assert f"{checkpoint} has no {TOKEN_VALUES}. Its samples are measured again." in caplog.text


class InterruptedWhileSaving(ContributionTrainer):
    """Ends while the checkpoint of step 6 is written, behind the values."""

    def write_checkpoint(self, folder, state_dict):
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        super().write_checkpoint(folder, state_dict)


def test_a_checkpoint_is_complete_with_its_values_only(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, kind=InterruptedWhileSaving, **SAVED)[2].train()
    assert (tmp_path / "checkpoint-6" / TOKEN_VALUES).exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_sample_of_another_size_is_measured_again(tmp_path):
    """Others are not, whose number of tokens is the same."""
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    _, collator, engine = trainer(tmp_path, **SAVED)
    collator.__class__ = TwoSizes  # odd samples now have 6 frames, as the even ones had 4
    asked = counted(engine)
    engine.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert sum(asked) == 2 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "accuracy"}, "reward=probability, now it is accuracy"),
        ({"steps": 16}, "teacher_steps=2, now it is 4"),
    ],
)
def test_a_run_of_other_values_is_not_resumed(change, message, tmp_path):
    taught = SAVED | {"teacher": "attention", "teacher_steps": 0.25}
    trainer(tmp_path, **taught)[2].train()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **(taught | change))[2].train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_damaged_values_are_not_resumed_from(tmp_path):
    _, _, engine = trainer(tmp_path, **SAVED)
    engine.train()
    checkpoint = tmp_path / "checkpoint-3"
    content = (checkpoint / TOKEN_VALUES).read_bytes()
    (checkpoint / TOKEN_VALUES).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{TOKEN_VALUES} is damaged"):
        trainer(tmp_path, **SAVED)[2].train(resume_from_checkpoint=str(checkpoint))


def test_values_before_the_first_sample_and_of_streams_are_none(tmp_path):
    _, _, engine = trainer(tmp_path, **BY_CONTRIBUTIONS)
    engine.learner._known.put(None, 5, torch.arange(2), torch.zeros(2))
    engine.learner.save(tmp_path)
    engine.learner.begin(str(tmp_path))
    assert len(engine.learner._known) == 0


@pytest.mark.slow
def test_two_processes_share_what_they_measured(tmp_path):
    """As one process that accumulates twice as long, over two passes in which samples change processes; one sample cannot be read."""
    done = launch(
        small_training.__file__, "--out", tmp_path, "--samples", 7, "--broken", 5, "--objective", "contributions"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "result.pt", weights_only=False)
    watch = Gradients()
    _, _, one = trainer(
        tmp_path / "one",
        **BY_CONTRIBUTIONS,
        num_iterations=1,
        samples=7,
        broken=[5],
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        callbacks=[watch],
    )
    asked = counted(one)
    one.train()
    assert sum(asked) == 6 * 6
    assert two["rollouts"] == 6 * 6
    assert len(two["gradients"]) == len(watch.seen) == 8
    for theirs, ours in zip(two["gradients"], watch.seen, strict=True):
        for name, gradient in ours.items():
            scale = gradient.abs().max()
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=float(1e-4 * scale + 1e-9))
