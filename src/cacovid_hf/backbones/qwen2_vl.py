"""Qwen2-VL: as Qwen2.5-VL, without seconds in the positions and without windows in the vision tower."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .qwen2_5_vl import Qwen2_5_VLBackbone


class Qwen2VLBackbone(Qwen2_5_VLBackbone):
    """`Qwen2VLForConditionalGeneration`."""

    model_type = "qwen2_vl"
    video_settings: ClassVar[tuple[str, ...]] = ("video_grid_thw",)

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the grid."""
        _, height, width = pixels["video_grid_thw"][0].tolist()
        return {"video_grid_thw": torch.tensor([[steps, height, width]])}

    def tower_layer(self, config) -> int:
        """Return the last block; all of them attend to whole frames."""
        return config.vision_config.depth - 1

    def tower_window(self, config) -> int | None:
        """None: patches are in raster order."""
        return None
