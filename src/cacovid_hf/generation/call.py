"""One call on prompts with videos, made complete and checked before anything is computed: for `compress`, `kept_lengths`, `generate` and `forward` alike."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from ..backbones.base import Backbone
from ..compressors.base import Compressor
from ..prompt import EncodedVideos, Prompt, PromptLayout
from ..ratio import AutoBudget, RatioDefaults, keeps_all, resolve
from .inputs import check_length, stock_attention_mask, take_embedding_arguments
from .wrapped import WrappedModel


@dataclass(frozen=True)
class PromptInputs:
    """What embeds a batch of prompts.

    Attributes:
        backbone: a stock model.
        family: how its prompts are laid out.
        input_ids: `(B, L)`; may be None until `completed`.
        attention_mask: `(B, L)`, 0 at padding; may be None until `completed`.
        others: the other arguments of the backbone's forward that embed it: pixels, grids, positions; `encoded_videos` in place of the videos' pixels.
        grids: `(T, h, w)` of every video; None if the call brings no videos.
    """

    backbone: Any
    family: Backbone
    input_ids: Any
    attention_mask: Any
    others: dict[str, Any]
    grids: list[tuple[int, int, int]] | None

    @property
    def num_videos(self) -> int:
        """How many videos the call brings."""
        return len(self.grids or ())

    def completed(self, settings: GenerationConfig | None = None) -> "PromptInputs":
        """With the mask that stock generation assumes: padding ids are padding. `settings` of a generation come before the backbone's.

        Raises:
            ValueError: there are no ids, or they are not whole numbers `(B, L)`.
        """
        ids = self.input_ids
        if ids is None:
            raise ValueError("input_ids are missing: pass everything that the processor returned.")
        if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
            form = f"{tuple(ids.shape)} of {ids.dtype}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
            raise ValueError(
                f"input_ids are {form}: give a tensor of whole numbers (B, L), as the processor returns it."
            )
        if self.attention_mask is not None:
            return self
        mask = stock_attention_mask(self.input_ids, settings or self.backbone.generation_config)
        return replace(self, attention_mask=mask)

    def layout(self) -> PromptLayout:
        """Return what is where; errors as of `Backbone.layout`."""
        config = self.backbone.config
        return self.family.layout(config, self.input_ids, self.attention_mask, self.others, self.grids)

    def embed(self, layout: PromptLayout, with_tower_attention: bool) -> Prompt:
        """As `Backbone.embed`."""
        return self.family.embed(
            self.backbone,
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


def prompt_inputs(
    backbone: Any, family: Backbone, arguments: dict[str, Any], encoded_videos: EncodedVideos | None = None
) -> PromptInputs:
    """Return what embeds the prompts of a call, among its other arguments; the videos are counted here.

    Args:
        backbone: the stock model that takes them.
        family: of the backbone.
        arguments: of the call.
        encoded_videos: in place of the videos' pixels.

    Raises:
        ValueError: videos that are given twice.
    """
    others = take_embedding_arguments(backbone, family, dict(arguments))
    if encoded_videos is not None:
        if given := [name for name in family.video_inputs if others.get(name) is not None]:
            raise ValueError(
                f"The videos are given twice, as encoded_videos and as {', '.join(given)}: leave out the pixels."
            )
        others = {**others, **encoded_videos.inputs, "encoded_videos": encoded_videos}
    input_ids = arguments.get("inputs", arguments.get("input_ids"))
    grids = family.grids_if_given(backbone.config, others)
    return PromptInputs(backbone, family, input_ids, arguments.get("attention_mask"), others, grids)


def complete_inputs(
    model: WrappedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    others: dict[str, Any],
    encoded_videos: EncodedVideos | None,
) -> PromptInputs:
    """As `prompt_inputs`, completed, of a call that takes no other arguments; a `ValueError` names an unknown one."""
    arguments = {**others, "input_ids": input_ids, "attention_mask": attention_mask}
    inputs = prompt_inputs(model.backbone, model.family, arguments, encoded_videos)
    if unknown := sorted(set(others) - set(inputs.others)):
        raise ValueError(
            f"{', '.join(unknown)} is not an input of {type(model.backbone).__name__}: give what the processor returned, and check for typos."
        )
    return inputs.completed()


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
    layout = inputs.layout()
    check_length(model.backbone.config, inputs.input_ids.shape[1] + new_tokens)
    method.check(model, ratios)
    return PreparedCall(inputs, layout, method, ratios)


def ratios_unless_stock(
    inputs: PromptInputs, asked: Any, default: RatioDefaults
) -> tuple[float | AutoBudget, ...] | None:
    """One ratio per video; None if the call is the backbone's own: everything kept, or no video in it.

    Args:
        inputs: of the prompts.
        asked: the retention ratio that the call asks for.
        default: the config's.

    Raises:
        ValueError: as of `resolve`.
    """
    num_videos = inputs.num_videos
    # The stock forward takes pixels, and not every mixture of them.
    for_stock = "encoded_videos" not in inputs.others and not inputs.family.encodes_apart(inputs.others)
    ratios = resolve(asked, default, num_videos)
    if num_videos:
        return None if for_stock and keeps_all(ratios) else ratios
    ids, config = inputs.input_ids, inputs.backbone.config
    placeholders = ids is not None and bool(inputs.family.places(config, ids, inputs.others)[0].any())
    return ratios if placeholders and not keeps_all(resolve(asked, default, 1)) else None


def kept_labels(labels: Tensor | None, kept_indices: Tensor) -> Tensor | None:
    """Return the labels `(B, L)` of the positions that a compressed prompt keeps: `(B, K)`, -100 at padding and at each row's first token."""
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
