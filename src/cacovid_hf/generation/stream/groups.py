"""The memory of a stream: groups of tokens in the order of time, and what makes room for the next one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Held(Protocol):
    """A group of tokens. It never changes, so that a question may read it while the stream goes on."""

    @property
    def num_bytes(self) -> int:
        """That its tensors take."""
        ...


GroupT = TypeVar("GroupT", bound=Held)


@dataclass(frozen=True)
class Rule(Generic[GroupT]):
    """How two neighbouring groups become one.

    Attributes:
        loss: of two neighbours, the earlier first: what their merger costs, smaller = rather merged.
        merged: what stands in their place.
    """

    loss: Callable[[GroupT, GroupT], float]
    merged: Callable[[GroupT, GroupT], GroupT]


@dataclass
class Groups(Generic[GroupT]):
    """At most so many groups.

    Args:
        capacity: how many groups there may be, at least 1.
        rule: by which two become one; None: the oldest leaves.

    Attributes:
        items: the groups, oldest first; a list of its own after every change, so that whoever took it has a snapshot.
        losses: of every two neighbours, by the rule.
        made_room: how often a group left or two became one.
    """

    capacity: int
    rule: Rule[GroupT] | None
    items: list[GroupT] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    made_room: int = 0

    def add(self, group: GroupT) -> None:
        """Store a group behind the others; with a full memory, room is made first.

        A single group that is all the memory holds is replaced.
        """
        items, losses, made_room = list(self.items), list(self.losses), self.made_room
        if self.rule is not None and items:
            losses.append(self.rule.loss(items[-1], group))
        items.append(group)
        if len(items) > self.capacity:
            made_room += 1
            if self.rule is None or self.capacity == 1:
                del items[0]
                del losses[:1]
            else:
                self._merge(self.rule, items, losses)
        self.items, self.losses, self.made_room = items, losses, made_room

    def _merge(self, rule: Rule[GroupT], items: list[GroupT], losses: list[float]) -> None:
        """Join the two neighbours with the smallest loss; of equal losses the older ones."""
        place = min(range(len(losses)), key=losses.__getitem__)
        items[place : place + 2] = [rule.merged(items[place], items[place + 1])]
        del losses[place]
        for first in (place - 1, place):
            if 0 <= first < len(losses):
                losses[first] = rule.loss(items[first], items[first + 1])

    def restore(self, items: Sequence[GroupT], made_room: int) -> None:
        """Take groups of a saved memory, which may have had more room than this one."""
        for item in items:
            self.add(item)
        self.made_room += made_room


class Memory(Protocol):
    """What a stream stores its steps in."""

    @property
    def groups(self) -> Groups[Any]:
        """What is held."""
        ...

    @property
    def num_bytes(self) -> int:
        """That it takes now."""
        ...

    def stored(self, step: Any, groups: Sequence[Any]) -> Any:
        """Return a step as a group behind those of a snapshot, without changing anything."""
        ...

    def group_of(self, parts: dict[str, Tensor], device: torch.device | str) -> Any:
        """Return a group of its tensors by name, on a device."""
        ...

    def answer(
        self, words: Any, groups: Sequence[Any], num_tokens: int, compressor: Any, arguments: dict[str, Any]
    ) -> Tensor:
        """Return the new tokens `(sequences, n)` of a question about a snapshot."""
        ...
