"""Gemma 4: a time and two marks around every frame, and a language model most of whose layers have windows.

The small models look up more of a token by its id, beside its embedding (per-layer inputs). In the large ones, the tokens of a frame see each other in both
directions in the layers that have windows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..prompt import PromptLayout, TowerAttention
from .base import Backbone, take_rows
from .tower import recorded, token_means

PER_FRAME = ("pixel_values_videos", "video_position_ids")


class Gemma4Backbone(Backbone):
    """`Gemma4ForConditionalGeneration`; 1-D positions."""

    model_type = "gemma4"
    video_settings = ("num_frames_per_video",)
    own_inputs = ("num_soft_tokens_per_video",)
    words_around_frames = True
    looked_up: ClassVar[tuple[str, ...]] = ("per_layer_inputs",)
    since = "5.24"

    # ---------------------------------------------------------------- places

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """Count the words of a frame, which is `00:02 <start>`, its placeholders and `<end>`."""
        start, end = config.boi_token_id, config.eoi_token_id
        if before[-1:] != [start]:
            return 0, 0
        own = next((n for n, token in enumerate(reversed(before)) if token == end), 1)
        return own, int(behind[:1] == [end])

    def num_words_before_first(self, config, before: list[int], between: list[int]) -> int:
        """Count the words before the first frame: times are equally long, and a space stands between frames; of a video of one frame no more than the mark is known."""
        if before[-1:] != [config.boi_token_id]:
            return 0
        return min(len(before), max(len(between) - 2, 1))

    def filler_id(self, config) -> int:
        """Return padding, which placeholders are looked up as."""
        return config.get_text_config().pad_token_id

    def layout(
        self, config, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any], grids=None
    ) -> PromptLayout:
        """As `Backbone.layout`.

        Raises:
            ValueError: likewise, or `mm_token_type_ids` are missing where they say which tokens see each other in both directions.
        """
        layout = super().layout(config, input_ids, attention_mask, inputs, grids)
        if layout.videos and self.joint_frames(config) and inputs.get("mm_token_type_ids") is None:
            raise ValueError(
                "mm_token_type_ids is missing, by which the tokens of a frame see each other in both directions: pass everything that the processor returned."
            )
        return layout

    # ---------------------------------------------------------------- inputs

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`video_position_ids` `(frames, patches, 2)` are column and row of each patch, -1 at padding; so many by so many patches are a token."""
        missing = [name for name in (*PER_FRAME, "num_frames_per_video") if inputs.get(name) is None]
        if not set(PER_FRAME) - set(missing):
            return []
        if missing:
            raise ValueError(
                f"{', '.join(missing)} is missing beside the videos: pass everything that the processor returned."
            )
        places: Tensor = inputs["video_position_ids"]
        side, counts = config.vision_config.pooling_kernel_size, _counts(inputs)
        patches = (places >= 0).all(dim=-1).sum(dim=1).tolist()
        sizes = (places.amax(dim=1) + 1).tolist()
        grids, first = [], 0
        for count in counts:
            if len(set(patches[first : first + count])) != 1:
                raise ValueError(
                    f"Frames of one video have {sorted(set(patches[first : first + count]))} patches: give each video frames of one size."
                )
            width, height = sizes[first]
            grids.append((count, height // side, width // side))
            first += count
        return grids

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every frame is encoded by itself."""
        first = sum(_counts(inputs)[:video])
        part = {name: inputs[name][first + start : first + stop] for name in PER_FRAME}
        return {**part, "num_frames_per_video": torch.tensor([stop - start])}

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the number of frames."""
        return {"num_frames_per_video": torch.tensor([steps])}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`image_position_ids` `(images, patches, 2)` are -1 at padding; so many by so many patches are a token."""
        places: Tensor | None = inputs.get("image_position_ids")
        vision: Any = model.config.vision_config
        return (
            [] if places is None else ((places >= 0).all(dim=-1).sum(dim=1) // vision.pooling_kernel_size**2).tolist()
        )

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """Of a video, the rows of its frames; one row an image."""
        frames = None
        if videos is not None and inputs.get("num_frames_per_video") is not None:
            ends = [0, *accumulate(_counts(inputs))]
            frames = [row for video in videos for row in range(ends[video], ends[video + 1])]
        inputs = take_rows(take_rows(inputs, PER_FRAME, frames), ("num_frames_per_video",), videos)
        return take_rows(inputs, ("pixel_values", "image_position_ids"), images)

    def inputs_of_words(self, settings: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Any]:
        """Return the number of tokens of a frame."""
        return {"num_soft_tokens_per_video": [grid[1] * grid[2]]}

    # ---------------------------------------------------------------- beside the embeddings

    def joint_frames(self, config) -> bool:
        """Of the large models."""
        return config.get_text_config().use_bidirectional_attention == "vision"

    def extra_width(self, config) -> int:
        """Whether a token is one of a frame or an image, where those see each other."""
        return int(self.joint_frames(config))

    def extra(self, config, found: dict[str, Any]) -> Tensor | None:
        """1 at placeholders."""
        is_video, is_image = self.places(config, found["input_ids"], {})
        return (is_video | is_image)[..., None]

    def stock_arguments(self, model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
        """Per-layer inputs `(R, n, layers, C)` of the small models; placeholders have those of padding."""
        config: Any = model.config
        if not config.get_text_config().hidden_size_per_layer_input:
            return {}
        placeholders = torch.tensor(
            [config.image_token_id, config.video_token_id, config.audio_token_id], device=input_ids.device
        )
        ids = input_ids.masked_fill(torch.isin(input_ids, placeholders), self.filler_id(config))
        decoder: Any = self.language_model(model)
        return {"per_layer_inputs": decoder.get_per_layer_inputs(ids, None)}

    @contextmanager
    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> Iterator[Callable[[], tuple[TowerAttention, ...]]]:
        """Of the last layer; its scores are not divided by the root of a head's width, so that queries are multiplied by it here."""
        attention = model.model.vision_tower.encoder.layers[-1].self_attn
        modules = {"queries": attention.q_norm, "keys": attention.k_norm, "block": attention}
        side = model.config.vision_config.pooling_kernel_size
        with recorded(modules) as notes:

            def found() -> tuple[TowerAttention, ...]:
                # Of images the tower knows in a call before. (frames, patches, heads, d)
                cos, sin = (table[:, :, None].float() for table in notes["block.kwargs"][-1]["position_embeddings"])
                queries, keys = (_turned(notes[name][-1].float(), cos, sin) for name in ("queries", "keys"))
                queries = queries * queries.shape[-1] ** 0.5
                keys = keys.repeat_interleave(queries.shape[2] // keys.shape[2], dim=2)
                videos, first = [], 0
                for span in layout.videos:
                    rows = slice(first, first + span.num_frames)
                    patches = slice(span.tokens_per_frame * side**2)  # padding is behind them
                    q, k = (x[rows, patches].transpose(1, 2) for x in (queries, keys))
                    videos.append(TowerAttention(q, k, partial(token_means, grid=span.grid, sides=(side, side))))
                    first += span.num_frames
                return tuple(videos)

            yield found


def _counts(inputs: dict[str, Any]) -> list[int]:
    """How many frames each video has; their rows are those of one after the other."""
    return torch.as_tensor(inputs["num_frames_per_video"]).tolist()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads `(..., d)` turned by column with their first half, by row with their second one; coordinate `i` with `i + d / 4` of its half."""
    first, second = x.unflatten(-1, (2, -1)).chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1).flatten(-2) * sin
