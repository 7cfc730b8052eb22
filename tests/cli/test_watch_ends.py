"""How `cacovid watch` ends: the end of the video, of the time, of what is typed, and Ctrl-C."""

import itertools
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cacovid_cli.main import main
from cacovid_cli.watch import watching
from cacovid_cli.watch.typed import TypedLines
from cacovid_hf import tiny
from cacovid_hf.generation.stream.stream import VideoStream
from cacovid_hf.video.playing import Playing

CLIP = tiny.clips()[0]
ONE, TWO, THREE = (question.text for question in CLIP.questions[:3])
ANSWER = dict(max_new_tokens=4, do_sample=False)
FAST = (str(CLIP.path), "--speed", "max")


@pytest.fixture
def pipe():
    """A pipe whose writing end stays open, and what is read from it."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as file, os.fdopen(writing, "w", buffering=1) as typing:
        yield file, typing


def asked(lines):
    """The questions that have answers, in their order."""
    return [re.sub(r"\?.*", "?", line.split("] ")[1]) for line in lines if line.startswith("[")]


def endless():
    number = 0
    while True:
        yield np.zeros((84, 84, 3), np.uint8), float(number)
        number += 1
        time.sleep(0.01)


def test_an_open_pipe_is_not_waited_for(tmp_path):
    """The whole command, whose standard input stays open: it answers, saves and ends."""
    saved = tmp_path / "stream"
    command = [sys.executable, "-m", "cacovid_hf", "watch", *FAST, "--ask", ONE, "--ask", TWO, "--save", str(saved)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            # Not `communicate`, which would close its standard input.
            assert process.wait(240) == 0, process.stderr.read()
            out = process.stdout.read().splitlines()
        finally:
            process.kill()
    assert asked(out) == [ONE, TWO]
    assert out[-1] == f"saved   {saved}"
    assert saved.exists()


def test_what_a_pipe_brings_is_answered(stream, pipe):
    file, typing = pipe
    typing.write(f"{TWO}\n{THREE}\n")
    said = []
    watching.watch(stream, str(CLIP.path), said.append, questions=[ONE], speed=None, typed=file, **ANSWER)
    assert sorted(asked(said)) == sorted([ONE, TWO, THREE])
    assert not any("has ended" in line for line in said)


def test_a_closed_pipe_is_read_to_its_end(stream):
    reading, writing = os.pipe()
    os.write(writing, "".join(f"{question}\n" for question in [ONE, TWO, THREE] * 5).encode())
    os.close(writing)
    said = []
    with os.fdopen(reading) as file:
        watching.watch(stream, str(CLIP.path), said.append, speed=None, typed=file, **ANSWER)
    assert asked(said) == [ONE, TWO, THREE] * 5


def test_a_terminal_is_read_until_ctrl_d(stream):
    """Standing questions are answered before that."""
    mine, theirs = pty.openpty()
    said = []

    def tell(line):
        said.append(line)
        if ONE in line:
            assert any("The video has ended. Type questions, Ctrl-D ends." in one for one in said)
            os.write(mine, f"{TWO}\n".encode())
        if TWO in line:
            os.write(mine, b"\x04")

    with os.fdopen(theirs) as file, os.fdopen(mine, closefd=True):
        watching.watch(stream, str(CLIP.path), tell, questions=[ONE], speed=None, typed=file, **ANSWER)
    assert asked(said) == [ONE, TWO]


def test_until(stream, pipe):
    """After the time, what is there is answered and nothing waited for."""
    file, typing = pipe
    typing.write(f"{TWO}\n")
    said = []
    watched = watching.Watching(stream, said.append, None, [ONE], ANSWER, at_once=True)
    watched.run(endless(), None, TypedLines(file), 0.3)
    assert 1 <= stream.num_frames < 60
    assert sorted(asked(said)) == sorted([ONE, TWO])


def test_ctrl_c_saves_and_says_what_has_no_answer(monkeypatch, capsys, pipe, tmp_path):
    file, _ = pipe
    monkeypatch.setattr("sys.stdin", file)
    feed = VideoStream.feed

    def interrupted(stream, *args):
        if stream.num_frames == 4:
            raise KeyboardInterrupt
        return feed(stream, *args)

    monkeypatch.setattr(VideoStream, "feed", interrupted)
    saved = tmp_path / "stream"
    with pytest.raises(SystemExit) as exit:
        main(["watch", *FAST, "--ask", ONE, "--ask", TWO, "--save", str(saved)])
    out = capsys.readouterr().out.splitlines()
    assert not exit.value.code
    assert out[:3] == ["stopped", f"not answered: {ONE}", f"not answered: {TWO}"]
    assert out[3].startswith("end: 4 frames")
    assert out[-1] == f"saved   {saved}"
    assert saved.exists()


def test_ctrl_c_finishes_the_answer_that_is_being_made(stream, monkeypatch, pipe):
    file, typing = pipe
    typing.write(f"{ONE}\n{TWO}\n{THREE}\n")
    asking, going_on = threading.Event(), threading.Event()
    ask = stream.ask

    def slow(*args, **kwargs):
        asking.set()
        assert going_on.wait(60)
        return ask(*args, **kwargs)

    def frames():
        for picture, seconds in endless():
            if asking.is_set():
                threading.Timer(0.2, going_on.set).start()
                raise KeyboardInterrupt
            yield picture, seconds

    monkeypatch.setattr(stream, "ask", slow)
    said = []
    watched = watching.Watching(stream, said.append, None, [], ANSWER, at_once=False)
    watched.run(frames(), None, TypedLines(file), None)
    assert asked(said) == [ONE]
    assert [line for line in said if not line.startswith("[")] == [
        "stopped",
        f"not answered: {TWO}",
        f"not answered: {THREE}",
    ]


def test_an_error_does_not_end_the_answering(stream, monkeypatch, pipe):
    file, typing = pipe
    typing.write(f"{ONE}\n{TWO}\n")
    ask = stream.ask

    def failing(question, **kwargs):
        if question == ONE:
            raise KeyError("a cache")
        return ask(question, **kwargs)

    monkeypatch.setattr(stream, "ask", failing)
    said = []
    watching.watch(stream, str(CLIP.path), said.append, speed=None, typed=file, **ANSWER)
    assert f"{ONE} (KeyError: 'a cache')" in said
    assert asked(said) == [TWO]


def test_who_waits_for_an_answer_is_waited_for(stream, monkeypatch, pipe):
    """A program asks, reads the answer, and asks again, however long answers take."""
    file, typing = pipe
    monkeypatch.setattr(watching, "SILENCE_OF_A_PIPE", 0.1)
    ask = stream.ask

    def slow(*args, **kwargs):
        time.sleep(0.5)
        return ask(*args, **kwargs)

    monkeypatch.setattr(stream, "ask", slow)
    said, left = [], [TWO, THREE]
    typing.write(f"{ONE}\n")

    def tell(line):
        said.append(line)
        if line.startswith("[") and left:
            typing.write(f"{left.pop(0)}\n")

    watching.watch(stream, str(CLIP.path), tell, speed=None, typed=file, **ANSWER)
    assert asked(said) == [ONE, TWO, THREE]


def test_a_silent_source_does_not_hold_up_questions_and_the_end(stream, pipe):
    file, typing = pipe
    said, going_on = [], threading.Event()

    def silent():
        yield next(endless())
        typing.write(f"{TWO}\n")
        going_on.wait(60)

    playing = Playing(silent())
    watched = watching.Watching(stream, said.append, None, [], ANSWER, at_once=False)
    begun = time.monotonic()
    watched.run(playing.with_pauses(), playing, TypedLines(file), 2.0)
    going_on.set()
    assert asked(said) == [TWO]
    assert time.monotonic() - begun < 30


def test_an_answer_says_what_was_there_when_it_was_asked(stream, monkeypatch, pipe):
    file, typing = pipe
    asking, fed = threading.Event(), threading.Event()
    typing.write(f"{ONE}\n")
    ask = stream.ask

    def slow(*args, **kwargs):
        asking.set()
        assert fed.wait(60)
        return ask(*args, **kwargs)

    def frames():
        for picture, seconds in itertools.islice(endless(), 5):
            yield picture, seconds
            assert asking.wait(60)
        fed.set()

    monkeypatch.setattr(stream, "ask", slow)
    said = []
    watched = watching.Watching(stream, said.append, None, [], ANSWER, at_once=False)
    watched.run(frames(), None, TypedLines(file), None)
    assert stream.num_frames == 5
    assert " 1 frames, 1 groups" in said[0]


def test_nobody_reads_the_answers(stream, pipe):
    file, typing = pipe
    typing.write(f"{ONE}\n{TWO}\n")

    def gone(line):
        raise BrokenPipeError("nobody reads")

    watched = watching.Watching(stream, gone, None, [], ANSWER, at_once=False)
    with pytest.raises(BrokenPipeError):
        watched.run(endless(), None, TypedLines(file), 60.0)


def feeds_that_end(monkeypatch, end):
    feed = VideoStream.feed

    def ending(stream, *args):
        if stream.num_frames == 4:
            end()
        return feed(stream, *args)

    monkeypatch.setattr(VideoStream, "feed", ending)


def test_an_error_of_the_source_saves_and_says_what_has_no_answer(monkeypatch, capsys, pipe, tmp_path):
    def broken():
        raise ValueError("the camera is on fire")

    file, _ = pipe
    monkeypatch.setattr("sys.stdin", file)
    feeds_that_end(monkeypatch, broken)
    saved = tmp_path / "stream"
    with pytest.raises(SystemExit) as exit:
        main(["watch", *FAST, "--ask", ONE, "--save", str(saved)])
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.out.splitlines() == [f"not answered: {ONE}", f"saved   {saved}"]
    assert "the camera is on fire" in captured.err
    assert saved.exists()


def test_sigterm_is_ctrl_c(monkeypatch, capsys, pipe, tmp_path):
    file, _ = pipe
    monkeypatch.setattr("sys.stdin", file)
    before = signal.getsignal(signal.SIGTERM)
    feeds_that_end(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    saved = tmp_path / "stream"
    with pytest.raises(SystemExit) as exit:
        main(["watch", *FAST, "--ask", ONE, "--save", str(saved)])
    out = capsys.readouterr().out.splitlines()
    assert not exit.value.code
    assert out[:2] == ["stopped", f"not answered: {ONE}"]
    assert out[-1] == f"saved   {saved}"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_does_not_end_a_save(monkeypatch, capsys, pipe, tmp_path):
    file, typing = pipe
    typing.close()
    monkeypatch.setattr("sys.stdin", file)
    save = VideoStream.save

    def slow(stream, path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(stream, path)

    monkeypatch.setattr(VideoStream, "save", slow)
    saved = tmp_path / "stream"
    with pytest.raises(SystemExit) as exit:
        main(["watch", *FAST, "--ask", ONE, "--save", str(saved)])
    assert not exit.value.code
    assert saved.exists()


def test_the_first_error_is_the_one_that_is_told(monkeypatch, capsys, pipe, tmp_path):
    def broken():
        raise ValueError("the camera is on fire")

    def full(stream, path):
        raise OSError("no space")

    file, _ = pipe
    monkeypatch.setattr("sys.stdin", file)
    feeds_that_end(monkeypatch, broken)
    monkeypatch.setattr(VideoStream, "save", full)
    with pytest.raises(SystemExit) as exit:
        main(["watch", *FAST, "--save", str(tmp_path / "stream")])
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert "not saved: no space" in err
    assert err.strip().endswith("the camera is on fire")


def test_a_time_without_a_frame_is_an_error(stream, pipe):
    def nothing():
        while True:
            yield None

    file, _ = pipe
    said = []
    watched = watching.Watching(stream, said.append, None, [ONE], ANSWER, at_once=False)
    with pytest.raises(ValueError, match=r"No frame came within 0.2 s: .*\(--for\)"):
        watched.run(nothing(), None, TypedLines(file), 0.2)
    assert said == [f"not answered: {ONE}"]


def test_nobody_reads_after_the_end(stream):
    """A terminal is not waited for by a program that cannot answer any more."""

    def gone(line):
        if line.startswith("["):
            raise BrokenPipeError("nobody reads")

    mine, theirs = pty.openpty()
    with os.fdopen(theirs) as file, os.fdopen(mine, closefd=True), pytest.raises(BrokenPipeError):
        watching.watch(stream, str(CLIP.path), gone, questions=[ONE], speed=None, typed=file, **ANSWER)
