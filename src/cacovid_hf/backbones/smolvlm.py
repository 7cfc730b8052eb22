"""SmolVLM2: `Frame from 00:01:`, marks and the placeholders of an image, frame by frame, behind a sentence that introduces the video."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..video.tiles import PADDING
from .frames_as_images import FramesAsImagesBackbone


class SmolVLMBackbone(FramesAsImagesBackbone):
    """`SmolVLMForConditionalGeneration`; 1-D positions, `pixel_values` `(rows, tiles, channels, H, W)`.

    Rows are padded with tiles of zeros, which the stock model leaves out.
    """

    model_type = "smolvlm"
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_attention_mask")
    marks_before = 2

    def tokens_per_tile(self, config) -> int:
        """Return the tower's patches, joined `scale_factor` by `scale_factor`."""
        vision = config.vision_config
        return (vision.image_size // vision.patch_size // config.scale_factor) ** 2

    def tiles(self, inputs: dict[str, Any], name: str) -> Tensor:
        """Rows one after the other, without padding."""
        if inputs.get("frame_numbers") is not None:
            is_tile = inputs["frame_numbers"].flatten() != PADDING
        else:
            is_tile = (inputs["pixel_values"].flatten(0, 1) != 0).flatten(1).any(1)
        entries = inputs[name].flatten(0, 1)
        return entries[is_tile.to(entries.device)]

    def as_input(self, tiles: Tensor) -> Tensor:
        """One row."""
        return tiles[None]

    def tower_projections(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """Of the last layer."""
        block = model.model.vision_model.encoder.layers[-1].self_attn
        return {"queries": block.q_proj, "keys": block.k_proj}

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """By the model's own rule for which patches it joins."""
        connector = model.model.connector
        joined = connector.pixel_shuffle(patches, connector.scale_factor)
        return joined.unflatten(-1, (-1, patches.shape[-1])).mean(-2)
