"""Work in a thread of its own, whose results are followed while they grow."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

_END = object()


def followed(work: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """Run `work(tell)` in a thread and give what it tells; what it raises is raised here.

    The work goes on where nobody follows it any more: it ends by its own interrupt.
    """
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(told.put)
        except BaseException as error:  # raised in whoever follows
            told.put(_Raised(error))
        finally:
            told.put(_END)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), name="asking", daemon=True).start()
    while (item := told.get()) is not _END:
        if isinstance(item, _Raised):
            raise item.error
        yield item


class _Raised:
    def __init__(self, error: BaseException):
        self.error = error
