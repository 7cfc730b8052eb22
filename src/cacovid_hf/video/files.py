"""Video files to a few RGB frames and their `VideoMetadata`, with PyAV.

One pass over the packets, without decoding, gives the timeline. Then only the groups of pictures that hold a sampled frame are decoded.
What they show is compared with what was expected of them. Where that differs, the whole clip is decoded: see `Unexpected`.
Memory is the sampled frames and some 50 bytes per frame of the clip.
"""

import contextlib
import math
import numbers
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .colours import RGBConverter
from .decoding import Unexpected, count_frames, frames_in_turn, frames_of_groups
from .ends import warn_if_truncated
from .index import index_packets
from .limits import MAX_DURATION, MAX_PIXELS, MAX_SAMPLED_PIXELS, ReadingLimits, current_guard, current_limits
from .source import Source, check_duration, check_frame_pixels, check_held_pixels, opened
from .timeline import Timeline, clip_metadata

logger = logging.get_logger(__name__)

# Past this, the timestamps are a damaged file's (FFmpeg turns missing durations into one tick a frame).
_MAX_FPS = 1000.0


def uniform_indices(
    total_num_frames: int, duration: float | None, num_frames: int = 32, max_fps: float = 1.0
) -> np.ndarray:
    """Choose frames evenly from the first to the last one (LLaVA-OneVision's sampling, which CaCoVID uses).

    Args:
        total_num_frames: frames of the clip.
        duration: of the clip, in seconds; None if it is not known, which lifts the limit of `max_fps`.
        num_frames: at most so many, at least 1.
        max_fps: at most so many a second of the clip, over 0 (`math.inf` for no such limit), but always one.

    Returns:
        int64 `(n,)`, ascending: `linspace(0, total_num_frames - 1, n)` rounded down, with
        `n = min(num_frames, max(1, floor(duration * max_fps)), total_num_frames)`.

    Raises:
        ValueError: `num_frames` or `max_fps` out of range.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, numbers.Integral) or num_frames < 1:
        raise ValueError(
            f"num_frames={num_frames!r}: give the largest number of frames to sample, an integer of at least 1."
        )
    if isinstance(max_fps, bool) or not isinstance(max_fps, numbers.Real) or not max_fps > 0:
        raise ValueError(f"max_fps={max_fps!r}: give the largest number of frames a second to sample, a number over 0.")
    count = min(int(num_frames), total_num_frames)
    if duration is not None and duration * max_fps < count:
        # The tolerance absorbs time bases that cannot express the duration exactly (29.999 s for 30 s in milliseconds).
        count = max(1, math.floor(duration * max_fps + 1e-2 * min(1.0, max_fps)))
    return np.linspace(0, total_num_frames - 1, count, dtype=np.int64)


def read_video(
    file: str | os.PathLike | BinaryIO,
    num_frames: int = 32,
    max_fps: float = 1.0,
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration: float = MAX_DURATION,
    max_sampled_pixels: int = MAX_SAMPLED_PIXELS,
) -> tuple[np.ndarray, VideoMetadata]:
    """Read uniformly sampled frames of a video file (see `uniform_indices`).

    Frame-exact: the frames are those that decoding the whole clip would number so, also with B-frames, open groups of pictures and variable
    frame rates. Frames come upright (the display matrix is applied) and in storage resolution (a pixel aspect ratio is not). Colours are those
    of FFmpeg. If the resolution changes, all frames are scaled to that of the first sampled one.

    A damaged or truncated file gives the frames that decode, with a warning.

    Args:
        file: path, or binary file object that can seek; it is read from its beginning and stays open.
        num_frames: at most so many frames.
        max_fps: at most so many frames a second of the clip; a clip shorter than `1 / max_fps` gives one.
        max_pixels: largest height times width accepted.
        max_duration: longest clip accepted, in seconds.
        max_sampled_pixels: most pixels of sampled frames to hold at a time, each three bytes.

    Returns:
        RGB frames uint8 `(T, H, W, 3)`, and the metadata that processors need for right timestamps: `fps` of the source (mean over the clip),
        `duration` in seconds, `total_num_frames`, `frames_indices`, `height`, `width`, `video_backend`, and `timestamps` (seconds at which the
        sampled frames are shown, also with a variable frame rate).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable video, more than half of it damaged, over a limit, or a setting out of range.
        ImportError: PyAV is not installed.
    """
    uniform_indices(1, 1.0, num_frames, max_fps)  # wrong settings are refused before any file is opened

    def choose(metadata: VideoMetadata) -> np.ndarray:
        return uniform_indices(metadata.total_num_frames, metadata.duration, num_frames, max_fps)

    limits = ReadingLimits(max_pixels=max_pixels, max_duration=max_duration, max_sampled_pixels=max_sampled_pixels)
    return read_chosen_frames(file, choose, limits)


def read_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    limits: ReadingLimits | None = None,
) -> tuple[np.ndarray, VideoMetadata]:
    """Read the frames that `choose_indices` names, given the clip's metadata (`frames_indices` still None); else as `read_video`.

    The limits are those of the block around the call (see `cacovid_hf.video.limits.reading_limits`) if none are given. `choose_indices` returns ascending indices in `[0, total_num_frames)`, at least one. It may be asked again if the clip turns out to have
    another number of frames than its container says.
    """
    with contextlib.closing(iter_chosen_frames(file, choose_indices, None, limits)) as chunks:
        return next(chunks)


def iter_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    frames_per_chunk: int | None,
    limits: ReadingLimits | None = None,
) -> Generator[tuple[np.ndarray, VideoMetadata], None, None]:
    """As `read_chosen_frames`, so many frames at a time, decoded when they are asked for.

    Yields:
        Frames uint8 `(n, H, W, 3)`, `n <= frames_per_chunk` (None: all at once), and the metadata of the whole sample.
    """
    limits = current_limits() if limits is None else limits
    with opened(file) as source:
        source.check(limits.max_pixels, limits.max_duration)
        packets = index_packets(source)
        source.check_moves(packets)
        timeline = source.timeline(packets)
        warn_if_truncated(source, packets, timeline)
        metadata: VideoMetadata | None = None
        done = 0
        if timeline.order is not None:
            try:
                metadata, indices = _plan(source, timeline, choose_indices, limits)
                frames = frames_of_groups(source, packets, timeline, indices)
                for chunk in _chunks(source, frames, metadata, indices, frames_per_chunk, limits):
                    yield chunk, metadata
                    done += len(chunk)
                return
            except Unexpected as reason:
                logger.info(f"{source.name}: {reason}, so that the whole clip is decoded.")
        shown = count_frames(source, packets)
        counted = source.timeline(packets, shown)
        if metadata is None or not done:
            metadata, indices = _plan(source, counted, choose_indices, limits)
        else:  # what is left of the sample, by its times
            wanted = timeline.times[indices[done:]]
            places = np.searchsorted(counted.times, wanted + 1e-6, side="right") - 1
            indices = indices[:done] + [int(place) for place in np.maximum(places, 0)]
        frames = frames_in_turn(source, indices[done:])
        for chunk in _chunks(source, frames, metadata, indices, frames_per_chunk, limits, done):
            yield chunk, metadata


def _plan(
    source: Source, timeline: Timeline, choose_indices: Callable, limits: ReadingLimits
) -> tuple[VideoMetadata, list[int]]:
    """Describe a clip and choose among its frames."""
    if timeline.num_frames == 0:
        raise ValueError(f"{source.name} has a video track without frames: export it again.")
    if not timeline.duration > 0 or timeline.num_frames > max(1.0, _MAX_FPS * timeline.duration):
        raise ValueError(
            f"{source.name} has {timeline.num_frames} frames but lasts {timeline.duration:.3g} seconds: export it again with timestamps."
        )
    check_duration(timeline.duration, limits.max_duration, source.name)
    metadata = clip_metadata(timeline)
    indices = [int(i) for i in choose_indices(metadata)]
    if not indices:
        raise ValueError(f"No frame was chosen of the {timeline.num_frames} in {source.name}: choose at least one.")
    return metadata, indices


def _chunks(
    source: Source,
    frames: Iterator[Any],
    metadata: VideoMetadata,
    indices: list[int],
    frames_per_chunk: int | None,
    limits: ReadingLimits,
    done: int = 0,
) -> Iterator[np.ndarray]:
    """Convert decoded frames, the ones from number `done` of a sample on, to RGB chunks of one size."""
    size = len(indices) if frames_per_chunk is None else min(frames_per_chunk, len(indices))
    check_held_pixels(size, *source.size, source.name, limits.max_sampled_pixels)
    current_guard().holding(size * math.prod(source.size))
    rgb = RGBConverter()
    chunk: np.ndarray | None = None
    stored: tuple[int, int] | None = None
    for place, frame in enumerate(frames):
        if stored is None:
            stored = frame.width, frame.height
            check_frame_pixels(*stored, limits.max_pixels, source.name)
            check_held_pixels(size, *stored, source.name, limits.max_sampled_pixels)
        image = rgb(frame, *stored)
        if metadata.frames_indices is None:
            metadata.frames_indices = indices
            metadata.height, metadata.width = image.shape[:2]
        if chunk is None:
            chunk = np.empty((min(size, len(indices) - done - place), *image.shape), dtype=np.uint8)
        chunk[place % size] = image
        if (place + 1) % size == 0 or done + place + 1 == len(indices):
            yield chunk
            chunk = None


@dataclass(frozen=True)
class SampledVideo:
    """Frames of a video file.

    Attributes:
        frames: uint8 `(F, H, W, 3)`, RGB.
        metadata: where in the clip they stand.
        seconds: how long reading and decoding took.
    """

    frames: np.ndarray
    metadata: VideoMetadata
    seconds: float

    @property
    def timestamps(self) -> list[float] | None:
        """The time of each frame in the clip, in seconds; None if that is unknown."""
        is_known = self.metadata.fps and self.metadata.frames_indices is not None
        return self.metadata.timestamps if is_known else None
