"""GLM-4.1V, 4.5V and 4.6V: as Qwen2-VL, with a time behind each temporal step, and video tokens behind the placeholder of images.

Marks around a video tell its tokens from those of images. The stock forward does not, and takes either images or videos in one call.
"""

from typing import Any

from torch import Tensor

from .._compat import attention_implementation
from ..prompt import PromptLayout
from .packed_patches import PackedPatchesBackbone


class Glm4vBackbone(PackedPatchesBackbone):
    """`Glm4vForConditionalGeneration`, GLM-4.1V; the tokens of a step have one time, so that seconds stand in the text alone."""

    model_type = "glm4v"
    words_around_frames = True

    def video_token_id(self, config) -> int:
        """Return the id of images."""
        return config.image_token_id

    def places(self, config, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Find the places of a video: what stands between the marks of a video is its own."""
        begun, ended = (
            (input_ids == mark).cumsum(1) for mark in (config.video_start_token_id, config.video_end_token_id)
        )
        is_placeholder = input_ids == config.image_token_id
        return is_placeholder & (begun > ended), is_placeholder & (begun <= ended)

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """Count the words of a step, which is a start mark, its placeholders, an end mark and `1.5 seconds` (GLM-4.1V and 4.5V: `1`)."""
        ends = (config.image_start_token_id, config.video_end_token_id)
        own = next((n for n, token in enumerate(behind) if token in ends), 0)
        return int(before[-1:] == [config.image_start_token_id]), own

    def encodes_apart(self, inputs: dict[str, Any]) -> bool:
        """Where there are images too."""
        return inputs.get("pixel_values") is not None and inputs.get("pixel_values_videos") is not None


class Glm4vMoeBackbone(Glm4vBackbone):
    """`Glm4vMoeForConditionalGeneration`, GLM-4.5V."""

    model_type = "glm4v_moe"

    def layout(
        self,
        config,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        grids: list[tuple[int, int, int]] | None = None,
    ) -> PromptLayout:
        """As every family's; flash attention is refused where its stock code reads the three rows of positions of one prompt as packed sequences."""
        if len(input_ids) == 1 and "flash" in str(attention_implementation(config.get_text_config())):
            raise ValueError(
                "The stock code of glm4v_moe takes a single prompt on flash attention for packed sequences. Load the model with "
                "attn_implementation='sdpa', or give two prompts at once."
            )
        return super().layout(config, input_ids, attention_mask, inputs, grids)


class Glm46VBackbone(Glm4vBackbone):
    """`Glm46VForConditionalGeneration`, GLM-4.6V with and without experts."""

    model_type = "glm46v"
