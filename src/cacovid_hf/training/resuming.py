"""Checkpoints that can be resumed: which are complete, where in the data they stand, and when they may be taken.

The rollouts of a sample depend on those before it, and are not saved; so checkpoints are taken, models tested and training ended between
samples only. What is drawn depends on the seed and the sample's place in the data alone, so the number of steps is all there is to restore.
What was found out about samples that come back is restored, too: values of tokens, and the teacher's attention.
On one CPU process with the same number of threads the weights are then the same bit for bit; another number adds up in another order.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..hub.source import WEIGHTS, Source
from ..utils.files import replaced
from ..utils.staging import KEY

logger = logging.get_logger(__name__)

STATE = "trainer_state.json"
CHECKSUMS = "checksums.json"
TOKEN_VALUES = "token_values.safetensors"
ATTENTION = "teacher_attention.safetensors"
_OPTIMISATION = ("optimizer.pt", "scheduler.pt")
# Every process writes a random state of its own, when it likes; that of a single process is there when the checkpoint is.
_SUMMED = (WEIGHTS, *_OPTIMISATION, "scaler.pt", "rng_state.pth", TOKEN_VALUES, ATTENTION)
_TOLD_APART_BY = ("problem", "options", "solution", "path", "video", "image")
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

    def on_save(self, args, state, control, **kwargs):
        """Say how the files of the checkpoint can be told from damaged ones."""
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            write_checksums(folder)


def damage(checkpoint: str | os.PathLike) -> str | None:
    """Why training cannot go on from a checkpoint, as a clause that names the file; None if it can.

    Files with a checksum (see `write_checksums`) are compared with it, the others are opened.
    """
    folder = Path(checkpoint)
    if _state(folder) is None:
        return f"{STATE} is missing or damaged"
    try:
        sums = folder / CHECKSUMS
        expected = json.loads(sums.read_text(encoding="utf-8")) if sums.is_file() else {}  # former versions wrote none
    except (OSError, ValueError):
        expected = None
    if not isinstance(expected, dict):
        return f"{CHECKSUMS} is damaged"
    present = [WEIGHTS, *sorted(path.name for path in folder.glob("*.pt*") if path.is_file())]
    for name in dict.fromkeys([*expected, *present]):
        file = folder / Path(name).name
        if not file.is_file():
            return f"{name} is missing"
        if _digest(file) != expected[name] if name in expected else not _opens(file):
            return f"{name} is damaged"
    try:
        if KEY in Source(str(folder), {}).config():
            return "its last save was not finished"
    except (OSError, ValueError):
        return "config.json is missing or damaged"
    return None


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint was written to its end and is as it was written."""
    return damage(checkpoint) is None


def write_checksums(checkpoint: str | os.PathLike) -> None:
    """Write the SHA-256 of the weights and of the optimiser's state beside them, as the last file of a checkpoint."""
    folder = Path(checkpoint)
    sums = {name: _digest(folder / name) for name in _SUMMED if (folder / name).is_file()}
    with replaced(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps(sums, indent=2), encoding="utf-8")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _opens(file: Path) -> bool:
    """Whether a safetensors file has all its bytes, or every part of a file of `torch.save` its check sum."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return True
        with zipfile.ZipFile(file) as parts:
            return parts.testzip() is None
    except (OSError, SafetensorError, zipfile.BadZipFile):
        return False


def _was_complete(folder: Path) -> bool:
    return (folder / CHECKSUMS).is_file() or _state(folder) is not None


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """Return the complete checkpoint of the most steps in a training's folder, with a warning for each that it passes over; None if there is none."""
    for folder in _checkpoints(output_dir):
        if (reason := damage(folder)) is None:
            return str(folder)
        logger.warning(f"{folder} is passed over, because {reason}.")
    return None


def checkpoint_to_resume(output_dir: str | os.PathLike) -> str | None:
    """As `last_complete_checkpoint`; None only if no checkpoint was ever complete, so that training may begin at its first step.

    Raises:
        ValueError: there were complete ones, and all are damaged.
    """
    found = last_complete_checkpoint(output_dir)
    if found is None and (lost := [folder for folder in _checkpoints(output_dir) if _was_complete(folder)]):
        raise ValueError(
            f"{lost[0]} cannot be resumed, because {damage(lost[0])}, and no checkpoint before it can: restore that file, or move the folder "
            "away to begin anew."
        )
    return found


def _checkpoints(output_dir: str | os.PathLike) -> list[Path]:
    """Folders of checkpoints, of the most steps first."""
    prefix = f"{PREFIX_CHECKPOINT_DIR}-"
    found = [path for path in Path(output_dir).glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)), reverse=True)


def check_finite(policy: nn.Module, output_dir: str | os.PathLike) -> None:
    """Make sure that a policy is one before it is saved or trained on.

    Raises:
        ValueError: a weight is NaN or infinite; names the last complete checkpoint in the training's folder.
    """
    # One answer is read from the device, not one per weight.
    if bool(torch.stack([torch.isfinite(weight).all() for weight in policy.parameters()]).all()):
        return
    last = last_complete_checkpoint(output_dir)
    start = f"train on the policy of {last}, the last checkpoint" if last else "start anew, there is no checkpoint yet"
    raise ValueError(
        f"The policy has weights that are NaN or infinite, and is not saved: {start}, with a lower learning_rate."
    )


def check_position(checkpoint: str | os.PathLike, position: dict[str, Any]) -> None:
    """Make sure that training can go on from a checkpoint exactly where it was.

    Raises:
        ValueError: the checkpoint is incomplete, or what its position in the data depends on has changed.
    """
    folder = Path(checkpoint)
    if (reason := damage(folder)) is not None:
        raise ValueError(
            f"{folder} cannot be resumed, because {reason}: give another one, or True for the last complete one."
        )
    if lacking := [name for name in _OPTIMISATION if not (folder / name).is_file()]:
        raise ValueError(
            f"{folder} lacks {', '.join(lacking)} (saved with save_only_model=True?): start anew from its policy instead of resuming."
        )
    state: Any = _state(folder)
    saved = state.stateful_callbacks.get(SampleBoundaries.__name__, {}).get("args", {}).get("position", {})
    for name, value in position.items():
        if saved.get(name, value) != value:
            raise ValueError(
                f"{folder} was made with {name}={saved[name]}, now it is {value}, so that its place in the data is lost: resume with the "
                "former value."
            )


def data_digest(dataset: Any) -> str:
    """Return a hash of the questions, answers and videos' file names (their folders may move) of a few samples, evenly spaced over a map-style dataset.

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
    """Return what of a value of a sample is words and numbers."""
    if isinstance(value, os.PathLike) or (isinstance(value, str) and name in ("path", "video", "image")):
        return Path(os.fspath(value)).name
    if isinstance(value, Mapping):
        return {str(key): _words(part, str(key)) for key, part in sorted(value.items(), key=str)}
    if isinstance(value, (list, tuple)):
        return [_words(part, name) for part in value]
    return value if value is None or isinstance(value, (str, int, float)) else None


def _state(folder: Path) -> TrainerState | None:
    try:
        state = TrainerState.load_from_json(str(folder / STATE))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sound = isinstance(state.global_step, int) and isinstance(state.stateful_callbacks, dict)
    return state if sound else None
