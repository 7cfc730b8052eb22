"""Gemma 4: windows, and what is looked up or seen beside the embeddings."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from .base import IMAGE, TEXT, VIDEO, VISION_END, VISION_START, Draw, Family, Part, chat_template


class Gemma4(Family):
    """A large one: four to six tokens a frame that see each other in both directions, and windows shorter than a prompt."""

    name = "gemma4"
    model_class = Gemma4ForConditionalGeneration
    has_token_types = True
    packed_pixels = False
    mrope = False
    cuts_inside = False
    splits_prefill = False
    flash = False
    cuts_cache = False
    without_windows: ClassVar[dict[str, Any]] = dict(sliding_window=512, use_bidirectional_attention=None)
    video_word = "<|video|>"
    special_words: ClassVar[dict[str, str]] = {
        "boi_token": "<|vision_start|>",
        "eoi_token": "<|vision_end|>",
        "audio_token": "<audio>",
        "boa_token": "<|vision_start|>",
        "eoa_token": "<|vision_end|>",
    }
    text: ClassVar[dict[str, Any]] = dict(hidden_size_per_layer_input=0, use_bidirectional_attention="vision")

    def config(self, text):
        layers = text.get("num_hidden_layers", TEXT["num_hidden_layers"])
        kinds = [*["sliding_attention"] * (layers - 1), "full_attention"]
        own = dict(
            head_dim=16, global_head_dim=32, sliding_window=16, layer_types=kinds, vocab_size_per_layer_input=120
        )
        return Gemma4Config(
            vision_config=dict(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=16,
                position_embedding_size=64,
            ),
            text_config={**own, **self.text, **text},
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=112,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            tie_word_embeddings=False,
        )

    def patches(self, rows: int, height: int, width: int, draw: Draw) -> tuple[Tensor, Tensor]:
        """Pixels and places of so many frames, nine patches a token, and as many again of padding."""
        y, x = torch.meshgrid(torch.arange(3 * height), torch.arange(3 * width), indexing="ij")
        places = torch.stack([x, y], dim=-1).flatten(0, 1).expand(rows, -1, -1)
        gap = 9 * 20 - places.shape[1]
        pixels = draw.noise(rows, places.shape[1], 3 * 16**2).sigmoid()
        return nn.functional.pad(pixels, (0, 0, 0, gap)), nn.functional.pad(places, (0, 0, 0, gap), value=-1)

    def video(self, video, draw):
        count = video.height * video.width
        ids: list[int] = []
        for frame in range(video.frames):
            ids += [*draw.words(3 if frame else 2), VISION_START, *[VIDEO] * count, VISION_END]
        pixels, places = self.patches(video.frames, video.height, video.width, draw)
        fields = {
            "pixel_values_videos": pixels,
            "video_position_ids": places,
            "num_frames_per_video": torch.tensor([video.frames]),
        }
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], fields)

    def image(self, draw):
        pixels, places = self.patches(1, 2, 2, draw)
        fields = {"pixel_values": pixels, "image_position_ids": places}
        return Part([VISION_START, *[IMAGE] * 4, VISION_END], [0, 1, 1, 1, 1, 0], fields)

    def tower(self, stock):
        return stock.model.vision_tower

    def pooled(self, stock, patches, grid):
        return patches.view(grid[1], 3, grid[2], 3).mean((1, 3)).flatten()

    def tower_maps(self, stock, inputs):
        places = inputs["video_position_ids"]
        found = self.tower(stock)(inputs["pixel_values_videos"], places, output_attentions=True)
        real = (places >= 0).all(dim=-1).sum(dim=1).tolist()
        return [maps[:, :count, :count] for maps, count in zip(found.attentions[-1], real, strict=True)]

    def amplify(self, stock):
        """What attention adds is normed, and small beside embeddings that are multiplied."""
        for layer in stock.get_decoder().layers:
            layer.post_attention_layernorm.weight.fill_(6.0)

    def beside(self, stock, found, row, places, made):
        """The stock masks of the uncompressed prompt, without the rows and columns of what was dropped."""
        masks = found["attention_mask"]
        everywhere = torch.cat([places, places[-1:] + 1 + torch.arange(len(made))])
        behind = everywhere[None] <= everywhere[:, None]
        near = everywhere[:, None] - everywhere[None] < stock.config.get_text_config().sliding_window
        cut = {}
        for kind, seen in (("full_attention", behind), ("sliding_attention", behind & near)):
            mask = seen.clone()
            if masks[kind] is not None:
                allowed = masks[kind] if masks[kind].dtype == torch.bool else masks[kind] == 0
                inside = allowed[row, 0][places][:, places]
                mask[: len(places), : len(places)] = inside
            if stock.config.get_text_config()._attn_implementation == "eager":
                mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            cut[kind] = mask[None, None]
        beside = {"attention_mask": cut}
        if found.get("per_layer_inputs") is not None:
            new = stock.get_decoder().get_per_layer_inputs(made[None], None)
            beside["per_layer_inputs"] = torch.cat([found["per_layer_inputs"][row : row + 1, places], new], dim=1)
        return beside

    def processor(self, tokenizer):
        from transformers import (
            Gemma4AudioFeatureExtractor,
            Gemma4ImageProcessor,
            Gemma4Processor,
            Gemma4VideoProcessor,
        )

        return Gemma4Processor(
            feature_extractor=Gemma4AudioFeatureExtractor(),
            image_processor=Gemma4ImageProcessor(),
            tokenizer=tokenizer,
            video_processor=Gemma4VideoProcessor(max_soft_tokens=70),
            chat_template=chat_template(self.video_word, "<image>"),
        )
