"""One call on prompts with videos, made complete and checked before anything is computed: for `compress`, `kept_lengths`, `generate` and `forward` alike."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..backbones.base import Backbone
from ..compressors.base import Compressor
from ..prompt import EncodedVideos, Prompt, PromptLayout
from ..ratio import AutoBudget, keeps_all, resolve
from .inputs import check_windows, embedding_arguments, stock_attention_mask
from .wrapped import WrappedModel


@dataclass(frozen=True)
class PromptInputs:
    """What embeds a batch of prompts.

    Attributes:
        family: of the backbone.
        input_ids: `(B, L)`.
        attention_mask: `(B, L)`, 0 at padding.
        others: the other arguments of the backbone's forward that embed it: pixels, grids, positions; `encoded_videos` in place of the videos' pixels.
    """

    family: Backbone
    input_ids: Tensor
    attention_mask: Tensor
    others: dict[str, Any]

    def layout(self, backbone: Any) -> PromptLayout:
        """What is where; errors as of `Backbone.layout`."""
        return self.family.layout(backbone.config, self.input_ids, self.attention_mask, self.others)

    def embed(self, backbone: Any, layout: PromptLayout, with_tower_attention: bool) -> Prompt:
        """As `Backbone.embed`."""
        return self.family.embed(
            backbone,
            layout,
            self.input_ids,
            self.attention_mask,
            self.others,
            with_tower_attention=with_tower_attention,
        )


@dataclass(frozen=True)
class PreparedCall:
    """What is to be done with which prompts.

    Attributes:
        inputs: what embeds them.
        layout: what is where in them.
        method: of compression.
        ratios: one per video: in (0, 1], or a budget that its scores decide.
    """

    inputs: PromptInputs
    layout: PromptLayout
    method: Compressor
    ratios: tuple[float | AutoBudget, ...]


def complete_inputs(
    model: WrappedModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    others: dict[str, Any],
    encoded_videos: EncodedVideos | None = None,
    settings: GenerationConfig | None = None,
) -> PromptInputs:
    """The inputs of a call, with the mask that stock generation assumes and the videos that are encoded.

    Args:
        model: whose backbone takes them.
        input_ids: `(B, L)`.
        attention_mask: `(B, L)`; None: padding ids are padding.
        others: the other inputs.
        encoded_videos: in place of the videos' pixels, or among the others.
        settings: of generation, whose padding id counts; None: the backbone's.

    Raises:
        ValueError: no ids, an unknown input, or videos that are given twice.
    """
    backbone, family = model.backbone, model.family
    if input_ids is None:
        raise ValueError("input_ids are missing: pass everything that the processor returned.")
    if unknown := sorted(set(others) - embedding_arguments(backbone, family) - {"encoded_videos"}):
        raise ValueError(
            f"{', '.join(unknown)} is no input of {type(backbone).__name__}: give what the processor returned, and check for typos."
        )
    if attention_mask is None:
        attention_mask = stock_attention_mask(input_ids, settings or backbone.generation_config)
    if encoded_videos is not None:
        if given := [name for name in family.video_inputs if others.get(name) is not None]:
            raise ValueError(
                f"The videos are given twice, as encoded_videos and as {', '.join(given)}: leave out the pixels."
            )
        others = {**others, **encoded_videos.inputs, "encoded_videos": encoded_videos}
    return PromptInputs(family, input_ids, attention_mask, others)


def prepare_call(
    model: WrappedModel,
    inputs: PromptInputs,
    method: Compressor,
    ratios: tuple[float | AutoBudget, ...],
    new_tokens: int = 0,
) -> PreparedCall:
    """Find the videos, and ask the method whether it can serve their ratios.

    Args:
        model: that holds backbone, policy and config.
        inputs: of the prompts.
        method: of compression.
        ratios: one per video, see `resolve`.
        new_tokens: to be generated behind the prompts.

    Raises:
        ValueError: placeholders that do not fit the pixel inputs, ratios that the method cannot serve, windows that are too short.
    """
    check_windows(model.backbone.config, inputs.input_ids.shape[1] + new_tokens)
    layout = inputs.layout(model.backbone)
    method.check(model, ratios)
    return PreparedCall(inputs, layout, method, ratios)


def ratios_unless_stock(
    model: WrappedModel, asked: Any, input_ids: Tensor | None, others: dict[str, Any]
) -> tuple[float | AutoBudget, ...] | None:
    """One ratio per video; None if the call is the backbone's own: everything kept, or no video in it.

    Args:
        model: that holds backbone and config.
        asked: the retention ratio that the call asks for.
        input_ids: of the prompt.
        others: the other arguments of the call, `encoded_videos` among them.

    Raises:
        ValueError: as of `resolve`.
    """
    family = model.family
    num_videos = family.num_videos(model.backbone.config, others)
    ratios = resolve(asked, model.config, num_videos)
    if others.get("encoded_videos") is not None or family.is_padded(others):
        return ratios  # the stock forward takes pixels, and clips of one length
    if num_videos:
        return None if keeps_all(ratios) else ratios
    placeholders = input_ids is not None and bool(family.places(model.backbone.config, input_ids, others)[0].any())
    return ratios if placeholders and not keeps_all(resolve(asked, model.config, 1)) else None


def kept_labels(labels: Tensor | None, kept_indices: Tensor) -> Tensor | None:
    """The labels `(B, L)` of the positions that a compressed prompt keeps: `(B, K)`, -100 at padding and at each row's first token."""
    if labels is None:
        return None
    places = kept_indices.to(labels.device)
    # Padding has no labels, and nothing predicts the first token behind it.
    predicted = (places >= 0).long().cumsum(1) > 1
    return labels.gather(1, places.clamp(min=0)).masked_fill(~predicted, -100)


def all_places(input_ids: Tensor | None) -> Tensor | None:
    """`kept_indices` `(B, L)` of a prompt that nothing was dropped from."""
    if input_ids is None:
        return None
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
