"""Writes small real video files with PyAV; every picture carries its number, readable after lossy coding."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BLOCK = 16
COLUMNS, ROWS = 4, 3
WIDTH, HEIGHT = COLUMNS * BLOCK, ROWS * BLOCK


def numbered_picture(number: int) -> np.ndarray:
    """A `(48, 64, 3)` picture whose 12 blocks are the bits of `number`, black and white."""
    bits = (number >> np.arange(COLUMNS * ROWS)) & 1
    return (
        np.kron(bits.reshape(ROWS, COLUMNS), np.full((BLOCK, BLOCK), 255))[..., None].repeat(3, axis=2).astype(np.uint8)
    )


def number_of(picture: np.ndarray) -> int:
    """The number that a decoded `numbered_picture` carries."""
    bits = picture[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK].mean(axis=2).reshape(-1) > 127
    return int((bits << np.arange(COLUMNS * ROWS)).sum())


def numbers_of(pictures: np.ndarray) -> list[int]:
    return [number_of(picture) for picture in pictures]


def write_video(
    path: Path,
    pictures: int | Sequence[np.ndarray] = 10,
    *,
    fps: int | Fraction = 10,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 2,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    audio: bool = False,
    container_options: dict[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write `pictures` (or so many numbered ones) to `path`; `pts` are their times in units of `1 / fps` (0, 1, 2, ... if None)."""
    if isinstance(pictures, int):
        pictures = [numbered_picture(i) for i in range(pictures)]
    with av.open(str(path), "w", format=format, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = 1 / Fraction(fps)
        if options:
            stream.options = options
        if audio:
            write_tone(container, seconds=1)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = pts[i] if pts else i
            frame.time_base = 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """Write a second of sound and no picture."""
    with av.open(str(path), "w") as container:
        write_tone(container, seconds=1)
    return path


def write_tone(container, seconds: int) -> None:
    stream = container.add_stream("aac", rate=16000)
    samples = np.sin(np.arange(16000 * seconds) / 10).astype(np.float32)[None]
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
    frame.sample_rate = 16000
    frame.pts = 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the track header of an mp4 with one track: a pixel (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    one = 1 << 16
    struct.pack_into(">9i", data, start, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def decode_all(path: Path) -> np.ndarray:
    """Every picture of a file, decoded from its beginning to its end."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
