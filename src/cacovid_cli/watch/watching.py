"""Watch a video as it goes on, and answer questions about what was seen so far."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, TextIO

from cacovid_hf.generation.stream.files import frames_of_file
from cacovid_hf.generation.stream.stream import VideoStream
from cacovid_hf.video.live import is_live, live_frames
from cacovid_hf.video.playing import Playing

from .typed import TypedLines
from .units import shown_bytes

# Of the embedded model, which was trained with clips of eight frames.
EMBEDDED_SETTINGS = {"tokens_per_question": 72, "frames_per_window": 8}
# After the video a pipe may still bring questions; one that stays open without any must not be waited for.
SILENCE_OF_A_PIPE = 1.0


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
        self._current: str | None = None
        self._answered: set[str] = set()
        self._broken: Exception | None = None  # what ended the answering
        self._answering = threading.Thread(target=self._answer_all, name="answering", daemon=True)

    def run(self, frames: Iterator[Any], playing: Playing | None, typed: TypedLines, until: float | None) -> None:
        """Feed all frames and ask what is due and what is typed; then the standing questions, and what is typed after the video.

        Ctrl-C and errors end it with the answer that is being made. What stays without an answer is said.
        """
        self._answering.start()
        try:
            is_over = self._feed_all(frames, playing, typed, until)
            self._ask_the_rest(typed, is_over)
            self._asked.put(None)
            self._answering.join()
        except KeyboardInterrupt:
            self.tell("stopped")
            self._give_up(typed)
        except Exception:
            with suppress(OSError):  # nobody reads what is told
                self._give_up(typed)
            raise

    def _feed_all(self, frames: Iterator[Any], playing: Playing | None, typed: TypedLines, until: float | None) -> bool:
        """Return whether the video is over, rather than the time; in `frames` None is a moment without one."""
        due = self.every
        begun = time.monotonic()
        for frame in frames:
            self._check_answering()
            if frame is not None:
                picture, seconds = frame
                if self.every is not None and due is not None and seconds >= due:
                    self._ask_standing()
                    due += self.every * (1 + (seconds - due) // self.every)
                self.stream.feed(picture, seconds)
                self._note(seconds, playing)
            if self.stream.num_frames:
                self._ask_all(typed.now())
            if until is not None and time.monotonic() - begun >= until:
                if not self.stream.num_frames:
                    raise ValueError(f"No frame came within {until:g} s: check the sender, or wait longer (--for).")
                return False
        return True

    def _ask_the_rest(self, typed: TypedLines, is_over: bool) -> None:
        """Ask the standing questions, and what is typed: by hand to its end, from a pipe until it is silent, after `until` what is there."""
        if self.stream.num_frames:
            self._ask_all(self.questions)
        if not is_over:
            self._ask_all(typed.now())
            return
        if typed.by_hand:
            self.tell("The video has ended. Type questions, Ctrl-D ends.")
        while not typed.ended:
            # Who asks may wait for an answer before the next question.
            is_awaited = typed.by_hand or bool(self._asked.unfinished_tasks)
            asked = self._ask_all(typed.until_silent(SILENCE_OF_A_PIPE))
            self._check_answering()
            if not asked and not is_awaited:
                return

    def _ask_all(self, questions: Iterable[str]) -> int:
        """Hand questions over as they come, and return how many."""
        count = 0
        for count, question in enumerate(questions, 1):  # noqa: B007 (the last number)
            self._check_answering()
            self._asked.put(question)
        return count

    def _check_answering(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _give_up(self, typed: TypedLines) -> None:
        """Finish the answer that is being made, and say which questions have none."""
        left: list[str | None] = []
        while not self._asked.empty():
            with suppress(queue.Empty):  # taken in between
                left.append(self._asked.get_nowait())
        left += typed.now()
        self._asked.put(None)
        with suppress(KeyboardInterrupt):  # pressed again: not that one either
            self._answering.join()
        left += [question for question in self.questions if question not in self._answered]
        for question in dict.fromkeys([self._current, *left]):
            if question is not None:
                self.tell(f"not answered: {question}")

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
            self._ask_all(self.questions)

    def _answer_all(self) -> None:
        while (question := self._asked.get()) is not None:
            try:
                self._answer(question)
            except Exception as error:  # of `tell`: nobody reads
                self._broken = error
                return
            finally:
                self._asked.task_done()

    def _answer(self, question: str) -> None:
        """Say the answer, or the error that came in its place: the next question is asked all the same."""
        self._current = question
        begun = time.perf_counter()
        seconds, state = self.done.seconds or 0.0, self.state()
        try:
            answer = self.stream.ask(question, **self.generate)
        except (ValueError, RuntimeError) as error:
            self.tell(f"{question} ({error})")
        except Exception as error:
            self.tell(f"{question} ({type(error).__name__}: {error})")
        else:
            took = time.perf_counter() - begun
            self.tell(f"[{seconds:8.1f} s] {question} {answer or '(no words)'}   ({took:.2f} s, {state})")
        self._answered.add(question)
        self._current = None

    def state(self) -> str:
        """Memory and lag, in words."""
        groups, size = self.stream.num_groups, self.stream.memory_bytes()
        return f"{self.stream.num_frames} frames, {groups} groups in {shown_bytes(size)}, lag {self.done.lag:.1f} s, dropped {self.done.dropped}"


def checked_questions(questions: Iterable[str], every: float | None) -> list[str]:
    """Return the standing questions.

    Raises:
        ValueError: an empty one, or none to ask every so often.
    """
    questions = list(questions)
    if not all(question.strip() for question in questions):
        raise ValueError("A question is empty (--ask): give one, or leave it out.")
    if every is not None and not questions:
        raise ValueError(f"Nothing is asked every {every:g} s: add a question (--ask), or leave it out (--every).")
    return questions


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
        typed: where further questions come from, one per line. After the video those of a terminal are read to their end, those of a pipe until it is
            closed or brings none for a second after the last answer. After `until` only what is there counts.
        **generate: for `ask`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, nothing answers, an empty question, or `every` without a question.
    """
    questions = checked_questions(questions, every)
    live = is_live(address)
    fps = stream.settings.fps
    source = live_frames(address, fps, silence) if live else frames_of_file(address, fps)
    playing = Playing(source, None if live else speed) if live or speed is not None else None
    watching = Watching(stream, tell, every, questions, generate, at_once=playing is None)
    frames: Any = source if playing is None else playing.with_pauses()
    with closing(frames):
        watching.run(frames, playing, TypedLines(typed), until)
    tell(f"end: {watching.state()}, largest lag {watching.done.largest_lag:.1f} s, skipped {watching.done.skipped}")
    return watching.done
