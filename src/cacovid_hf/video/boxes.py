"""The boxes of mp4 and QuickTime files (ISO/IEC 14496-12), read before FFmpeg makes tables as long as they announce."""

import itertools
from collections.abc import Callable, Iterator

Read = Callable[[int, int], bytes]  # offset and count to bytes

_FIRST = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"cmov")
_MOST_BOXES = 20_000  # of a long fragmented file, the first ones
_DEEPEST = 8
_SPARE_SAMPLES = 1_000_000  # FFmpeg's tables take some 40 bytes of memory for each
_MOST_UNPACKED = 64 << 20


def is_mp4(read: Read) -> bool:
    """Whether a file begins as mp4 and QuickTime files do."""
    return read(4, 4) in _FIRST


def announced_end(read: Read, size: int) -> int | None:
    """How many bytes the outermost boxes of a file of `size` bytes announce; None if they do not say."""
    outermost = list(itertools.islice(_boxes(read, 0, size, 0), _MOST_BOXES))
    return outermost[-1][2] if 0 < len(outermost) < _MOST_BOXES else None


def too_many_samples(read: Read, size: int) -> int | None:
    """Return a number of samples that a file of `size` bytes announces and cannot hold, or of bytes that it unpacks to; None if there is none."""
    for kind, start, _, level in itertools.islice(_boxes(read, 0, size, _DEEPEST), _MOST_BOXES):
        if level == 0:
            continue
        body = read(start, 12)
        number = 0
        if kind in (b"stsz", b"stz2"):
            number = int.from_bytes(body[8:12], "big")
        elif kind == b"trun":
            number = int.from_bytes(body[4:8], "big")
        # A sample has a byte at least; a cut file may lack most of them.
        if number > 4 * size + _SPARE_SAMPLES:
            return number
        if kind == b"cmvd" and (unpacked := int.from_bytes(body[:4], "big")) > _MOST_UNPACKED:
            return unpacked
    return None


def is_encrypted(read: Read, size: int) -> bool:
    """Whether a video track of a file of `size` bytes is encrypted (ISO/IEC 23001-7)."""
    boxes = itertools.islice(_boxes(read, 0, size, _DEEPEST), _MOST_BOXES)
    return any(kind == b"stsd" and read(start + 12, 4) == b"encv" for kind, start, _, _ in boxes)


def _boxes(read: Read, start: int, end: int, depth: int, level: int = 0) -> Iterator[tuple[bytes, int, int, int]]:
    """Kind, beginning of the content, end and level of the boxes between two places, with those inside down to `depth` levels."""
    while start + 8 <= end:
        head = read(start, 16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        content = start + 8
        if length == 1:
            length, content = int.from_bytes(head[8:16], "big"), start + 16
        if length == 0:  # to the end
            length = end - start
        if length < 8:
            return
        yield kind, content, start + length, level
        if level < depth and kind in _PARENTS:
            yield from _boxes(read, content, min(end, start + length), depth, level + 1)
        start += length
