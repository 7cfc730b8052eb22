"""Perception LM: every frame pooled to a square of tokens, nothing between frames or behind a video; its tower is one of timm."""

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .llava_onevision import LlavaOnevisionBackbone


class PerceptionLMBackbone(LlavaOnevisionBackbone):
    """`PerceptionLMForConditionalGeneration`; 1-D positions."""

    model_type = "perception_lm"
    trailing_tokens = 0

    def side(self, config) -> int:
        """Tokens along an edge of a frame; timm says the size of a patch in the name of an architecture.

        Raises:
            ValueError: the name does not say it.
        """
        architecture = config.vision_config.architecture
        patch = re.search(r"patch(\d+)", architecture)
        if patch is None:
            raise ValueError(
                f"The vision tower {architecture!r} does not say the size of its patches: give a timm architecture with patch in its name, such as "
                "'vit_pe_lang_large_patch14_448'."
            )
        return self.pixels(config) // int(patch[1]) // config.projector_pooling_ratio

    def pixels(self, config) -> int:
        """Pixels along an edge of a frame.

        Raises:
            ValueError: the config does not say it.
        """
        arguments = config.vision_config.model_args or {}
        size = arguments.get("img_size")
        if size is None:
            raise ValueError(
                f"The model_args={arguments} of the vision tower do not say the size of a frame: give them img_size."
            )
        return size if isinstance(size, int) else size[0]

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """As of LLaVA-OneVision; the tower takes frames of one size alone."""
        grids = super().video_grids(config, inputs)
        if grids:
            found, side = tuple(inputs["pixel_values_videos"].shape[-2:]), self.pixels(config)
            if found != (side, side):
                raise ValueError(
                    f"Frames of {found[0]} x {found[1]} pixels do not fit the vision tower, which takes {side} x {side}: use the processor of this model."
                )
        return grids

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`pixel_values` is `(images, tiles, channels, H, W)`; a tile has as many tokens as a frame."""
        pixels = inputs.get("pixel_values")
        return [] if pixels is None else [pixels.shape[1] * self.side(model.config) ** 2] * len(pixels)

    def projections(self, model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
        """Features come from the last block, whose queries and keys pass through these two."""
        attends = self.last_attention(model)
        return attends.q_norm, attends.k_norm

    def by_heads(self, model: PreTrainedModel, projected: Tensor) -> Tensor:
        """Turn queries or keys by the places of patches in their frame, as timm does it; the class token in front is not turned."""
        prefix, rope = self.last_attention(model).num_prefix_tokens, self.timm_model(model).rope
        if rope is None:
            return projected
        sin, cos = rope.get_embed().to(projected.device).float().chunk(2, dim=-1)
        patches = projected[:, :, prefix:].float()
        turned = patches * cos + _quarter_turn(patches) * sin
        return torch.cat([projected[:, :, :prefix], turned.to(projected.dtype)], dim=2)

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """Leave out the class token in front where the features leave it out."""
        leaves_out = model.config.vision_use_cls_token
        return model.model.multi_modal_projector.pooling(patches[:, 1:] if leaves_out else patches)

    def timm_model(self, model: PreTrainedModel) -> Any:
        """Return the vision tower without its wrapper."""
        return model.model.vision_tower.timm_model

    def last_attention(self, model: PreTrainedModel) -> Any:
        """Return the attention of the tower's last block."""
        return self.timm_model(model).blocks[-1].attn


def _quarter_turn(x: Tensor) -> Tensor:
    """Return the other coordinate of every rotated pair `(2 i, 2 i + 1)`: `(-x2, x1)`."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
