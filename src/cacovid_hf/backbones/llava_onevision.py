"""LLaVA-OneVision: every frame pooled to a square of tokens, one newline token behind each video."""

import math
from typing import Any

from .base import Backbone, take_rows


class LlavaOnevisionBackbone(Backbone):
    """`LlavaOnevisionForConditionalGeneration`; 1-D positions."""

    model_type = "llava_onevision"
    trailing_tokens = 1

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`pixel_values_videos` is `(videos, T, channels, H, W)`; the tower's patches are pooled two by two."""
        pixels = inputs.get("pixel_values_videos")
        if pixels is None:
            return []
        if pixels.ndim != 5:
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixels.shape)}: LLaVA-OneVision takes (videos, frames, channels, height, width)."
            )
        side = math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)
        return [(pixels.shape[1], side, side)] * pixels.shape[0]

    def num_images(self, inputs: dict[str, Any]) -> int:
        """`pixel_values` is `(images, patches, channels, H, W)`."""
        pixels = inputs.get("pixel_values")
        return 0 if pixels is None else len(pixels)

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """One row a video, one row an image."""
        return take_rows(
            take_rows(inputs, ("pixel_values_videos", "image_sizes_videos"), videos),
            ("pixel_values", "image_sizes"),
            images,
        )
