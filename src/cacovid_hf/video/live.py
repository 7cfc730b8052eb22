"""Live video: cameras, and streams that other programs send, read as they come."""

import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .addresses import shown
from .colours import RGBConverter
from .limits import current_limits
from .source import check_frame_pixels

# What FFmpeg may open for an address of each scheme; nothing else, so that no playlist reaches for files.
PROTOCOLS = {
    "rtsp": "rtsp,rtsps,rtp,udp,tcp,tls",
    "rtsps": "rtsp,rtsps,rtp,udp,tcp,tls",
    "rtmp": "rtmp,tcp",
    "rtmps": "rtmps,rtmp,tcp,tls",
    "rtp": "rtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt,udp",
    "http": "http,https,tcp,tls,crypto",
    "https": "http,https,tcp,tls,crypto",
    "": "file,crypto",
}
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_CAMERA = re.compile(r"/dev/video\d+")
_SILENCE = 10.0
_PROBING = 5.0  # seconds in which FFmpeg finds out what a stream is


def is_live(address: str) -> bool:
    """Whether an address is read as it comes: a camera (`/dev/video0`), a playlist (`.m3u8`), or `rtsp`, `rtmp`, `rtp`, `udp`, `tcp` and `srt` addresses.

    Other addresses and paths are files.
    """
    scheme = _scheme(address)
    is_playlist = address.split("?")[0].strip().lower().endswith(".m3u8")
    return (
        bool(_CAMERA.fullmatch(address)) or is_playlist or (scheme in PROTOCOLS and scheme not in ("", "http", "https"))
    )


def _scheme(address: str) -> str:
    found = _SCHEME.match(address)
    return found.group(1).lower() if found else ""


def live_frames(address: str, fps: float, silence: float = _SILENCE) -> Iterator[tuple[np.ndarray, float]]:
    """Pictures uint8 `(H, W, 3)` of a live address, at most so many a second, and seconds since its first frame.

    A clock that goes back goes on from where it was. The stream ends where its sender ends it, or after so many seconds without a frame.

    Args:
        address: see `is_live`.
        fps: of the stream's own clock.
        silence: seconds.

    Raises:
        ValueError: nothing answers there, it is not a video, or its frames are too large.
    """
    import av

    told = {"protocol_whitelist": PROTOCOLS[_scheme(address)]}
    if silence < 2 * _PROBING:
        # Cut short in the middle of it, FFmpeg ends the stream with its first frame and without an error.
        told["analyzeduration"] = str(max(1, int(silence / 2 * 1e6)))
    options: dict[str, Any] = {"container_options": told}
    if _CAMERA.fullmatch(address):
        options = {"format": "v4l2"}
    try:
        container = av.open(address.strip(), timeout=(silence, silence), **options)
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        remedy = "check the address, and that its sender is running."
        if isinstance(error, av.ExitError):
            reason, remedy = f"nothing known within {silence:g} s", "check its sender, or wait longer (--silence)."
        if _CAMERA.fullmatch(address):
            remedy = "check that the camera is connected, that you may read it, and that no other program has it."
        raise ValueError(f"{shown(address)} does not answer with a video ({reason}): {remedy}") from None
    with container:
        if not container.streams.video:
            raise ValueError(f"{shown(address)} has no video track (sound alone?): give a stream with pictures.")
        yield from _sampled(container, address, fps)


def _sampled(container: Any, address: str, fps: float) -> Iterator[tuple[np.ndarray, float]]:
    rgb = RGBConverter()
    limit = current_limits().max_pixels
    due, clock = 0.0, _Clock()
    for frame in _until_the_end(container):
        now = clock.of(frame.time)
        # A thousandth of a second: times are rounded to the ticks of their clock.
        if now + 1e-3 >= due:
            check_frame_pixels(frame.width, frame.height, limit, shown(address))
            due = due + 1 / fps if due + 1 / fps > now else now + 1 / fps
            yield np.ascontiguousarray(rgb(frame, frame.width, frame.height)), now


class _Clock:
    """Seconds since the first frame, which never go back.

    Elementary streams (raw H.264) give their frames no time. They come as they are shown, so the wall's clock has it. Where other frames have one, a frame
    without stands at the time of the one before.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._offset: float | None = None
        self._has_times = False

    def of(self, told: float | None) -> float:
        """Return the seconds of a frame from the time that it tells."""
        if told is None and self._has_times:
            return self._now
        if told is not None and not self._has_times:
            self._has_times, self._offset = True, None
        read = time.monotonic() if told is None else float(told)
        if self._offset is None or read - self._offset < self._now:
            self._offset = read - self._now  # the first frame, or another clock
        self._now = read - self._offset
        return self._now


def _until_the_end(container: Any) -> Iterator[Any]:
    """Its decoded frames; packets that do not decode (a stream that is joined midway) are left out."""
    import av

    stream = container.streams.video[0]
    stream.thread_type = "SLICE"  # frame threads hold frames back
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:
            return  # silence, or the sender is gone
        if packet is None:
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
