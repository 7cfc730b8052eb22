"""What the rows of the families share: the ids and sizes of tiny models, the parts of a prompt, and what the tests need to know of a family."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from helpers.reaching import reaching_language_model
from torch import Tensor, nn

PAD, BOS, EOS, VISION_START, VISION_END, IMAGE, VIDEO = 0, 1, 2, 3, 4, 110, 111
# Words that no random text has: those of a time in front of a frame.
COMMA, TIME, COLON = 105, 106, 107
# Marks around a video whose placeholders are those of images.
VIDEO_START, VIDEO_END = 108, 109
# Fields that processors return for videos, and for images; a row whose processor has others writes `without_videos`.
VIDEO_FIELDS = (
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
    "video_merge_sizes",
    "video_compression_mask",
    "video_position_ids",
    "num_frames_per_video",
)
IMAGE_FIELDS = (
    "pixel_values",
    "pixel_values_images",
    "image_sizes",
    "image_grid_thw",
    "image_merge_sizes",
    "image_position_ids",
)
# Every field of the words of a prompt; the others hold its videos and images.
WORD_FIELDS = ("input_ids", "attention_mask", "mm_token_type_ids")
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
        pixels_along: the dimension of pixels along which one video, or image, stands behind the other.
        mrope: whether positions are `(4, B, L)`: text, time, height and width.
        own_inputs: names of inputs that our processor adds for our models alone.
        frame_id: the placeholder of a frame.
        attends: whether all layers of the language model attend. If not, a masked token is still read, and cutting is the only oracle.
        cuts_inside: whether tokens can be dropped between the layers of its language model.
        tower_window: side, in tokens, of the windows in whose order the vision tower takes a frame; None: raster order.
        keeps_logits: whether the stock forward makes logits of the last positions alone, if asked.
        splits_prefill: whether a prompt may go through the language model in chunks.
        flash: whether flash attention may run it.
        tower_kernels: whether its vision tower attends by the kernels of transformers.
        held: names of parts that its stock code does not bring back from disk.
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
    pixels_along: ClassVar[int] = 0
    own_inputs: ClassVar[tuple[str, ...]] = ()
    frame_id: ClassVar[int] = VIDEO
    attends: ClassVar[bool] = True
    cuts_inside: ClassVar[bool] = True
    tower_window: ClassVar[int | None] = None
    keeps_logits: ClassVar[bool] = True
    splits_prefill: ClassVar[bool] = True
    flash: ClassVar[bool] = True
    tower_kernels: ClassVar[bool] = True
    held: ClassVar[tuple[str, ...]] = ()
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

    def frames_seen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """How many frames, or temporal steps, a call of the vision tower with these arguments sees."""
        if self.packed_pixels:
            return int(kwargs["grid_thw"][:, 0].sum())
        return len(args[0] if args else kwargs["pixel_values"])

    def last_attention(self, stock: Any) -> nn.Module:
        """The attention of the tower's last layer, where pixels are patches."""
        return self.tower(stock).blocks[-1].attn

    def tower_maps(self, stock: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Attention `(H, S, S)` of every frame in the eager tower's layer that features come from, where pixels are not packed."""
        layer = getattr(stock.config, "vision_feature_layer", -1)
        return list(self.tower(stock)(self.frame_pixels(inputs), output_attentions=True).attentions[layer])

    def of_stock(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs that a stock model takes."""
        return {name: value for name, value in inputs.items() if name not in self.own_inputs}

    @abstractmethod
    def processor(self, tokenizer: Any) -> Any:
        """The stock processor around a tokenizer that has the placeholders of this module."""

    def joined(self, prompts: list[list[Part]]) -> dict[str, Tensor]:
        """The fields of the parts of all rows, as the processor returns them."""
        return self.stacked([part.fields for prompt in prompts for part in prompt])

    def stacked(self, fields: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pixels, grids and the like of several prompts as those of one, in order."""
        names = dict.fromkeys(name for found in fields for name in found)
        return {
            name: torch.cat([found[name] for found in fields if name in found], dim=self.joined_along(name))
            for name in names
        }

    def joined_along(self, name: str) -> int:
        """The dimension of a field along which one video, or image, stands behind the other."""
        return self.pixels_along if name.startswith("pixel_values") else 0

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
