"""Tiny random models of every family, and prompts for them: the rows that the tables of cases share.

A further family is a further subclass of `Family` and its row in `BY_NAME`. The quick run takes `FIRST` everywhere, and the other families through a
spread of the cases (see `conftest.py`); `-m slow` runs the rest.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from helpers.reaching import reaching_language_model
from torch import Tensor, nn
from transformers import (
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    GenerationMixin,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from cacovid_hf import CaCoVidForConditionalGeneration

PAD, BOS, EOS, VISION_START, VISION_END, IMAGE, VIDEO = 0, 1, 2, 3, 4, 110, 111
# Words that no random text has: those of a time in front of a frame.
COMMA, TIME, COLON = 105, 106, 107
# Marks around a video whose placeholders are those of images.
VIDEO_START, VIDEO_END = 108, 109
# Every field that a family's processor returns for videos, and for images.
VIDEO_FIELDS = (
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
    "video_merge_sizes",
    "video_compression_mask",
    "video_position_ids",
    "num_frames_per_video",
)
IMAGE_FIELDS = ("pixel_values", "image_sizes", "image_grid_thw", "image_merge_sizes", "image_position_ids")
# Of families whose frames are images, for both.
TILE_FIELDS = ("pixel_attention_mask", "frame_numbers")
# Words of a frame that is an image.
FRAME, NEW_LINE = 103, 104
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=120,
    bos_token_id=BOS,
    eos_token_id=EOS,
    pad_token_id=PAD,
    tie_word_embeddings=False,
)


@dataclass(frozen=True)
class Video:
    """`frames` temporal grid steps; Qwen2.5-VL also varies the size of the grid."""

    frames: int = 4
    height: int = 2
    width: int = 3
    seconds_per_step: float = 1.0


@dataclass(frozen=True)
class Image:
    """One image."""


@dataclass(frozen=True)
class Draw:
    """Where the random content of a prompt comes from."""

    generator: torch.Generator
    scale: float

    def noise(self, *shape: int) -> Tensor:
        """Pixels."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float32) * self.scale

    def words(self, count: int) -> list[int]:
        """Ids of text."""
        return torch.randint(5, 100, (count,), generator=self.generator).tolist()


@dataclass(frozen=True)
class Part:
    """One piece of a prompt.

    Attributes:
        ids: its tokens.
        types: 0 of text, 1 of an image's tokens, 2 of a video's; one per token.
        fields: what the processor returns for it beside the tokens, each with a first dimension to be joined along.
    """

    ids: list[int]
    types: list[int]
    fields: dict[str, Tensor] = field(default_factory=dict)


class Family(ABC):
    """What the tests need to know of a family of models.

    Attributes:
        name: its `model_type`.
        model_class: the stock model's.
        has_token_types: whether its processor returns `mm_token_type_ids`.
        packed_pixels: whether pixels are patches, those of one video after the other; if not, one row per video.
        mrope: whether positions are `(4, B, L)`: text, time, height and width.
        own_inputs: names of inputs that our processor adds for our models alone.
        frame_id: the placeholder of a frame.
        attends: whether all layers of the language model attend. If not, a masked token is still read, and cutting is the only oracle.
        cuts_inside: whether tokens can be dropped between the layers of its language model.
        tower_window: side, in tokens, of the windows in whose order the vision tower takes a frame; None: raster order.
        keeps_logits: whether the stock forward makes logits of the last positions alone, if asked.
        splits_prefill: whether a prompt may go through the language model in chunks.
        flash: whether flash attention may run it.
        cuts_cache: whether its cache can be cut back to fewer tokens.
        without_windows: settings of its language model by which every token sees all before it.
        video_word: its placeholder of a video in a text.
        special_words: further words that its tokenizer knows by name.
        mixes: whether the stock forward takes images and videos in one call.
        flash_alone: whether the stock code runs a single prompt on flash attention.
        expands: whether stock generation takes videos with beams or several sequences.
        marks: special words of its prompts, and their ids.
        suppressed: ids that answers do not have, since they would change what other ids of a conversation stand for.
    """

    name: ClassVar[str]
    model_class: ClassVar[type]
    has_token_types: ClassVar[bool]
    packed_pixels: ClassVar[bool]
    mrope: ClassVar[bool]
    own_inputs: ClassVar[tuple[str, ...]] = ()
    frame_id: ClassVar[int] = VIDEO
    attends: ClassVar[bool] = True
    cuts_inside: ClassVar[bool] = True
    tower_window: ClassVar[int | None] = None
    keeps_logits: ClassVar[bool] = True
    splits_prefill: ClassVar[bool] = True
    flash: ClassVar[bool] = True
    cuts_cache: ClassVar[bool] = True
    without_windows: ClassVar[dict[str, Any]] = {}
    video_word: ClassVar[str] = "<video>"
    special_words: ClassVar[dict[str, str]] = {}
    mixes: ClassVar[bool] = True
    expands: ClassVar[bool] = True
    flash_alone: ClassVar[bool] = True
    marks: ClassVar[dict[str, int]] = {"<|vision_start|>": VISION_START, "<|vision_end|>": VISION_END}
    suppressed: ClassVar[tuple[int, ...]] = (IMAGE, VIDEO)

    @abstractmethod
    def config(self, text: dict[str, Any]) -> Any:
        """The tiny config around these settings of the language model."""

    @abstractmethod
    def video(self, video: Video, draw: Draw) -> Part:
        """A video in a prompt, with its pixels."""

    @abstractmethod
    def image(self, draw: Draw) -> Part:
        """An image in a prompt, with its pixels."""

    @abstractmethod
    def tower(self, stock: Any) -> nn.Module:
        """The vision tower of a stock model."""

    def frame_pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        """`(n, C, H, W)` of all frames, where pixels are not patches."""
        return inputs["pixel_values_videos"].flatten(0, 1)

    def last_attention(self, stock: Any) -> nn.Module:
        """The attention of the tower's last layer, where pixels are patches."""
        return self.tower(stock).blocks[-1].attn

    def tower_maps(self, stock: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Attention `(H, S, S)` of every frame in the eager tower's layer that features come from, where pixels are not packed."""
        layer = getattr(stock.config, "vision_feature_layer", -1)
        return list(self.tower(stock)(self.frame_pixels(inputs), output_attentions=True).attentions[layer])

    @abstractmethod
    def processor(self, tokenizer: Any) -> Any:
        """The stock processor around a tokenizer that has the placeholders of this module."""

    def joined(self, prompts: list[list[Part]]) -> dict[str, Tensor]:
        """The fields of the parts of all rows, as the processor returns them."""
        return self.stacked([part.fields for prompt in prompts for part in prompt])

    def stacked(self, fields: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pixels, grids and the like of several prompts as those of one, in order."""
        names = dict.fromkeys(name for found in fields for name in found)
        return {name: torch.cat([found[name] for found in fields if name in found]) for name in names}

    def without_videos(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of a prompt without what holds its videos."""
        return {name: value for name, value in inputs.items() if name not in VIDEO_FIELDS}

    def amplify(self, stock: Any) -> None:  # noqa: B027
        """Make what is special in a stock model large enough to be noticed when it is lost; without this method nothing is."""

    def beside(self, stock: Any, found: dict[str, Any], row: int, places: Tensor, made: Tensor) -> dict[str, Any]:
        """What the language model takes of some places of a row beside their embeddings, and of the words that follow.

        Args:
            stock: the model.
            found: the keyword arguments of its call by the stock forward.
            row: of the batch.
            places: int64 `(n,)`.
            made: ids of the words that follow.
        """
        return {}

    def pooled(self, stock: Any, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """What each of a frame's tokens is made of, from its patches `(S,)`, where pixels are one row per video: `(P,)`."""
        return stock.model.apply_pooling(patches[None, :, None])[0, :, 0]

    def embedded(self, stock: Any, inputs: dict[str, Tensor]) -> Tensor:
        """`(B, L, D)`, a prompt with images and videos as the stock forward embeds each of both: for families that take one kind in a call."""
        found = {}
        for kind, others in ((1, VIDEO_FIELDS), (2, IMAGE_FIELDS)):
            some = {name: value for name, value in inputs.items() if name not in others}
            elsewhere = some.pop("mm_token_type_ids") == 3 - kind
            some["input_ids"] = inputs["input_ids"].masked_fill(elsewhere, 5)
            some["position_ids"] = torch.zeros_like(inputs["input_ids"])
            found[kind] = reaching_language_model(stock, some)["inputs_embeds"]
        return torch.where((inputs["mm_token_type_ids"] == 1)[..., None], found[1], found[2])

    def positions(self, stock: Any, inputs: dict[str, Tensor], places: Tensor) -> Tensor:
        """Explicit `position_ids` of an uncompressed prompt, from the places `(B, L)` of its tokens."""
        return places


class LlavaOnevision(Family):
    """4 tokens per frame and a newline per video."""

    name = "llava_onevision"
    model_class = LlavaOnevisionForConditionalGeneration
    has_token_types = False
    packed_pixels = False
    mrope = False

    def config(self, text):
        return LlavaOnevisionConfig(
            vision_config=dict(
                model_type="siglip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                vision_use_head=False,
            ),
            text_config=dict(model_type="qwen2", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )

    def video(self, video, draw):
        count = video.frames * 4 + 1
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def image(self, draw):
        count = 16 + 16 + 4
        fields = {"pixel_values": draw.noise(1, 2, 3, 56, 56), "image_sizes": torch.tensor([[56, 56]])}
        return Part([IMAGE] * count, [1] * count, fields)

    def tower(self, stock):
        return stock.model.vision_tower

    def processor(self, tokenizer):
        from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

        size = {"height": 56, "width": 56}
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[56, 56], [56, 112]]),
            video_processor=LlavaOnevisionVideoProcessor(size=size),
            tokenizer=tokenizer,
            num_image_tokens=16,
            vision_feature_select_strategy="full",
            chat_template=chat_template("<video>", "<image>"),
        )


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


class Qwen3VL(Qwen2VL):
    """As Qwen2-VL, with three words and marks of its own around every temporal step, and DeepStack features of two layers."""

    name = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    config_class = Qwen3VLConfig
    patch = 16
    vision: ClassVar[dict[str, Any]] = dict(
        hidden_size=32,
        intermediate_size=64,
        depth=3,
        num_heads=2,
        patch_size=16,
        spatial_merge_size=2,
        temporal_patch_size=2,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0, 1],
    )
    rope: ClassVar[dict[str, Any]] = {
        "rope_type": "default",
        "rope_theta": 5e6,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text: ClassVar[dict[str, Any]] = dict(head_dim=16)
    cuts_inside = False

    def config(self, text):
        return super().config({**self.text, **text})

    def vision_config(self, size):
        return dict(out_hidden_size=size, **self.vision)

    def video(self, video, draw):
        count = video.height * video.width
        ids: list[int] = []
        for _ in range(video.frames):
            ids += [*draw.words(3), VISION_START, *[VIDEO] * count, VISION_END]
        ids = [VISION_START, *ids, VISION_END]
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], self.pixels(video, draw))

    def amplify(self, stock):
        """A freshly initialised merger makes features that no answer depends on."""
        for weight in stock.model.visual.deepstack_merger_list.parameters():
            weight.normal_(std=0.3)

    def processor(self, tokenizer):
        from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

        marked = "<|vision_start|>{}<|vision_end|>"
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96}, patch_size=16
            ),
            video_processor=Qwen3VLVideoProcessor(
                size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96 * 16}, cap_pixels_per_frame=False
            ),
            tokenizer=tokenizer,
            chat_template=chat_template(marked.format("<video>"), marked.format("<image>")),
        )

    def beside(self, stock, found, row, places, made):
        new = len(made)
        mask, layers = found["visual_pos_masks"], found["deepstack_visual_embeds"]
        if layers is None:
            return {}
        numbers = (mask.flatten().cumsum(0) - 1).view_as(mask)[row, places]
        is_vision = mask[row, places]
        return {
            "visual_pos_masks": torch.cat([is_vision, is_vision.new_zeros(new)])[None],
            "deepstack_visual_embeds": [layer[numbers[is_vision]] for layer in layers],
        }


class Qwen3VLMoe(Qwen3VL):
    """With experts."""

    name = "qwen3_vl_moe"
    model_class = Qwen3VLMoeForConditionalGeneration
    config_class = Qwen3VLMoeConfig
    text: ClassVar[dict[str, Any]] = dict(
        head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, decoder_sparse_step=1
    )

    def amplify(self, stock):
        super().amplify(stock)
        amplify_experts(stock)


class Qwen35(Qwen3VL):
    """As Qwen3-VL, without DeepStack; two layers of linear attention in front of one that attends."""

    name = "qwen3_5"
    model_class = Qwen3_5ForConditionalGeneration
    config_class = Qwen3_5Config
    vision: ClassVar[dict[str, Any]] = {
        **{name: value for name, value in Qwen3VL.vision.items() if name != "deepstack_visual_indexes"},
        "depth": 2,
    }
    rope: ClassVar[dict[str, Any]] = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "partial_rotary_factor": 0.5,
    }
    text: ClassVar[dict[str, Any]] = dict(
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
    )
    attends = False
    cuts_cache = False

    def config(self, text):
        layers = text.get("num_hidden_layers", TEXT["num_hidden_layers"])
        types = ["full_attention" if number % 3 == 2 else "linear_attention" for number in range(layers)]
        return super().config({"layer_types": types, **text})

    def amplify(self, stock):
        """States that forget slowly, so that answers depend on the whole prompt."""
        for name, weight in stock.named_parameters():
            if name.endswith("A_log"):
                weight.fill_(-4.0)

    def beside(self, stock, found, row, places, made):
        return {}


class Qwen35Moe(Qwen35):
    """With experts."""

    name = "qwen3_5_moe"
    model_class = Qwen3_5MoeForConditionalGeneration
    config_class = Qwen3_5MoeConfig
    text: ClassVar[dict[str, Any]] = dict(
        **Qwen35.text,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )

    def config(self, text):
        return super().config({name: value for name, value in text.items() if name != "intermediate_size"})

    def amplify(self, stock):
        super().amplify(stock)
        amplify_experts(stock)


class LlavaNextVideo(LlavaOnevision):
    """4 tokens per frame, nothing behind a video; the tower's class token is left out."""

    name = "llava_next_video"
    model_class = LlavaNextVideoForConditionalGeneration

    def config(self, text):
        return LlavaNextVideoConfig(
            vision_config=dict(
                model_type="clip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                projection_dim=32,
            ),
            text_config=dict(model_type="llama", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[56, 56], [56, 112]],
        )

    def video(self, video, draw):
        count = video.frames * 4
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def processor(self, tokenizer):
        from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return LlavaNextVideoProcessor(
            image_processor=LlavaNextImageProcessor(**sizes, image_grid_pinpoints=[[56, 56], [56, 112]]),
            video_processor=LlavaNextVideoVideoProcessor(**sizes),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return stock.model.vision_resampler(patches[None, 1:, None])[0, :, 0]


class VideoLlava(LlavaNextVideo):
    """17 tokens per frame, the tower's class token the first of them; nothing behind a video. Videos have a tower of their own."""

    name = "video_llava"
    model_class = VideoLlavaForConditionalGeneration

    def config(self, text):
        return VideoLlavaConfig(
            vision_config=dict(
                model_type="clip_vision_model",
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=2,
                image_size=56,
                patch_size=14,
                projection_dim=32,
            ),
            text_config=dict(model_type="llama", **text),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )

    def video(self, video, draw):
        count = video.frames * 17
        return Part([VIDEO] * count, [2] * count, {"pixel_values_videos": draw.noise(1, video.frames, 3, 56, 56)})

    def image(self, draw):
        return Part([IMAGE] * 16, [1] * 16, {"pixel_values": draw.noise(1, 3, 56, 56)})

    def tower(self, stock):
        return stock.model.video_tower

    def processor(self, tokenizer):
        from transformers import VideoLlavaImageProcessor, VideoLlavaProcessor, VideoLlavaVideoProcessor

        sizes = dict(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
        return VideoLlavaProcessor(
            image_processor=VideoLlavaImageProcessor(**sizes),
            video_processor=VideoLlavaVideoProcessor(**sizes),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template("<video>", "<image>"),
        )

    def pooled(self, stock, patches, grid):
        return patches


class VideoLlama3(Qwen2VL):
    """A token per 2 x 2 patches and a time before every frame; images are not merged. Positions are the places."""

    name = "video_llama_3"
    model_class = VideoLlama3ForConditionalGeneration
    has_token_types = False
    mrope = False
    keeps_logits = False

    def config(self, text):
        return VideoLlama3Config(
            vision_config=dict(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, patch_size=14
            ),
            text_config=dict(model_type="qwen2", **text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    def video(self, video, draw):
        count = video.height * video.width
        ids: list[int] = []
        for frame in range(video.frames):
            ids += [*([COMMA] if frame else []), TIME, *draw.words(2), COLON, *[VIDEO] * count]
        fields = {
            "pixel_values_videos": draw.noise(4 * count * video.frames, 3 * 14**2),
            "video_grid_thw": torch.tensor([[video.frames, video.height * 2, video.width * 2]]),
            "video_merge_sizes": torch.tensor([2]),
            "video_compression_mask": torch.ones(count * video.frames, dtype=torch.bool),
        }
        return Part(ids, [2 if token == VIDEO else 0 for token in ids], fields)

    def image(self, draw):
        fields = {
            "pixel_values": draw.noise(16, 3 * 14**2),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "image_merge_sizes": torch.tensor([1]),
        }
        return Part([IMAGE] * 16, [1] * 16, fields)

    def tower(self, stock):
        return stock.model.vision_model

    def last_attention(self, stock):
        return self.tower(stock).encoder.layers[-1].self_attn

    def positions(self, stock, inputs, places):
        return places

    def processor(self, tokenizer):
        from transformers import VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor

        return VideoLlama3Processor(
            image_processor=VideoLlama3ImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 84 * 84}),
            video_processor=VideoLlama3VideoProcessor(
                size={"shortest_edge": 28 * 28, "longest_edge": 84 * 84 * 16}, use_token_compression=False
            ),
            tokenizer=tokenizer,
            chat_template=chat_template("<video>", "<image>"),
        )


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
        return reaching_language_model(stock, stock_inputs(stock, inputs))["inputs_embeds"]

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


class Glm4v(Qwen2VL):
    """As Qwen2-VL, with marks of its own and two words behind every temporal step; the placeholders are those of images."""

    name = "glm4v"
    model_class = Glm4vForConditionalGeneration
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
        masks, length = found["attention_mask"], found["inputs_embeds"].shape[1]
        everywhere = torch.cat([places, length + torch.arange(len(made))])
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


def amplify_experts(stock: Any) -> None:
    """As `stock_model` does with the other weights of its layers; those of experts are one tensor for all of them."""
    for name, weight in stock.named_parameters():
        if weight.ndim == 3 and "language_model.layers" in name and "experts" in name:
            weight.normal_(std=0.2)


def chat_template(video: str, image: str) -> str:
    """Messages as their texts and these words for videos and images."""
    return (
        "{% for m in messages %}{% for c in m['content'] %}"
        f"{{{{ '{video} ' if c['type'] == 'video' else '{image} ' if c['type'] == 'image' else c['text'] + ' ' }}}}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}answer{% endif %}"
    )


BY_NAME: dict[str, Family] = {
    family.name: family
    for family in (
        LlavaOnevision(),
        Qwen25VL(),
        Qwen2VL(),
        LlavaNextVideo(),
        Qwen3VL(),
        Qwen3VLMoe(),
        Qwen35(),
        Qwen35Moe(),
        VideoLlama3(),
        InternVL(),
        SmolVLM(),
        Glm4v(),
        Glm4vMoe(),
        Glm46V(),
        Gemma4(),
        VideoLlava(),
    )
}
FAMILIES = tuple(BY_NAME)
FIRST = FAMILIES[:2]


def family_of(stock) -> Family:
    """The family of a stock model."""
    return BY_NAME[stock.config.model_type]


def attending_layer(decoder) -> nn.Module:
    """The first layer of a language model that attends."""
    return next(layer for layer in decoder.layers if "self_attn" in dict(layer.named_children()))


def refused_methods(family: str) -> tuple[str, ...]:
    """The names of the methods that refuse the language model of a family by name."""
    known = BY_NAME[family]
    inside = () if known.cuts_inside else ("fastv", "framefusion")
    return inside if known.attends else (*inside, "attention")


def skip_unless_served(family: str, method: Any) -> None:
    """Skip a test of a method, by name or instance, that refuses the language model of a family by name."""
    name = method if isinstance(method, str) else method.name
    if name in refused_methods(family):
        pytest.skip(f"{name} refuses {family}")


def skip_unless_a_cache_can_be_cut(stock) -> None:
    """Skip a test that cuts back the cache of a model that has states or windows."""
    if not family_of(stock).cuts_cache:
        pytest.skip("states of linear attention, and windows that are full, cannot be cut back")


def skip_unless_split(family: str, settings: dict[str, Any]) -> None:
    """Skip a test of a prefill in chunks that a family refuses by name."""
    if settings.get("prefill_chunk_size") is not None and not BY_NAME[family].splits_prefill:
        pytest.skip(f"{family} refuses a prefill in chunks")


def skip_without_flash(family: str) -> None:
    """Skip a test of flash attention that a family refuses by name."""
    if not BY_NAME[family].flash:
        pytest.skip(f"{family} refuses flash attention")


def tower(stock) -> nn.Module:
    """The vision tower of a stock model."""
    return family_of(stock).tower(stock)


def stock_model(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text):
    """A random stock model whose answers depend on its whole prompt (weights larger than the usual initialisation)."""
    torch.manual_seed(seed)
    config = BY_NAME[family].config({**TEXT, **text})
    config._attn_implementation = attention
    model = BY_NAME[family].model_class(config).eval()
    with torch.no_grad():
        for weight in model.get_decoder().layers.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.2)
        model.lm_head.weight.normal_(std=0.5)
        model.get_input_embeddings().weight.normal_(std=1.0)
        BY_NAME[family].amplify(model)
    model.to(dtype)
    # No end of text, so that every case decodes its full length.
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, None
    # Placeholders that stand for no pixels are an error of the stock model without a cache.
    model.generation_config.suppress_tokens = list(BY_NAME[family].suppressed)
    return model


def wrapped(family: str, attention: str = "sdpa", **options):
    """A stock model and the same one wrapped, with these options of `from_backbone`."""
    stock = stock_model(family, attention)
    return stock, CaCoVidForConditionalGeneration.from_backbone(stock, **options)


ONE_VIDEO = [[3, Video(), 6]]
RAGGED = [[3, Video(), 6], [1, Video(), 11], [2, Video(), 2]]
TWO_VIDEOS = [[2, Video(4), 3, Video(4, 3, 2, 2.5), 5]]
ADJACENT_VIDEOS = [[2, Video(4), Video(4), 5]]
IMAGE_AND_VIDEO = [[2, Image(), 2, Video(), 5]]
VIDEO_AND_TEXT_ROWS = [[2, Video(), 5], [9]]
TEXT_ONLY = [[8], [5]]
PROMPTS = {
    "one video": ONE_VIDEO,
    "ragged batch": RAGGED,
    "two videos": TWO_VIDEOS,
    "adjacent videos": ADJACENT_VIDEOS,
    "image beside video": IMAGE_AND_VIDEO,
    "video and text rows": VIDEO_AND_TEXT_ROWS,
}


def prompt_inputs(
    model, rows, *, seed: int = 1, padding_side: str = "left", pixel_scale: float = 1.0
) -> dict[str, Tensor]:
    """What a processor would return for `rows`, each a list of text lengths, videos and images."""
    family, draw = family_of(model), Draw(torch.Generator().manual_seed(seed), pixel_scale)

    def part_of(asked) -> Part:
        if isinstance(asked, Video):
            return family.video(asked, draw)
        if isinstance(asked, Image):
            return family.image(draw)
        return Part(draw.words(asked), [0] * asked)

    prompts = [[part_of(asked) for asked in row] for row in rows]
    ids = [[token for part in parts for token in part.ids] for parts in prompts]
    types = [[kind for part in parts for kind in part.types] for parts in prompts]
    longest = max(map(len, ids))

    def padded(lists: list[list[int]], value: int) -> Tensor:
        gaps = [[value] * (longest - len(found)) for found in lists]
        return torch.tensor([g + x if padding_side == "left" else x + g for g, x in zip(gaps, lists, strict=True)])

    inputs = {"input_ids": padded(ids, PAD), "attention_mask": padded([[1] * len(x) for x in ids], 0)}
    if family.has_token_types:
        inputs["mm_token_type_ids"] = padded(types, 0)
    inputs |= family.joined(prompts)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    return inputs


def original_positions(model, inputs) -> Tensor:
    """Explicit `position_ids` of an uncompressed prompt."""
    mask = inputs["attention_mask"]
    places = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
    return family_of(model).positions(model, inputs, places)


def masked_inputs(model, inputs, kept_indices, **settings) -> dict[str, Tensor]:
    """The oracle's inputs for these settings of generation: the uncompressed prompt, dropped tokens masked out as keys, explicit original positions.

    Skips the test where masking is not dropping, because some layers do not attend (see `helpers.cut_oracle`).
    """
    if not family_of(model).attends:
        pytest.skip(f"{model.config.model_type} has layers that do not attend, which read masked tokens too")
    kept = torch.zeros_like(inputs["attention_mask"])
    for row, places in enumerate(kept_indices):
        kept[row, places[places >= 0]] = 1
    masked = {"attention_mask": kept, "position_ids": original_positions(model, inputs)}
    return {**stock_inputs(model, inputs, **settings), **masked}


def stock_inputs(model, inputs, **settings) -> dict[str, Tensor]:
    """What the stock model takes of a prompt's inputs; where that cannot be their pixels, the embeddings that it makes of them.

    Args:
        model: the stock one.
        inputs: of the prompts.
        **settings: of generation.
    """
    family = family_of(model)
    is_mixed = all(inputs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
    expands = max(settings.get("num_beams", 1), settings.get("num_return_sequences", 1)) > 1
    if (family.mixes or not is_mixed) and (family.expands or not expands):
        return {name: value for name, value in inputs.items() if name not in family.own_inputs}
    with torch.no_grad():
        embeds = family.embedded(model, inputs)
    fields = (*VIDEO_FIELDS, *IMAGE_FIELDS, *TILE_FIELDS, "mm_token_type_ids")
    words = {name: value for name, value in inputs.items() if name not in fields}
    return {**words, "inputs_embeds": embeds, "position_ids": original_positions(model, inputs)}


def for_forward(inputs) -> dict[str, Tensor]:
    """The same for a stock forward, which does not take ids beside embeddings."""
    return {name: value for name, value in inputs.items() if name != "input_ids" or "inputs_embeds" not in inputs}
