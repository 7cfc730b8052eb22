"""Families whose stock model knows images alone: every frame of a video is one of them, with the placeholder of an image.

Nothing that a stock processor returns tells a frame from an image. Ours says it by two arguments of its own:

- `frame_numbers`, one number for every tile of `pixel_values` (see `cacovid_hf.video.tiles`).
- `mm_token_type_ids` `(B, L)`, as of other families: 1 at placeholders of images, 2 at those of frames.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..prompt import PromptLayout, TowerAttention
from ..video.tiles import IMAGE, PADDING, frame_counts
from .base import Backbone
from .tower import recorded


class FramesAsImagesBackbone(Backbone):
    """A tile of an image, or a frame, is one entry of `pixel_values` and a square of placeholders.

    Attributes:
        pixel_inputs: names of the arguments with one entry for every tile.
        forward_settings: names of arguments of the stock forward that change how tiles are encoded.
        marks_before: how many marks stand directly before a frame's placeholders.
    """

    video_inputs: ClassVar[tuple[str, ...]] = ("frame_numbers",)
    own_inputs: ClassVar[tuple[str, ...]] = ("frame_numbers", "mm_token_type_ids")
    words_around_frames = True
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    forward_settings: ClassVar[tuple[str, ...]] = ()
    marks_before: ClassVar[int] = 1

    @abstractmethod
    def tokens_per_tile(self, config) -> int:
        """`P`, placeholders of a tile."""

    def tiles(self, inputs: dict[str, Any], name: str) -> Tensor:
        """`(n, ...)`, the entries of one of the `pixel_inputs` that are not padding, in the order of the prompt."""
        return inputs[name]

    def as_input(self, tiles: Tensor) -> Tensor:
        """`tiles` the other way round."""
        return tiles

    # ---------------------------------------------------------------- places

    def video_token_id(self, config) -> int:
        """Return the id of images."""
        return config.image_token_id

    def places(self, config, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """By `mm_token_type_ids`; without them every placeholder is a frame's."""
        is_media, types = input_ids == config.image_token_id, inputs.get("mm_token_type_ids")
        if types is None or types.shape != input_ids.shape:
            return is_media, torch.zeros_like(is_media)
        is_frame = types.to(input_ids.device) == 2
        return is_media & is_frame, is_media & ~is_frame

    def layout(
        self,
        config,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        grids: list[tuple[int, int, int]] | None = None,
    ) -> PromptLayout:
        """As `Backbone.layout`.

        Raises:
            ValueError: also, frames that cannot be told from images.
        """
        types = inputs.get("mm_token_type_ids")
        if types is None and inputs.get("encoded_videos") is None and bool((input_ids == config.image_token_id).any()):
            raise ValueError(
                "Frames cannot be told from images without mm_token_type_ids and frame_numbers. Make the inputs with "
                "cacovid_hf.with_video_reader(processor), and pass all of them."
            )
        return super().layout(config, input_ids, attention_mask, inputs, grids)

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """All that stands between two frames: a mark and a line break of the one, the words and marks of the other."""
        goes_on = behind[-1:] == before[-1:]
        return max(0, len(before) - 2), min(2 if goes_on else 1, len(behind))

    def num_words_before_first(self, config, before: list[int], between: list[int]) -> int:
        """Where they begin cannot be seen: as many as the second frame's, of a single frame the marks alone."""
        return min(len(between) - 2 if between else self.marks_before, len(before))

    def inputs_of_words(self, settings: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Any]:
        """How many frames there are."""
        return {"frame_numbers": torch.arange(grid[0])}

    # ---------------------------------------------------------------- inputs

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """Frames are square."""
        if inputs.get("frame_numbers") is None:
            return []
        counts = frame_counts(inputs["frame_numbers"])
        if inputs.get("pixel_values") is None:
            raise ValueError(
                "frame_numbers is given without pixel_values: pass everything that the processor returned."
            )
        tiles, numbers = len(self.tiles(inputs, "pixel_values")), len(self._numbers(inputs))
        if tiles != numbers:
            raise ValueError(
                f"pixel_values has {tiles} tiles, frame_numbers {numbers}: pass both as one call of the processor returned them."
            )
        side = math.isqrt(self.tokens_per_tile(config))
        return [(count, side, side) for count in counts]

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every frame is encoded by itself."""
        numbers = self._numbers(inputs)
        first = [place for place, number in enumerate(numbers) if number == 0][video]
        settings = {name: inputs[name] for name in self.forward_settings if name in inputs}
        return {**self._pixels(inputs, range(first + start, first + stop)), **settings}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """Each tile of an image counts as one."""
        return [self.tokens_per_tile(model.config)] * self._numbers(inputs).count(IMAGE)

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """Return the tiles of these videos and images, in the order of the prompt."""
        numbers = self._numbers(inputs)
        kept: list[int] = []
        video, image = -1, -1
        for place, number in enumerate(numbers):
            video, image = video + (number == 0), image + (number == IMAGE)
            wanted, which = (images, image) if number == IMAGE else (videos, video)
            if wanted is None or which in wanted:
                kept.append(place)
        if len(kept) == len(numbers):
            return inputs
        names = (*self.pixel_inputs, "frame_numbers")
        taken = {name: value for name, value in inputs.items() if name not in names}
        if not kept:
            return taken
        return {
            **taken,
            **self._pixels(inputs, kept),
            "frame_numbers": self.as_input(torch.tensor([numbers[place] for place in kept])),
        }

    def _numbers(self, inputs: dict[str, Any]) -> list[int]:
        """Return the frame number of every tile; without `frame_numbers`, all are of images."""
        if inputs.get("frame_numbers") is not None:
            return [number for number in inputs["frame_numbers"].flatten().tolist() if number != PADDING]
        if inputs.get("pixel_values") is None:
            return []
        return [IMAGE] * len(self.tiles(inputs, "pixel_values"))

    def _pixels(self, inputs: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
        return {
            name: self.as_input(self.tiles(inputs, name)[list(places)])
            for name in self.pixel_inputs
            if inputs.get(name) is not None
        }

    # ---------------------------------------------------------------- tower

    @abstractmethod
    def tower_projections(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """Return the modules whose outputs `(tiles, S, H * d)` are the `queries` and `keys` of the layer that the features come from."""

    @abstractmethod
    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """`(T, S, C)` of what the tower attends to, to `(T, P, C)`: the mean of the patches that the model joins."""

    @contextmanager
    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> Iterator[Callable[[], tuple[TowerAttention, ...]]]:
        """Images and frames go through the tower in one call, in the order of the prompt."""
        heads = model.config.vision_config.num_attention_heads
        of_videos = self._tiles_of_videos(model.config, layout)
        with recorded(self.tower_projections(model)) as notes:

            def attention() -> tuple[TowerAttention, ...]:
                queries, keys = (
                    notes[name][-1].unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("queries", "keys")
                )
                return tuple(TowerAttention(queries[of], keys[of], partial(self.pooled, model)) for of in of_videos)

            yield attention

    def _tiles_of_videos(self, config, layout: PromptLayout) -> list[slice]:
        """Which of the call's tiles are each video's."""
        is_media = layout.valid & ~layout.text
        for span in layout.videos:
            is_media[span.row, span.word_places] = False
        before = is_media.flatten().cumsum(0).view_as(is_media) - 1
        tokens = self.tokens_per_tile(config)
        firsts = [int(before[span.row, span.positions[0]]) // tokens for span in layout.videos]
        return [slice(first, first + span.num_frames) for first, span in zip(firsts, layout.videos, strict=True)]
