"""An open video file: which containers and tracks are read, what it announces, and its packets."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .boxes import announced_end, is_encrypted, is_mp4, too_many_samples
from .limits import MAX_SAMPLED_PIXELS, current_guard
from .timeline import Packets, Timeline, build_timeline

# Text renderers, and playlists that make FFmpeg open other files, stay out. Sound alone is read to say that it is.
_CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,gif,ogg,ivf,mxf,nut,rm,dv,apng,yuv4mpegpipe"
_ELEMENTARY = "h264,hevc,m4v,mpegvideo,mjpeg,jpeg_pipe,h263,vc1,obu"
_SOUND = "mp3,flac,wav,aac,ac3,eac3,aiff,amr,ape,au,caf,dsf,dts,dtshd,loas,mlp,mpc,mpc8,tak,truehd,tta,voc,w64,wv"
_JPEG_STREAMS = ("jpeg_pipe", "mjpeg")
# Pillow's names; FFmpeg would decode them to tell their size.
_STILL = ("BMP", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Containers whose clock may jump, after FFmpeg.
_BROADCAST = ("mpegts", "mpeg", "ogg")
_PICTURES = ("mjpeg", "png", "bmp", "gif", "tiff", "webp")
_THREADED_PIXELS = 4096 * 2304  # each thread of larger frames would hold some of them


class Source:
    """An open video file, which can be opened again from its beginning; see `opened`."""

    def __init__(self, file: Any, content: BinaryIO, name: str, size: int):
        self.file, self.bytes, self.name, self.num_bytes = file, content, name, size
        self.container: Any = None
        self.stream: Any = None
        self.demuxed: Any = None
        self.position = 0  # of the next packet
        self.ended_by: str | None = None

    def open(self) -> None:
        """Open the file, or open it again from its beginning."""
        import av

        self.close()
        if not isinstance(self.file, str):
            self.file.seek(0)
        if is_mp4(self.bytes_at) and (samples := too_many_samples(self.bytes_at, self.num_bytes)) is not None:
            raise ValueError(
                f"{self.name} announces {samples} samples in {self.num_bytes} bytes: it is damaged, copy or download it again."
            )
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
        self._end_packets()
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
            raise ValueError(_is_sound(self.name))
        # Beside a film, a track of pictures is its cover.
        tracks = [track for track in tracks if not _is_of_pictures(track)] or tracks
        best = self.container.streams.best("video")
        stream = best if best in tracks else tracks[0]
        if stream.codec_context is None:
            announced = announced_end(self.bytes_at, self.num_bytes) if is_mp4(self.bytes_at) else None
            if announced is not None and announced > self.num_bytes:  # what describes the track is cut off
                raise ValueError(
                    f"{self.name} is truncated: it has {self.num_bytes} of the {announced} bytes that it announces. Copy or download it again."
                )
            raise ValueError(
                f"{self.name} has a video track of an unknown codec: convert it, for example with ffmpeg -i FILE out.mp4."
            )
        return stream

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Return some of the file's bytes."""
        position = self.bytes.tell()  # FFmpeg reads on from there in a file object
        try:
            self.bytes.seek(offset)
            return self.bytes.read(count)
        finally:
            self.bytes.seek(position)

    def check(self, max_pixels: int, max_duration: float) -> None:
        """Refuse what is over a limit by the container's own word."""
        check_frame_pixels(*self.size, max_pixels, self.name)
        if self.container.duration and self.format not in _BROADCAST:
            check_duration(self.container.duration / 1e6, max_duration, self.name)

    @property
    def is_encrypted(self) -> bool:
        """Whether the file says so, as far as it is an mp4."""
        return is_mp4(self.bytes_at) and is_encrypted(self.bytes_at, self.num_bytes)

    def check_moves(self, packets: Packets) -> None:
        """Refuse a picture, and the cover of sound; several pictures in a file are a video."""
        if len(packets.flags) != 1:
            return
        if self.format in _JPEG_STREAMS or self.format == "gif":
            raise ValueError(_is_picture(self.name, "GIF" if self.format == "gif" else "JPEG"))
        if self.bytes_at(4, 8) == b"ftypavif":
            raise ValueError(_is_picture(self.name, "AVIF"))
        if _is_of_pictures(self.stream) and self.container.streams.audio:
            raise ValueError(_is_sound(self.name))

    def timeline(self, packets: Packets, shown: np.ndarray | None = None) -> Timeline:
        """Lay its frames on one clock (see `build_timeline`)."""
        rate = self.stream.guessed_rate or self.stream.average_rate
        return build_timeline(packets, rate, closes_gaps=self.format in _BROADCAST, shown=shown)

    def _end_packets(self) -> None:
        """End what `packets` began: PyAV never frees the last packet of one that outlives its container."""
        if self.demuxed is not None:
            self.demuxed.close()
            self.demuxed = None

    def packets(self) -> Iterator[tuple[int, Any]]:
        """Yield the packets from here to the end of the track, numbered from the file's beginning. It ends those that were begun before.

        What ends them early, other than the end of the file, is left in `ended_by`, as long as there were any.
        """
        import av

        guard = current_guard()
        self._end_packets()
        self.demuxed = self.container.demux(self.stream)
        try:
            for packet in self.demuxed:
                guard.going_on()
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
    return _is_of_pictures(track) and not track.average_rate and track.base_rate == 90000


def _is_of_pictures(track) -> bool:
    return track.codec_context is not None and track.codec_context.name in _PICTURES


@contextlib.contextmanager
def opened(file: str | os.PathLike | BinaryIO) -> Iterator[Source]:
    """Open a video file, close it in any case, and turn FFmpeg's errors into one clear `ValueError`."""
    try:
        import av
    except ImportError:
        raise ImportError("Reading video files needs PyAV: pip install av.") from None

    content: Any
    if isinstance(file, (str, os.PathLike)):
        name = os.fspath(file)
        if not os.path.exists(name):
            raise FileNotFoundError(f"{name or repr(name)} does not exist: check the path.")
        if not os.path.isfile(name):
            raise ValueError(f"{name} is not a file: give the path of one video file.")
        content, size = os.path.abspath(name), os.path.getsize(name)
    else:
        name, content, size = "The file object", file, _size_of(file)
    if size == 0:
        raise ValueError(f"{name} is empty (0 bytes): copy or download it again.")
    try:
        with contextlib.ExitStack() as stack:
            binary = stack.enter_context(open(content, "rb")) if isinstance(content, str) else content
            source = stack.enter_context(contextlib.closing(Source(content, binary, name, size)))
            try:
                source.open()
            except av.FFmpegError:
                if refusal := _refusal_of_picture(name, binary):
                    raise ValueError(refusal) from None
                raise
            yield source
    except (av.FFmpegError, PermissionError) as error:
        reason = error.strerror or type(error).__name__
        raise ValueError(
            f"{name} is not a readable video ({reason}): it may be truncated, damaged or of another type. Read are mp4, mov, mkv, webm, avi, ts, "
            "mpg, flv, wmv, gif and others: ffmpeg -i FILE -c copy out.mp4 writes one."
        ) from error


def _refusal_of_picture(name: str, file: BinaryIO) -> str:
    """Return what to say of a file that is a picture, which is not decoded; `""` if it is not one."""
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Any = Image.open(file, formats=_STILL)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    if picture.format == "WEBP" and picture.is_animated:
        return f"{name} is an animated WebP picture, which FFmpeg does not decode: convert it to gif or mp4."
    return _is_picture(name, picture.format)


def _is_picture(name: str, kind: str) -> str:
    return f"{name} is a picture ({kind}), not a video: give it as an image, or give a video file."


def _is_sound(name: str) -> str:
    return f"{name} has no video track (audio alone?): give a file with pictures."


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


def check_frame_pixels(width: int, height: int, max_pixels: int, name: str) -> None:
    """Raise a `ValueError` if a frame of this size is too large."""
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


def check_duration(duration: float, max_duration: float, name: str) -> None:
    """Raise a `ValueError` if a clip of so many seconds is too long."""
    if duration > max_duration:
        raise ValueError(
            f"{name} lasts {duration:.0f} seconds, over the limit max_duration={max_duration:g}: cut it, or raise the limit."
        )
