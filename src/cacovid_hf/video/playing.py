"""Frames at the pace of time, for somebody who may be slower."""

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np

Timed = tuple[np.ndarray, float]
PAUSE = 0.5  # seconds


class Playing:
    """Frames as they are shown, read by a thread of its own.

    The newest frame waits for whoever iterates. One that comes while another waits takes its place, and that one is dropped and counted.

    Args:
        frames: pictures and their seconds.
        speed: of a file, 1 is its own; None: frames come at a pace of their own, as from a camera.

    Attributes:
        dropped: frames that nobody took.
        position: seconds of the newest frame; None: there was none.
    """

    def __init__(self, frames: Iterator[Timed], speed: float | None = None):
        if speed is not None and not 0 < speed < float("inf"):
            raise ValueError(f"speed={speed}: give a number over 0, such as 1 for the file's own.")
        self.frames, self.speed = frames, speed
        self.dropped = 0
        self.position: float | None = None
        self._waiting: Timed | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Timed]:
        """Return the frames that are taken; an error of the reader is raised here. Closing the iterator ends the thread with its next frame."""
        with closing(self.with_pauses()) as taken:
            yield from (one for one in taken if one is not None)

    def with_pauses(self) -> Generator[Timed | None, None, None]:
        """Return the same, and None whenever no frame has come for half a second."""
        thread = threading.Thread(target=self._read, name="playing", daemon=True)
        thread.start()
        try:
            while True:
                with self._changed:
                    if self._waiting is None and not self._ended:
                        self._changed.wait(PAUSE)
                    taken, self._waiting = self._waiting, None
                    is_over = self._ended
                if taken is not None or not is_over:
                    yield taken
                elif self._error is not None:
                    raise self._error
                else:
                    return
        finally:
            self._stopped.set()

    def _read(self) -> None:
        try:
            begun = time.monotonic()
            for picture, seconds in self.frames:
                if self.speed is not None:
                    self._stopped.wait(max(0.0, begun + seconds / self.speed - time.monotonic()))
                if self._stopped.is_set():
                    return
                with self._changed:
                    self.dropped += self._waiting is not None
                    self._waiting, self.position = (picture, seconds), seconds
                    self._changed.notify()
        except BaseException as error:  # raised where the frames are taken
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
