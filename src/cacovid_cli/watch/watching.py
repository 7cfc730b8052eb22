"""Watch a video as it goes on, and answer questions about what was seen so far."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TextIO

from cacovid_hf.generation.stream.files import frames_of_file
from cacovid_hf.generation.stream.stream import VideoStream
from cacovid_hf.video.live import is_live, live_frames
from cacovid_hf.video.playing import Playing

from .units import shown_bytes

# Of the embedded model, which was trained with clips of eight frames.
EMBEDDED_SETTINGS = {"tokens_per_question": 72, "frames_per_window": 8}


@dataclass
class Watched:
    """What was done so far.

    Attributes:
        seconds: of the last frame that was fed; None: there was none.
        lag: seconds that the newest frame was ahead of it.
        largest_lag: at any time.
        dropped: frames that came while the model was busy and another one waited.
        skipped: times of `--every` that came while an answer was still being made.
    """

    seconds: float | None = None
    lag: float = 0.0
    largest_lag: float = 0.0
    dropped: int = 0
    skipped: int = 0


class Watching:
    """Feeds a stream and answers.

    Args:
        stream: to be fed.
        tell: takes every line that is said.
        every: seconds of the video between two times that the standing questions are asked; None: they are asked at its end.
        questions: standing ones.
        generate: arguments of `ask`.
        at_once: answer within the loop, so that a question is about exactly what was seen at its time; otherwise beside it.
    """

    def __init__(
        self,
        stream: VideoStream,
        tell: Callable[[str], None],
        every: float | None,
        questions: Iterable[str],
        generate: dict[str, Any],
        at_once: bool,
    ):
        self.stream, self.tell, self.every, self.questions = stream, tell, every, list(questions)
        self.generate, self.at_once = generate, at_once
        self.done = Watched()
        self._asked: queue.Queue[str | None] = queue.Queue()
        self._answering = threading.Thread(target=self._answer_all, name="answering", daemon=True)

    def run(self, frames: Iterator[Any], playing: Playing | None, typed: "TypedLines", until: float | None) -> None:
        """Feed all frames, ask what is due and what is typed, and go on answering until no more is typed."""
        self._answering.start()
        due = self.every
        begun = time.monotonic()
        for picture, seconds in frames:
            if self.every is not None and due is not None and seconds >= due:
                self._ask_standing()
                due += self.every * (1 + (seconds - due) // self.every)
            self.stream.feed(picture, seconds)
            self._note(seconds, playing)
            for question in typed.now():
                self._asked.put(question)
            if until is not None and time.monotonic() - begun >= until:
                break
        for question in typed.to_the_end():
            self._asked.put(question)
        self._asked.put(None)
        self._answering.join()
        if self.stream.num_frames:
            for question in self.questions:
                self._answer(question)

    def _note(self, seconds: float, playing: Playing | None) -> None:
        self.done.seconds = seconds
        if playing is not None:
            self.done.lag = max(0.0, (playing.position or 0.0) - seconds)
            self.done.dropped = playing.dropped
        self.done.largest_lag = max(self.done.largest_lag, self.done.lag)

    def _ask_standing(self) -> None:
        if self.at_once:
            for question in self.questions:
                self._answer(question)
        elif self._asked.unfinished_tasks:
            self.done.skipped += 1
        else:
            for question in self.questions:
                self._asked.put(question)

    def _answer_all(self) -> None:
        while (question := self._asked.get()) is not None:
            try:
                self._answer(question)
            finally:
                self._asked.task_done()

    def _answer(self, question: str) -> None:
        try:
            begun = time.perf_counter()
            seconds = self.done.seconds or 0.0
            answer = self.stream.ask(question, **self.generate)
        except (ValueError, RuntimeError) as error:
            self.tell(f"{question} ({error})")
            return
        took = time.perf_counter() - begun
        self.tell(f"[{seconds:8.1f} s] {question} {answer or '(no words)'}   ({took:.2f} s, {self.state()})")

    def state(self) -> str:
        """Memory and lag, in words."""
        groups, size = self.stream.num_groups, self.stream.memory_bytes()
        return f"{self.stream.num_frames} frames, {groups} groups in {shown_bytes(size)}, lag {self.done.lag:.1f} s, dropped {self.done.dropped}"


class TypedLines:
    """Lines of a text file as they are typed, read by a thread; None: there are none."""

    def __init__(self, file: TextIO | None):
        self.lines: queue.Queue[str | None] = queue.Queue()
        if file is None:
            self.lines.put(None)
        else:
            threading.Thread(target=self._read, args=(file,), name="typed", daemon=True).start()

    def _read(self, file: TextIO) -> None:
        try:
            for line in file:
                if line.strip():
                    self.lines.put(line.strip())
        except (OSError, ValueError):  # not to be read, or closed
            pass
        finally:
            self.lines.put(None)

    def now(self) -> Iterator[str]:
        """Those that are there."""
        while True:
            try:
                line = self.lines.get_nowait()
            except queue.Empty:
                return
            if line is None:
                self.lines.put(None)
                return
            yield line

    def to_the_end(self) -> Iterator[str]:
        """All that are still to come."""
        while (line := self.lines.get()) is not None:
            yield line
        self.lines.put(None)


def watch(
    stream: VideoStream,
    address: str,
    tell: Callable[[str], None],
    *,
    every: float | None = None,
    questions: Iterable[str] = (),
    speed: float | None = 1.0,
    until: float | None = None,
    silence: float = 10.0,
    typed: TextIO | None = None,
    **generate: Any,
) -> Watched:
    """Feed a stream with a file, a camera or a live address, and answer.

    Args:
        stream: to be fed.
        address: a file, or what `cacovid_hf.video.live.is_live` says is live.
        tell: takes every line that is said.
        every: seconds of the video between two times that `questions` are asked; None: they are asked at its end.
        questions: standing ones.
        speed: of a file, 1 is its own; None: as fast as the model goes, and then no frame is dropped.
        until: end after so many seconds.
        silence: a live address ends after so many seconds without a frame.
        typed: where further questions come from, one per line.
        **generate: for `ask`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, or nothing answers.
    """
    live = is_live(address)
    fps = stream.settings.fps
    source = live_frames(address, fps, silence) if live else frames_of_file(address, fps)
    playing = Playing(source, None if live else speed) if live or speed is not None else None
    watching = Watching(stream, tell, every, questions, generate, at_once=playing is None)
    frames: Any = source if playing is None else iter(playing)
    with closing(frames):
        try:
            watching.run(frames, playing, TypedLines(typed), until)
        except KeyboardInterrupt:
            tell("stopped")
    tell(f"end: {watching.state()}, largest lag {watching.done.largest_lag:.1f} s, skipped {watching.done.skipped}")
    return watching.done


def standard_input() -> TextIO | None:
    """Where questions are typed; None where nothing can be."""
    return None if sys.stdin is None or sys.stdin.closed else sys.stdin
