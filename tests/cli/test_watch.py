"""`cacovid watch`: what is asked when, what is typed, and what is said of memory and lag."""

import io
import os
import re
import shutil
import threading
import time

import pytest
from helpers.media import write_video
from helpers.senders import sent_over_udp, served_over_rtmp

from cacovid_cli.main import main
from cacovid_cli.terminal import EMBEDDED
from cacovid_cli.watch.units import parsed_bytes, parsed_seconds, parsed_speed, shown_bytes
from cacovid_cli.watch.watching import watch
from cacovid_hf import tiny

CLIP = tiny.clips()[0]
ANSWER = dict(max_new_tokens=4, do_sample=False)


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*arguments, typed=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as exit:
            main(["watch", *map(str, arguments)])
        captured = capsys.readouterr()
        return exit.value.code or 0, captured.out.splitlines(), captured.err

    return call


def test_standing_questions_as_fast_as_the_model_goes(run, tmp_path):
    question = CLIP.questions[0]
    saved = tmp_path / "stream"
    status, out, err = run(
        CLIP.path, "--ask", question.text, "--every", "3s", "--speed", "max", "--save", saved, "--max-memory", "50kB"
    )
    assert (status, err) == (0, f"note    {EMBEDDED}\n")
    times = [float(found.group(1)) for line in out if (found := re.match(r"\[ *([\d.]+) s\]", line))]
    assert times == [2.0, 5.0, 7.0]  # the last frames before 3 and 6 seconds, and the end
    answers = [line for line in out if line.startswith("[")]
    assert all(question.text in line for line in answers)
    assert re.search(rf"\? {question.answer} +\(", answers[-1])
    assert "5 groups in 47.6 kB" in out[3]  # of eight frames, by its bound
    assert re.match(r"end: 8 frames, 5 groups in 47.6 kB, lag 0.0 s, dropped 0", out[3])
    assert saved.exists()
    status, out, err = run(CLIP.path, "--speed", "max", "--max-memory", "9B")
    assert status == 2
    assert "holds no frame" in err


def test_typed_questions_are_answered(run):
    one, two = CLIP.questions[1:3]
    status, out, _ = run(CLIP.path, "--speed", "20", typed=f"{one.text}\n\n{two.text}\n")
    assert status == 0
    assert [line.split("] ")[1].split("?")[0] for line in out if line.startswith("[")] == [one.text[:-1], two.text[:-1]]


def test_wrong_words(run):
    for arguments, error in (
        (("--every", "soon"), "--every='soon' is not a time"),
        (("--for", "-1s"), "is not a time"),
        (("--speed", "0"), "--speed='0'"),
        (("--max-memory", "lots"), "is not a number of bytes"),
        (("--memory", "disk"), "memory='disk' is unknown"),
        (("--bits", "5"), "bits=5"),
        (("--ask", " "), "A question is empty (--ask)"),
        (("--every", "5s"), "Nothing is asked every 5 s: add a question (--ask)"),
    ):
        status, _, err = run(CLIP.path, *arguments)
        assert status == 2
        assert error in err
    status, _, err = run("none.mp4")
    assert status == 2
    assert "none.mp4" in err


def test_numbers_with_units():
    assert [parsed_bytes(words, "") for words in ("10", "2kB", "1.5 MB", "1GiB")] == [10, 2000, 1_500_000, 2**30]
    assert [parsed_seconds(words, "") for words in ("5", "5s", "0.5min", "2h")] == [5, 5, 30, 7200]
    assert [parsed_speed(words) for words in ("1", "2.5x", "max")] == [1, 2.5, None]
    assert [shown_bytes(size) for size in (12, 1500, 2_000_000, 3 * 10**9)] == [
        "12 bytes",
        "1.5 kB",
        "2.0 MB",
        "3.0 GB",
    ]


def test_frames_are_dropped_and_counted_where_the_model_is_slower(stream, monkeypatch, tmp_path):
    path = write_video(tmp_path / "clip.mp4", 40, fps=2)
    feed = stream.feed

    def slow(*args):
        time.sleep(0.1)
        return feed(*args)

    monkeypatch.setattr(stream, "feed", slow)
    said = []
    done = watch(stream, str(path), said.append, speed=40.0, **ANSWER)
    assert done.dropped > 0
    assert stream.num_frames + done.dropped == 20
    assert done.seconds == pytest.approx(19.0)  # the newest is seen
    assert done.largest_lag > 0
    assert f"dropped {done.dropped}" in said[-1]


def test_a_question_does_not_hold_frames_up(stream, monkeypatch, tmp_path):
    """An answer that takes longer than the video: all frames are seen, and the next times are skipped and counted."""
    path = write_video(tmp_path / "clip.mp4", 20, fps=2)
    fed = threading.Event()
    ask = stream.ask

    def slow(*args, **kwargs):
        assert fed.wait(30)
        return ask(*args, **kwargs)

    monkeypatch.setattr(stream, "ask", slow)
    feed = stream.feed

    def counted(*args):
        count = feed(*args)
        if stream.num_frames == 10:
            fed.set()
        return count

    monkeypatch.setattr(stream, "feed", counted)
    done = watch(
        stream, str(path), lambda line: None, every=2.0, questions=[CLIP.questions[0].text], speed=4.0, **ANSWER
    )
    assert fed.is_set()
    assert done.skipped > 0


def test_a_live_address(stream, monkeypatch):
    said = []
    feed = stream.feed
    with sent_over_udp() as (address, stop):

        def counted(*args):
            count = feed(*args)
            if stream.num_frames == 4:
                stop.set()
            return count

        monkeypatch.setattr(stream, "feed", counted)
        typed = io.StringIO(CLIP.questions[1].text + "\n")
        watch(stream, address, said.append, questions=[CLIP.questions[0].text], silence=3.0, typed=typed, **ANSWER)
    assert stream.num_frames >= 4
    assert sum(line.startswith("[") for line in said) == 2


@pytest.mark.skipif(
    not (shutil.which("ffmpeg") and os.path.exists("/proc/net/tcp")), reason="needs FFmpeg's command line and Linux"
)
def test_a_stream_over_rtmp(run, tmp_path):
    with served_over_rtmp(tmp_path, 60) as address:
        status, out, err = run(address, "--fps", "2", "--ask", CLIP.questions[0].text, "--every", "2s")
    assert status == 0, err
    ends = re.fullmatch(r"end: (\d+) frames, .* dropped (\d+).*", out[-1])
    assert int(ends.group(1)) + int(ends.group(2)) == 12  # six seconds of it
    assert all(CLIP.questions[0].text in line for line in out[:-1])
    assert len(out) >= 2


def test_cameras_and_servers_that_are_not_there(run):
    for address, remedy in (
        ("/dev/video9", "check that the camera is connected"),
        ("rtmp://127.0.0.1:9/live/one", "check the address"),
    ):
        status, _, err = run(address, "--silence", "1")
        assert status == 2
        assert re.search(rf"{address} does not answer with a video \(.+\): {remedy}", err)
    for name in ("video9", "camera", "0"):  # not addresses of cameras: files
        status, _, err = run(name, "--silence", "1")
        assert status == 2
        assert f"{name} does not exist" in err
