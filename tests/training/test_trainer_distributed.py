"""Two processes under `accelerate launch` train as one process that accumulates twice as long, and end together."""

import time
from pathlib import Path

import pytest
import torch
from helpers.launching import launch
from helpers.small_training import Gradients, trainer

SCRIPT = Path(__file__).parents[1] / "helpers" / "small_training.py"
# 7 samples, 4 a step: the second step of a pass has 3, which is 2 for one process and 1 for the other. Sample 5 cannot be read.
SAMPLES, BROKEN = 7, [5]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    done = launch(SCRIPT, "--out", tmp_path, "--samples", SAMPLES, "--broken", *BROKEN)
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(tmp_path / "result.pt", weights_only=False)

    watch = Gradients()
    _, _, one = trainer(
        tmp_path / "one",
        samples=SAMPLES,
        broken=BROKEN,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        callbacks=[watch],
        eval_dataset=list(range(100, 105)),
        eval_ratios=[0.5],
    )
    one.train()
    assert len(two["gradients"]) == len(watch.seen) == 8
    for theirs, ours in zip(two["gradients"], watch.seen, strict=True):
        for name, gradient in ours.items():
            scale = gradient.abs().max()
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=float(1e-4 * scale + 1e-9))
    logs = [[entry for entry in log if "loss" in entry] for log in (two["log"], one.state.log_history)]
    assert len(logs[0]) == len(logs[1]) == 8
    for theirs, ours in zip(*logs, strict=True):
        for name in ("loss", "reward", "entropy", "sampling_ratio"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-6)
        assert theirs.get("skipped_samples") == ours.get("skipped_samples")
    assert logs[0][-1]["skipped_samples"] == 2
    names = ("eval_accuracy_at_0.5", "eval_accuracy", "eval_samples")
    accuracies = one.evaluate()
    assert [two["eval"][name] for name in names] == pytest.approx([accuracies[name] for name in names])
    assert two["eval"]["eval_samples"] == 5


@pytest.mark.slow
def test_a_failing_process_ends_the_other(tmp_path):
    start = time.monotonic()
    done = launch(SCRIPT, "--out", tmp_path, "--failing-process", 1, timeout=180)
    assert done.returncode != 0
    assert "this process fails" in done.stderr
    assert not (tmp_path / "result.pt").exists()
    assert time.monotonic() - start < 150
