"""What a language model receives of each token beside its embedding, handed on while a compressed prompt runs through stock code.

A stock `forward` or `generate` that is given embeddings calls its language model with these alone. A pre-hook there adds the rest, for the columns of the
prompt that a forward covers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .._compat import CACHE
from ..utils.hooks import Hook, attached


@contextmanager
def handed_over(
    language_model: nn.Module, extra: Tensor | None, arguments: Callable[[Tensor], dict[str, Any]]
) -> Iterator[None]:
    """Within the block, forwards of this thread that prefill a prompt receive its `extra`.

    Args:
        language_model: that the prompt runs through.
        extra: `(B, K, E)` of the prompt; rows may come repeated next to each other (beams). None: nothing is handed over.
        arguments: makes the language model's keyword arguments for the `(R, n, E)` of one forward; words behind the prompt have zeros.
    """
    if extra is None:
        yield
        return
    with attached(Hook(language_model, pre=_HandOver(extra, arguments))):
        yield


class _HandOver:
    """The hook of one call, and how far its prompt has got."""

    def __init__(self, extra: Tensor, arguments: Callable[[Tensor], dict[str, Any]]):
        self.extra, self.arguments = extra, arguments
        # Columns are counted, because a static cache would have to be read from the device at every step.
        self.cache: Any = None
        self.done = 0

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        embeds, cache = kwargs["inputs_embeds"], kwargs.get(CACHE)
        rows, length = self.extra.shape[:2]
        start = 0
        if cache is not None:
            if self.cache is None:
                self.cache, self.done = cache, int(cache.get_seq_length())
            if cache is not self.cache:
                return None  # another prompt, of a caller within this call
            start, self.done = self.done, self.done + embeds.shape[1]
        if start >= length:
            return None
        part = self.extra[:, start : start + embeds.shape[1]].to(embeds)
        part = nn.functional.pad(part, (0, 0, 0, embeds.shape[1] - part.shape[1]))
        part = part.repeat_interleave(embeds.shape[0] // rows, dim=0)
        return args, {**kwargs, **self.arguments(part)}
