"""What a run shows on stderr while it measures: a bar on a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between two lines.
EVERY = 10.0
ItemT = TypeVar("ItemT")


def said(words: str, rank: int = 0) -> None:
    """Print a line about what begins now, by the first process alone."""
    if not rank:
        print(f"{words} ...", file=sys.stderr, flush=True)


def shown(items: Sequence[ItemT], description: str, rank: int = 0) -> Iterator[ItemT]:
    """Yield the items, and show how far they are.

    Args:
        items: this process's share.
        description: what they are.
        rank: of this process; only the first shows anything.
    """
    console = Console(stderr=True)
    if rank or not items:
        yield from items
    elif console.is_terminal and sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            yield from progress.track(items, description=description)
    else:
        yield from _by_line(items, description)


def _by_line(items: Sequence[ItemT], description: str) -> Iterator[ItemT]:
    said(f"{description}: {len(items)} to go")
    begun = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= EVERY:
            last = now
            left = (now - begun) / done * (len(items) - done)
            said(f"{description}: {done} of {len(items)}, about {_duration(left)} left")
        yield item


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
