"""Qwen3-VL: as Qwen2-VL, with a timestamp before each temporal step, and DeepStack features behind the first layers of the language model."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .packed_patches import PackedPatchesBackbone


class Qwen3VLBackbone(PackedPatchesBackbone):
    """`Qwen3VLForConditionalGeneration`; the tokens of a step have the step's own time, so that seconds stand in the text alone."""

    model_type = "qwen3_vl"
    words_around_frames = True
    extra_names: ClassVar[tuple[str, ...]] = ("visual_pos_masks", "deepstack_visual_embeds")

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """Write a step as `<1.5 seconds>`, a start mark, its placeholders and an end mark; a pair of marks of its own stands around the video."""
        marks = (config.vision_start_token_id, config.vision_end_token_id)
        if before[-1:] != [marks[0]]:
            return 0, 0
        own = next((n for n, token in enumerate(reversed(before[:-1])) if token in marks), 0)
        return 1 + own, int(behind[:1] == [marks[1]])

    def extra_width(self, config) -> int:
        """One DeepStack vector for each of the first layers."""
        return len(config.vision_config.deepstack_visual_indexes) * config.get_text_config().hidden_size

    def extra(self, config, found: dict[str, Any]) -> Tensor | None:
        """Return what the stock forward gives, `(n, D)` for every layer, of the `n` placeholders that its mask names."""
        layers, mask = found.get("deepstack_visual_embeds"), found.get("visual_pos_masks")
        if not layers or mask is None:
            return None
        zeros = layers[0].new_zeros(*mask.shape, self.extra_width(config))
        return zeros.masked_scatter(mask[..., None].to(zeros.device), torch.cat(layers, dim=-1))

    def extra_arguments(self, config, extra: Tensor) -> dict[str, Any]:
        """Every column is named; words have zeros added."""
        return {
            "visual_pos_masks": torch.ones(extra.shape[:2], dtype=torch.bool, device=extra.device),
            "deepstack_visual_embeds": [layer.flatten(0, 1) for layer in self.behind_layers(config, extra)],
        }

    def behind_layers(self, config, extra: Tensor | None) -> tuple[Tensor, ...]:
        """Split the vectors of a token by layer."""
        return () if extra is None else extra.unflatten(-1, (-1, config.get_text_config().hidden_size)).unbind(2)


class Qwen3VLMoeBackbone(Qwen3VLBackbone):
    """`Qwen3VLMoeForConditionalGeneration`."""

    model_type = "qwen3_vl_moe"
