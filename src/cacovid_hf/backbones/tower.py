"""What a vision tower attended to, for the methods that ask: read beside the stock forward, which is not told to return its attention maps."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..utils.hooks import Hook, attached


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """Within the block, outputs of `modules` in this thread are noted, call by call, under the given names.

    A module's keyword arguments are noted too, under its name and `.kwargs`.
    """
    notes: dict[str, list[Any]] = {key: [] for name in modules for key in (name, f"{name}.kwargs")}

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        notes[name].append(output)
        notes[f"{name}.kwargs"].append(kwargs)

    with attached(*(Hook(module, post=partial(note, name)) for name, module in modules.items())):
        yield notes


def token_means(values: Tensor, grid: tuple[int, int, int], sides: tuple[int, int]) -> Tensor:
    """Patches `(T, S, C)` in raster order to their means over the `sides` (height, width) of each token, `(T, P, C)`."""
    _, height, width = grid
    return values.unflatten(1, (height, sides[0], width, sides[1])).mean((2, 4)).flatten(1, 2)
