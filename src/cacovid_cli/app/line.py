"""One question at a time, in order of arrival; whoever waits knows how many are before."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """Nobody wants the work any more."""


class Interrupt:
    """Set by whoever asked, looked at between steps of the work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask for the work to end."""
        self._event.set()

    def check(self) -> None:
        """Raise `Stopped` if it is not."""
        if self._event.is_set():
            raise Stopped


class Line:
    """A fair lock.

    Args:
        poll: seconds between two looks at the interrupt of whoever waits.
    """

    def __init__(self, poll: float = 0.2):
        self.poll = poll
        self._moved = threading.Condition()
        self._tickets: list[object] = []

    @property
    def waiting(self) -> int:
        """How many wait."""
        with self._moved:
            return max(0, len(self._tickets) - 1)

    @contextmanager
    def turn(self, interrupt: Interrupt, tell: Callable[[int], None]) -> Iterator[None]:
        """Within the block it is the caller's turn.

        Args:
            interrupt: ends the wait.
            tell: called with the number of those before, at first if there are any and whenever it changes.

        Raises:
            Stopped: the interrupt was set before the turn came.
        """
        ticket, told = object(), 0
        with self._moved:
            self._tickets.append(ticket)
        try:
            while before := self._before(ticket):
                interrupt.check()
                if before != told:
                    tell(before)
                    told = before
                with self._moved:
                    if self._tickets.index(ticket) == told:
                        self._moved.wait(self.poll)
            interrupt.check()
            yield
        finally:
            with self._moved:
                self._tickets.remove(ticket)
                self._moved.notify_all()

    def _before(self, ticket: object) -> int:
        with self._moved:
            return self._tickets.index(ticket)
