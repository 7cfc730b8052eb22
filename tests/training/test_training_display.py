"""The display of a training: curves, concerns, and a terminal that is given back."""

import io
import math

import pytest
from helpers.configs import write
from rich.console import Console
from transformers import TrainerControl, TrainerState

from cacovid_hf.tiny import model_path
from cacovid_hf.training.display import TrainingDisplay, concerns, sparkline
from cacovid_hf.training.from_yaml import run_training


def test_sparklines():
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline(list(range(1000)), width=4) == "▁▃▆█"


CONCERNS = [
    ({"zero_variance": 0.95}, "equal rewards"),
    ({"entropy": 0.01}, "certain of every token"),
    ({"clip_fraction": 0.7}, "stopped by the clip"),
    ({"score_spread": 50.0}, "scores grow large"),
]


@pytest.mark.parametrize(("logs", "words"), CONCERNS)
def test_a_dead_run_is_told(logs, words):
    alive = {"zero_variance": 0.2, "entropy": 0.5, "clip_fraction": 0.1, "score_spread": 1.0}
    assert concerns(alive) == []
    (concern,) = concerns(alive | logs)
    assert words in concern


def test_a_remedy_is_one_that_the_objective_has():
    grown = {"score_spread": 50.0}
    assert "kl_weight" in concerns(grown)[0]
    assert concerns(grown | {"ranking_loss": 0.1}) == ["the scores grow large: lower the learning rate"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display(terminal):
    console = Console(record=True, force_terminal=terminal, width=100, file=io.StringIO())
    display = TrainingDisplay(console)
    state, control = TrainerState(max_steps=40, is_world_process_zero=True), TrainerControl()
    display.on_train_begin(None, state, control)
    for step in range(1, 5):
        state.global_step = step * 10
        display.on_step_end(None, state, control)
        display.on_log(None, state, control, logs={"loss": 1.0, "reward": step / 4, "zero_variance": 0.95, "epoch": 1})
    display.on_log(None, state, control, logs={"eval_accuracy_at_0.02": 0.75, "eval_samples": 9})
    display.on_train_end(None, state, control)
    text = console.export_text()
    assert text.count("equal rewards in all rollouts") == 1
    assert "▁▃▆█" in text if terminal else "step 40 of 40  accuracy_at_0.02 0.75" in text
    assert "eval_samples" not in text


def test_an_error_gives_the_terminal_back(tmp_path, monkeypatch):
    """The display hides the cursor while it lives."""
    file = write(tmp_path, training={"reward_functions": {"free-form": "test_training_display:no_numbers"}})
    console = Console(force_terminal=True, width=100, file=io.StringIO())
    monkeypatch.setattr("cacovid_hf.training.display.Console", lambda **_: console)
    with pytest.raises(ValueError, match="The reward of 'free-form' gave"):
        run_training(file, default_model=model_path())
    shown = console.file.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def no_numbers(completions, solutions):
    return [math.nan] * len(completions)
