"""Where the C library takes memory from. Nothing heavy is imported here: it is settled before other threads begin."""

import ctypes
import os
import sys

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def share_one_heap() -> None:
    """Have all threads take memory from one heap.

    With glibc, threads have up to eight heaps per core, and what one of them frees is of no use to the others: a server that reads each request in
    another thread grows for thousands of requests. Nothing changes where `MALLOC_ARENA_MAX` is set, or where the C library is another one.
    """
    if sys.platform != "linux" or "MALLOC_ARENA_MAX" in os.environ:
        return
    settle = getattr(ctypes.CDLL(None), "mallopt", None)
    if settle is not None:
        settle(_ARENA_MAX, 1)
