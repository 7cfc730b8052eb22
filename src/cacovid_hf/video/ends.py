"""Files that end early: one rule for all containers, as far as a container tells. What they hold is read, with one warning."""

from transformers.utils import logging

from .boxes import announced_end
from .source import Source
from .timeline import Packets, Timeline

logger = logging.get_logger(__name__)


def warn_if_truncated(source: Source, packets: Packets, timeline: Timeline) -> None:
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


def _announced_end(source: Source) -> int | None:
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
        return announced_end(source.bytes_at, source.num_bytes)
    return None


def _lacks_end(source: Source) -> bool:
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
