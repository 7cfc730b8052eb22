"""Video-LLaVA: every frame is all of its patches behind CLIP's class token, nothing between frames or behind a video."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from .base import take_rows
from .llava_next_video import LlavaNextVideoBackbone


class VideoLlavaBackbone(LlavaNextVideoBackbone):
    """`VideoLlavaForConditionalGeneration`; 1-D positions. The tokens of a frame are a row: its first is the class token."""

    model_type = "video_llava"

    def frame_size(self, config) -> tuple[int, int]:
        """One row."""
        vision = config.vision_config
        return 1, (vision.image_size // vision.patch_size) ** 2 + 1

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        """Videos have a tower of their own."""
        return model.model.video_tower

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """One row a video, one row an image, whose argument has another name in older versions of transformers."""
        return take_rows(super().take(inputs, videos, images), ("pixel_values_images",), images)

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`pixel_values` is `(images, channels, H, W)`; of an image, the class token may be left out."""
        pixels = inputs.get("pixel_values", inputs.get("pixel_values_images"))
        if pixels is None:
            return []
        name = "vision_feature_select_strategy"
        strategy = inputs.get(name, getattr(model.config, name))
        return [self.frame_size(model.config)[1] - (strategy == "default")] * len(pixels)

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """Every patch, and the class token, is a token."""
        return patches
