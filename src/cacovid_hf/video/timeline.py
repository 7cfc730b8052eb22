"""The presentation timeline of a video: when each of its frames is shown. Every question about seconds is answered from it."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from transformers.video_utils import VideoMetadata

UNKNOWN = -(1 << 63)  # a timestamp that the container does not give
KEYFRAME, HIDDEN, BROKEN, HEADER = 1, 2, 4, 8  # bits of `Packets.flags`

# FFmpeg's own thresholds, in seconds: its tool closes larger gaps of a clock.
_LARGEST_GAP = 10.0
_LARGEST_GAP_OF_FILES = 30 * 3600.0
# A clock has wrapped if it jumps by a power of two ticks, to within a second. Shorter clocks than a minute are not known.
_WRAP_TOLERANCE, _SHORTEST_WRAP = 1.0, 60.0
_DECODER_DELAY = 17  # frames, one more than any codec may hold back
_SAME_TIME = 1e-3  # seconds: time bases of milliseconds cannot express more


@dataclass(frozen=True)
class Packets:
    """What the packets of a video track say, in file order. A packet holds one frame, as a rule.

    Attributes:
        pts: presentation times int64 `(n,)` in ticks, `UNKNOWN` where not given.
        dts: decoding times, likewise.
        durations: float32 `(n,)` in ticks, 0 where not given.
        flags: uint8 `(n,)`, `KEYFRAME`, `HIDDEN` (decoded for the sake of others, never shown), `BROKEN` (will probably not decode) and
            `HEADER` (of a codec, in the place of a frame).
        time_base: seconds of one tick.
    """

    pts: np.ndarray
    dts: np.ndarray
    durations: np.ndarray
    flags: np.ndarray
    time_base: Fraction


@dataclass(frozen=True)
class Timeline:
    """When each frame is shown, and which packet holds it.

    Attributes:
        times: float64 `(n,)`, ascending, seconds since the first frame.
        duration: seconds from the first frame to the end of the last one.
        order: int32 `(n,)`, the packet of each frame; None if only decoding tells.
        keys: int32, ascending: the packets that are marked as keyframes.
        has_one_clock: whether the container's clock runs through, so that seeking by it is meaningful.
    """

    times: np.ndarray
    duration: float
    order: np.ndarray | None
    keys: np.ndarray
    has_one_clock: bool

    @property
    def num_frames(self) -> int:
        """Of the clip."""
        return len(self.times)


class ClipMetadata(VideoMetadata):
    """The metadata of a clip of which the time of every frame is known, also with a variable frame rate.

    `frame_times` are seconds since the first frame, float64 `(total_num_frames,)`. `sampled_seconds` is what the sample stands for (None: the
    whole clip).
    """

    frame_times: np.ndarray | None = None
    sampled_seconds: float | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds at which the sampled frames are shown."""
        if self.frame_times is None or self.frames_indices is None:
            return super().timestamps
        return [float(self.frame_times[index]) for index in self.frames_indices]

    @property
    def sampled_fps(self) -> float:
        """Sampled frames a second, of the part that they stand for."""
        if self.sampled_seconds is None or self.frames_indices is None:
            return super().sampled_fps
        return len(self.frames_indices) / self.sampled_seconds


def clip_metadata(timeline: Timeline) -> ClipMetadata:
    """Describe a clip; `fps` is the mean."""
    metadata = ClipMetadata(
        total_num_frames=timeline.num_frames,
        fps=timeline.num_frames / timeline.duration,
        duration=timeline.duration,
        video_backend="pyav",
    )
    metadata.frame_times = timeline.times
    return metadata


def frames_between(metadata: VideoMetadata, start: float | None, end: float | None) -> tuple[int, int, float]:
    """Find the part of a clip between two times.

    Args:
        metadata: of the clip; without the times of its frames, a constant rate is assumed.
        start: seconds; None is the beginning.
        end: seconds; None is the end.

    Returns:
        Its first frame, the one after its last, and its duration in seconds. They are the frames that appear from `start` to before `end`, or
        the one on display at `start` if none does.

    Raises:
        ValueError: the clip ends before `start`.
    """
    times = metadata.frame_times if isinstance(metadata, ClipMetadata) else None
    if times is None:
        times = np.arange(metadata.total_num_frames) / (metadata.fps or 1.0)
    duration = metadata.duration or len(times) / (metadata.fps or 1.0)
    start, end = max(0.0, start or 0.0), duration if end is None else min(end, duration)
    if start >= duration:
        raise ValueError(f"lasts {duration:.1f} seconds, and the part to show begins at {start} s")
    first = int(np.searchsorted(times, start - _SAME_TIME))
    last = int(np.searchsorted(times, end - _SAME_TIME)) if end < duration else len(times)
    if first >= last:
        first = max(0, int(np.searchsorted(times, start + _SAME_TIME)) - 1)
        last = first + 1
    return first, last, end - start if end > start else duration / len(times)


def build_timeline(
    packets: Packets, rate: Fraction | float | None, *, closes_gaps: bool, shown: np.ndarray | None = None
) -> Timeline:
    """Lay the frames of a video on one clock that only goes forward.

    Args:
        packets: of the video track, at least one.
        rate: frames per second where the packets give no time.
        closes_gaps: whether a gap of over 10 seconds is a jump of the clock, as FFmpeg takes it for broadcast containers.
        shown: int `(n,)`, the packets of the frames in the order in which a decoder shows them; None to infer it from the presentation times.
    """
    keys = np.flatnonzero(packets.flags & KEYFRAME).astype(np.int32)
    visible = packets.flags & HIDDEN == 0
    if shown is not None:
        visible = np.zeros_like(visible)
        visible[shown] = True
    usual = _usual_step(packets, rate)
    ticks, has_one_clock = _presentation_ticks(packets, visible, closes_gaps, usual)
    order = shown
    if order is None:
        if keys.size and ticks is not None:
            # Pictures before the first keyframe refer to what is not in the file, so that decoders do not show them.
            visible &= (np.arange(len(visible)) >= keys[0]) & (ticks >= ticks[keys[0]])
        order = np.flatnonzero(visible).astype(np.int32)
        if ticks is not None:
            order = order[np.argsort(ticks[order], kind="stable")]
    if ticks is None:
        seconds = 1 / float(rate or 25)
        times = np.arange(len(order)) * seconds
        duration = len(order) * seconds
    else:
        numerator, denominator = packets.time_base.as_integer_ratio()
        shown_ticks = ticks[order]
        if shown is not None:
            shown_ticks = _between_known(shown_ticks, packets.pts[order] != UNKNOWN, usual)
        shown_ticks = np.sort(shown_ticks)
        shown_ticks = shown_ticks - shown_ticks[:1]
        times = shown_ticks * numerator / denominator
        last = _last_duration(packets, ticks, order, shown_ticks, rate)
        duration = (float(shown_ticks[-1]) + last) * numerator / denominator if len(order) else 0.0
    is_exact = (
        keys.size > 0
        and not (packets.flags & BROKEN).any()
        and bool((packets.pts != UNKNOWN).all())
        and bool((np.diff(times) > 0).all())
    )
    return Timeline(times, duration, order if is_exact or shown is not None else None, keys, has_one_clock)


def _last_duration(
    packets: Packets, ticks: np.ndarray, order: np.ndarray, shown_ticks: np.ndarray, rate: Fraction | float | None
) -> float:
    """Ticks for which the last frame is shown: as its packet says, or the mean of the others without pauses."""
    if not len(order) or (len(order) > 1 and not shown_ticks[-1]):
        return 0.0
    said = float(packets.durations[order[np.argmax(ticks[order])]])
    if said > 0:
        return said
    if len(order) > 1:
        steps = np.diff(shown_ticks)
        return float(steps[steps <= 2 * np.median(steps)].mean())
    return 1 / float(rate * packets.time_base) if rate else 0.0


def _usual_step(packets: Packets, rate: Fraction | float | None) -> float:
    """Ticks from one frame to the next, where too few times are known to tell: as packets or the track say."""
    said = packets.durations[packets.durations > 0]
    return float(np.median(said)) if said.size else 1 / float(rate * packets.time_base) if rate else 1.0


def _between_known(ticks: np.ndarray, is_known: np.ndarray, step: float) -> np.ndarray:
    """Return times in the order of display: evenly between those that are known, and by `step` in front of the first and behind the last."""
    known = np.flatnonzero(is_known)
    if len(known) in (0, len(ticks)):
        return ticks
    places = np.arange(len(ticks))
    outside = np.minimum(places - known[0], 0) + np.maximum(places - known[-1], 0)
    return np.round(np.interp(places, known, ticks[known]) + outside * step).astype(np.int64)


def _presentation_ticks(
    packets: Packets, visible: np.ndarray, closes_gaps: bool, usual: float
) -> tuple[np.ndarray | None, bool]:
    """Presentation times of all packets on one clock, int64 `(n,)`, and whether nothing had to be mended; None if no packet has a time."""
    pts, dts = packets.pts, packets.dts
    has_pts, has_dts = pts != UNKNOWN, dts != UNKNOWN
    if not (has_pts | has_dts).any():
        return None, False
    second = 1 / float(packets.time_base)
    # Times of decoding go forward in file order. Those of presentation go to and fro within the decoder's delay.
    # Matroska stores none. FFmpeg works them out behind the first few packets, but not behind a jump.
    known = dts[np.argmax(has_dts) :]
    is_worked_out = bool((known != UNKNOWN).all() and (np.diff(known) >= 0).all())
    is_by_pts = not has_dts.any() or bool(has_pts.all() and not has_dts.all() and not is_worked_out)
    clock, step = _filled(pts, usual, sorts=True) if is_by_pts else _filled(dts, usual)
    slack = max(_DECODER_DELAY * step, second) if is_by_pts else step / 2
    gap = max((_LARGEST_GAP if closes_gaps else _LARGEST_GAP_OF_FILES) * second, 2 * step)
    steps = np.diff(clock)
    jumps = np.flatnonzero((steps < -slack) | (steps > gap)) + 1
    ticks, part = _parts_of_presentation(np.where(has_pts, pts, clock), clock, jumps, second)
    offset, highest = 0, 0
    for number, (start, end) in enumerate(itertools.pairwise([0, *jumps, len(clock)])):
        reach = slice(max(0, start - _DECODER_DELAY), end)
        own = part[reach] == number
        shown = own & visible[reach]
        is_shown = bool(shown.any())
        times = ticks[reach][shown if is_shown else own]
        wrap = _wrap_in(int(clock[start]) - int(clock[start - 1]), second, _WRAP_TOLERANCE) if number else 0
        if number and times.size and not wrap:  # another recording, which goes on behind the last picture
            offset = highest + max(1, round(step)) - int(times.min())
        offset -= wrap  # the same clock goes on
        ticks[reach][own] += offset
        if is_shown:
            last = int(times.max()) + offset
            highest = max(highest, last) if number else last
    return ticks, not len(jumps) and not (ticks != np.where(has_pts, pts, ticks)).any()


def _parts_of_presentation(
    pts: np.ndarray, clock: np.ndarray, jumps: np.ndarray, second: float
) -> tuple[np.ndarray, np.ndarray]:
    """Presentation times without wraps of their own, and the number of the part between two jumps of the clock that each belongs to.

    The times of pictures that are decoded ahead jump some packets before the clock does.
    """
    part = np.searchsorted(jumps, np.arange(len(clock)), side="right")
    ticks = pts.copy()
    for place in np.flatnonzero(np.abs(pts - clock) > _LARGEST_GAP * second):
        time, nearest = int(pts[place]), int(clock[place])
        for jump in jumps[part[place] :]:
            if jump - place > _DECODER_DELAY or abs(time - int(clock[jump])) >= abs(time - nearest):
                break
            nearest = int(clock[jump])
            part[place] += 1
        if time < nearest:  # the clock of decoding passes its end later, and not in this file
            ticks[place] -= _wrap_in(time - nearest, second, _LARGEST_GAP)
    return ticks, part


def _wrap_in(jump: int, second: float, tolerance: float) -> int:
    """Return the power of two (with its sign) that a clock jumped by, to within `tolerance` seconds; 0 if it is none."""
    size = abs(jump)
    if size < _SHORTEST_WRAP * second:
        return 0
    for power in (1 << (size.bit_length() - 1), 1 << size.bit_length()):
        if abs(size - power) <= tolerance * second:
            return power if jump > 0 else -power
    return 0


def _filled(clock: np.ndarray, usual: float, sorts: bool = False) -> tuple[np.ndarray, float]:
    """Count on from known times to unknown ones by the step of one packet (`sorts`: in order; `usual` if none is known); the times and that step."""
    known = np.flatnonzero(clock != UNKNOWN)
    packets = np.diff(known)
    steps = np.abs(np.diff(np.sort(clock[known]) if sorts else clock[known]))
    steps = steps / (np.median(packets) if sorts and packets.size else packets)
    steps = steps[steps > 0]
    step = float(np.quantile(steps, 0.5, method="lower")) if steps.size else usual
    if len(known) == len(clock):
        return clock, step
    numbers = np.arange(len(clock))
    behind = np.searchsorted(known, numbers, side="right")
    before = known[np.maximum(behind - 1, 0)]
    filled = clock[before] + np.round((numbers - before) * step).astype(np.int64)
    # Not past the next known time, so that no jump appears.
    following = np.where(behind < len(known), clock[known[np.minimum(behind, len(known) - 1)]], filled)
    ahead = (following > clock[before]) & (filled > following)
    return np.where(ahead, following, filled), step
