"""One clock that only goes forward, worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from cacovid_hf.video.timeline import (
    BROKEN,
    HIDDEN,
    KEYFRAME,
    UNKNOWN,
    Packets,
    build_timeline,
    clip_metadata,
    frames_between,
)


def packets(pts, dts=None, *, keys=(0,), hidden=(), broken=(), duration=40, base=Fraction(1, 1000)):
    pts = [UNKNOWN if time is None else time for time in pts]
    dts = pts if dts is None else [UNKNOWN if time is None else time for time in dts]
    flags = np.zeros(len(pts), np.uint8)
    flags[list(keys)] |= KEYFRAME
    flags[list(hidden)] |= HIDDEN
    flags[list(broken)] |= BROKEN
    return Packets(
        np.array(pts, np.int64), np.array(dts, np.int64), np.full(len(pts), duration, np.float32), flags, base
    )


def times_of(*args, closes_gaps=True, shown=None, rate=None, **kwargs):
    timeline = build_timeline(packets(*args, **kwargs), rate, closes_gaps=closes_gaps, shown=shown)
    return np.round(timeline.times, 6).tolist(), round(timeline.duration, 6), timeline


def test_frames_are_shown_in_the_order_of_their_times():
    times, duration, timeline = times_of([80, 200, 120, 160], [0, 40, 80, 120])
    assert times == [0, 0.04, 0.08, 0.12]
    assert duration == 0.16
    assert timeline.order.tolist() == [0, 2, 3, 1]
    assert timeline.has_one_clock


@pytest.mark.parametrize("width", [24, 31, 32, 33])
def test_a_clock_that_passes_its_end(width):
    """The two ticks between the last time before the end and the first one behind it are kept."""
    end = 1 << width
    pts = [(end - 100 + 50 * i) % end for i in range(5)]
    times, duration, timeline = times_of(pts, duration=50)
    assert times == [0, 0.05, 0.1, 0.15, 0.2]
    assert duration == 0.25
    assert not timeline.has_one_clock


def test_a_clock_that_passes_its_end_between_decoding_and_presentation():
    end = 1 << 33
    dts = [end - 100, end - 60, end - 20, 20, 60]
    pts = [end - 60, 60, end - 20, 20, 100]
    times, _, timeline = times_of(pts, dts)
    assert times == [0, 0.04, 0.08, 0.12, 0.16]
    assert timeline.order.tolist() == [0, 2, 3, 1, 4]


def test_another_recording_goes_on_behind_the_last_picture():
    """The first part shows its last picture at 160, a step of 40 before the second one begins, whatever its own clock says."""
    first, second = [0, 120, 40, 80, 160], [7, 47, 87]
    times, duration, timeline = times_of(first + second, [-80, -40, 0, 40, 80] + second, keys=(0, 5))
    assert times == [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]
    assert duration == 0.32
    assert timeline.order.tolist() == [0, 2, 3, 1, 4, 5, 6, 7]


def test_gaps_are_pauses_in_files_and_jumps_in_broadcasts():
    pts = [0, 40, 80, 20_000, 20_040]
    assert times_of(pts, closes_gaps=False)[0] == [0, 0.04, 0.08, 20, 20.04]
    assert times_of(pts, closes_gaps=True)[0] == [0, 0.04, 0.08, 0.12, 0.16]


def test_pictures_decoded_ahead_jump_before_the_clock_does():
    """Decoding is two pictures ahead of presentation. The stall of 40 s lies behind the picture at 80."""
    pts = [0, 80, 40, 40_160, 40_120, 40_200]
    dts = [-80, -40, 0, 40, 80, 40_120]
    times, duration, timeline = times_of(pts, dts)
    assert times == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
    assert duration == 0.24
    assert timeline.order.tolist() == [0, 2, 1, 4, 3, 5]
    assert times_of(pts, dts, closes_gaps=False)[0] == [0, 0.04, 0.08, 40.12, 40.16, 40.2]


def test_two_stalls_within_the_delay_of_the_decoder():
    """The picture from behind the second stall is decoded before the first one of the time between the two."""
    pts = [0, 80, 40, 100_000, 50_000, 50_040, 100_080, 100_040]
    dts = [-80, -40, 0, 40, 80, 50_000, 50_040, 100_000]
    times, _, timeline = times_of(pts, dts)
    assert times == [0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28]
    assert timeline.order.tolist() == [0, 2, 1, 4, 5, 3, 7, 6]


def test_a_pause_of_a_power_of_two_is_a_pause():
    """2^17 ms are 131.072 s; a clock of presentation never lies a whole turn before that of decoding."""
    pts = [0, 80, 40, 131_152, 131_112, 131_192]
    dts = [-80, -40, 0, 40, 80, 131_112]
    assert times_of(pts, dts, closes_gaps=False)[0] == [0, 0.04, 0.08, 131.112, 131.152, 131.192]


def test_a_pause_between_pictures_of_which_one_is_decoded_ahead():
    """As FFmpeg tells of Matroska with B-frames, which stores no times of decoding: the first ones are missing."""
    pts = [0, 80, 40, 3_080, 120, 3_160, 3_120]
    dts = [None, 0, 40, 80, 120, 3_080, 3_120]
    times, duration, timeline = times_of(pts, dts, closes_gaps=False)
    assert times == [0, 0.04, 0.08, 0.12, 3.08, 3.12, 3.16]
    assert duration == 3.2
    assert timeline.order.tolist() == [0, 2, 1, 4, 3, 6, 5]
    assert timeline.has_one_clock


def test_a_clock_that_passes_its_end_in_the_last_pictures_alone():
    end = 1 << 33
    times, _, _ = times_of([end - 80, 0, end - 40], [end - 160, end - 120, end - 80])
    assert times == [0, 0.04, 0.08]


def test_one_wrong_time_does_not_tear_the_clip():
    times, duration, _ = times_of([0, 40, 90_000_000, 120, 160])
    assert times == [0, 0.04, 0.08, 0.12, 0.16]
    assert duration == 0.2


def test_presentation_alone_may_go_to_and_fro():
    """Matroska gives no times of decoding: going back by a few frames is no jump."""
    times, _, timeline = times_of([0, 160, 80, 40, 120], [None] * 5)
    assert times == [0, 0.04, 0.08, 0.12, 0.16]
    assert timeline.has_one_clock


def test_decoding_alone_does_not_tell_the_order():
    times, _, timeline = times_of([None] * 4, [0, 40, 80, 120])
    assert timeline.order is None
    times, duration, timeline = times_of([None] * 4, [0, 40, 80, 120], shown=np.array([0, 2, 1, 3], np.int32))
    assert (times, duration) == ([0, 0.04, 0.08, 0.12], 0.16)
    assert timeline.order.tolist() == [0, 2, 1, 3]


def test_times_of_some_packets_alone():
    """The others stand evenly between them in the order of display, whatever their order in the file."""
    shown = np.array([0, 2, 1, 3, 5, 4], np.int32)
    for pts in ([0, None, None, 120, None, None], [0, None, None, None, 200, None], [None, 80, None, None, None, 160]):
        times, duration, _ = times_of(pts, [None if time is None else time - 80 for time in pts], shown=shown)
        assert times == [0, 0.04, 0.08, 0.12, 0.16, 0.2]
        assert duration == pytest.approx(0.24)
    times, duration, _ = times_of([80, None, None], duration=0, rate=Fraction(10), shown=np.arange(3, dtype=np.int32))
    assert (times, duration) == ([0, 0.1, 0.2], 0.3)


def test_without_times_the_rate_counts():
    assert times_of([None] * 3, rate=Fraction(10))[:2] == ([0, 0.1, 0.2], 0.3)


def test_hidden_and_unreferenced_pictures_are_not_counted():
    assert times_of([0, 20, 40, 80], hidden=(1,))[0] == [0, 0.04, 0.08]
    # What lies before the first keyframe, in the file or on the clock.
    assert times_of([0, 40, 160, 120, 200], [-80, -40, 0, 40, 80], keys=(2,))[2].order.tolist() == [2, 4]


def test_a_broken_packet_leaves_the_order_to_the_decoder():
    assert times_of([0, 40, 80], broken=(1,))[2].order is None


def test_a_part_between_two_times():
    """Pictures at 0, 0.1, 1, 2, 5 s; the last one for a second."""
    _, _, timeline = times_of([0, 100, 1000, 2000, 5000], keys=(0,), duration=1000, closes_gaps=False)
    clip = clip_metadata(timeline)
    assert clip.duration == 6
    assert frames_between(clip, None, None) == (0, 5, 6)
    assert frames_between(clip, 1, 2) == (2, 3, 1)
    assert frames_between(clip, 0.05, 2.5) == (1, 4, 2.45)
    assert frames_between(clip, 3, 4) == (3, 4, 1)  # the picture on display
    assert frames_between(clip, 3, 3) == (3, 4, 1.2)  # a mean frame
    assert frames_between(clip, 4, 60) == (4, 5, 2)
    with pytest.raises(ValueError, match=r"lasts 6\.0 seconds, and the part to show begins at 7 s"):
        frames_between(clip, 7, None)


def test_a_part_of_a_constant_rate():
    clip = VideoMetadata(total_num_frames=100, fps=25.0, duration=4.0)
    assert frames_between(clip, 1, 2) == (25, 50, 1)


def test_times_and_rate_of_a_sample():
    _, _, timeline = times_of([0, 100, 1000, 2000, 5000], duration=1000, closes_gaps=False)
    clip = clip_metadata(timeline)
    clip.frames_indices = [1, 2, 4]
    assert clip.timestamps == [0.1, 1, 5]
    assert clip.sampled_fps == pytest.approx(3 / 6)
    clip.sampled_seconds = 1.5
    assert clip.sampled_fps == pytest.approx(3 / 1.5)
    assert dict(clip).keys() == dict(VideoMetadata(total_num_frames=1)).keys()
