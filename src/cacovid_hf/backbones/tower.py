"""What a vision tower attended to, for the methods that ask: read beside the stock forward, which is not told to return its attention maps."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[Any]]]:
    """Within the block, outputs of `modules` in this thread are noted, call by call, under the given names.

    A module's keyword arguments are noted too, under its name and `.kwargs`. The hooks are gone at the end of the block, whatever happens.
    """
    caller = threading.get_ident()
    notes: dict[str, list[Any]] = {key: [] for name in modules for key in (name, f"{name}.kwargs")}

    def noting(name: str) -> Callable[..., None]:
        # Another thread may have picked the hook up just before its removal; it then comes without keyword arguments.
        def note(module: nn.Module, args: tuple, kwargs: Any, output: Any = None) -> None:
            if threading.get_ident() == caller:
                notes[name].append(output)
                notes[f"{name}.kwargs"].append(kwargs)

        return note

    with ExitStack() as stack:
        for name, module in modules.items():
            handle = module.register_forward_hook(noting(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield notes
