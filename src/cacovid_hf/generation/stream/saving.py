"""A stream in one file of safetensors, to go on with later."""

import json
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
    described: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> tuple[Before, Frame | None, list[dict[str, Tensor]]]:
    """Return what `described_state` and `tensors_of` say, and the parts of every group."""
    numbers = dict(described["before"])
    numbers["size"] = None if numbers["size"] is None else tuple(numbers["size"])
    waiting: list[np.ndarray] = []
    while f"waiting.{len(waiting)}" in tensors:
        waiting.append(tensors[f"waiting.{len(waiting)}"].numpy())
    features = tensors.get("before")
    before = Before(**numbers, features=None if features is None else features.to(device), waiting=tuple(waiting))
    frame = None
    if described["frame"] is not None:
        prefix = "frame.pixels."
        pixels = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        height, width = described["frame"]
        frame = Frame(height, width, pixels, tensors["frame.trailing"].to(device))
    parts = {name.removeprefix("groups."): value for name, value in tensors.items() if name.startswith("groups.")}
    count = len(next(iter(parts.values()))) if parts else 0
    # Clones, lest a group that stays hold them all.
    groups = [{name: value[i].clone() for name, value in parts.items()} for i in range(count)]
    return before, frame, groups
