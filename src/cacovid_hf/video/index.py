"""The index of a video track: what its packets say, without decoding any."""

from array import array
from collections.abc import Callable

import numpy as np

from .source import Source
from .timeline import BROKEN, HEADER, HIDDEN, KEYFRAME, UNKNOWN, Packets

_MAX_PACKETS = 10_500_000  # 24 hours at 120 frames per second


def index_packets(source: Source) -> Packets:
    """Read what the packets say, without decoding any."""
    pts, dts, durations, flags = array("q"), array("q"), array("f"), array("B")
    is_broken = _syntax(source.stream.codec_context)
    # A VP8 frame says in its first byte whether it is shown (RFC 6386, 9.1), and Theora's headers, which joined files repeat, say what they are.
    codec = source.stream.codec_context.name
    hidden_bit, hidden_if = {"vp8": (0x10, 0), "theora": (0x80, 0x80)}.get(codec, (0, 1))
    is_cut = is_damaged = False
    for number, packet in source.packets():
        if number >= _MAX_PACKETS:
            raise ValueError(f"{source.name} has over {_MAX_PACKETS} frames: cut it.")
        pts.append(UNKNOWN if packet.pts is None else packet.pts)
        dts.append(UNKNOWN if packet.dts is None else packet.dts)
        durations.append(packet.duration or 0)
        data = memoryview(packet)
        is_hidden = packet.is_discard or data[0] & hidden_bit == hidden_if
        is_header = is_hidden and codec == "theora"
        is_key = packet.is_keyframe and not is_header
        kind = KEYFRAME * bool(is_key) | HIDDEN * bool(is_hidden) | HEADER * bool(is_header)
        flags.append(kind | BROKEN * is_broken(data))
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
    """Return a cheap test of whether a packet's first bytes are none of its codec, so that it will not decode. A wrong guess costs time alone."""
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
    if name == "prores":
        return lambda data: data[4:8] != b"icpf"
    if name == "png":
        return lambda data: data[:4] != b"\x89PNG"
    if name in ("av1", "libdav1d"):  # the type of the first unit; 0 and 9 to 14 are reserved
        return lambda data: bool(data[0] & 0x80) or data[0] >> 3 & 15 in (0, *range(9, 15))
    if name == "vp9":
        return lambda data: data[0] >> 6 != 2
    return lambda data: False
