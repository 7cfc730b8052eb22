"""Flash attention's two kernels in plain torch, and the way to put them where transformers imports the real ones.

The kernels follow the interface of the `flash-attn` package (version 2): `(batch, length, heads, head_dim)`, or sequences laid end to end
with cumulative lengths; fewer key heads than query heads; a causal mask aligned at the bottom right. What the tests do not need is
refused, so that nothing is silently left out.
"""

import importlib.machinery
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch
from helpers.models import BY_NAME
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash_utils

NO_WINDOW = (-1, -1)


@dataclass(frozen=True)
class Call:
    """One call of a kernel: which one, whether causal, and the lengths of its sequences of queries and keys."""

    kernel: str
    causal: bool
    queries: tuple[int, ...]
    keys: tuple[int, ...]


@dataclass
class StandInKernels:
    """The kernels, and what they were called with."""

    calls: list[Call] = field(default_factory=list)

    def flash_attn_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = NO_WINDOW,
    ) -> Tensor:
        """`(B, n, H, d)` queries over `(B, m, G, d)` keys, every row without padding."""
        refuse_the_rest(dropout_p, window_size)
        batch = q.shape[0]
        self.calls.append(Call("func", causal, (q.shape[1],) * batch, (k.shape[1],) * batch))
        return torch.stack([attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = NO_WINDOW,
    ) -> Tensor:
        """`(n, H, d)` queries over `(m, G, d)` keys: sequences laid end to end, the i-th from `cu_seqlens[i]` to `cu_seqlens[i + 1]`."""
        refuse_the_rest(dropout_p, window_size)
        queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        if int(cu_seqlens_q[-1]) != q.shape[0] or int(cu_seqlens_k[-1]) > k.shape[0]:
            raise ValueError(f"cu_seqlens {queries} and {keys} do not fit {q.shape[0]} queries and {k.shape[0]} keys.")
        if max(queries) > int(max_seqlen_q) or max(keys) > int(max_seqlen_k):
            raise ValueError("A sequence is longer than the given maximum.")
        self.calls.append(Call("varlen", causal, tuple(queries), tuple(keys)))
        used = sum(keys)
        parts = zip(q.split(queries), k[:used].split(keys), v[:used].split(keys), strict=True)
        return torch.cat([attend(*part, softmax_scale, causal) for part in parts])

    def of_language_model(self) -> list[Call]:
        """The calls with a causal mask: vision towers attend in both directions."""
        return [call for call in self.calls if call.causal]


def refuse_the_rest(dropout_p: float, window_size: tuple[int, int]) -> None:
    if dropout_p != 0.0 or tuple(window_size) != NO_WINDOW:
        raise ValueError("The stand-in kernels know neither dropout nor windows.")


def attend(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None, causal: bool) -> Tensor:
    """One sequence, `(n, H, d)` over `(m, G, d)`; a query without visible keys gives zeros."""
    n, heads, head_dim = q.shape
    m, groups, _ = k.shape
    k, v = (x.repeat_interleave(heads // groups, dim=1).float() for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q.float(), k) * (head_dim**-0.5 if softmax_scale is None else softmax_scale)
    if causal:
        hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(m - n + 1)
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    return torch.einsum("hnm,mhd->nhd", weights, v).to(q.dtype)


def install(monkeypatch) -> StandInKernels:
    """Make `attn_implementation="flash_attention_2"` of transformers run the stand-in kernels until `monkeypatch` is undone."""
    kernels = StandInKernels()
    package, padding = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.bert_padding")
    package.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None, is_package=True)
    package.flash_attn_func = kernels.flash_attn_func
    package.flash_attn_varlen_func = kernels.flash_attn_varlen_func
    package.flash_attn_with_kvcache = None
    # transformers' own, for flash attention packages that bring none.
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    package.bert_padding = padding
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda *args, **kwargs: True)
    # What is loaded once a process; the original values come back with the undoing.
    remembered = ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn")
    for name in (*remembered, "_unpad_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(flash_utils, name, None)
    return kernels


def skip_unless_stock_runs(family: str) -> None:
    """Skip a test of one prompt on a family whose stock code takes it for packed sequences."""
    if not BY_NAME[family].flash_alone:
        pytest.skip(f"the stock {family} takes a single prompt for packed sequences")


def use_flash_attention(model) -> None:
    """Switch a loaded model: set on the configs, because transformers refuses to load one with flash attention on a CPU."""
    model.config._attn_implementation = "flash_attention_2"
