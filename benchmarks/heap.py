"""Memory of this process: what is resident, and what of it is in use."""

import ctypes
import os
from pathlib import Path


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class _Allocated(ctypes.Structure):
    """What `mallinfo2` returns."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def in_use() -> int | None:
    """Bytes that the C library has handed out: of its heap, and mapped by themselves. None where it does not tell (glibc 2.33 or newer does)."""
    try:
        told = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    told.restype = _Allocated
    found = told()
    return found.uordblks + found.hblkhd


def give_back() -> None:
    """Let the C library give free pages back to the system, where it can."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
