"""A stream in one file of safetensors, to go on with later."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
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

FORMAT = "cacovid stream 2"
# Without a checksum.
_BEFORE = "cacovid stream 1"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of a picture: a damaged size must not fill the memory.
_MOST_PIXELS = 2**27


def write(path: Path, described: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write what describes a stream and its tensors; the file appears under its name when it is complete."""
    check_writable(path, "stream")
    with replaced(path) as unfinished:
        # A part of a tensor, or two names for one, cannot be written.
        whole = {name: part.detach().cpu().contiguous().clone() for name, part in tensors.items()}
        said = json.dumps(described)
        metadata = {"format": FORMAT, "stream": said, "sha256": _checksum(said, whole)}
        save_file(whole, unfinished, metadata=metadata)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder, not a saved stream, or one with a changed byte.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file that VideoStream.save wrote.")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: check the path of the saved stream.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") not in (FORMAT, _BEFORE):
                raise ValueError("no such format")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = metadata["stream"]
        described = json.loads(said)
    # Of a ValueError are broken JSON and numbers of thousands of digits.
    except (SafetensorError, ValueError, RecursionError, KeyError) as error:
        raise ValueError(f"{path} is not a saved stream ({error}): give what VideoStream.save wrote.") from error
    has_checksum = metadata["format"] == FORMAT or "sha256" in metadata
    if has_checksum and metadata.get("sha256") != _checksum(said, tensors):
        raise ValueError(f"{path} is damaged (its checksum is another): save the stream again.")
    return described, tensors


def _checksum(said: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 in hexadecimal digits of all that a file holds."""
    digest = hashlib.sha256(said.encode())
    for name, part in sorted(tensors.items()):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    described: dict[str, Any],
    tensors: dict[str, Tensor],
    per_step: int,
    frame_of: Callable[[tuple[int, int]], Frame],
    like: Tensor,
) -> tuple[Before, Frame | None, dict[str, Tensor]]:
    """Return what `described_state` and `tensors_of` say, and the parts of all groups.

    Args:
        described: as read.
        tensors: likewise.
        per_step: frames of a temporal step.
        frame_of: from the height and width of pictures to what their steps have in common, with any numbers in `trailing`.
        like: any tensor of the model's dtype, where it is.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, IndexError: they say what no stream says; `whole` makes one error of them.
    """
    for name, part in tensors.items():
        _check(part.dtype not in _FLOATS or bool(part.isfinite().all()), f"values in {name}")
    waiting: list[np.ndarray] = []
    while f"waiting.{len(waiting)}" in tensors:
        waiting.append(tensors[f"waiting.{len(waiting)}"].numpy())
    features = tensors.get("before")
    _check_numbers(described["before"], described["made_room"], len(waiting), per_step)
    numbers = dict(described["before"])
    size = numbers["size"] = None if numbers["size"] is None else tuple(numbers["size"])
    is_begun = numbers["num_steps"] > 0
    _check(is_begun == (features is not None) == (described["frame"] is not None), "frame before")
    _check(all(one.shape == (*(size or ()), 3) and one.dtype == np.uint8 for one in waiting), "frames that wait")
    frame = None
    if features is not None and size is not None:
        frame = _frame(described["frame"], tensors, frame_of(size), like)
        width = frame.trailing.shape[1]
        _check(features.dtype in _FLOATS and features.shape == (frame.size, width), "features of the frame before")
        features = features.to(like)
    before = Before(**numbers, features=features, waiting=tuple(waiting))
    parts = {name.removeprefix("groups."): value for name, value in tensors.items() if name.startswith("groups.")}
    if "seconds" in parts and before.last is not None:
        times = [*parts["seconds"].flatten().tolist(), before.last]
        _check(times == sorted(times), "times of groups")
    return before, frame, parts


def _check_numbers(numbers: dict[str, Any], made_room: Any, num_waiting: int, per_step: int) -> None:
    """Check what `described_state` wrote of `Before`."""
    size, last, seconds = numbers["size"], numbers["last"], numbers["seconds"]
    counts = (numbers["num_frames"], numbers["num_steps"], numbers["resized"], made_room)
    _check(all(map(_is_count, counts)), "counts")
    num_frames, num_steps, resized, _ = counts
    _check(num_frames == num_steps * per_step + num_waiting and resized <= num_frames, "number of frames")
    _check(num_waiting < per_step, "frames that wait")
    _check((num_frames == 0) == (last is None) == (size is None), "last frame")
    is_size = isinstance(size, list) and len(size) == 2 and all(_is_count(side) and side > 0 for side in size)
    _check(size is None or (is_size and size[0] * size[1] <= _MOST_PIXELS), "size of frames")
    _check(_is_time(seconds) and (last is None or (_is_time(last) and seconds <= last)), "times")


def _frame(grid: Any, tensors: dict[str, Tensor], expected: Frame, like: Tensor) -> Frame:
    """Return what steps have in common, as it was saved; it must be what this processor makes of such pictures."""
    prefix = "frame.pixels."
    pixels = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    same = grid == [expected.height, expected.width] and pixels.keys() == expected.pixels.keys()
    if not same or not all(torch.equal(pixels[name], one) for name, one in expected.pixels.items()):
        raise ValueError(
            "Its frames do not have the grid that this processor gives them: load it with the processor that made it, or save it again."
        )
    trailing = tensors["frame.trailing"]
    _check(trailing.dtype in _FLOATS and trailing.shape == expected.trailing.shape, "end of a video")
    return replace(expected, trailing=trailing.to(like))


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
        same = part.dtype == one.dtype or (part.dtype in _FLOATS and one.dtype in _FLOATS)
        _check(same and part.shape == (count, *one.shape), f"groups' {name}")
    frames, places = parts["frames"].long(), parts["places"].long()
    _check(count > 0 and int(frames.min()) >= 0 and int(frames.max()) < num_steps, "numbers of frames")
    _check(int(places.min()) >= 0 and int(places.max()) < size, "places")
    _check(bool(((frames * size + places).flatten().diff() > 0).all()), "order of tokens")
    # Clones, so that a group that stays does not hold them all. The numbers are those of this model, whose type may be another.
    groups = [{name: parts[name][i].clone().to(one.dtype) for name, one in like.items()} for i in range(count)]
    if not all(bool(part.isfinite().all()) for group in groups for part in group.values()):
        raise ValueError(
            "It has values that this model's memory cannot hold. Load it in the dtype that it was saved in."
        )
    return groups


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Name the file in every error about what it holds; what no stream wrote so is damage."""
    try:
        yield
    except (_DamagedError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        what = str(error) if isinstance(error, _DamagedError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is damaged ({what}): save the stream again.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded. {error}") from error


class _DamagedError(ValueError):
    """Says which part of a file no stream wrote so."""


def _check(is_sound: Any, what: str) -> None:
    if not is_sound:
        raise _DamagedError(f"no stream has such {what}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_time(value: Any) -> bool:
    # Numbers of hundreds of digits are no floats.
    return type(value) in (int, float) and abs(value) < 2**63
