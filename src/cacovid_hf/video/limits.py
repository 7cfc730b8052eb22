"""How much reading a video or a picture may take, of whatever is read within a block."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

MAX_PIXELS = 7680 * 4320
MAX_PICTURE_PIXELS = 1 << 27  # 0.4 GB of RGB: a panorama of 16,384x8,192
MAX_DURATION = 24 * 3600.0
MAX_SAMPLED_PIXELS = 1 << 29  # 1.6 GB of RGB: 32 frames of 4096x4096, or 258 of 1920x1080


@dataclass(frozen=True)
class ReadingLimits:
    """What is refused before it is decoded.

    Attributes:
        max_pixels: of a frame.
        max_picture_pixels: of a picture.
        max_duration: of a clip, in seconds.
        max_sampled_pixels: of the frames of one clip that are held at a time, each pixel three bytes.
    """

    max_pixels: int = MAX_PIXELS
    max_picture_pixels: int = MAX_PICTURE_PIXELS
    max_duration: float = MAX_DURATION
    max_sampled_pixels: int = MAX_SAMPLED_PIXELS


class ReadingGuard(Protocol):
    """Who watches what is read, and ends it by an exception."""

    def going_on(self) -> None:
        """Look whether to go on, between packets of a video, and between parts of a download."""

    def holding(self, pixels: int) -> None:
        """Look whether to go on, before so many pixels are decoded to be held."""


class _NoGuard:
    """Lets everything go on."""

    def going_on(self) -> None:
        """Let it go on."""

    def holding(self, pixels: int) -> None:
        """Let any number be held."""


_limits: ContextVar[ReadingLimits] = ContextVar("reading_limits", default=ReadingLimits())  # noqa: B039
_guard: ContextVar[ReadingGuard] = ContextVar("reading_guard", default=_NoGuard())  # noqa: B039


@contextlib.contextmanager
def reading_limits(limits: ReadingLimits, guard: ReadingGuard | None = None) -> Iterator[None]:
    """Within the block, this thread (or asynchronous task) reads videos and pictures within these limits, watched by a guard if one is given."""
    tokens = _limits.set(limits), _guard.set(guard or _guard.get())
    try:
        yield
    finally:
        _limits.reset(tokens[0])
        _guard.reset(tokens[1])


def current_limits() -> ReadingLimits:
    """Those of the block around the caller, or the defaults."""
    return _limits.get()


def current_guard() -> ReadingGuard:
    """Return that of the block around the caller."""
    return _guard.get()
