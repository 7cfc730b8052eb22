"""Live video from a sender of our own on this machine: over UDP, and as a playlist that grows."""

import os
import shutil
import threading
import time

import numpy as np
import pytest
from helpers.media import number_of, write_video
from helpers.senders import free_port, raw_over_tcp, send, sent_over_udp, served_folder, served_over_rtmp

from cacovid_hf.video.live import _Clock, is_live, live_frames
from cacovid_hf.video.playing import Playing


@pytest.mark.parametrize(
    ("address", "live"),
    [
        ("rtsp://camera/1", True),
        ("RTMP://host/app/key", True),
        ("udp://127.0.0.1:1234", True),
        ("/dev/video0", True),
        ("https://host/live.m3u8?key=1", True),
        ("/tmp/live.m3u8", True),
        ("https://host/film.mp4", False),
        ("film.mp4", False),
        ("/dev/videos", False),
        ("data:video/mp4;base64,AAAA", False),
    ],
)
def test_what_is_live(address, live):
    assert is_live(address) is live


def test_a_stream_over_udp():
    found = []
    with sent_over_udp() as (address, stop):
        for picture, seconds in live_frames(address, 2.0, 3.0):
            found.append((number_of(picture), seconds))
            if len(found) == 8:
                stop.set()  # what is on its way still comes
    numbers, times = zip(*found, strict=True)
    assert len(found) >= 8
    # Every fifth picture, or a later one where packets were lost, each at its time since the first one that was seen.
    assert (np.diff(numbers) >= 5).all()
    assert times == pytest.approx((np.array(numbers) - numbers[0]) / 10, abs=1e-3)


@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and os.path.exists("/proc/net/tcp")), reason="needs FFmpeg's command line and Linux"
)
def test_a_stream_over_rtmp(tmp_path):
    with served_over_rtmp(tmp_path, 60) as address:
        found = [(number_of(picture), seconds) for picture, seconds in live_frames(address, 2.0, 5.0)]
    numbers, times = zip(*found, strict=True)
    assert list(numbers) == list(range(0, 60, 5))
    assert times == pytest.approx(np.arange(12) / 2, abs=1e-3)


def test_frames_that_tell_no_time_go_by_the_wall(tmp_path):
    """Raw H.264 over TCP, as small cameras send it."""
    with raw_over_tcp(tmp_path, 100, seconds=3.0) as address:
        found = [(number_of(picture), seconds) for picture, seconds in live_frames(address, 5.0, 5.0)]
    numbers, times = zip(*found, strict=True)
    assert len(found) > 3
    assert list(numbers) == sorted(numbers)
    assert (np.diff(times) > 0.1).all()


def test_clocks():
    clock = _Clock()
    assert [clock.of(told) for told in (5.0, 6.0, None, 6.5, 1.0, 2.0)] == [0.0, 1.0, 1.0, 1.5, 1.5, 2.5]
    clock = _Clock()
    first, second = clock.of(None), clock.of(None)
    assert 0 == first <= second < 1
    assert [clock.of(told) - second for told in (1e6, 1e6 + 2)] == pytest.approx([0.0, 2.0], abs=1e-6)


def test_a_gap_in_the_clock(tmp_path):
    """No frame more than asked for follows it."""
    path = tmp_path / "gap.mkv"
    write_video(path, 30, pts=[*range(10), *range(600, 620)], b_frames=0)
    assert [seconds for _, seconds in live_frames(str(path), 1.0, 5.0)] == pytest.approx([0, 60, 61], abs=1e-3)


@pytest.mark.parametrize(
    ("address", "reason"),
    [("/dev/video9", "No such file or directory"), ("rtmp://127.0.0.1:9/live/one", "Connection refused")],
)
def test_what_does_not_open_is_named(address, reason):
    """There is no camera here: its address is understood, and what opens it says why it does not."""
    assert is_live(address)
    with pytest.raises(ValueError, match=rf"{address} does not answer with a video \({reason}\)"):
        list(live_frames(address, 1.0, 1.0))


def test_a_playlist_over_http(tmp_path):
    send(str(tmp_path / "live.m3u8"), 60, "hls", {"hls_time": "1", "hls_list_size": "0"})
    with served_folder(tmp_path) as address:
        found = live_frames(f"{address}/live.m3u8", 1.0, 5.0)
        served = [(number_of(picture), seconds) for picture, seconds in found]
    local = [(number_of(picture), seconds) for picture, seconds in live_frames(str(tmp_path / "live.m3u8"), 1.0, 5.0)]
    assert served == local
    assert [number for number, _ in served] == list(range(0, 60, 10))
    assert [seconds for _, seconds in served] == pytest.approx(list(range(6)), abs=1e-3)


def test_a_playlist_reaches_no_file_from_the_network(tmp_path):
    """What a sender lists is not read off this machine."""
    write_video(tmp_path / "own.ts", 30, fps=10, format="mpegts")
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nfile://{tmp_path}/own.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "live.m3u8").write_text(text)
    with served_folder(tmp_path) as address, pytest.raises(ValueError, match=r"does not answer|no video track"):
        list(live_frames(f"{address}/live.m3u8", 1.0, 5.0))
    assert len(list(live_frames(str(tmp_path / "live.m3u8"), 1.0, 5.0))) == 3  # or nothing was refused


def test_a_clock_that_goes_back_goes_on(tmp_path):
    """Two recordings in one: the second begins at nought again."""
    for name, count in (("a", 20), ("b", 15)):
        write_video(tmp_path / f"{name}.ts", count, fps=10, format="mpegts", b_frames=0)
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", "a.ts", "#EXT-X-DISCONTINUITY", "#EXTINF:1.5,", "b.ts"]
    (tmp_path / "live.m3u8").write_text("\n".join([*lines, "#EXT-X-ENDLIST", ""]))
    times = [seconds for _, seconds in live_frames(str(tmp_path / "live.m3u8"), 5.0, 2.0)]
    assert times == sorted(times)
    assert times[0] == 0
    assert len(times) >= 15
    assert times[-1] < 4.5


def test_nothing_answers():
    with pytest.raises(ValueError, match="does not answer with a video"):
        list(live_frames(f"udp://127.0.0.1:{free_port()}", 1.0, 0.3))


def timed(count, pause=0.0, error=None):
    for number in range(count):
        time.sleep(pause)
        yield np.full((2, 2, 3), number, np.uint8), float(number)
    if error is not None:
        raise error


def test_a_slow_taker_gets_the_newest_and_the_others_are_counted():
    playing = Playing(timed(20), speed=100.0)
    taken = []
    for picture, seconds in playing:
        taken.append(int(picture[0, 0, 0]))
        assert seconds == taken[-1]
        time.sleep(0.05)
    assert taken == sorted(set(taken))
    assert taken[-1] == 19  # the newest is never lost
    assert 0 < playing.dropped == 20 - len(taken)
    assert playing.position == 19.0


def test_a_fast_taker_gets_all_at_the_files_pace():
    playing = Playing(timed(6), speed=20.0)
    begun = time.monotonic()
    assert [seconds for _, seconds in playing] == [0, 1, 2, 3, 4, 5]
    assert time.monotonic() - begun >= 5 / 20
    assert playing.dropped == 0


def test_an_error_of_the_reader_is_raised_and_closing_ends_it():
    with pytest.raises(ValueError, match="broken"):
        list(Playing(timed(3, error=ValueError("broken"))))
    before = threading.active_count()
    frames = iter(Playing(timed(1000, pause=0.01)))
    next(frames)
    frames.close()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.02)
    assert threading.active_count() <= before
    with pytest.raises(ValueError, match="speed=0"):
        Playing(timed(1), speed=0)
