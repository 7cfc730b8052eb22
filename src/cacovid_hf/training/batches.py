"""In which order, and how often, batches are trained on."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class RepeatedBatches:
    """Each group of batches (one optimiser step's) again and again, for the iterations on it; read once."""

    def __init__(self, loader: DataLoader, group: int, repeats: int):
        self.loader, self.group, self.repeats = loader, group, repeats

    def __len__(self) -> int:
        return len(self.loader) * self.repeats

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        group: list[dict[str, Any]] = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == self.group:
                yield from self._repeated(group)
                group = []
        yield from self._repeated(group)

    def _repeated(self, group: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for iteration in range(self.repeats):
            for slot, batch in enumerate(group):
                yield {**batch, "iteration": iteration, "slot": slot}
