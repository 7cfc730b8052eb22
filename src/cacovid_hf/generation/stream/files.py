"""What a stream is fed: pictures with their times, of the caller or of a video file."""

import contextlib
from collections.abc import Iterable, Iterator, Sized
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from ...video.addresses import opened_address
from ...video.files import iter_chosen_frames

# Frames that are decoded at a time.
_CHUNK = 8


def frames_of_file(address: str, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures uint8 `(H, W, 3)` of a file, so many a second, and the seconds at which each is shown.

    Args:
        address: a path, or what messages take (see `cacovid_hf.video.addresses.opened_address`).
        fps: at most so many frames a second, the first one always.
    """

    def choose(metadata: VideoMetadata) -> np.ndarray:
        rate = (metadata.fps or fps) / fps
        return np.unique(np.arange(0, metadata.total_num_frames, max(1.0, rate)).astype(np.int64))

    with opened_address(address) as file, contextlib.closing(iter_chosen_frames(file, choose, _CHUNK)) as chunks:
        done = 0
        for frames, metadata in chunks:
            for picture in frames:
                yield picture, float(metadata.timestamps[done])
                done += 1


def pictures_of(frames: Any) -> Iterable[Any]:
    """Return one picture, several in an array, or an iterable of pictures, as an iterable.

    Raises:
        ValueError: none of these.
    """
    if isinstance(frames, Image.Image):
        return [frames]
    if isinstance(frames, (np.ndarray, Tensor)):
        array = np.asarray(frames)
        return array[None] if array.ndim == 3 else array
    if not isinstance(frames, Iterable):
        raise ValueError(
            f"A stream cannot take in {type(frames).__name__}: give pictures, an iterable of them, or a path."
        )
    return frames


def timed(pictures: Iterable[Any], timestamps: Any) -> Iterator[tuple[Any, Any]]:
    """Yield pictures with their times, None each without `timestamps`.

    Raises:
        ValueError: not one time each. Where both counts are known it is raised before the first picture.
    """
    if timestamps is None:
        yield from ((picture, None) for picture in pictures)
        return
    many = isinstance(timestamps, Iterable) and not isinstance(timestamps, str) and getattr(timestamps, "ndim", 1) > 0
    times: Any = timestamps if many else [timestamps]
    counts = [len(part) for part in (pictures, times) if isinstance(part, Sized)]
    if len(counts) == 2 and counts[0] != counts[1]:
        raise ValueError(f"timestamps has {counts[1]} times for {counts[0]} pictures: give one each.")
    nothing = object()
    for picture, seconds in zip_longest(pictures, times, fillvalue=nothing):
        if picture is nothing or seconds is nothing:
            more, fewer = ("timestamps", "pictures") if picture is nothing else ("pictures", "timestamps")
            raise ValueError(f"There are more {more} than {fewer}: give one time for each picture.")
        yield picture, seconds
