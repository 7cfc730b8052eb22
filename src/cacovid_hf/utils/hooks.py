"""Hooks on modules for one block of one thread."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hook(NamedTuple):
    """What happens around the forward of one module.

    Attributes:
        module: whose forward.
        pre: called as `pre(module, args, kwargs)` before it; returns None, or the `(args, kwargs)` to go on with.
        post: called as `post(module, args, kwargs, output)` behind it; returns None, or another output.
        first: whether `pre` comes before the hooks that are there already.
    """

    module: nn.Module
    pre: Callable[[nn.Module, tuple, dict[str, Any]], Any] | None = None
    post: Callable[[nn.Module, tuple, dict[str, Any], Any], Any] | None = None
    first: bool = False


@contextmanager
def attached(*hooks: Hook) -> Iterator[None]:
    """Within the block, the hooks act on forwards of the calling thread; behind it they are gone, whatever ended it.

    Threads may share the modules. A thread that picked a hook up just before its removal gets a hook that does nothing. So does everybody,
    where an interrupt came between a registration and the note of its handle.
    """
    caller: int | None = threading.get_ident()
    handles: list[RemovableHandle] = []

    def attach(hook: Hook) -> None:
        # In the race with a removal, hooks are called without keyword arguments.
        def before(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
            if threading.get_ident() == caller and hook.pre is not None and kwargs is not None:
                return hook.pre(module, args, kwargs)
            return None

        def behind(module: nn.Module, args: tuple, kwargs: Any, output: Any = None) -> Any:
            if threading.get_ident() == caller and hook.post is not None:
                return hook.post(module, args, kwargs, output)
            return None

        if hook.pre is not None:
            handles.append(hook.module.register_forward_pre_hook(before, with_kwargs=True, prepend=hook.first))
        if hook.post is not None:
            handles.append(hook.module.register_forward_hook(behind, with_kwargs=True))

    try:
        for hook in hooks:
            attach(hook)
        yield
    finally:
        caller = None
        for handle in handles:
            handle.remove()
