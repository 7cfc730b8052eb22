"""What a vision tower attended to, for the methods that ask: read beside the stock forward, which is not told to return its attention maps."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TowerAttention:
    """Queries and keys of one video in the tower layer that its features come from (rotary embedding applied, where the tower has one).

    Attributes:
        queries: `(T, H, S, d)`, `H` heads and `S` patches a frame.
        keys: `(T, H, S, d)`.
        pool: `(T, S, C)` of patches to `(T, P, C)` of tokens, as the features themselves are brought down to tokens.
    """

    queries: Tensor
    keys: Tensor
    pool: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def received(self) -> Tensor:
        """Attention that each token receives from its frame's patches, mean over heads and queries: float32 `(T, P)`, larger = more.

        Frame by frame, since all maps of a video at once would not fit.
        """
        scale = self.queries.shape[-1] ** -0.5
        rows = [
            torch.softmax((queries * scale) @ keys.mT, dim=-1, dtype=torch.float32).mean((0, 1))
            for queries, keys in zip(self.queries, self.keys, strict=True)
        ]
        return self.pool(torch.stack(rows)[..., None])[..., 0]

    @torch.no_grad()
    def of_mean_query(self) -> Tensor:
        """Attention of the frame's mean query to the tokens' pooled keys, mean over heads: float32 `(T, P)`, rows sum to 1."""
        frames, heads, _, width = self.keys.shape
        keys = self.pool(self.keys.float().transpose(1, 2).flatten(2)).view(frames, -1, heads, width)
        query = self.queries.float().mean(2)
        weights = torch.einsum("thd,tphd->thp", query, keys) * width**-0.5
        return weights.softmax(-1).mean(1)

    @torch.no_grad()
    def mean_keys(self) -> Tensor:
        """The tokens' keys, mean over heads: float32 `(T, P, d)`."""
        return self.pool(self.keys.float().mean(1))


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
