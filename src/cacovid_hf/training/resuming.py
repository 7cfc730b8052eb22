"""Checkpoints that can be resumed: which are complete, where in the data they stand, and when they may be taken.

The rollouts of a sample depend on those before it, and are not saved; so checkpoints are taken, models tested and training ended between
samples only. What is drawn depends on the seed and the sample's place in the data alone, so the number of steps is all there is to restore.
On one CPU process with the same number of threads the weights are then the same bit for bit; another number adds up in another order.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoints.saving import WEIGHTS

STATE = "trainer_state.json"
_OPTIMISATION = ("optimizer.pt", "scheduler.pt")
_TOLD_APART_BY = ("problem", "options", "solution", "path", "video")
_SAMPLES_READ = 8


class SampleBoundaries(TrainerCallback, ExportableState):
    """Puts off saving, testing and stopping to the end of a sample's iterations, where the weights must be finite, and writes the position into
    the trainer's state.

    Args:
        position: what must be the same when training goes on (see `check_position`).
        num_iterations: optimiser steps on each sample.
    """

    def __init__(self, position: dict[str, Any], num_iterations: int):
        self.position, self.num_iterations = position, num_iterations
        self._postponed: set[str] = set()

    def state(self) -> dict[str, Any]:
        """For `trainer_state.json`."""
        return {"args": {"position": self.position, "num_iterations": self.num_iterations}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Forget what an earlier run put off."""
        self._postponed.clear()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Put off within a sample, catch up at its end.

        Raises:
            ValueError: a weight is not finite there.
        """
        for name in ("should_save", "should_evaluate", "should_training_stop"):
            if state.global_step % self.num_iterations:
                if getattr(control, name):
                    self._postponed.add(name)
                    setattr(control, name, False)
            elif name in self._postponed:
                setattr(control, name, True)
        if state.global_step % self.num_iterations == 0:
            self._postponed.clear()
            check_finite(model, args.output_dir)
        return control


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end: its state, which is written last, can be read."""
    folder = Path(checkpoint)
    return _state(folder) is not None and (folder / WEIGHTS).is_file()


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The complete checkpoint of the most steps in a training's folder; None if there is none."""
    found = [
        (int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")), folder)
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit()
    ]
    for _, folder in sorted(found, reverse=True):
        if is_complete(folder):
            return str(folder)
    return None


def check_finite(policy: nn.Module, output_dir: str | os.PathLike) -> None:
    """Make sure that a policy is one before it is saved or trained on.

    Raises:
        ValueError: a weight is NaN or infinite; names the last complete checkpoint in the training's folder.
    """
    # One answer is read from the device, not one a weight.
    if bool(torch.stack([torch.isfinite(weight).all() for weight in policy.parameters()]).all()):
        return
    last = last_complete_checkpoint(output_dir)
    start = f"train on the policy of {last}, the last checkpoint" if last else "start anew, there is no checkpoint yet"
    raise ValueError(
        f"The policy has weights that are NaN or infinite, and is not saved: {start}, with a lower learning_rate, or dual_clip and kl_weight to "
        "hold the scores."
    )


def check_position(checkpoint: str | os.PathLike, position: dict[str, Any]) -> None:
    """Make sure that training can go on from a checkpoint exactly where it was.

    Raises:
        ValueError: the checkpoint is incomplete, or what its position in the data depends on has changed.
    """
    folder = Path(checkpoint)
    state = _state(folder)
    if state is None or not is_complete(folder):
        raise ValueError(f"{folder} is no complete checkpoint: give another one, or True for the last complete one.")
    if lacking := [name for name in _OPTIMISATION if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {', '.join(lacking)} (saved with save_only_model=True?): start anew from its policy instead of resuming."
        )
    saved = state["stateful_callbacks"].get(SampleBoundaries.__name__, {}).get("args", {}).get("position", {})
    for name, value in position.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{folder} was made with {name}={saved[name]}, now it is {value}, so that its place in the data is lost: resume with the "
                "former value."
            )


def data_digest(dataset: Any) -> str:
    """A hash of the questions, answers and videos' file names (their folders may move) of a few samples, evenly spaced over a map-style dataset.

    Samples that cannot be read count as such; frames and bytes are not looked at.
    """
    digest = hashlib.sha256()
    for place in range(min(_SAMPLES_READ, len(dataset))):
        index = place * (len(dataset) - 1) // max(min(_SAMPLES_READ, len(dataset)) - 1, 1)
        try:
            sample = dataset[index]
        except Exception:  # whatever it is, training skips it or ends by it
            sample = None
        if isinstance(sample, Mapping):
            sample = {name: _words(sample.get(name), name) for name in _TOLD_APART_BY}
        digest.update(json.dumps(_words(sample)).encode())
    return digest.hexdigest()[:16]


def _words(value: Any, name: str = "") -> Any:
    """What of a value of a sample is words and numbers."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and name in ("path", "video")):
        return Path(os.fspath(value)).name
    if isinstance(value, Mapping):
        return {str(key): _words(part, str(key)) for key, part in sorted(value.items(), key=str)}
    if isinstance(value, (list, tuple)):
        return [_words(part, name) for part in value]
    return value if value is None or isinstance(value, (str, int, float)) else None


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
