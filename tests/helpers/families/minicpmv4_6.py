"""MiniCPM-V 4.6: patches in one row, and a language model of linear attention."""

import sys
from typing import Any, ClassVar

import pytest
import torch
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

from .base import IMAGE, TEXT, VIDEO, VISION_END, VISION_START, Family, Part, chat_template
from .qwen3 import Qwen35

OF_VIDEOS = ("pixel_values_videos", "target_sizes_videos", "video_grid_thw")
PATCH = 14


class MiniCPMV46(Family):
    """Marks around every frame, a token per 4 x 4 patches, and the language model of Qwen3.5."""

    name = "minicpmv4_6"
    model_class = MiniCPMV4_6ForConditionalGeneration
    has_token_types = False
    packed_pixels = False
    mrope = False
    pixels_along = -1
    own_inputs = ("video_grid_thw",)
    attends = False
    cuts_inside = False
    cuts_cache = False
    keeps_logits = False
    # The weight of positions is read beside the forward of this part.
    held = ("model.vision_tower.embeddings",)
    special_words: ClassVar[dict[str, str]] = {
        "image_start_token": "<|vision_start|>",
        "image_end_token": "<|vision_end|>",
        "slice_start_token": "<|vision_start|>",
        "slice_end_token": "<|vision_end|>",
        "image_id_start_token": "<|vision_start|>",
        "image_id_end_token": "<|vision_end|>",
    }

    def config(self, text):
        layers = text.get("num_hidden_layers", TEXT["num_hidden_layers"])
        kinds = ["full_attention" if number % 3 == 2 else "linear_attention" for number in range(layers)]
        own = dict(model_type="qwen3_5_text", rope_parameters=dict(Qwen35.rope), layer_types=kinds)
        return MiniCPMV4_6Config(
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=8 * PATCH,
                patch_size=PATCH,
            ),
            text_config={**own, **Qwen35.text, **text},
            insert_layer_id=0,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            tie_word_embeddings=False,
        )

    def pixels(self, patches, draw):
        """So many patches in one row."""
        return draw.noise(1, 3, PATCH, patches * PATCH)

    def video(self, video, draw):
        size = [4 * video.height, 4 * video.width]
        frame = [VISION_START, *[VIDEO] * (video.height * video.width), VISION_END]
        fields = {
            "pixel_values_videos": self.pixels(video.frames * size[0] * size[1], draw),
            "target_sizes_videos": torch.tensor([size] * video.frames),
            "video_grid_thw": torch.tensor([[video.frames, *size]]),
        }
        ids = frame * video.frames
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], fields)

    def image(self, draw):
        fields = {"pixel_values": self.pixels(64, draw), "target_sizes": torch.tensor([[8, 8]])}
        return Part([VISION_START, *[IMAGE] * 4, VISION_END], [0, 1, 1, 1, 1, 0], fields)

    def without_videos(self, inputs):
        return {name: value for name, value in inputs.items() if name not in OF_VIDEOS}

    def tower(self, stock):
        return stock.model.vision_tower

    def frames_seen(self, args, kwargs):
        return len(kwargs["target_sizes"])

    def tower_maps(self, stock, inputs):
        """One call of the eager attention function a frame."""
        maps, attends = [], self.tower(stock).encoder.layers[-1].self_attn
        module = sys.modules[type(attends).__module__]
        original = module.eager_attention_forward

        def noting(layer, *args, **kwargs):
            output = original(layer, *args, **kwargs)
            if layer is attends:
                maps.append(output[1][0])
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "eager_attention_forward", noting)
            stock.model.get_video_features(inputs["pixel_values_videos"], inputs["target_sizes_videos"])
        return maps

    def amplify(self, stock):
        """States that forget slowly, so that answers depend on the whole prompt."""
        Qwen35.amplify(self, stock)

    def pooled(self, stock, patches, grid):
        _, height, width = grid
        return patches.view(height, 2, width, 2).mean((1, 3)).flatten()

    def processor(self, tokenizer):
        from transformers import MiniCPMV4_6ImageProcessor, MiniCPMV4_6Processor, MiniCPMV4_6VideoProcessor

        settings: dict[str, Any] = dict(scale_resolution=112, slice_mode=False)
        return MiniCPMV4_6Processor(
            image_processor=MiniCPMV4_6ImageProcessor(**settings, use_image_id=False),
            video_processor=MiniCPMV4_6VideoProcessor(**settings, use_image_id=False),
            tokenizer=tokenizer,
            chat_template=chat_template("<video>", "<image>"),
        )
