"""A multimodal prompt: where its videos are, its embeddings, and the shorter prompt that a keep mask leaves of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .utils.tensors import full_precision, to_device_async


def _no_places() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class VideoSpan:
    """The scored tokens of one video in a prompt.

    Attributes:
        row: the batch row that the video stands in.
        grid: `(T, h, w)`, frames (temporal grid steps) and tokens a frame; `P = h * w`.
        positions: int64 `(T * P,)` on the CPU, places in the caller's prompt, in raster order (t, y, x).
        word_places: int64 `(W,)` on the CPU, places of the words around its frames (times, marks), which are not the question.
        word_frames: int64 `(W,)`, the frame of each.
    """

    row: int
    grid: tuple[int, int, int]
    positions: Tensor
    word_places: Tensor = field(default_factory=_no_places)
    word_frames: Tensor = field(default_factory=_no_places)

    def moved(self, places: int, rows: int = 0) -> "VideoSpan":
        """Return the span in a prompt that begins so many places earlier, so many rows down."""
        return replace(
            self, row=self.row + rows, positions=self.positions + places, word_places=self.word_places + places
        )

    @property
    def num_frames(self) -> int:
        """`T`."""
        return self.grid[0]

    @property
    def tokens_per_frame(self) -> int:
        """`P = h * w`."""
        return self.grid[1] * self.grid[2]

    @property
    def num_tokens(self) -> int:
        """`N = T * P`."""
        return self.positions.numel()


@dataclass(frozen=True)
class EncodedVideos:
    """Videos behind the vision tower, to be asked about in any number of prompts (see `CaCoVidForConditionalGeneration.encode_videos`).

    Attributes:
        grids: `(T, h, w)` of every video.
        features: of every video `(T * P + trailing, D + E)`, its tokens in raster order and what the family puts behind them. Behind the `D`
            numbers of its embedding stand the `E` that the language model receives beside it (see `Prompt.extra`).
        inputs: what else the model must know of the videos, one row a video (Qwen2.5-VL: `video_grid_thw`, `second_per_grid_ts`).
        tower: what the vision tower attended to, one per video; None unless it was asked for.
        metadata: the `VideoMetadata` of each, which a processor writes the words around its frames by; None: not known.
    """

    grids: tuple[tuple[int, int, int], ...]
    features: tuple[Tensor, ...]
    inputs: dict[str, Tensor]
    tower: "tuple[ReducedAttention, ...] | None" = None
    metadata: tuple[Any, ...] | None = None

    def __len__(self) -> int:
        return len(self.grids)

    @classmethod
    def joined(cls, parts: "list[EncodedVideos]") -> "EncodedVideos":
        """Return the videos of all parts, in order."""
        if not parts:
            raise ValueError("There is no video: give at least one.")
        return cls(
            tuple(grid for part in parts for grid in part.grids),
            tuple(features for part in parts for features in part.features),
            {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs},
            # Of all or of none.
            None if any(part.tower is None for part in parts) else tuple(t for part in parts for t in part.tower or ()),
            None
            if any(part.metadata is None for part in parts)
            else tuple(one for part in parts for one in part.metadata or ()),
        )

    def take(self, videos: list[int]) -> "EncodedVideos":
        """Return these videos alone, by number."""
        return EncodedVideos(
            tuple(self.grids[video] for video in videos),
            tuple(self.features[video] for video in videos),
            {name: rows[videos] for name, rows in self.inputs.items()},
            None if self.tower is None else tuple(self.tower[video] for video in videos),
            None if self.metadata is None else tuple(self.metadata[video] for video in videos),
        )


@dataclass(frozen=True)
class PromptLayout:
    """What is where in a batch of prompts; known on the CPU before anything is computed, so that nothing is read back later.

    Attributes:
        valid: bool `(B, L)`, false at padding.
        text: bool `(B, L)`, the tokens that are neither padding nor placeholders of images or videos, nor words around a video's frames.
        videos: every video, in the order of its placeholders (row by row).
        valid_places: of every row, the places that are valid, int64.
        text_places: of every row, the places of its text, int64.
    """

    valid: Tensor
    text: Tensor
    videos: tuple[VideoSpan, ...]
    valid_places: tuple[Tensor, ...] = field(init=False, repr=False)
    text_places: tuple[Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self):
        for name in ("valid", "text"):
            places = tuple(row.nonzero()[:, 0] for row in getattr(self, name))
            object.__setattr__(self, f"{name}_places", places)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the language model receives it.

    Attributes:
        layout: what is where.
        input_ids: `(B, L)`.
        inputs_embeds: `(B, L, D)`, text and vision embedded.
        position_ids: `(B, L)`, or `(R, B, L)` for a rotary embedding with several rows (M-RoPE: text, time, height, width).
        tower: what the vision tower attended to, one per video; None unless it was asked for.
        extra: `(B, L, E)`, what the language model receives of each token beside its embedding, zeros of words; None: nothing.
        is_plain: whether embeddings, mask and positions are all that stock code needs of what is left of it.
    """

    layout: PromptLayout
    input_ids: Tensor
    inputs_embeds: Tensor
    position_ids: Tensor
    tower: "tuple[TowerAttention | ReducedAttention, ...] | None" = None
    extra: Tensor | None = None
    is_plain: bool = True

    @property
    def places(self) -> Tensor:
        """Int64 `(B, L)`, the place of every token, -1 at padding."""
        valid = to_device_async(self.layout.valid, self.inputs_embeds.device)
        places = torch.arange(valid.shape[1], device=valid.device).expand(valid.shape)
        return places.masked_fill(~valid, -1)

    def video_features(self, span: VideoSpan) -> Tensor:
        """`(T, P, D)`, the tokens of a video as the language model would receive them."""
        tokens = self.inputs_embeds[span.row].index_select(
            0, to_device_async(span.positions, self.inputs_embeds.device)
        )
        return tokens.unflatten(0, (span.num_frames, span.tokens_per_frame))

    def tower_attention(self, span: VideoSpan) -> "TowerAttention | ReducedAttention":
        """Return what the vision tower attended to in a video of this prompt."""
        if self.tower is None:
            raise ValueError(
                "The prompt was embedded without its vision tower's attention: set `reads_tower = True` on the method, and use `model.compress`, or `model.embed(..., with_tower_attention=True)`."
            )
        return self.tower[next(i for i, video in enumerate(self.layout.videos) if video is span)]


@dataclass(frozen=True)
class VideoSelection:
    """What was kept of one video, and why.

    Attributes:
        span: the video's place and grid in the caller's prompt.
        keep: bool `(T, P)`.
        token_scores: float32 `(T, P)`, larger = keep; None for methods without scores.
        frame_scores: float32 `(T,)`; None for methods without scores.
    """

    span: VideoSpan
    keep: Tensor
    token_scores: Tensor | None = None
    frame_scores: Tensor | None = None

    @property
    def row(self) -> int:
        """The batch row that the video stands in."""
        return self.span.row

    @property
    def grid(self) -> tuple[int, int, int]:
        """`(T, h, w)`."""
        return self.span.grid


@dataclass(frozen=True)
class CompressedPrompt:
    """The prompt that is left after dropping video tokens, rows left-padded to the longest; what the backbone's `generate` takes.

    Attributes:
        input_ids: `(B, K)`.
        inputs_embeds: `(B, K, D)`, zero at padding.
        attention_mask: int64 `(B, K)`, 0 at padding.
        position_ids: `(B, K)` or `(R, B, K)`, the kept tokens' **original** positions; row 0 of several (text positions) counts
            the kept tokens without gaps, because jumps in it are read as packed sequences.
        kept_indices: int64 `(B, K)`, the kept places of the caller's prompt in order, -1 at padding.
        videos: one entry a video.
        extra: `(B, K, E)`, what the language model receives of each token beside its embedding; None: nothing.
        is_plain: whether embeddings, mask and positions are all that stock code needs.
    """

    input_ids: Tensor
    inputs_embeds: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    kept_indices: Tensor
    videos: tuple[VideoSelection, ...]
    extra: Tensor | None = None
    is_plain: bool = True

    def rows(self, rows: "slice | Tensor") -> "CompressedPrompt":
        """Return some of the prompts, by a slice or an int64 tensor of their numbers; `videos` stay those of all."""
        return replace(
            self,
            input_ids=self.input_ids[rows],
            inputs_embeds=self.inputs_embeds[rows],
            attention_mask=self.attention_mask[rows],
            position_ids=self.position_ids[..., rows, :],
            kept_indices=self.kept_indices[rows],
            extra=None if self.extra is None else self.extra[rows],
        )

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the four tensors that the backbone takes, by name.

        Raises:
            ValueError: the language model receives more than the backbone takes, or has windows, which would count the kept tokens.
        """
        if not self.is_plain:
            raise ValueError(
                "The language model receives more than embeddings, mask and positions, which the backbone's own generate would leave out: call generate "
                "of the wrapped model."
            )
        return {
            "input_ids": self.input_ids,
            "inputs_embeds": self.inputs_embeds,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


@dataclass
class LayerRecord:
    """What a method left to each layer of the language model, filled during the prefill.

    Attributes:
        layer_tokens: for each layer, how many tokens of each video it saw.
        kept_indices: `(B, K)`, the places in the caller's prompt of what the last layer saw, -1 at padding.
    """

    layer_tokens: list[list[int]]
    kept_indices: Tensor

    def left_of(self, selection: VideoSelection) -> VideoSelection:
        """Return what the last layer saw of a video."""
        places = selection.span.positions
        seen = torch.isin(places, self.kept_indices[selection.row].to(places.device))
        return replace(selection, keep=seen.view_as(selection.keep))


def stack_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """One batch of several, in order, rows left-padded to the longest; at least one."""
    if len(prompts) == 1:
        return prompts[0]
    longest = max(prompt.input_ids.shape[1] for prompt in prompts)
    pads = [longest - prompt.input_ids.shape[1] for prompt in prompts]
    spans: list[VideoSpan] = []
    row = 0
    for prompt, pad in zip(prompts, pads, strict=True):
        spans += [span.moved(pad, row) for span in prompt.layout.videos]
        row += len(prompt.input_ids)

    def stacked(tensors: list[Tensor], row_dimension: int = 0, width: int = 0) -> Tensor:
        sides = (0, 0) * width
        return torch.cat([F.pad(t, (*sides, pad, 0)) for t, pad in zip(tensors, pads, strict=True)], row_dimension)

    extras: list[Any] = [prompt.extra for prompt in prompts]
    layout = PromptLayout(
        valid=stacked([prompt.layout.valid for prompt in prompts]),
        text=stacked([prompt.layout.text for prompt in prompts]),
        videos=tuple(spans),
    )
    return Prompt(
        layout=layout,
        input_ids=stacked([prompt.input_ids for prompt in prompts]),
        inputs_embeds=stacked([prompt.inputs_embeds for prompt in prompts], width=1),
        position_ids=stacked([prompt.position_ids for prompt in prompts], row_dimension=-2),
        extra=None if extras[0] is None else stacked(extras, width=1),
        is_plain=prompts[0].is_plain,
    )


def kept_indices(
    layout: PromptLayout, keeps: list[Tensor], budgets: list[int], keep_frame_words: bool = True
) -> Tensor:
    """Places of the tokens that stay, row by row.

    Args:
        layout: of `B` prompts of length `L`.
        keeps: one bool `(T, P)` a video of the layout, on any one device.
        budgets: how many tokens each keeps: known beforehand, so that no count is read back from the device.
        keep_frame_words: whether the words around a frame stay if nothing of it does. If not, a count is read back where there are such words.

    Returns:
        int64 `(B, K)` on the masks' device, ascending in each row, left-padded with -1.
    """
    lengths = layout.valid.sum(dim=1).tolist()
    device = keeps[0].device if keeps else layout.valid.device
    stays = to_device_async(layout.valid.clone(), device)
    for span, keep, budget in zip(layout.videos, keeps, budgets, strict=True):
        stays[span.row].index_copy_(0, to_device_async(span.positions, device), keep.flatten())
        lengths[span.row] -= span.num_tokens - budget
    worded = [(span, keep) for span, keep in zip(layout.videos, keeps, strict=True) if len(span.word_places)]
    if worded and not keep_frame_words:
        for span, keep in worded:
            is_left = keep.any(dim=1).index_select(0, to_device_async(span.word_frames, device))
            stays[span.row].index_copy_(0, to_device_async(span.word_places, device), is_left)
        lengths = stays.sum(dim=1).tolist()
    return ordered_places(stays, max(lengths))


def ordered_places(stays: Tensor, longest: int) -> Tensor:
    """Return the places that are true, in order and left-padded: bool `(R, L)` with at most `longest` true in a row to int64 `(R, longest)`, -1 at padding."""
    # A stable sort brings the places that stay to the end of the row, in order.
    places = torch.sort(stays, dim=1, stable=True).indices[:, stays.shape[1] - longest :]
    padding = longest - stays.sum(dim=1, keepdim=True)
    return places.masked_fill(torch.arange(longest, device=stays.device) < padding, -1)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Put prompts of like length together, so that little of a batch is padding: each batch the numbers of its prompts, longest first.

    With the longest batch first, a device that has too little memory says so at once.

    Args:
        lengths: of every prompt, such as `model.kept_lengths` gives.
        batch_size: prompts in a batch, the last one aside; at least 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give the number of prompts in a batch, at least 1.")
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def gather(
    prompt: Prompt,
    indices: Tensor,
    videos: tuple[VideoSelection, ...] = (),
    pad_token_id: int = 0,
    rows: Tensor | None = None,
) -> CompressedPrompt:
    """Cut `prompt` down to `indices` `(R, K)` (see `kept_indices`), original positions kept; `rows` `(R,)` says which prompt each row is
    cut from (None: each its own).
    """
    is_token = indices >= 0
    places = indices.clamp(min=0)
    rows = (torch.arange(places.shape[0], device=places.device) if rows is None else rows)[:, None]
    input_ids = prompt.input_ids[rows.to(prompt.input_ids.device), places.to(prompt.input_ids.device)]
    inputs_embeds = _taken(prompt.inputs_embeds, rows, places, is_token)
    position_ids = prompt.position_ids[..., rows, places].masked_fill(~is_token, 0)
    if position_ids.ndim == 3 and position_ids.shape[0] == 4:
        position_ids[0] = (is_token.long().cumsum(1) - 1).clamp(min=0)
    return CompressedPrompt(
        input_ids=input_ids.masked_fill(~is_token.to(input_ids.device), pad_token_id),
        inputs_embeds=inputs_embeds,
        attention_mask=is_token.long(),
        position_ids=position_ids,
        kept_indices=indices,
        videos=videos,
        extra=None if prompt.extra is None else _taken(prompt.extra, rows, places, is_token),
        is_plain=prompt.is_plain,
    )


def _taken(values: Tensor, rows: Tensor, places: Tensor, is_token: Tensor) -> Tensor:
    """`(R, K, D)` of `values` `(B, L, D)`, zero where there is no token."""
    device = values.device
    return values[rows.to(device), places.to(device)].masked_fill(~is_token.to(device)[..., None], 0)


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

    def frames(self, part: slice) -> "TowerAttention":
        """Of these frames alone."""
        return replace(self, queries=self.queries[part], keys=self.keys[part])

    @torch.no_grad()
    def received(self) -> Tensor:
        """Attention that each token receives from its frame's patches, mean over heads and queries: float32 `(T, P)`, larger = more.

        Frame by frame, since all maps of a video at once would not fit.
        """
        scale = self.queries.shape[-1] ** -0.5
        with full_precision(self.keys.device):
            rows = [
                ((queries.float() * scale) @ keys.float().mT).softmax(-1).mean((0, 1))
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
        """Return the tokens' keys, mean over heads: float32 `(T, P, d)`."""
        return self.pool(self.keys.float().mean(1))

    def reduced(self) -> "ReducedAttention":
        """All that methods read, without the queries and keys of every patch."""
        return ReducedAttention(self.received(), self.of_mean_query(), self.mean_keys())


@dataclass(frozen=True)
class ReducedAttention:
    """What is left of a video's `TowerAttention` when it is brought down to tokens, frame by frame.

    Attributes:
        to_tokens: float32 `(T, P)`, see `TowerAttention.received`.
        to_mean_query: float32 `(T, P)`, see `TowerAttention.of_mean_query`.
        keys: float32 `(T, P, d)`, see `TowerAttention.mean_keys`.
    """

    to_tokens: Tensor
    to_mean_query: Tensor
    keys: Tensor

    @classmethod
    def joined(cls, parts: "list[ReducedAttention]") -> "ReducedAttention":
        """Join the parts of a video in the order of its frames."""
        fields = ((part.to_tokens, part.to_mean_query, part.keys) for part in parts)
        return cls(*(torch.cat(each) for each in zip(*fields, strict=True)))

    def to(self, device: torch.device | str | None) -> "ReducedAttention":
        """Return the same on a device; None: where it is."""
        return (
            self
            if device is None
            else ReducedAttention(*(t.to(device) for t in (self.to_tokens, self.to_mean_query, self.keys)))
        )

    def frames(self, part: slice) -> "ReducedAttention":
        """Of these frames alone."""
        return ReducedAttention(self.to_tokens[part], self.to_mean_query[part], self.keys[part])

    def received(self) -> Tensor:
        """See `TowerAttention`."""
        return self.to_tokens

    def of_mean_query(self) -> Tensor:
        """See `TowerAttention`."""
        return self.to_mean_query

    def mean_keys(self) -> Tensor:
        """See `TowerAttention`."""
        return self.keys
