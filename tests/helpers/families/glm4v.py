"""GLM-4.1V, GLM-4.5V and GLM-4.6V: video tokens behind the placeholder of images."""

from typing import Any, ClassVar

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
)

from .base import IMAGE, VIDEO, VIDEO_END, VIDEO_START, VISION_END, VISION_START, Part, amplify_experts, chat_template
from .qwen2 import Qwen2VL


class Glm4v(Qwen2VL):
    """As Qwen2-VL, with marks of its own and two words behind every temporal step; the placeholders are those of images."""

    name = "glm4v"
    model_class = Glm4vForConditionalGeneration
    # The weight of positions is read beside the forward of this part.
    held = ("model.visual.embeddings",)
    config_class = Glm4vConfig
    vision: ClassVar[dict[str, Any]] = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        image_size=56,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    rope: ClassVar[dict[str, Any]] = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 1, 1],
        "partial_rotary_factor": 0.5,
    }
    text: ClassVar[dict[str, Any]] = {}
    vision_type: ClassVar[dict[str, Any]] = {}
    mixes = False
    expands = False
    frame_id = IMAGE
    marks: ClassVar[dict[str, int]] = {
        "<|begin_of_image|>": VISION_START,
        "<|end_of_image|>": VISION_END,
        "<|begin_of_video|>": VIDEO_START,
        "<|end_of_video|>": VIDEO_END,
    }
    suppressed = (IMAGE, VIDEO, VIDEO_START, VIDEO_END)

    def config(self, text):
        return self.config_class(
            vision_config={**self.vision, **self.vision_type, "out_hidden_size": text["hidden_size"]},
            text_config={"rope_parameters": dict(self.rope), **self.text, **text},
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=VISION_START,
            image_end_token_id=VISION_END,
            video_start_token_id=VIDEO_START,
            video_end_token_id=VIDEO_END,
        )

    def video(self, video, draw):
        count = video.height * video.width
        ids = [VIDEO_START]
        for _ in range(video.frames):
            ids += [VISION_START, *[IMAGE] * count, VISION_END, *draw.words(2)]
        ids.append(VIDEO_END)
        return Part(ids, [2 if token == IMAGE else 0 for token in ids], self.pixels(video, draw))

    def stock_processors(self):
        """Classes of the processor, and of those of images and videos."""
        from transformers import Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

        return Glm4vProcessor, Glm4vImageProcessor, Glm4vVideoProcessor

    def processor(self, tokenizer):
        whole, of_images, of_videos = self.stock_processors()
        size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84 * 16}
        return whole(
            image_processor=of_images(size=size),
            video_processor=of_videos(size=size),
            tokenizer=tokenizer,
            chat_template=chat_template(
                "<|begin_of_video|><video><|end_of_video|>", "<|begin_of_image|><image><|end_of_image|>"
            ),
        )


class Glm4vMoe(Glm4v):
    """With experts behind the first layer."""

    name = "glm4v_moe"
    model_class = Glm4vMoeForConditionalGeneration
    config_class = Glm4vMoeConfig
    flash_alone = False
    text: ClassVar[dict[str, Any]] = dict(
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_shared_experts=1,
        first_k_dense_replace=1,
    )

    def amplify(self, stock):
        amplify_experts(stock)


class Glm46V(Glm4v):
    """As GLM-4.1V, with tenths of seconds and a rule for frames of its own."""

    name = "glm46v"
    model_class = Glm46VForConditionalGeneration
    config_class = Glm46VConfig
    text: ClassVar[dict[str, Any]] = {"model_type": "glm4v_text"}
    vision_type: ClassVar[dict[str, Any]] = {"model_type": "glm4v_vision"}

    def stock_processors(self):
        from transformers import Glm46VImageProcessor, Glm46VProcessor, Glm46VVideoProcessor

        return Glm46VProcessor, Glm46VImageProcessor, Glm46VVideoProcessor
