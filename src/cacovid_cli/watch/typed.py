"""Questions that are typed or piped in while a video goes on."""

import io
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import TextIO


class TypedLines:
    """Lines of a text file as they come, read by a thread; None: there are none.

    Attributes:
        by_hand: they come from a terminal.
        ended: there are no more.
    """

    def __init__(self, file: TextIO | None):
        self.by_hand = file is not None and file.isatty()
        self.ended = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        if file is None:
            self._lines.put(None)
        else:
            threading.Thread(target=self._read, args=(_own(file),), name="typed", daemon=True).start()

    def _read(self, file: TextIO) -> None:
        try:
            for line in file:
                if line.strip():
                    self._lines.put(line.strip())
        except (OSError, ValueError):  # not to be read, or closed
            pass
        finally:
            self._lines.put(None)

    def now(self) -> Iterator[str]:
        """Those that are there."""
        return self.until_silent(0)

    def until_silent(self, seconds: float | None) -> Iterator[str]:
        """Return lines until the file ends, or none came for so many seconds; None: however long that takes."""
        while True:
            try:
                line = self._lines.get(block=seconds != 0, timeout=seconds or None)
            except queue.Empty:
                return
            if line is None:
                self._lines.put(None)
                self.ended = True
                return
            yield line


def standard_input() -> TextIO | None:
    """Where questions are typed; None where nothing can be."""
    return None if sys.stdin is None or sys.stdin.closed else sys.stdin


def _own(file: TextIO) -> TextIO:
    """Return the same file with a buffer of its own: Python cannot end while a thread waits in that of standard input."""
    try:
        return open(os.dup(file.fileno()), encoding=file.encoding, errors="replace")
    except (io.UnsupportedOperation, OSError):  # lines from memory
        return file
