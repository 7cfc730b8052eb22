"""What one visitor's page stands on: a report that grows while questions are answered, and the work that makes it grow."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from threading import Lock

import torch

from cacovid_hf.ratio import Ratio, check_asked

from .line import Interrupt, Line, Stopped
from .studio import ALL_TOKENS, Answer, Choice, Clip, Studio
from .work import followed

logger = logging.getLogger("cacovid.app")

RATIOS = (1.0, 0.5, 0.25, 0.15, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Form:
    """What a visitor asks.

    Attributes:
        path: of the video; None: none is given.
        question: about it.
        ratio: of the tokens to keep.
        methods: one, or two to be compared.
        num_frames: at most so many; None: the processor's.
        max_new_tokens: of an answer.
        with_all: whether all tokens are to answer, too.
    """

    path: str | None
    question: str
    ratio: Ratio
    methods: tuple[str, ...]
    num_frames: int | None = None
    max_new_tokens: int = 64
    with_all: bool = True

    def check(self) -> None:
        """Raise a `ValueError` that says what is missing."""
        if not self.path:
            raise ValueError("There is no video: choose an example or upload a file.")
        if not self.question.strip():
            raise ValueError("The question is empty: ask something about the video.")
        check_asked(self.ratio)


@dataclass(frozen=True)
class Report:
    """What is shown.

    Attributes:
        status: what goes on, or how it ended.
        error: what is wrong, in a sentence.
        running: whether something goes on.
        question: that was answered last.
        ratio: that it was answered at.
        clip: it is about.
        answers: of the methods, then of all tokens.
        rows: the same question at all ratios.
    """

    status: str = ""
    error: str = ""
    running: bool = False
    question: str = ""
    ratio: Ratio = 1.0
    clip: Clip | None = None
    answers: tuple[Answer, ...] = ()
    rows: tuple[Answer, ...] = ()

    @property
    def choices(self) -> list[tuple[str, Choice]]:
        """Methods whose choice of tokens is known."""
        return [(answer.method, answer.choice) for answer in self.answers if answer.choice is not None]


@dataclass
class Visitor:
    """One open page.

    Attributes:
        report: what it shows.
        interrupt: of what goes on.
        clips: read before, by path and number of frames; the last few.
    """

    report: Report = field(default_factory=Report)
    interrupt: Interrupt = field(default_factory=Interrupt)
    clips: "OrderedDict[tuple[str, int | None], Clip]" = field(default_factory=OrderedDict)

    def keep(self, key: tuple[str, int | None], clip: Clip, most: int = 3) -> None:
        """Remember a clip, and forget the oldest beyond `most`."""
        self.clips[key] = clip
        self.clips.move_to_end(key)
        while len(self.clips) > most:
            self.clips.popitem(last=False)


class Visitors:
    """The open pages, by session; the one unused for longest makes way.

    Args:
        most: how many are remembered.
    """

    def __init__(self, most: int = 16):
        self.most = most
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = Lock()

    def of(self, session: str | None) -> Visitor:
        """Return the visitor of a session, made if it is new."""
        with self._lock:
            visitor = self._visitors.setdefault(session or "", Visitor())
            self._visitors.move_to_end(session or "")
            while len(self._visitors) > self.most:
                self._visitors.popitem(last=False)[1].interrupt.set()
            return visitor

    def leave(self, session: str | None) -> None:
        """End what goes on for a page that was closed."""
        with self._lock:
            visitor = self._visitors.pop(session or "", None)
        if visitor is not None:
            visitor.interrupt.set()


def ask(studio: Studio, line: Line, visitor: Visitor, form: Form) -> Iterator[Report]:
    """Answer the form's question, with every method and then with all tokens; the visitor's report as it grows."""

    def work(clip: Clip, interrupt: Interrupt, tell: Callable[[Report], None]) -> None:
        wanted = [(name, form.ratio) for name in form.methods] + [(ALL_TOKENS, 1.0)] * form.with_all
        began = replace(
            visitor.report, question=form.question, ratio=form.ratio, clip=clip, answers=(), rows=(), error=""
        )
        done: list[Answer] = []
        for method, ratio in wanted:
            status = f"Answering with {method}"

            def growing(answer: Answer, status: str = status) -> None:
                tell(replace(began, status=status, answers=(*done, answer)))

            done.append(_answer(studio, clip, form, method, ratio, interrupt, growing))
            tell(replace(began, status=status, answers=tuple(done)))

    yield from _worked(studio, line, visitor, form, work)


def ask_at_all_ratios(studio: Studio, line: Line, visitor: Visitor, form: Form) -> Iterator[Report]:
    """Answer the form's question at every one of `RATIOS`; the visitor's report as its table grows."""

    def work(clip: Clip, interrupt: Interrupt, tell: Callable[[Report], None]) -> None:
        wanted = [(name, ratio) for ratio in RATIOS for name in ((ALL_TOKENS,) if ratio == 1.0 else form.methods)]
        began = replace(visitor.report, rows=(), error="")
        done: list[Answer] = []
        for number, (method, ratio) in enumerate(wanted):
            tell(replace(began, status=f"Answer {number + 1} of {len(wanted)}", rows=tuple(done)))
            done.append(_answer(studio, clip, form, method, ratio, interrupt, lambda answer: None))
            tell(replace(began, status=f"Answer {number + 1} of {len(wanted)}", rows=tuple(done)))

    yield from _worked(studio, line, visitor, form, work)


def _answer(
    studio: Studio,
    clip: Clip,
    form: Form,
    method: str,
    ratio: Ratio,
    interrupt: Interrupt,
    tell: Callable[[Answer], None],
) -> Answer:
    """Return an answer; what a method refuses stands in it, so that the others are not lost."""
    try:
        return studio.answer(clip, form.question, method, ratio, form.max_new_tokens, interrupt, tell)
    except ValueError as error:
        return Answer(method, ratio, stage=None, notice=str(error))


def _worked(
    studio: Studio,
    line: Line,
    visitor: Visitor,
    form: Form,
    work: Callable[[Clip, Interrupt, Callable[[Report], None]], None],
) -> Iterator[Report]:
    """Do the work when its turn comes; errors are sentences of the report, and what it showed before stays."""
    visitor.interrupt.set()  # of what went on before
    visitor.interrupt = interrupt = Interrupt()

    def in_turn(tell: Callable[[Report], None]) -> None:
        def wait(before: int) -> None:
            tell(replace(visitor.report, running=True, error="", status=waiting(before)))

        def read(words: str) -> None:
            tell(replace(visitor.report, running=True, error="", status=words))

        form.check()
        with line.turn(interrupt, wait):
            key = (str(form.path), form.num_frames)
            clip = studio.read(key[0], form.num_frames, form.methods, interrupt, read, visitor.clips.get(key))
            visitor.keep(key, clip)
            work(clip, interrupt, lambda report: tell(replace(report, running=True)))

    def shown(**changes: object) -> Report:
        visitor.report = replace(visitor.report, **changes)  # type: ignore[arg-type]
        return visitor.report

    yield shown(running=True, error="", status="Starting")
    try:
        for report in followed(in_turn):
            visitor.report = report
            yield report
        yield shown(running=False, status="Done")
    except Stopped:
        yield shown(running=False, status="Stopped", answers=_ended(visitor.report.answers))
    except torch.OutOfMemoryError:
        yield shown(running=False, status="", error="There is not enough memory: take fewer frames or a shorter video.")
    except (ValueError, OSError) as error:
        yield shown(running=False, status="", error=" ".join(str(error).split()))
    except Exception as error:
        logger.exception("A question failed.")
        yield shown(
            running=False,
            status="",
            error=f"This went wrong in a way that the page does not know ({type(error).__name__}): the terminal has the details.",
        )


def _ended(answers: tuple[Answer, ...]) -> tuple[Answer, ...]:
    return tuple(answer if answer.stage is None else replace(answer, stage="stopped") for answer in answers)


def waiting(before: int) -> str:
    """Return the sentence for whoever waits for so many others."""
    return f"Waiting: {before} question{'s are' if before > 1 else ' is'} before yours"
