"""What every family has in common: where the videos of a prompt are, and the stock model run up to its language model."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prompt import EncodedVideos, Prompt, PromptLayout, ReducedAttention, TowerAttention, VideoSpan
from .family import Family
from .layout import find_videos, last_places, with_words
from .loaded import embedding_device
from .seam import CARRIED, WITHOUT_EFFECT, capture_language_model_inputs, with_features

# Enough to keep a device busy, while the vision tower's memory stays that of a short video.
FRAMES_PER_CHUNK = 64


class Backbone(Family):
    """A family of video language models, whose prompts are found and embedded alike by what each says as a `Family`. Stateless."""

    def layout(
        self,
        config,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        grids: list[tuple[int, int, int]] | None = None,
    ) -> PromptLayout:
        """Find the videos of a batch of prompts.

        Args:
            config: the backbone's.
            input_ids: `(B, L)`.
            attention_mask: `(B, L)`, 0 at padding.
            inputs: the other arguments of the call, for the grids.
            grids: those, if they are known; None: as `grids` of the inputs.

        Raises:
            ValueError: placeholders and pixel inputs do not fit, or a prompt ends inside a video.
        """
        input_ids, valid = input_ids.cpu(), attention_mask.cpu().bool()
        is_video, is_image = self.places(config, input_ids, inputs)
        grids = self.grids(config, inputs) if grids is None else grids
        spans = find_videos(is_video, grids, self.trailing_tokens)
        last = last_places(spans, is_video, valid)
        text = valid & ~is_video & ~is_image
        if self.words_around_frames:
            around, before_first = partial(self.num_words_around, config), partial(self.num_words_before_first, config)
            spans = with_words(spans, input_ids, last, around, before_first)
            for span in spans:
                text[span.row, span.word_places] = False
        return PromptLayout(valid=valid, text=text, videos=tuple(spans))

    def embed(
        self,
        model: PreTrainedModel,
        layout: PromptLayout,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        *,
        with_tower_attention: bool = False,
        frames_per_chunk: int | None = FRAMES_PER_CHUNK,
    ) -> Prompt:
        """Run the stock model up to its language model: vision encoded, prompt embedded.

        Videos of more than `frames_per_chunk` frames (temporal grid steps) in all are encoded in chunks of so many, which bounds the memory
        of the vision tower; None encodes everything at once, as the stock model does.

        `inputs` are the arguments of the stock forward; `position_ids` among them are taken as they are, and `encoded_videos`, if any,
        in place of the videos' pixels. `with_tower_attention` fills `Prompt.tower`.
        """
        inputs = dict(inputs)
        encoded: EncodedVideos | None = inputs.pop("encoded_videos", None)
        if encoded is not None and encoded.tower is None and with_tower_attention:
            raise ValueError(
                "What the vision tower attended to is not known of these encoded videos. Encode them with with_tower_attention=True, or choose a method "
                "that does not read it."
            )
        position_ids = inputs.pop("position_ids", None)
        if position_ids is None:
            position_ids = self.position_ids(model, input_ids, attention_mask, inputs)
        else:
            position_ids = position_ids.expand(*position_ids.shape[:-2], *input_ids.shape)
        features: Iterable[Tensor] | None = None
        tower: tuple[TowerAttention | ReducedAttention, ...] | None = None
        many = frames_per_chunk is not None and sum(span.num_frames for span in layout.videos) > frames_per_chunk
        if encoded is not None:
            features, tower = encoded.features, encoded.tower if with_tower_attention else None
        elif (many or self.encodes_apart(inputs)) and with_tower_attention:
            features, tower = self.encode_with_attention(model, inputs, frames_per_chunk)
        elif many or self.encodes_apart(inputs):
            features = self.encode(model, inputs, frames_per_chunk)
        ids = input_ids
        if features is not None:
            is_video, _ = self.places(model.config, input_ids, inputs)
            inputs = self.without_videos(inputs)
            ids = input_ids.masked_fill(is_video, self.filler_id(model.config))
        inputs = {name: value for name, value in inputs.items() if name not in self.own_inputs}
        arguments = {**inputs, "input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if with_tower_attention and layout.videos and tower is None:
            with self.tower_attention(model, layout) as attention:
                embeds, extra = self._embedded(model, arguments)
            return Prompt(layout, input_ids, embeds, position_ids, attention(), extra, self.is_plain(model.config))
        embeds, extra = self._embedded(model, arguments)
        if features is not None:
            width = embeds.shape[-1]
            wide = embeds if extra is None else torch.cat([embeds, extra], dim=-1)
            wide = with_features(wide, is_video.nonzero(), features)
            embeds, extra = wide[..., :width], None if extra is None else wide[..., width:]
        return Prompt(layout, input_ids, embeds, position_ids, tower, extra, self.is_plain(model.config))

    def encode(self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None) -> Iterator[Tensor]:
        """Encode the videos of a call a chunk of frames (temporal grid steps) at a time; towers look at one of them alone.

        A chunk is a video to the stock model: it is embedded behind the seam as a prompt of placeholders.

        Returns:
            `(n, D + E)` each: embeddings of the call's video placeholders, in order, and what the language model receives beside them.
        """
        for _, pixels, grid, is_last in self._chunks(model, inputs, frames_per_chunk):
            num_tokens = math.prod(grid)
            features = self.encode_frames(model, pixels, num_tokens)
            yield features if is_last else features[:num_tokens]

    def encode_with_attention(
        self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None
    ) -> tuple[list[Tensor], tuple[ReducedAttention, ...]]:
        """As `encode`, and what the vision tower attended to in every video: brought down to tokens chunk by chunk, so that no more is held of a video.

        Raises:
            ValueError: the family does not say how.
        """
        features: list[Tensor] = []
        parts: dict[int, list[ReducedAttention]] = {}
        for video, pixels, grid, is_last in self._chunks(model, inputs, frames_per_chunk):
            found, attention = self.encode_frames_with_attention(model, pixels, grid)
            features.append(found if is_last else found[: math.prod(grid)])
            parts.setdefault(video, []).append(attention)
        return features, tuple(ReducedAttention.joined(of_video) for of_video in parts.values())

    def _chunks(
        self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None
    ) -> Iterator[tuple[int, dict[str, Any], tuple[int, int, int], bool]]:
        """Every chunk of the call's videos: the video's number, the pixels, the grid, and whether it is the video's last."""
        for video, (steps, height, width) in enumerate(self.video_grids(model.config, inputs)):
            for start in range(0, steps, frames_per_chunk or steps):
                stop = min(start + (frames_per_chunk or steps), steps)
                yield video, self.frames(inputs, video, start, stop), (stop - start, height, width), stop == steps

    def encode_frames_with_attention(
        self, model: PreTrainedModel, pixels: dict[str, Any], grid: tuple[int, int, int]
    ) -> tuple[Tensor, ReducedAttention]:
        """As `encode_frames` of one video of this grid, and what the vision tower attended to."""
        num_tokens = math.prod(grid)
        everywhere = torch.ones(1, num_tokens + self.trailing_tokens, dtype=torch.bool)
        span = VideoSpan(0, grid, torch.arange(num_tokens))
        layout = PromptLayout(everywhere, torch.zeros_like(everywhere), (span,))
        with self.tower_attention(model, layout) as attention:
            features = self.encode_frames(model, pixels, num_tokens)
        return features, attention()[0].reduced()

    def encode_frames(self, model: PreTrainedModel, pixels: dict[str, Any], num_tokens: int) -> Tensor:
        """`(num_tokens + trailing_tokens, D + E)`: one video of so many tokens, and what stands at its end (see `EncodedVideos`)."""
        device = embedding_device(model)
        pixels = {
            n: value.to(device) if isinstance(value, Tensor) else value
            for n, value in pixels.items()
            if n not in self.own_inputs
        }
        ids = torch.full((1, num_tokens + self.trailing_tokens), self.video_token_id(model.config), device=device)
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.zeros_like(ids)}
        embeds, extra = self._embedded(model, {**pixels, **arguments})
        return embeds[0] if extra is None else torch.cat([embeds[0], extra[0]], dim=-1)

    def _embedded(self, model: PreTrainedModel, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return what reaches the language model: embeddings `(B, L, D)`, and `(B, L, E)` beside them if it receives more.

        Raises:
            ValueError: the language model gets something else too, which the compressed prompt would be without.
        """
        arguments = {**arguments, "use_cache": False}
        found = capture_language_model_inputs(model, self.language_model(model), arguments)
        known = (*CARRIED, *WITHOUT_EFFECT, *self.extra_names, *self.looked_up)
        if unknown := sorted(name for name, value in found.items() if value is not None and name not in known):
            raise ValueError(
                f"{type(model).__name__} also gives its language model {', '.join(unknown)}, which a compressed prompt does not carry. Use "
                "a backbone whose language model reads embeddings, mask and positions alone."
            )
        embeds, width = found["inputs_embeds"], self.extra_width(model.config)
        if not width:
            return embeds, None
        extra = self.extra(model.config, {**arguments, **found})
        return embeds, embeds.new_zeros(*embeds.shape[:2], width) if extra is None else extra.to(embeds)


def take_rows(inputs: dict[str, Any], names: Sequence[str], rows: list[int] | None) -> dict[str, Any]:
    """Return `inputs` with these rows alone of the named tensors (or lists); None: all; no row: the name is left out."""
    if rows is None:
        return inputs
    taken = {name: value for name, value in inputs.items() if name not in names or value is None}
    for name in names:
        if rows and inputs.get(name) is not None:
            value = inputs[name]
            taken[name] = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
    return taken
