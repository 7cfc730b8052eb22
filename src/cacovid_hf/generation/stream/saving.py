"""A stream in one file of safetensors, to go on with later."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...utils.files import check_writable, replaced
from .prompts import Frame
from .steps import Before

FORMAT = "cacovid stream 1"


def write(path: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write what describes a stream and its tensors; the file appears under its name when it is complete."""
    check_writable(path, "stream")
    with replaced(path) as unfinished:
        # A part of a tensor, or two names for one, cannot be written.
        whole = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
        save_file(whole, unfinished, metadata={"format": FORMAT, "stream": json.dumps(described)})


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a saved stream.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the path of the saved stream.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} is not a saved stream: give what VideoStream.save wrote.")
            return json.loads(metadata["stream"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is not a saved stream ({error}): give what VideoStream.save wrote.") from error


def tensors_of(before: Before, frame: Frame | None, groups: list[Any]) -> dict[str, Tensor]:
    """All tensors of a stream by name; groups are alike, so that each of their parts is one tensor."""
    tensors = {f"waiting.{i}": torch.from_numpy(picture) for i, picture in enumerate(before.waiting)}
    if before.features is not None:
        tensors["before"] = before.features
    if frame is not None:
        tensors["frame.trailing"] = frame.trailing
        tensors |= {f"frame.pixels.{name}": value for name, value in frame.pixels.items()}
    if groups:
        tensors |= {
            f"groups.{name}": torch.stack([group.parts[name].cpu() for group in groups]) for name in groups[0].parts
        }
    return tensors


def described_state(before: Before, frame: Frame | None, made_room: int) -> dict[str, Any]:
    """All numbers of a stream."""
    names = ("num_frames", "num_steps", "last", "size", "resized", "seconds")
    return {
        "before": {name: getattr(before, name) for name in names},
        "frame": None if frame is None else [frame.height, frame.width],
        "made_room": made_room,
    }


def state_of(
    described: dict[str, Any], tensors: dict[str, Tensor], per_step: int, width: int, like: Tensor
) -> tuple[Before, Frame | None, dict[str, Tensor]]:
    """Return what `described_state` and `tensors_of` say, and the parts of all groups.

    Args:
        described: as read.
        tensors: likewise.
        per_step: frames of a temporal step.
        width: `D`.
        like: any tensor of the model's dtype, where it is.

    Raises:
        ValueError, KeyError, TypeError: they say what no stream says.
    """
    numbers = dict(described["before"])
    numbers["size"] = None if numbers["size"] is None else tuple(numbers["size"])
    counts = (numbers["num_frames"], numbers["num_steps"], numbers["resized"], *(numbers["size"] or ()))
    _check(all(type(count) is int and count >= 0 for count in (*counts, described["made_room"])), "numbers")
    waiting: list[np.ndarray] = []
    while f"waiting.{len(waiting)}" in tensors:
        waiting.append(tensors[f"waiting.{len(waiting)}"].numpy())
    features = tensors.get("before")
    before = Before(**numbers, features=None if features is None else features.to(like), waiting=tuple(waiting))
    frame = None
    if described["frame"] is not None:
        prefix = "frame.pixels."
        pixels = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        height, width_of_frame = described["frame"]
        frame = Frame(height, width_of_frame, pixels, tensors["frame.trailing"].to(like))
    _check(
        before.num_frames == before.num_steps * per_step + len(waiting) and before.num_steps >= 0, "number of frames"
    )
    _check((before.num_steps > 0) == (features is not None) == (frame is not None), "frame before")
    _check(frame is None or features is None or features.shape == (frame.size, width), "frame before")
    _check(all(picture.shape == (*(before.size or ()), 3) for picture in waiting), "frames that wait")
    _check(all(picture.dtype == np.uint8 for picture in waiting), "frames that wait")
    _check(all(bool(part.isfinite().all()) for part in tensors.values()), "numbers")
    _check((before.last is None) == (before.num_frames == 0) and np.isfinite(before.last or 0.0), "times")
    parts = {name.removeprefix("groups."): value for name, value in tensors.items() if name.startswith("groups.")}
    return before, frame, parts


def groups_of(parts: dict[str, Tensor], like: dict[str, Tensor], num_steps: int, size: int) -> list[dict[str, Tensor]]:
    """Return the parts of every group.

    Args:
        parts: of all groups, as read.
        like: of any group of the same memory.
        num_steps: that there were.
        size: tokens of a frame.

    Raises:
        ValueError: they are not what such a memory holds.
    """
    _check(parts.keys() == like.keys(), "parts of a group")
    count = len(parts["frames"])
    for name, one in like.items():
        part = parts[name]
        same = part.dtype == one.dtype or (part.is_floating_point() and one.is_floating_point())
        _check(same and part.shape == (count, *one.shape), f"groups' {name}")
    frames, places = parts["frames"].long(), parts["places"].long()
    _check(count > 0 and int(frames.min()) >= 0 and int(frames.max()) < num_steps, "numbers of frames")
    _check(int(places.min()) >= 0 and int(places.max()) < size, "places")
    _check(bool(((frames * size + places).flatten().diff() > 0).all()), "order of tokens")
    # Clones, so that a group that stays does not hold them all. The numbers are those of this model, whose type may be another.
    groups = [{name: parts[name][i].clone().to(one.dtype) for name, one in like.items()} for i in range(count)]
    if not all(bool(part.isfinite().all()) for group in groups for part in group.values()):
        raise ValueError(
            "The saved stream has values that this model's memory cannot hold. Load it in the dtype that it was saved in."
        )
    return groups


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Say of what is missing or of another type in a file, which no stream wrote so, that the file is damaged."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the stream again.") from error


def _check(is_sound: Any, what: str) -> None:
    if not is_sound:
        raise ValueError(f"A saved stream is damaged, whose {what} no stream has: save it again.")
