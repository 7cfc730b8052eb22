"""A memory of tensors by key, bounded in bytes: what was used longest ago goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class ByteBounded(Generic[T]):
    """Remembers values until they are too large together. It may be used by several threads.

    Args:
        most_bytes: of all values; one that is larger by itself is not remembered.
        size: bytes of a value.
    """

    def __init__(self, most_bytes: int, size: Callable[[T], int]):
        self.most_bytes = most_bytes
        self._size = size
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        """Return the value, which is then the last to go; None if there is none."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Remember a value."""
        size = self._size(value)
        if size > self.most_bytes:
            return
        with self._lock:
            if key in self._held:
                self._bytes -= self._size(self._held.pop(key))
            self._held[key] = value
            self._bytes += size
            while self._bytes > self.most_bytes:
                self._bytes -= self._size(self._held.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._held)


def total_bytes(values: Any) -> int:
    """Bytes of all tensors in a mapping or a list, at any depth."""
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, Mapping):
        return sum(map(total_bytes, values.values()))
    return sum(map(total_bytes, values)) if isinstance(values, (list, tuple)) else 0
