"""Dropping video tokens between the layers of a stock language model: hooks for one call, shared by the methods that work there.

A cut narrows the hidden states for good: the layers behind it compute, and cache, the tokens that are left, at their original positions.
Layers before it keep all, so that the cache's first layer has the length that stock generation counts by. What stock code adds behind its first layers
(DeepStack) is withheld from it and added here, of the tokens that are left. The hooks act in the calling thread and on the call's own cache alone, and are
gone when the call returns or raises.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..._compat import CACHE, causal_mask
from ...backbones.family import Family
from ...backbones.layer_kinds import has_windows, keeps_states
from ...policies.stock_parts import check_readable, mlp_ends, stock_keys, stock_queries
from ...prompt import CompressedPrompt, LayerRecord, VideoSelection, ordered_places
from ...ratio import AutoBudget, numbers
from ...utils.hooks import Hook, attached
from ...utils.tensors import full_precision


class Cut(NamedTuple):
    """What is left of one video.

    Attributes:
        keep: bool `(n,)` over the tokens that it had.
        num_kept: how many are true; known on the CPU, so that the hooks read nothing back.
        states: `(n, D)`, the hidden states that stand at the kept tokens from here on; None: as they were.
    """

    keep: Tensor
    num_kept: int
    states: Tensor | None = None


class CutRule(ABC):
    """When and what a method cuts; one object per call.

    Example: before layer 2, keep the half of each video that the last token attended to most in layer 1.

    ```python
    class Half(CutRule):
        point = "input"

        def reads_attention(self, layer):
            return layer == 1

        def cut(self, layer, video, states, tokens, attention):
            if layer != 2:
                return None
            count = max(1, len(tokens) // 2)
            return Cut(top_tokens(attention, count), count)
    ```

    ```
    layer                      0   1    2    3
    tokens of a video of 100   100 100  50   50
    ```

    Attributes:
        point: where in a layer it cuts: `"input"`, before a layer other than the first, or `"mlp"`, between a layer's attention and its MLP.
    """

    point: Literal["input", "mlp"]

    @abstractmethod
    def reads_attention(self, layer: int) -> bool:
        """Whether the last token's attention in this layer is needed by a later `cut` of this call."""

    @abstractmethod
    def cut(self, layer: int, video: int, states: Tensor, tokens: Tensor, attention: Tensor | None) -> Cut | None:
        """Decide on one video.

        Args:
            layer: index from 0.
            video: its number in the prompt.
            states: `(n, D)`, its hidden states at `point`.
            tokens: int64 `(n,)`, ascending: which of its tokens, in raster order, are still there.
            attention: float32 `(n,)`, how the prompt's last token attended to them in the last layer that `reads_attention` named, mean over the heads.

        Returns:
            None to leave it as it is.
        """


def attention_rows(attention: Any, states: Tensor, cos: Tensor, sin: Tensor, queries: Tensor) -> Tensor:
    """Softmaxed causal attention of a few queries, beside whatever kernel the layer uses.

    In single precision, as those kernels add up: products of a query and a key of Qwen2 leave float16, and bfloat16 rounds them to whole numbers.

    Args:
        attention: a decoder layer's attention module, of a language model that `check_readable` knows.
        states: `(n, D)`, its input, one prompt without padding.
        cos: `(n, E)`, its rotary embedding.
        sin: likewise.
        queries: int64 `(m,)`, places among the `n`.

    Returns:
        float32 `(m, n)`, mean over the heads; each row adds up to one.
    """
    query = stock_queries(attention, states[queries], cos[queries], sin[queries])  # (H, m, d)
    key = stock_keys(attention, states, cos, sin)  # (H / groups, n, d)
    query = query.float().unflatten(0, (len(key), -1)) * attention.scaling
    with full_precision(states.device):
        logits = query @ key.float().transpose(1, 2)[:, None]  # (kv, groups, m, n)
    unseen = torch.arange(len(states), device=queries.device) > queries[:, None]
    return logits.masked_fill(unseen, -torch.inf).softmax(dim=-1).mean(dim=(0, 1))


class _Cutter:
    """The hooks of one call and what they know."""

    def __init__(self, model: Any, prompt: CompressedPrompt, rule: CutRule):
        self.decoder: Any = model.backbone.get_decoder()
        self.rule, self.withheld = rule, model.family.extra_names
        # (B, K, D) for each of the first layers.
        self.added = model.family.behind_layers(model.backbone.config, prompt.extra)
        self.rows = [video.row for video in prompt.videos]
        self.prompt_places = prompt.kept_indices
        self.record = LayerRecord([], prompt.kept_indices)
        self.positions = [video.span.positions for video in prompt.videos]
        self.tokens = [_kept_tokens(video) for video in prompt.videos]
        # Of the forward that is running: whether it is ours, whether it is the prefill.
        self.ours = self.prefilling = False
        self.cache: Any = None
        # Places in the prompt of what is left, (B, W), and their columns in it; -1 at padding.
        self.places = self.columns = self.prompt_places
        self.lengths: list[int] = []
        self.attention: Tensor | None = None
        self.pending: tuple[Tensor, Tensor] | None = None
        # One entry a layer that was prefilled: the columns that it saw.
        self.seen: list[Tensor] = []
        self.arguments: dict[str, Any] = {}

    # ------------------------------------------------------------ hooks

    def hooks(self) -> list[Hook]:
        layers = self.decoder.layers
        hooks = [Hook(self.decoder, pre=self.enter_decoder)]
        for index, (layer, added) in enumerate(zip(layers, self.added, strict=False)):
            hooks.append(Hook(layer, post=partial(self.leave_layer, index, added)))
        for index, layer in enumerate(layers):
            hooks.append(Hook(layer, pre=partial(self.enter_layer, index)))
            hooks.append(Hook(layer.self_attn, pre=partial(self.enter_attention, index)))
            # What the last layer's MLP drops, no layer is spared.
            if self.rule.point == "mlp" and index + 1 < len(layers):
                first, last = mlp_ends(layer)
                hooks.append(Hook(first, pre=partial(self.enter_mlp_norm, index)))
                hooks.append(Hook(last, post=partial(self.leave_mlp, index)))
        return hooks

    def enter_decoder(
        self, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Withhold from the prefill, which is the first forward, what was handed over to it and stock code would add at columns that are gone by then."""
        if self.seen:
            return None
        return args, {name: value for name, value in kwargs.items() if name not in self.withheld}

    def leave_layer(
        self, index: int, added: Tensor, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Add what belongs to the tokens that this layer saw."""
        if not (self.ours and self.prefilling):
            return None
        columns = self.seen[index].to(added.device)
        of_tokens = _gather(added, columns).masked_fill((columns < 0)[..., None], 0).to(output)
        return output + of_tokens.repeat_interleave(len(output) // len(of_tokens), dim=0)

    def enter_layer(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        if index == 0:
            self._enter_model(args[0], kwargs.get(CACHE))
        if not self.ours:
            return None
        states, kwargs = args[0], dict(kwargs)
        if self.prefilling:
            states = self._take_pending(states)
            if self.rule.point == "input" and index > 0:
                states, local = self._cut(index, states)
                if local is not None:
                    states = _gather(states, local)
            self.seen.append(self.columns)
            self.record.layer_tokens.append([len(tokens) for tokens in self.tokens])
            self.record.kept_indices = self.places
        if self.seen[index] is self.seen[0]:
            return None  # nothing was cut before this layer
        if index == 0 or self.seen[index] is not self.seen[index - 1]:
            self.arguments = self._layer_arguments(index, states, kwargs)
        return (states, *args[1:]), {**kwargs, **self.arguments}

    def enter_attention(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not (self.ours and self.prefilling and self.rule.reads_attention(index)):
            return
        states = args[0] if args else kwargs["hidden_states"]
        repeats = states.shape[0] // self.columns.shape[0]
        attended = torch.zeros(self.columns.shape, dtype=torch.float32, device=self.columns.device)
        for row in sorted(set(self.rows)):
            first = states.shape[1] - self.lengths[row]
            cos, sin = (_row(part, row * repeats)[first:] for part in kwargs["position_embeddings"])
            last = torch.tensor([len(cos) - 1], device=states.device)
            with torch.no_grad():
                found = attention_rows(module, states[row * repeats, first:], cos, sin, last)[0]
            attended[row, first:] = found.to(attended.device)
        self.attention = attended

    def enter_mlp_norm(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Cut before the MLP: it computes what is left; the rest is dropped behind the residual connection."""
        if not (self.ours and self.prefilling):
            return None
        states, local = self._cut(index, args[0])
        if local is None:
            return None
        reduced = _gather(states, local)
        # The residual connection adds the states of before: what merging changed is put into the MLP's output.
        self.pending = local, reduced - _gather(args[0], local)
        return (reduced, *args[1:]), kwargs

    def leave_mlp(
        self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if not (self.ours and self.prefilling) or self.pending is None:
            return None
        local, change = self.pending
        local = local.repeat_interleave(output.shape[0] // local.shape[0], dim=0).to(output.device)
        rest = (output + change).masked_fill((local < 0)[..., None], 0)
        whole = output.new_zeros(output.shape[0], self.seen[index].shape[1], output.shape[2])
        return whole.scatter_add(1, local.clamp(min=0)[..., None].expand_as(rest), rest)

    # ------------------------------------------------------------ steps

    def _enter_model(self, states: Tensor, cache: Any) -> None:
        """Tell the prefill, which is the first forward of this thread, the steps that follow, and forwards that are not ours."""
        first = not self.seen
        if first:
            if states.shape[1] != self.prompt_places.shape[1] or states.shape[0] % self.prompt_places.shape[0]:
                raise RuntimeError(
                    f"The language model was called with {tuple(states.shape[:2])} tokens, the prompt has {tuple(self.prompt_places.shape)}: "
                    "this version of transformers is not supported by methods that work inside the language model."
                )
            self.cache = cache
            device = states.device
            self.places = self.prompt_places.to(device)
            is_token = self.places >= 0
            self.columns = torch.where(is_token, torch.arange(states.shape[1], device=device), -1)
            self.lengths = is_token.sum(dim=1).tolist()
            self.tokens = [tokens.to(device) for tokens in self.tokens]
        self.prefilling, self.ours = first, first or (cache is not None and cache is self.cache)

    def _take_pending(self, states: Tensor) -> Tensor:
        if self.pending is None:
            return states
        (local, _), self.pending = self.pending, None
        return _gather(states, local)

    def _cut(self, index: int, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ask the rule about every video; returns the states, merged ones in place, and `(B, W')`, where what is left stands among them."""
        repeats = states.shape[0] // self.columns.shape[0]
        stays, merged = self.columns >= 0, states
        found = False
        for number, (row, tokens) in enumerate(zip(self.rows, self.tokens, strict=True)):
            places = self.positions[number].to(tokens.device)[tokens]
            local = torch.searchsorted(self.places[row].contiguous(), places).to(states.device)
            attention = None if self.attention is None else self.attention.to(states.device)[row, local]
            own = states[row * repeats, local].detach()
            cut = self.rule.cut(index, number, own, tokens.to(states.device), attention)
            if cut is None:
                continue
            found = True
            stays[row].index_copy_(0, local.to(stays.device), cut.keep.to(stays.device))
            self.lengths[row] -= len(tokens) - cut.num_kept
            self.tokens[number] = tokens[ordered_places(cut.keep[None], cut.num_kept)[0].to(tokens.device)]
            if cut.states is not None:
                merged = merged.clone() if merged is states else merged
                merged[row * repeats : (row + 1) * repeats, local] = cut.states.to(merged)
        if not found:
            return states, None
        local = ordered_places(stays, max(self.lengths))
        self.columns = _follow(self.columns, local)
        self.places = _follow(self.places, local)
        self.attention = None if self.attention is None else self.attention.gather(1, local.clamp(min=0))
        return merged, local

    def _layer_arguments(self, index: int, states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Mask, rotary embedding and positions for what this layer sees."""
        columns = self.seen[index].to(states.device)
        repeats = states.shape[0] // columns.shape[0]
        valid = (columns >= 0).repeat_interleave(repeats, dim=0)
        if not self.prefilling:
            total = self.cache.get_seq_length(index) + states.shape[1]
            valid = torch.cat([valid, valid.new_ones(len(valid), total - valid.shape[1])], dim=1)
        changed: dict[str, Any] = {
            "attention_mask": causal_mask(
                self.decoder.config, states, valid, None if self.prefilling else self.cache, index
            )
        }
        if self.prefilling:
            changed["position_embeddings"] = tuple(
                _gather(part.expand(len(states), -1, -1), columns) for part in kwargs["position_embeddings"]
            )
            # Read by flash attention alone, which takes gaps for packed sequences.
            changed["position_ids"] = (valid.long().cumsum(1) - 1).clamp(min=0)
        return changed


@contextmanager
def cut_inside(model: Any, prompt: CompressedPrompt, rule: CutRule) -> Iterator[LayerRecord]:
    """Let `rule` cut the videos of `prompt` while the language model runs, in this thread and until the context is left.

    Args:
        model: the wrapped one, a `CompressibleModel`.
        prompt: what enters it; rows may be repeated next to each other (beams), and share their cuts.
        rule: of this call.

    Yields:
        What each layer saw, once the prefill is done.

    Raises:
        ValueError: a language model with sliding attention, whose windows would count dropped tokens or not; one with layers of linear
            attention, or of an unknown kind.
    """
    decoder: Any = model.backbone.get_decoder()
    if "sliding_attention" in (getattr(decoder.config, "layer_types", None) or ()):
        raise ValueError(
            "The language model has layers of sliding attention, where dropping tokens between layers has not been tried: use a compressor that "
            "drops them before the language model."
        )
    check_readable(decoder.config, range(len(decoder.layers)))
    cutter = _Cutter(model, prompt, rule)
    with attached(*cutter.hooks()):
        yield cutter.record


def check_cuttable(method: str, family: Family, config: Any) -> None:
    """Refuse language models whose layers cannot be given fewer tokens than the first one.

    Args:
        method: its name.
        family: of the backbone.
        config: of the backbone.

    Raises:
        ValueError: layers that keep one state of all tokens or have windows, or that receive more of a token than what is added behind them.
    """
    if keeps_states(config):
        reason = "keeps states of linear attention"
    elif has_windows(config):
        reason = "has layers of sliding attention"
    elif family.looked_up or (family.extra_width(config) and type(family).behind_layers is Family.behind_layers):
        reason = "receives more of a token than its embedding"
    else:
        return
    raise ValueError(
        f"Compressor {method!r} drops tokens inside the language model, and that of {config.model_type} {reason}: use a compressor that drops them "
        "before the language model."
    )


def plain_ratios(method: str, retention_ratios: Sequence[float | AutoBudget]) -> tuple[float, ...]:
    """Return the ratios of a call as numbers; a `ValueError` if scores are to decide one, which is settled before the language model."""
    refusal = f"retention_ratio='auto' does not work with compressor {method!r}, which drops tokens inside the language model: give a number."
    return numbers(retention_ratios, refusal)


def _kept_tokens(video: VideoSelection) -> Tensor:
    """int64 `(n,)`: which tokens of a video are in the prompt, in raster order."""
    return video.keep.flatten().nonzero()[:, 0]


def _gather(states: Tensor, places: Tensor) -> Tensor:
    """`(B * r, W, D)` states at `(B, W')` places, shared by `r` neighbouring rows; the first ones at padding (-1)."""
    places = places.clamp(min=0).repeat_interleave(states.shape[0] // places.shape[0], dim=0).to(states.device)
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))


def _follow(values: Tensor, local: Tensor) -> Tensor:
    """`(B, W)` values at `(B, W')` places, -1 at padding."""
    return values.gather(1, local.clamp(min=0)).masked_fill(local < 0, -1)


def _row(part: Tensor, row: int) -> Tensor:
    return part[row] if len(part) > 1 else part[0]
