"""Ending work in threads that nobody waits for any more."""

import asyncio
import functools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Interrupted(Exception):
    """Whoever asked for the work has gone."""


class Interrupt:
    """Told by the event loop, asked by threads between their steps."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the work to end."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether it is not."""
        return self._event.is_set()


class RequestGuard:
    """Watches what one request reads (a `cacovid_hf.video.limits.ReadingGuard`).

    Args:
        interrupt: of the request.
        seconds: that one stage of reading may take.
        pixels: that may be held, of all videos and pictures together.
    """

    def __init__(self, interrupt: Interrupt, seconds: float, pixels: int):
        self.interrupt, self.seconds, self.pixels = interrupt, seconds, pixels
        self.held = 0
        self.start()

    def start(self) -> None:
        """Begin a stage."""
        self.ends = time.monotonic() + self.seconds

    def going_on(self) -> None:
        """Raise `Interrupted` if the client has gone, a `ValueError` if it takes too long."""
        if self.interrupt.is_set():
            raise Interrupted
        if time.monotonic() > self.ends:
            raise ValueError(f"Reading the videos takes longer than {self.seconds:g} s, the limit: send shorter ones.")

    def holding(self, pixels: int) -> None:
        """Raise a `ValueError` if so many pixels more are too many."""
        self.held += pixels
        if self.held > self.pixels:
            raise ValueError(
                f"The frames and pictures of the request have more than {self.pixels} pixels, the limit: send fewer, or smaller ones."
            )


class Threads:
    """Threads that wait for work, and that do not keep the process from ending. The event loop would have to wait for new ones to start.

    Args:
        count: how many; further work waits for one of them.
    """

    def __init__(self, count: int):
        self.count = count
        self.tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to wait."""
        for _ in range(self.count):
            threading.Thread(target=self._run, name="reading", daemon=True).start()

    def close(self) -> None:
        """End when the work that was given is done."""
        for _ in range(self.count):
            self.tasks.put(None)

    async def run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Return what `work(*arguments)` returns in one of the threads.

        The caller may be cancelled; the work then goes on until it looks at its interrupt.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self.tasks.put(functools.partial(_settle_by, work, arguments, future, loop))
        try:
            return await future
        finally:
            del future  # it may hold an error that holds this frame

    def _run(self) -> None:
        while (task := self.tasks.get()) is not None:
            task()
            task = None  # what it holds may be large


def _settle_by(
    work: Callable[..., Result],
    arguments: tuple[Any, ...],
    future: asyncio.Future[Result],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Work, and tell a future of the loop what came of it."""
    try:
        result = work(*arguments)
    except StopIteration as error:  # which a future does not take
        call_in(loop, _settle, future, None, RuntimeError(f"{error!r} in a thread"))
    except BaseException as error:  # raised in the caller
        call_in(loop, _settle, future, None, error)
    else:
        call_in(loop, _settle, future, result, None)
    finally:
        del future  # it may hold an error that holds this frame


def _settle(future: asyncio.Future, result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function in an event loop; nothing if the loop has ended."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise
