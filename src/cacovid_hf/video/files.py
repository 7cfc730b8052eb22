"""Video files to a few RGB frames and their `VideoMetadata`, with PyAV.

One pass over the packets, without decoding, gives the timeline. Then only the groups of pictures that hold a sampled frame are decoded.
What they show is compared with what was expected of them. Where that differs, the whole clip is decoded: see `_Unexpected`.
Memory is the sampled frames and some 40 bytes per frame of the clip.
"""

import contextlib
import io
import itertools
import math
import numbers
import os
from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .timeline import BROKEN, HIDDEN, KEYFRAME, UNKNOWN, Packets, Timeline, build_timeline, clip_metadata

logger = logging.get_logger(__name__)

MAX_PIXELS = 7680 * 4320
MAX_DURATION = 24 * 3600.0
MAX_SAMPLED_PIXELS = 1 << 29  # 1.6 GB of RGB: 32 frames of 4096x4096, or 258 of 1920x1080
# Text renderers, and playlists that make FFmpeg open other files, stay out. Sound alone is read to say that it is.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,gif,ogg,ivf,mxf,nut,rm,dv,apng,yuv4mpegpipe"
_ELEMENTARY = "h264,hevc,m4v,mpegvideo,mjpeg,jpeg_pipe,h263,vc1,obu"
_SOUND = "mp3,flac,wav,aac"
# Containers whose clock may jump, after FFmpeg.
_BROADCAST = ("mpegts", "mpeg", "ogg")
_PICTURES = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")
# Codecs whose keyframes are drawn upon the frame before.
_DRAWN_UPON = ("gif", "apng")
_PALETTES = ("pal8",)  # containers give palettes with the packets where they change
# Past this, the timestamps are a damaged file's (FFmpeg turns missing durations into one tick a frame).
_MAX_FPS = 1000.0
_MAX_PACKETS = 10_500_000  # 24 hours at 120 frames per second
_MAX_DAMAGED = 0.5
_TICK = Fraction(1, 1000)  # of the filter, which needs one
_THREADED_PIXELS = 4096 * 2304  # each thread of larger frames would hold some of them


class _Unexpected(Exception):
    """Decoding shows other frames than the packets announce.

    Noticed where: a packet does not begin as its codec says, or does not decode; the first frame after a start is not that of the packet marked as a keyframe, or is not one for the
    decoder; frames come in another order, or one is missing; a packet after seeking is not the one of that place.
    """


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

    limits: dict[str, Any] = dict(
        max_pixels=max_pixels, max_duration=max_duration, max_sampled_pixels=max_sampled_pixels
    )
    return read_chosen_frames(file, choose, **limits)


def read_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration: float = MAX_DURATION,
    max_sampled_pixels: int = MAX_SAMPLED_PIXELS,
) -> tuple[np.ndarray, VideoMetadata]:
    """Read the frames that `choose_indices` names, given the clip's metadata (`frames_indices` still None); else as `read_video`.

    `choose_indices` returns ascending indices in `[0, total_num_frames)`, at least one. It may be asked again if the clip turns out to have
    another number of frames than its container says.
    """
    limits: dict[str, Any] = dict(
        max_pixels=max_pixels, max_duration=max_duration, max_sampled_pixels=max_sampled_pixels
    )
    with contextlib.closing(iter_chosen_frames(file, choose_indices, None, **limits)) as chunks:
        return next(chunks)


def iter_chosen_frames(
    file: str | os.PathLike | BinaryIO,
    choose_indices: Callable[[VideoMetadata], Any],
    frames_per_chunk: int | None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_duration: float = MAX_DURATION,
    max_sampled_pixels: int = MAX_SAMPLED_PIXELS,
) -> Generator[tuple[np.ndarray, VideoMetadata], None, None]:
    """As `read_chosen_frames`, so many frames at a time, decoded when they are asked for.

    Yields:
        Frames uint8 `(n, H, W, 3)`, `n <= frames_per_chunk` (None: all at once), and the metadata of the whole sample.
    """
    with _opened(file) as source:
        source.check(max_pixels, max_duration)
        packets = _index(source)
        timeline = source.timeline(packets)
        _warn_if_truncated(source, packets, timeline)
        metadata: VideoMetadata | None = None
        done = 0
        if timeline.order is not None:
            try:
                metadata, indices = _plan(source, timeline, choose_indices, max_duration)
                frames = _frames_of_groups(source, packets, timeline, indices)
                for chunk in _chunks(
                    source, frames, metadata, indices, frames_per_chunk, max_pixels, max_sampled_pixels
                ):
                    yield chunk, metadata
                    done += len(chunk)
                return
            except _Unexpected as reason:
                logger.info(f"{source.name}: {reason}, so that the whole clip is decoded.")
        shown = _count(source, packets)
        counted = source.timeline(packets, shown)
        if metadata is None or not done:
            metadata, indices = _plan(source, counted, choose_indices, max_duration)
        else:  # what is left of the sample, by its times
            wanted = timeline.times[indices[done:]]
            places = np.searchsorted(counted.times, wanted + 1e-6, side="right") - 1
            indices = indices[:done] + [int(place) for place in np.maximum(places, 0)]
        frames = _frames_in_turn(source, indices[done:])
        for chunk in _chunks(source, frames, metadata, indices, frames_per_chunk, max_pixels, max_sampled_pixels, done):
            yield chunk, metadata


def _plan(
    source: "_Source", timeline: Timeline, choose_indices: Callable, max_duration: float
) -> tuple[VideoMetadata, list[int]]:
    """Describe a clip and choose among its frames."""
    if timeline.num_frames == 0:
        raise ValueError(f"{source.name} has a video track without frames: export it again.")
    if not timeline.duration > 0 or timeline.num_frames > max(1.0, _MAX_FPS * timeline.duration):
        raise ValueError(
            f"{source.name} has {timeline.num_frames} frames but lasts {timeline.duration:.3g} seconds: export it again with timestamps."
        )
    _check_duration(timeline.duration, max_duration, source.name)
    metadata = clip_metadata(timeline)
    indices = [int(i) for i in choose_indices(metadata)]
    if not indices:
        raise ValueError(f"No frame was chosen of the {timeline.num_frames} in {source.name}: choose at least one.")
    return metadata, indices


def _chunks(
    source: "_Source",
    frames: Iterator[Any],
    metadata: VideoMetadata,
    indices: list[int],
    frames_per_chunk: int | None,
    max_pixels: int,
    max_sampled_pixels: int,
    done: int = 0,
) -> Iterator[np.ndarray]:
    """Convert decoded frames, the ones from number `done` of a sample on, to RGB chunks of one size."""
    size = len(indices) if frames_per_chunk is None else min(frames_per_chunk, len(indices))
    check_held_pixels(size, *source.size, source.name, max_sampled_pixels)
    rgb = _RGB()
    chunk: np.ndarray | None = None
    stored: tuple[int, int] | None = None
    for place, frame in enumerate(frames):
        if stored is None:
            stored = frame.width, frame.height
            _check_frame(*stored, max_pixels, source.name)
            check_held_pixels(size, *stored, source.name, max_sampled_pixels)
        image = rgb(frame, *stored)
        if metadata.frames_indices is None:
            metadata.frames_indices = indices
            metadata.height, metadata.width = image.shape[:2]
        if image.shape[:2] != (metadata.height, metadata.width):
            raise ValueError(
                f"{source.name} turns its pictures from {metadata.width}x{metadata.height} to {image.shape[1]}x{image.shape[0]}: "
                "export it again in one orientation."
            )
        if chunk is None:
            chunk = np.empty((min(size, len(indices) - done - place), *image.shape), dtype=np.uint8)
        chunk[place % size] = image
        if (place + 1) % size == 0 or done + place + 1 == len(indices):
            yield chunk
            chunk = None


class _Source:
    """An open video file, which can be opened again from its beginning; see `_opened`."""

    def __init__(self, file: Any, name: str, size: int):
        self.file, self.name, self.num_bytes = file, name, size
        self.container: Any = None
        self.stream: Any = None
        self.position = 0  # of the next packet
        self.ended_by: str | None = None

    def open(self) -> None:
        """Open the file, or open it again from its beginning."""
        import av

        self.close()
        if not isinstance(self.file, str):
            self.file.seek(0)
        # As `options`, which go to every stream too, these crash PyAV 13 to 15 on containers that announce streams late (flv).
        self.container = av.open(
            self.file,
            container_options={
                "format_whitelist": f"{_CONTAINERS},{_ELEMENTARY},{_SOUND}",
                "protocol_whitelist": "file",
            },
            metadata_errors="replace",
        )
        self.stream = self._video_stream()
        width, height = self.size
        self.stream.thread_type = "AUTO" if width * height <= _THREADED_PIXELS else "SLICE"
        self.position = 0

    def use_one_thread(self) -> None:
        """For damaged files: with threads, an error takes other frames with it or is not told, and what is put in place of lost parts varies."""
        self.stream.thread_type = "NONE"
        self.stream.codec_context.thread_count = 1

    def close(self) -> None:
        """Close the container; a file object stays open."""
        if self.container is not None:
            self.container.close()
            self.container = None

    @property
    def format(self) -> str:
        """FFmpeg's name of the container, or its names."""
        return self.container.format.name

    @property
    def size(self) -> tuple[int, int]:
        """Width and height that the container announces."""
        return self.stream.codec_context.width, self.stream.codec_context.height

    def _video_stream(self):
        tracks = [track for track in self.container.streams.video if not _is_cover(track)]
        if not tracks:
            raise ValueError(f"{self.name} has no video track (audio alone?): give a file with pictures.")
        best = self.container.streams.best("video")
        stream = best if best in tracks else tracks[0]
        if stream.codec_context is None:
            raise ValueError(
                f"{self.name} has a video track of an unknown codec: convert it, for example with ffmpeg -i FILE out.mp4."
            )
        return stream

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Some of the file's bytes."""
        if isinstance(self.file, str):
            with open(self.file, "rb") as file:
                file.seek(offset)
                return file.read(count)
        position = self.file.tell()  # FFmpeg reads on from there
        try:
            self.file.seek(offset)
            return self.file.read(count)
        finally:
            self.file.seek(position)

    def check(self, max_pixels: int, max_duration: float) -> None:
        """Refuse what is over a limit by the container's own word."""
        _check_frame(*self.size, max_pixels, self.name)
        if self.container.duration and self.format not in _BROADCAST:
            _check_duration(self.container.duration / 1e6, max_duration, self.name)

    def timeline(self, packets: Packets, shown: np.ndarray | None = None) -> Timeline:
        rate = self.stream.guessed_rate or self.stream.average_rate
        return build_timeline(packets, rate, closes_gaps=self.format in _BROADCAST, shown=shown)

    def packets(self) -> Iterator[tuple[int, Any]]:
        """The packets from here to the end of the track, numbered from the file's beginning.

        What ends them early, other than the end of the file, is left in `ended_by`, as long as there were any.
        """
        import av

        try:
            for packet in self.container.demux(self.stream):
                if not packet.size:
                    continue  # the end marker, or a repeated frame
                self.position += 1
                yield self.position - 1, packet
        except av.FFmpegError as error:
            if not self.position:
                raise
            self.ended_by = error.strerror or type(error).__name__
        except IndexError:  # PyAV, of a track that appears midway
            self.ended_by = "a damaged track"


def _is_cover(track) -> bool:
    """Whether a track is a picture that is attached to the file: FFmpeg gives it no rate of its own, and ticks of 1/90000 second."""
    if track.codec_context is None or track.codec_context.name not in _PICTURES:
        return False
    return not track.average_rate and track.base_rate == 90000


@contextlib.contextmanager
def _opened(file: str | os.PathLike | BinaryIO) -> Iterator[_Source]:
    """Open a video file, close it in any case, and turn FFmpeg's errors into one clear `ValueError`."""
    try:
        import av
    except ImportError:
        raise ImportError("Reading video files needs PyAV: pip install av.") from None

    content: Any
    if isinstance(file, (str, os.PathLike)):
        name = os.fspath(file)
        if not os.path.exists(name):
            raise FileNotFoundError(f"{name} does not exist: check the path.")
        if not os.path.isfile(name):
            raise ValueError(f"{name} is not a file: give the path of one video file.")
        content, size = os.path.abspath(name), os.path.getsize(name)
    else:
        name, content, size = "The file object", file, _size_of(file)
    if size == 0:
        raise ValueError(f"{name} is empty (0 bytes): copy or download it again.")
    source = _Source(content, name, size)
    try:
        source.open()
        yield source
    except av.FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"{name} is not a readable video ({reason}): it may be truncated, damaged or of another type. Read are mp4, mov, mkv, webm, avi, ts, "
            "mpg, flv, wmv, gif and others: ffmpeg -i FILE -c copy out.mp4 writes one."
        ) from error
    finally:
        source.close()


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


def _check_frame(width: int, height: int, max_pixels: int, name: str) -> None:
    if height * width > max_pixels:
        raise ValueError(
            f"{name} has frames of {width}x{height} pixels, over the limit max_pixels={max_pixels}: scale it down, or raise the limit."
        )


def check_held_pixels(
    count: int, width: int, height: int, name: str, max_sampled_pixels: int = MAX_SAMPLED_PIXELS
) -> None:
    """Raise a `ValueError` if so many frames of this size are too many to hold."""
    if count * height * width > max_sampled_pixels:
        raise ValueError(
            f"{name}: {count} sampled frames of {width}x{height} pixels are over the limit max_sampled_pixels={max_sampled_pixels}. "
            "Sample fewer, scale it down, or raise the limit."
        )


def _check_duration(duration: float, max_duration: float, name: str) -> None:
    if duration > max_duration:
        raise ValueError(
            f"{name} lasts {duration:.0f} seconds, over the limit max_duration={max_duration:g}: cut it, or raise the limit."
        )


def _index(source: _Source) -> Packets:
    """Read what the packets say, without decoding any."""
    pts, dts, durations, flags = array("q"), array("q"), array("f"), array("B")
    is_broken = _syntax(source.stream.codec_context)
    is_vp8 = source.stream.codec_context.name == "vp8"
    is_cut = is_damaged = False
    for number, packet in source.packets():
        if number >= _MAX_PACKETS:
            raise ValueError(f"{source.name} has over {_MAX_PACKETS} frames: cut it.")
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        durations.append(packet.duration or 0)
        data = memoryview(packet)
        # A VP8 frame says in its first byte whether it is shown (RFC 6386, 9.1).
        is_hidden = packet.is_discard or (is_vp8 and not data[0] & 0x10)
        flags.append(KEYFRAME * bool(packet.is_keyframe) | HIDDEN * bool(is_hidden) | BROKEN * is_broken(data))
        is_cut = packet.is_corrupt
        is_damaged |= is_cut
    if is_damaged:
        source.use_one_thread()
    if is_cut:
        source.ended_by = "it ends within a frame"
    return Packets(
        np.frombuffer(pts, np.int64),
        np.frombuffer(dts, np.int64),
        np.frombuffer(durations, np.float32),
        np.frombuffer(flags, np.uint8),
        source.stream.time_base,
    )


def _syntax(codec) -> Callable[[memoryview], bool]:
    """A cheap test of whether a packet's first bytes are none of its codec, so that it will not decode. A wrong guess costs time alone."""
    name, extra = codec.name, codec.extradata or b""
    starts_by_code = lambda data: not bytes(data[:8]).lstrip(b"\0").startswith(b"\1") or data[0] != 0  # noqa: E731
    if name in ("h264", "hevc"):
        place = 4 if name == "h264" else 21
        if len(extra) <= place or extra[0] != 1:
            return starts_by_code
        size = (extra[place] & 3) + 1

        def units_do_not_add_up(data: memoryview) -> bool:
            start, end = 0, len(data)
            while start + size < end:
                length = int.from_bytes(data[start : start + size], "big")
                if not length or data[start + size] & 0x80:
                    return True
                start += size + length
            return start != end

        return units_do_not_add_up
    if name in ("mpeg4", "mpeg2video", "mpeg1video"):
        return lambda data: len(data) > 8 and starts_by_code(data)
    if name == "mjpeg":
        return lambda data: data[:2] != b"\xff\xd8"
    if name == "vp9":
        return lambda data: data[0] >> 6 != 2
    return lambda data: False


def _warn_if_truncated(source: _Source, packets: Packets, timeline: Timeline) -> None:
    """Warn of a file that ends early, as far as its container tells; what it holds is read."""
    reason = source.ended_by
    if reason is None and (end := _announced_end(source)) is not None:
        if end > source.num_bytes:
            reason = f"it has {source.num_bytes} of the {end} bytes that it announces"
    elif reason is None and source.format == "matroska,webm" and source.container.duration and timeline.num_frames:
        announced = source.container.duration / 1e6
        last = max(
            timeline.duration, float((packets.pts.max() + max(packets.durations[-1], 0)) * source.stream.time_base)
        )
        if announced - last > max(0.1 * announced, 2 * timeline.duration / timeline.num_frames):
            reason = f"its video ends after {last:.2f} of {announced:.2f} seconds"
    elif reason is None and _lacks_end(source):
        reason = "its end is missing"
    if reason:
        logger.warning(f"{source.name} is truncated or damaged ({reason}): what it holds is read.")


def _announced_end(source: _Source) -> int | None:
    """How many bytes the outermost elements of a file announce; None if they do not say."""
    head = source.bytes_at(0, 4096)
    if source.format == "avi":
        return 8 + int.from_bytes(head[4:8], "little")
    if source.format == "matroska,webm":
        start = head.find(b"\x18\x53\x80\x67") + 4  # the segment, with its size as a number of variable length
        length = 9 - head[start].bit_length() if start >= 4 and head[start] else 0
        size = int.from_bytes(head[start : start + length], "big") - (1 << 7 * length)
        return start + length + size if length and size < (1 << 7 * length) - 1 else None
    if source.format.startswith("mov"):
        place = 0
        for _ in range(1000):
            if place + 8 > source.num_bytes:
                return place
            box = source.bytes_at(place, 16)
            size = int.from_bytes(box[:4], "big")
            size = int.from_bytes(box[8:], "big") if size == 1 else size
            if size < 8:
                break
            place += size
    return None


def _lacks_end(source: _Source) -> bool:
    """Whether the last bytes of a file are not those with which its container ends."""
    head, tail = source.bytes_at(0, 256), source.bytes_at(max(0, source.num_bytes - 65536), 65536)
    if source.format == "mpegts":
        for size, start in ((188, 0), (192, 4), (204, 0)):
            if head[start : start + 1] == b"G" == head[start + size : start + size + 1]:
                return source.num_bytes % size != 0
    if source.format == "gif":
        return not tail.rstrip(b"\0").endswith(b";")
    if source.format == "flv":
        size = int.from_bytes(tail[-4:], "big")
        tag = source.bytes_at(max(0, source.num_bytes - 4 - size), 4)
        return size < 11 or int.from_bytes(tag[1:4], "big") + 11 != size
    if source.format == "ogg":
        page = tail.rfind(b"OggS")
        return page >= 0 and tail[page + 5 : page + 6] < b"\x04"
    return False


def _decoded(packets: Iterator[tuple[int, Any]], stream, damaged: list[int] | None = None) -> Iterator[Any]:
    """Decode packets. A frame's `pts` becomes the number of its packet, which codecs hand through and no file can falsify.

    Packets that do not decode are noted in `damaged`, or else raise FFmpeg's error.
    """
    import av

    for number, packet in packets:
        packet.pts = number
        try:
            yield from packet.decode()
        except av.FFmpegError:
            if damaged is None:
                raise
            damaged.append(number)
    yield from stream.codec_context.decode(None)


def _count(source: _Source, packets: Packets) -> np.ndarray:
    """Decode the whole clip: the packets of the frames, int32 `(n,)`, in the order in which they are shown."""
    total = len(packets.flags)
    shown: array = array("i")
    damaged: list[int] = []
    for frame in _frames_from_beginning(source, damaged):
        number = frame.pts if frame.pts is not None else len(shown)
        shown.append(min(max(number, 0), total - 1))
    if len(damaged) > _MAX_DAMAGED * total or not shown:
        raise ValueError(
            f"{source.name} is damaged: {len(damaged)} of its {total} packets do not decode. Copy or download it again."
        )
    if damaged:
        logger.warning(
            f"{source.name} is damaged: {len(damaged)} of its {total} packets do not decode. Their frames are left out."
        )
    return np.frombuffer(shown, np.int32)


def _frames_from_beginning(source: _Source, damaged: list[int]) -> Iterator[Any]:
    source.open()
    source.use_one_thread()
    return _decoded(source.packets(), source.stream, damaged)


def _frames_in_turn(source: _Source, indices: list[int]) -> Iterator[Any]:
    """Yield the frames at ascending `indices` of a whole decode."""
    numbered = enumerate(_frames_from_beginning(source, []))
    number, frame = next(numbered)
    for index in indices:
        while number < index:
            number, frame = next(numbered)
        yield frame


def _frames_of_groups(source: _Source, packets: Packets, timeline: Timeline, indices: list[int]) -> Iterator[Any]:
    """Yield the frames at ascending `indices`, decoding only the groups of pictures that hold them.

    Raises:
        _Unexpected: a group shows other frames than the timeline says.
    """
    groups = _Groups(source, packets, timeline)
    frames: Iterator[tuple[int, Any]] = iter(())
    place, frame = -1, None
    for index in indices:
        group = groups.of(index)
        if place < 0 or groups.first_frames[group] > place:
            frames, (place, frame) = groups.start(group)
        while place < index:
            place, frame = next(frames, (index, None))
        if frame is None:
            raise _Unexpected(f"frame {index} is missing")
        yield frame


class _Groups:
    """The groups of pictures of a clip: from which packet on each is decoded, and which frame it shows first."""

    def __init__(self, source: _Source, packets: Packets, timeline: Timeline):
        self.source, self.packets = source, packets
        self.order = np.arange(timeline.num_frames) if timeline.order is None else timeline.order
        self.frame_of = np.full(len(packets.flags), -1, np.int32)
        self.frame_of[self.order] = np.arange(timeline.num_frames, dtype=np.int32)
        keys, first = timeline.keys, self.frame_of[timeline.keys]
        if (first < 0).any():  # hidden ones begin with the first frame that is shown behind them
            behind = np.where(self.frame_of < 0, timeline.num_frames, self.frame_of)
            behind = np.minimum.accumulate(behind[::-1])[::-1]
            first = np.where(first < 0, behind[keys], first)
        ascending = first > np.maximum.accumulate(np.concatenate([[-1], first[:-1]]))
        self.keys, self.first_frames = keys[ascending], first[ascending]
        codec = source.stream.codec_context
        is_stateful = codec.name in _DRAWN_UPON or codec.pix_fmt in _PALETTES
        if is_stateful:
            self.keys, self.first_frames = self.keys[:1], self.first_frames[:1]
        by_time = np.argsort(packets.pts)
        is_unique = bool((np.diff(packets.pts[by_time]) > 0).all())
        self.by_time = by_time
        self.can_seek = timeline.has_one_clock and is_unique and not is_stateful

    def of(self, index: int) -> int:
        """The group that holds a frame."""
        group = int(np.searchsorted(self.first_frames, index, side="right")) - 1
        while group > 0 and self.keys[group] > self.order[index]:
            group -= 1
        return max(group, 0)

    def start(self, group: int) -> tuple[Iterator[tuple[int, Any]], tuple[int, Any]]:
        """Decode from a group on, or from an earlier one if its keyframe is none: the frames with their numbers, and the first one."""
        step = 1
        while True:
            frames = self._frames(group)
            try:
                return frames, next(frames)
            except (_Unexpected, StopIteration) as reason:
                if group == 0:
                    raise _Unexpected(str(reason) or "no frame is shown") from None
                group, step = max(0, group - step), 2 * step

    def _frames(self, group: int) -> Iterator[tuple[int, Any]]:
        import av

        first = expected = int(self.first_frames[group]) if group else 0
        key = int(self.keys[group]) if group else 0
        is_hidden = self.packets.flags[key] & HIDDEN
        try:
            for frame in _decoded(self._packets_from(key), self.source.stream):
                number = -1 if frame.pts is None else frame.pts
                place = int(self.frame_of[number]) if 0 <= number < len(self.frame_of) else -1
                if group and expected == first and place < first:
                    continue  # a picture before the keyframe refers to the group before
                if place != expected:
                    raise _Unexpected(f"frame {expected} does not follow the one before it")
                if group and place == first and not is_hidden and (frame.is_corrupt or not frame.key_frame):
                    raise _Unexpected(f"frame {expected} is marked as a keyframe and is none")
                yield place, frame
                expected += 1
        except av.FFmpegError as error:
            raise _Unexpected(f"a packet does not decode ({error.strerror})") from error

    def _packets_from(self, key: int) -> Iterator[tuple[int, Any]]:
        """The packets from number `key` on: by seeking if the container has one clock, or else by reading up to there."""
        source = self.source
        if self.can_seek:
            yield from self._sought(key)
            return
        if key < source.position:
            source.open()
        source.stream.codec_context.flush_buffers()
        for number, packet in source.packets():
            if number >= key:
                yield number, packet

    def _sought(self, key: int) -> Iterator[tuple[int, Any]]:
        import av

        source, pts = self.source, self.packets.pts
        place, step = key, 1
        while True:
            try:
                source.container.seek(int(pts[place]), stream=source.stream)
                packets = source.packets()
                _, packet = next(packets, (0, None))
            except av.FFmpegError:
                packet = None
            number = self._number(packet)
            if number is not None and number <= key:
                break
            if number is None or place == 0:  # the container cannot seek
                source.open()
                packets = source.packets()
                number, packet = next(packets)
                break
            place, step = max(0, place - step), 2 * step
        while packet is not None:
            if number >= len(pts) or (packet.pts if packet.pts is not None else UNKNOWN) != pts[number]:
                raise _Unexpected("seeking leads elsewhere than the index says")
            if number >= key:
                yield number, packet
            number += 1
            _, packet = next(packets, (0, None))

    def _number(self, packet) -> int | None:
        """Which packet this is, by its time."""
        if packet is None or packet.pts is None:
            return None
        place = int(np.searchsorted(self.packets.pts, packet.pts, sorter=self.by_time))
        if place == len(self.by_time) or self.packets.pts[self.by_time[place]] != packet.pts:
            return None
        return int(self.by_time[place])


class _RGB:
    """Converts frames to upright RGB as FFmpeg's own `scale` filter does, with the matrix, range and chroma places that each frame names.

    The filter gives the same pixels in every version of the library. PyAV's `to_ndarray` does not: before 17, it takes all for BT.601.
    """

    def __init__(self):
        self.key: tuple | None = None
        self.graph: Any = None

    def __call__(self, frame, width: int, height: int) -> np.ndarray:
        """A frame as `(H, W, 3)` uint8, scaled to a stored size, then turned as its display matrix says (by the nearest right angle)."""
        from av.sidedata.sidedata import Type

        image = self._scaled(frame, width, height)
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
        if matrix is None:
            return image
        # A pixel at column x, row y is shown at (a x + c y, b x + d y).
        a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
        if abs(b) > abs(a):
            image, a, d = image.transpose(1, 0, 2), c, b
        return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]

    def _scaled(self, frame, width: int, height: int) -> np.ndarray:
        import av.filter

        looks = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self.key != (*looks, width, height):
            graph = av.filter.Graph()
            steps = [
                graph.add_buffer(width=frame.width, height=frame.height, format=frame.format.name, time_base=_TICK),
                graph.add("scale", f"{width}:{height}:flags=bicubic"),
                graph.add("format", "rgb24"),
                graph.add("buffersink"),
            ]
            for one, next_one in itertools.pairwise(steps):
                one.link_to(next_one)
            graph.configure()
            self.key, self.graph = (*looks, width, height), graph
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()


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
