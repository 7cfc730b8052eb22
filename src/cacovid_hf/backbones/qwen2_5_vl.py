"""Qwen2.5-VL: as Qwen2-VL, with seconds in the positions and windows in the vision tower."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .packed_patches import PackedPatchesBackbone


class Qwen2_5_VLBackbone(PackedPatchesBackbone):
    """`Qwen2_5_VLForConditionalGeneration`."""

    model_type = "qwen2_5_vl"
    video_settings: ClassVar[tuple[str, ...]] = ("video_grid_thw", "second_per_grid_ts")

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the grid, and the seconds that a step takes."""
        seconds = torch.tensor([self.frames_per_step(config) / metadata.sampled_fps])
        return {**super().settings_of_file(config, pixels, steps, metadata), "second_per_grid_ts": seconds}

    def tower_layer(self, config) -> int:
        """Return the last block that attends to whole frames; the others do within windows."""
        return max(config.vision_config.fullatt_block_indexes)

    def tower_window(self, config) -> int | None:
        """Side of the windows, in whose order the tower takes a frame."""
        vision = config.vision_config
        return vision.window_size // vision.spatial_merge_size // vision.patch_size
