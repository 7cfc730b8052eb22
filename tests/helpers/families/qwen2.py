"""Qwen2.5-VL and Qwen2-VL: pixels are patches, positions have three rows beside the places."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from .base import IMAGE, VIDEO, VISION_END, VISION_START, Family, Part, chat_template


class Qwen25VL(Family):
    """A token per 2 x 2 patches, between two marks; three rows of positions beside the places."""

    name = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    has_token_types = True
    packed_pixels = True
    mrope = True
    tower_window = 2
    times = ("second_per_grid_ts",)
    patch = 14
    vision: ClassVar[dict[str, Any]] = dict(
        hidden_size=32,
        intermediate_size=64,
        depth=2,
        num_heads=2,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        window_size=56,
        fullatt_block_indexes=[1],
        tokens_per_second=2,
    )
    rope: ClassVar[dict[str, Any]] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
    config_class: ClassVar[type] = Qwen2_5_VLConfig

    def config(self, text):
        return self.config_class(
            vision_config=self.vision_config(text["hidden_size"]),
            text_config=dict(rope_parameters=dict(self.rope), **text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=VISION_START,
            vision_end_token_id=VISION_END,
        )

    def vision_config(self, size: int) -> dict[str, Any]:
        """Settings of the vision tower in front of a language model of this hidden size."""
        return dict(out_hidden_size=size, **self.vision)

    def pixels(self, video, draw) -> dict[str, Tensor]:
        """The fields of a video."""
        count = video.height * video.width * video.frames
        return {
            "pixel_values_videos": draw.noise(count * 4, 3 * 2 * self.patch**2),
            "video_grid_thw": torch.tensor([[video.frames, video.height * 2, video.width * 2]]),
        }

    def video(self, video, draw):
        count = video.height * video.width * video.frames
        fields = self.pixels(video, draw)
        if self.times:
            fields["second_per_grid_ts"] = torch.tensor([video.seconds_per_step])
        return Part([VISION_START, *[VIDEO] * count, VISION_END], [0, *[2] * count, 0], fields)

    def image(self, draw):
        fields = {"pixel_values": draw.noise(16, 3 * 2 * self.patch**2), "image_grid_thw": torch.tensor([[1, 4, 4]])}
        return Part([VISION_START, *[IMAGE] * 4, VISION_END], [0, 1, 1, 1, 1, 0], fields)

    def tower(self, stock):
        return stock.model.visual

    def processor(self, tokenizer):
        from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

        size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84 * 16}
        marked = "<|vision_start|>{}<|vision_end|>"
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size),
            video_processor=Qwen2VLVideoProcessor(size=size),
            tokenizer=tokenizer,
            chat_template=chat_template(marked.format("<video>"), marked.format("<image>")),
        )

    def positions(self, stock, inputs, places):
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw", *self.times)}
        mrope, _ = stock.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            attention_mask=inputs["attention_mask"],
            **grids,
        )
        return torch.cat([places[None], mrope])


class Qwen2VL(Qwen25VL):
    """As Qwen2.5-VL, without windows and seconds."""

    name = "qwen2_vl"
    model_class = Qwen2VLForConditionalGeneration
    tower_window = None
    times = ()
    vision: ClassVar[dict[str, Any]] = dict(
        embed_dim=32, depth=2, num_heads=2, mlp_ratio=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2
    )
    config_class = Qwen2VLConfig

    def vision_config(self, size):
        return dict(hidden_size=size, **self.vision)

    def processor(self, tokenizer):
        from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

        size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84 * 16}
        marked = "<|vision_start|>{}<|vision_end|>"
        return Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size),
            video_processor=Qwen2VLVideoProcessor(size=size),
            tokenizer=tokenizer,
            chat_template=chat_template(marked.format("<video>"), marked.format("<image>")),
        )
