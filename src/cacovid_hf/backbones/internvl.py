"""InternVL 3 and 3.5: `Frame1: <img>`, the placeholders of an image, `</img>`, frame by frame."""

from typing import ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from .frames_as_images import FramesAsImagesBackbone


class InternVLBackbone(FramesAsImagesBackbone):
    """`InternVLForConditionalGeneration`; 1-D positions, `pixel_values` `(tiles, channels, H, W)`."""

    model_type = "internvl"
    words_have_times = False
    forward_settings: ClassVar[tuple[str, ...]] = ("vision_feature_layer", "vision_feature_select_strategy")

    def tokens_per_tile(self, config) -> int:
        """As the processor writes them."""
        return config.image_seq_length

    def tower_projections(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """Of the layer `vision_feature_layer`, behind its norms of queries and keys."""
        chosen = model.config.vision_feature_layer
        depth = chosen if isinstance(chosen, int) else chosen[-1]
        # hidden_states[0] is the tower's input.
        block = model.model.vision_tower.encoder.layer[depth if depth < 0 else depth - 1].attention
        return {"queries": block.q_norm, "keys": block.k_norm}

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """Leave the class token out where the features leave it out."""
        if model.config.vision_feature_select_strategy == "default":
            patches = patches[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        joined = model.model.pixel_shuffle(patches.unflatten(1, (side, side)), model.config.downsample_ratio)
        return joined.flatten(1, 2).unflatten(-1, (-1, patches.shape[-1])).mean(-2)
