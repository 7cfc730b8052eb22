"""Decoding chosen frames of a clip: the groups of pictures that hold them, or the whole clip where its packets say something untrue."""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from transformers.utils import logging

from .source import Source
from .timeline import HEADER, HIDDEN, UNKNOWN, Packets, Timeline

logger = logging.get_logger(__name__)

_MAX_DAMAGED = 0.5
_DECODER_DELAY = (
    17  # packets in a row that may show nothing: more than fields, hidden frames and the decoder's own delay
)
# Codecs whose keyframes are drawn upon the frame before.
_DRAWN_UPON = ("gif", "apng")
_PALETTES = ("pal8",)  # containers give palettes with the packets where they change


class Unexpected(Exception):
    """Decoding shows other frames than the packets announce.

    Noticed where: a packet does not begin as its codec says, or does not decode; the first frame after a start is not that of the packet marked as a keyframe, or is not one for the
    decoder; frames come in another order, or one is missing; a packet after seeking is not the one of that place.
    """


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


def count_frames(source: Source, packets: Packets) -> np.ndarray:
    """Decode the whole clip: the packets of the frames, int32 `(n,)`, in the order in which they are shown."""
    total = len(packets.flags)
    shown: array = array("i")
    damaged: list[int] = []
    for frame in _frames_from_beginning(source, damaged):
        number = frame.pts if frame.pts is not None else len(shown)
        shown.append(min(max(number, 0), total - 1))
    damaged = [number for number in damaged if not packets.flags[number] & HEADER]  # decoders refuse repeated headers
    if len(damaged) > _MAX_DAMAGED * total or not shown:
        if source.is_encrypted:
            raise ValueError(f"{source.name} is encrypted: give a file without protection.")
        raise ValueError(
            f"{source.name} is damaged: {len(damaged)} of its {total} packets do not decode. Copy or download it again."
        )
    numbers = np.frombuffer(shown, np.int32)
    if damaged:
        logger.warning(
            f"{source.name} is damaged: {len(damaged)} of its {total} packets do not decode. Their frames are left out."
        )
    elif (silent := int(np.diff(np.unique(numbers), append=total).max()) - 1) > _DECODER_DELAY:
        logger.warning(
            f"{source.name} is damaged: {silent} packets in a row, of {total}, show nothing and are left out."
        )
    return numbers


def _frames_from_beginning(source: Source, damaged: list[int]) -> Iterator[Any]:
    source.open()
    source.use_one_thread()
    return _decoded(source.packets(), source.stream, damaged)


def frames_in_turn(source: Source, indices: list[int]) -> Iterator[Any]:
    """Yield the frames at ascending `indices` of a whole decode."""
    numbered = enumerate(_frames_from_beginning(source, []))
    number, frame = next(numbered)
    for index in indices:
        while number < index:
            number, frame = next(numbered)
        yield frame


def frames_of_groups(source: Source, packets: Packets, timeline: Timeline, indices: list[int]) -> Iterator[Any]:
    """Yield the frames at ascending `indices`, decoding only the groups of pictures that hold them.

    Raises:
        Unexpected: a group shows other frames than the timeline says.
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
            raise Unexpected(f"frame {index} is missing")
        yield frame


class _Groups:
    """The groups of pictures of a clip: from which packet on each is decoded, and which frame it shows first."""

    def __init__(self, source: Source, packets: Packets, timeline: Timeline):
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
        """Return the group that holds a frame."""
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
            except (Unexpected, StopIteration) as reason:
                if group == 0:
                    raise Unexpected(str(reason) or "no frame is shown") from None
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
                    raise Unexpected(f"frame {expected} does not follow the one before it")
                if group and place == first and not is_hidden and (frame.is_corrupt or not frame.key_frame):
                    raise Unexpected(f"frame {expected} is marked as a keyframe and is none")
                yield place, frame
                expected += 1
        except av.FFmpegError as error:
            raise Unexpected(f"a packet does not decode ({error.strerror})") from error

    def _packets_from(self, key: int) -> Iterator[tuple[int, Any]]:
        """Return the packets from number `key` on: by seeking if the container has one clock, or else by reading up to there."""
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
                raise Unexpected("seeking leads elsewhere than the index says")
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
