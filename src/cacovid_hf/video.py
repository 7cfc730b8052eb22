"""Video files to a few RGB frames and their `VideoMetadata`, with PyAV.

One pass over the packets, without decoding, gives every frame's timestamp and the keyframes; then only the groups of pictures that hold a
sampled frame are decoded. Memory is the sampled frames and eight bytes a frame of the clip.
"""

import contextlib
import io
import math
import numbers
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

logger = logging.get_logger(__name__)

MAX_PIXELS = 7680 * 4320
MAX_DURATION = 24 * 3600.0
# Containers that carry timestamps alone: text renderers, and playlists that make FFmpeg open other files, stay out.
_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,gif,ogg,ivf,mxf,nut,rm,dv"
# Past this, the timestamps are a damaged file's (FFmpeg turns missing durations into one tick a frame).
_MAX_FPS = 1000.0


@dataclass(frozen=True)
class _Timeline:
    """What the container says without decoding: `timestamps` `(n,)` and `keyframes`, both ascending, in units of the stream's time base
    (`timestamps` is None if they do not identify the frames), and the clip's number of frames and duration in seconds.
    """

    timestamps: np.ndarray | None
    keyframes: np.ndarray
    num_frames: int
    duration: float


class _SeekError(Exception):
    """A frame was not found where its timestamp says."""


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
) -> tuple[np.ndarray, VideoMetadata]:
    """Read uniformly sampled frames of a video file (see `uniform_indices`).

    Frame-exact: the frames are those that decoding the whole clip would number so, also with B-frames, open groups of pictures and variable
    frame rates. Frames come upright (the display matrix is applied) and in storage resolution (a pixel aspect ratio is not).

    Args:
        file: path, or binary file object that can seek; it is read from its beginning and stays open.
        num_frames: at most so many frames.
        max_fps: at most so many frames a second of the clip; a clip shorter than `1 / max_fps` gives one.
        max_pixels: largest height times width accepted.
        max_duration: longest clip accepted, in seconds.

    Returns:
        RGB frames uint8 `(T, H, W, 3)`, and the metadata that processors need for right timestamps: `fps` of the source (mean over the clip),
        `duration` in seconds, `total_num_frames`, `frames_indices`, `height`, `width`, `video_backend`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable video, over a limit, or a setting out of range.
        ImportError: PyAV is not installed.
    """
    uniform_indices(1, 1.0, num_frames, max_fps)  # wrong settings are refused before any file is opened

    def choose(metadata: VideoMetadata) -> np.ndarray:
        return uniform_indices(metadata.total_num_frames, metadata.duration, num_frames, max_fps)

    return read_chosen_frames(file, choose, max_pixels=max_pixels, max_duration=max_duration)


def read_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration: float = MAX_DURATION,
) -> tuple[np.ndarray, VideoMetadata]:
    """Read the frames that `choose_indices` names, given the clip's metadata (`frames_indices` still None); else as `read_video`.

    `choose_indices` returns ascending indices in `[0, total_num_frames)`, at least one.
    """
    limits: dict[str, Any] = dict(max_pixels=max_pixels, max_duration=max_duration)
    with contextlib.closing(iter_chosen_frames(file, choose_indices, None, **limits)) as chunks:
        return next(chunks)


def iter_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    frames_per_chunk: int | None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration: float = MAX_DURATION,
) -> Generator[tuple[np.ndarray, VideoMetadata], None, None]:
    """As `read_chosen_frames`, so many frames at a time, decoded when they are asked for.

    Yields:
        Frames uint8 `(n, H, W, 3)`, `n <= frames_per_chunk` (None: all at once), and the metadata of the whole sample.
    """
    with _opened(file) as (container, name):
        stream = _video_stream(container, name, max_pixels, max_duration)
        timeline = _timeline(container, stream, name)
        done = 0
        if timeline.timestamps is not None:
            try:
                for chunk in _read(container, stream, timeline, name, choose_indices, max_duration, frames_per_chunk):
                    done += len(chunk[0])
                    yield chunk
                return
            except _SeekError:
                pass
        # Timestamps are missing or misleading, so that only decoding everything numbers the frames.
        counted = _counted_timeline(container, stream, timeline, name)
        if done and counted.num_frames != timeline.num_frames:
            raise ValueError(
                f"{name} has {counted.num_frames} frames, its index says {timeline.num_frames}: export it again, or read it at once (frames_per_chunk=None)."
            )
        yield from _read(container, stream, counted, name, choose_indices, max_duration, frames_per_chunk, done)


def _read(
    container,
    stream,
    timeline: _Timeline,
    name: str,
    choose_indices: Callable,
    max_duration: float,
    frames_per_chunk: int | None,
    done: int = 0,
) -> Iterator[tuple[np.ndarray, VideoMetadata]]:
    if timeline.num_frames == 0:
        raise ValueError(f"{name} has a video track without frames: export it again.")
    if not timeline.duration > 0 or timeline.num_frames > max(1.0, _MAX_FPS * timeline.duration):
        raise ValueError(
            f"{name} has {timeline.num_frames} frames but lasts {timeline.duration:.3g} seconds: export it again with timestamps."
        )
    _check_duration(timeline.duration, max_duration, name)
    metadata = VideoMetadata(
        total_num_frames=timeline.num_frames,
        fps=timeline.num_frames / timeline.duration,
        duration=timeline.duration,
        video_backend="pyav",
    )
    indices = [int(i) for i in choose_indices(metadata)]
    if not indices:
        raise ValueError(f"No frame was chosen of the {timeline.num_frames} in {name}: choose at least one.")
    size = len(indices) if frames_per_chunk is None else frames_per_chunk
    frames: np.ndarray | None = None
    for place, frame in enumerate(_frames_at(container, stream, timeline, indices[done:])):
        image = _upright(frame)
        if place == 0:
            metadata.frames_indices = indices
            metadata.height, metadata.width = image.shape[:2]
        if image.shape[:2] != (metadata.height, metadata.width):
            raise ValueError(
                f"{name} changes its resolution from {metadata.width}x{metadata.height} to {image.shape[1]}x{image.shape[0]}: "
                "export it again in one resolution."
            )
        if frames is None:
            frames = np.empty((min(size, len(indices) - done - place), *image.shape), dtype=np.uint8)
        frames[place % size] = image
        if (place + 1) % size == 0 or done + place + 1 == len(indices):
            yield frames, metadata
            frames = None


@contextlib.contextmanager
def _opened(file: str | os.PathLike | BinaryIO) -> Iterator[tuple[Any, str]]:
    """Open a container, close it in any case, and turn FFmpeg's errors into one clear `ValueError`."""
    try:
        import av
    except ImportError:
        raise ImportError("Reading video files needs PyAV: pip install av.") from None

    source: Any
    if isinstance(file, (str, os.PathLike)):
        name = os.fspath(file)
        if not os.path.exists(name):
            raise FileNotFoundError(f"{name} does not exist: check the path.")
        if not os.path.isfile(name):
            raise ValueError(f"{name} is not a file: give the path of one video file.")
        source, size = os.path.abspath(name), os.path.getsize(name)
    else:
        name, source, size = "The file object", file, _size_of(file)
    if size == 0:
        raise ValueError(f"{name} is empty (0 bytes): copy or download it again.")
    try:
        # As `options`, which go to every stream too, these crash PyAV 13 to 15 on containers that announce streams late (flv).
        with av.open(
            source,
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        ) as container:
            yield container, name
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"{name} is not a readable video ({reason}): it may be truncated, damaged or of another type."
        ) from error


def _size_of(file: BinaryIO) -> int:
    """Bytes in a binary file object, which is then at its beginning."""
    try:
        is_binary = isinstance(file.read(0), bytes)
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    except (AttributeError, OSError, ValueError):
        is_binary = False
    if not is_binary:
        raise ValueError(
            f"A video of type {type(file).__name__} cannot be read: give a path, or an open binary file that can seek "
            "(io.BytesIO(data) for data in memory)."
        )
    return size


def _video_stream(container, name: str, max_pixels: int, max_duration: float):
    if not container.streams.video:
        raise ValueError(f"{name} has no video track (audio alone?): give a file with pictures.")
    stream = container.streams.best("video")
    height, width = stream.codec_context.height, stream.codec_context.width
    if height * width > max_pixels:
        raise ValueError(
            f"{name} has frames of {width}x{height} pixels, over the limit max_pixels={max_pixels}: scale it down, or raise the limit."
        )
    if container.duration:
        _check_duration(container.duration / 1e6, max_duration, name)
    stream.thread_type = "AUTO"
    return stream


def _check_duration(duration: float, max_duration: float, name: str) -> None:
    if duration > max_duration:
        raise ValueError(
            f"{name} lasts {duration:.0f} seconds, over the limit max_duration={max_duration:g}: cut it, or raise the limit."
        )


def _timeline(container, stream, name: str) -> _Timeline:
    """Index the packets of a stream without decoding any."""
    timestamps, keyframes = array("q"), array("q")
    num_untimed, last, last_duration, is_cut = 0, None, 0.0, False
    for packet in container.demux(stream):
        if not packet.size:
            continue  # the end marker
        is_cut = packet.is_corrupt
        if packet.pts is None:
            num_untimed += 1
            continue
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if packet.is_discard:
            continue  # decoded for others' sake, never shown
        timestamps.append(packet.pts)
        if last is None or packet.pts > last:
            last, last_duration = packet.pts, packet.duration or 0
    if is_cut:
        raise ValueError(f"{name} is truncated, it ends within a frame: copy or download it again.")
    keys = np.unique(np.frombuffer(keyframes, dtype=np.int64))
    times = np.sort(np.frombuffer(timestamps, dtype=np.int64))
    # Pictures shown before the first keyframe refer to what is not in the file, so that no decoder shows them.
    times = times[times >= keys[0]] if keys.size else times
    num_frames = times.size + num_untimed
    span = int(times[-1] - times[0]) if times.size else 0
    if times.size > 1 and (not last_duration or not span):
        last_duration = span / (times.size - 1)
    duration = float((span + last_duration) * stream.time_base)
    if "matroska" in container.format.name and container.duration and times.size:
        # Matroska and WebM mark no cut; what is announced and what is there tell.
        announced, end = container.duration / 1e6, float((int(times[-1]) + last_duration) * stream.time_base)
        if announced - end > max(0.1 * announced, 2 * duration / times.size):
            message = f"{name} ends after {end:.2f} of the {announced:.2f} seconds that it announces"
            if len(container.streams) == 1:
                raise ValueError(f"{message}, it is truncated: copy or download it again.")
            logger.warning(f"{message}: its video is shorter than its sound, or it is truncated.")
    if num_untimed or duration <= 0:
        rate: Fraction | None = stream.average_rate if num_untimed or num_frames == 1 else None
        duration = float(num_frames / rate) if rate else 0.0
    is_exact = bool(keys.size) and not num_untimed and bool((np.diff(times) > 0).all())
    return _Timeline(times if is_exact else None, keys, num_frames, duration)


def _counted_timeline(container, stream, timeline: _Timeline, name: str) -> _Timeline:
    container.seek(0, stream=stream)
    num_frames = sum(1 for _ in container.decode(stream))
    return _Timeline(None, timeline.keyframes, num_frames, timeline.duration)


def _frames_at(container, stream, timeline: _Timeline, indices: list[int]) -> Iterator[Any]:
    """Yield the decoded frames at ascending `indices`."""
    if timeline.timestamps is None:
        container.seek(0, stream=stream)
        numbered = enumerate(container.decode(stream))
        number, frame = next(numbered)
        for index in indices:
            while number < index:
                number, frame = next(numbered)
            yield frame
        return
    keys = timeline.keyframes
    frames: Iterator[Any] = iter(())
    position, frame = None, None
    for index in indices:
        wanted = int(timeline.timestamps[index])
        key = bisect_right(keys, wanted) - 1
        if position is None or keys[key] > position:
            frames, frame = _seek(container, stream, keys, key, wanted)
        while frame is not None and frame.pts is not None and frame.pts < wanted:
            frame = next(frames, None)
        if frame is None or frame.pts != wanted:
            raise _SeekError
        position = wanted
        yield frame


def _seek(container, stream, keys: np.ndarray, key: int, wanted: int) -> tuple[Iterator[Any], Any]:
    """Start decoding at keyframe number `key`, or at an earlier one where the container's index leads past `wanted`."""
    step = 1
    while True:
        container.seek(int(keys[key]), stream=stream)
        frames = container.decode(stream)
        frame = next(frames, None)
        if key == 0 or (frame is not None and frame.pts is not None and frame.pts <= wanted):
            return frames, frame
        key, step = max(0, key - step), 2 * step


def _upright(frame) -> np.ndarray:
    """Return a frame as `(H, W, 3)` RGB, turned and mirrored as its display matrix says (by the nearest right angle)."""
    from av.sidedata.sidedata import Type

    image = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return image
    # A pixel at column x, row y is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
