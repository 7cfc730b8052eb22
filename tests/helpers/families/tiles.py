"""InternVL and SmolVLM2: frames are images to the stock model."""

from typing import Any, ClassVar

import pytest
import torch
from helpers.reaching import reaching_language_model
from torch import Tensor
from transformers import (
    GenerationMixin,
    InternVLConfig,
    InternVLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .base import COLON, FRAME, IMAGE, NEW_LINE, VISION_END, VISION_START, Family, Part, chat_template


class InternVL(Family):
    """Every frame is an image of 4 tokens behind three words and a mark, an image has two tiles; words and types say which is which."""

    name = "internvl"
    model_class = InternVLForConditionalGeneration
    has_token_types = True
    packed_pixels = False
    mrope = False
    frame_id = IMAGE
    # Older ones repeat every tile where they should repeat those of a prompt.
    expands = hasattr(GenerationMixin, "_expand_multimodal_outputs")
    own_inputs = ("frame_numbers", "mm_token_type_ids")
    before, behind = (VISION_START,), (VISION_END,)
    introduction = ()
    text: ClassVar[dict[str, Any]] = dict(model_type="qwen2")

    def config(self, text):
        return InternVLConfig(
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=[56, 56],
                patch_size=[14, 14],
                use_qk_norm=True,
            ),
            text_config={**self.text, **text},
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=False,
        )

    def tiles(self, draw, count, numbers) -> dict[str, Tensor]:
        """The fields of a video or an image."""
        return {"pixel_values": draw.noise(count, 3, 56, 56), "frame_numbers": torch.tensor(numbers)}

    def video(self, video, draw):
        ids = list(self.introduction)
        for frame in range(video.frames):
            line_break = [NEW_LINE] if frame else []
            ids += [*line_break, FRAME, 30 + frame % 60, COLON, *self.before, *[IMAGE] * 4, *self.behind]
        types = [2 if token == IMAGE else 0 for token in ids]
        return Part(ids, types, self.tiles(draw, video.frames, range(video.frames)))

    def image(self, draw):
        ids = [*self.before, *[IMAGE] * 8, *self.behind]
        return Part(ids, [int(token == IMAGE) for token in ids], self.tiles(draw, 2, [-1, -1]))

    def without_videos(self, inputs):
        is_image = inputs["frame_numbers"] == -1
        names = ("pixel_values", "pixel_attention_mask")
        left = {name: value for name, value in inputs.items() if name not in (*names, "frame_numbers")}
        return left | {name: self.taken(inputs[name], is_image) for name in names if name in inputs and is_image.any()}

    def taken(self, tiles, chosen):
        return tiles[chosen]

    def embedded(self, stock, inputs):
        return reaching_language_model(stock, self.of_stock(inputs))["inputs_embeds"]

    def frame_pixels(self, inputs):
        return inputs["pixel_values"][inputs["frame_numbers"] >= 0]

    def tower(self, stock):
        return stock.model.vision_tower

    def processor(self, tokenizer):
        from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

        size = {"height": 56, "width": 56}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=size),
            video_processor=InternVLVideoProcessor(size=size),
            tokenizer=tokenizer,
            image_seq_length=4,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        grid = patches[1:].view(2, 2, 2, 2)  # two rows of cells, two patches a side
        return grid.mean((1, 3)).flatten()


class SmolVLM(InternVL):
    """As InternVL, with two marks before a frame and an introduction; rows of tiles padded with black ones."""

    name = "smolvlm"
    model_class = SmolVLMForConditionalGeneration
    expands = True
    before, behind = (VISION_START, VISION_END), (VISION_START,)
    introduction = (60, 61)
    text: ClassVar[dict[str, Any]] = dict(model_type="llama")

    def config(self, text):
        return SmolVLMConfig(
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
            ),
            text_config={**self.text, **text},
            image_token_id=IMAGE,
            scale_factor=2,
        )

    def image(self, draw):
        ids = [VISION_START, 27, *[IMAGE] * 4, *self.before, *[IMAGE] * 4, *self.behind]
        return Part(ids, [int(token == IMAGE) for token in ids], self.tiles(draw, 2, [-1, -1]))

    def joined(self, prompts):
        found = [super(SmolVLM, self).stacked([part.fields for part in prompt]) for prompt in prompts]
        empty = {"pixel_values": torch.zeros(0, 3, 56, 56), "frame_numbers": torch.zeros(0, dtype=torch.long)}
        rows = [{name: value[None] for name, value in (fields or empty).items()} for fields in found]
        return self.stacked(rows) if any(found) else {}

    def stacked(self, fields):
        padded: dict[str, list[Tensor]] = {}
        longest = max((found["frame_numbers"].shape[1] for found in fields if found), default=0)
        for found in filter(None, fields):
            for name in ("pixel_values", "frame_numbers"):
                value = found[name]
                gap = [0, 0] * (value.ndim - 2) + [0, longest - value.shape[1]]
                filled = torch.nn.functional.pad(value, gap, value=-2 if name == "frame_numbers" else 0)
                padded.setdefault(name, []).append(filled)
        joined = {name: torch.cat(values) for name, values in padded.items()}
        if joined:
            is_tile = (joined["frame_numbers"] > -2)[..., None, None]
            joined["pixel_attention_mask"] = is_tile.expand(-1, -1, 56, 56).long()
        return joined

    def taken(self, tiles, chosen):
        return tiles[chosen][None]

    def amplify(self, stock):
        """A freshly initialised projection makes features that no answer depends on."""
        for weight in stock.model.connector.parameters():
            weight.normal_(std=0.2)

    def tower(self, stock):
        return stock.model.vision_model

    def processor(self, tokenizer):
        pytest.importorskip("num2words", reason="SmolVLM's processor writes the number of frames by num2words")
        from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

        size = {"longest_edge": 56}
        return SmolVLMProcessor(
            image_processor=SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size=size),
            video_processor=SmolVLMVideoProcessor(
                max_image_size=size, video_sampling={"fps": 1, "max_frames": 64, "video_size": size}
            ),
            tokenizer=tokenizer,
            image_seq_len=4,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return patches.view(2, 2, 2, 2).mean((1, 3)).flatten()
