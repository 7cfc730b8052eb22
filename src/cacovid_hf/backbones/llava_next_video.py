"""LLaVA-NeXT-Video: every frame pooled to a square of tokens, nothing between frames or behind a video."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from .llava_onevision import LlavaOnevisionBackbone


class LlavaNextVideoBackbone(LlavaOnevisionBackbone):
    """`LlavaNextVideoForConditionalGeneration`; 1-D positions."""

    model_type = "llava_next_video"
    trailing_tokens = 0

    def side(self, config) -> int:
        """Tokens along an edge of a frame."""
        return config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride

    def joining(self, config, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the features of the vision tower are selected."""
        name = "vision_feature_select_strategy"
        return {name: inputs.get(name, getattr(config, name))}

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """CLIP's class token stands in front, and is left out where the features leave it out."""
        leaves_out = model.config.vision_feature_select_strategy == "default"
        return model.model.vision_resampler(patches[:, 1:] if leaves_out else patches)
