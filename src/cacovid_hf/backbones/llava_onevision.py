"""LLaVA-OneVision: every frame pooled to a square of tokens, one newline token behind each video."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import select_best_resolution

from ..prompt import PromptLayout, TowerAttention
from .base import Backbone, take_rows
from .tower import recorded


class LlavaOnevisionBackbone(Backbone):
    """`LlavaOnevisionForConditionalGeneration`; 1-D positions."""

    model_type = "llava_onevision"
    video_inputs = ("pixel_values_videos", "video_lengths")
    trailing_tokens = 1

    def side(self, config) -> int:
        """Tokens along an edge of a frame."""
        return math.ceil(config.vision_config.image_size // config.vision_config.patch_size / 2)

    def frame_size(self, config) -> tuple[int, int]:
        """Height and width of a frame, in tokens."""
        return self.side(config), self.side(config)

    def vision_tower(self, model: PreTrainedModel) -> nn.Module:
        """Return the one that encodes videos."""
        return model.model.vision_tower

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`pixel_values_videos` is `(videos, T, channels, H, W)`; the tower's patches are pooled two by two.

        Of clips of different lengths, `video_lengths` `(videos,)` says how many of the `T` frames are the clip's own; the others are padding.
        """
        pixels = inputs.get("pixel_values_videos")
        if pixels is None:
            return []
        if pixels.ndim != 5:
            raise ValueError(
                f"pixel_values_videos has shape {tuple(pixels.shape)}: {type(self).__name__.removesuffix('Backbone')} takes (videos, frames, channels, height, width)."
            )
        size = self.frame_size(config)
        lengths = inputs.get("video_lengths")
        if lengths is None:
            return [(pixels.shape[1], *size)] * pixels.shape[0]
        lengths = [int(length) for length in lengths]
        if len(lengths) != len(pixels) or not all(1 <= length <= pixels.shape[1] for length in lengths):
            raise ValueError(
                f"video_lengths={lengths} do not fit pixel_values_videos of shape {tuple(pixels.shape)}: give one for each video, in [1, {pixels.shape[1]}]."
            )
        return [(length, *size) for length in lengths]

    def encodes_apart(self, inputs: dict[str, Any]) -> bool:
        """Where `video_lengths` are given: clips of different lengths are padded to one."""
        return inputs.get("video_lengths") is not None

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every frame is encoded by itself."""
        settings = ("vision_feature_layer", "vision_feature_select_strategy")
        pixels = inputs["pixel_values_videos"][video : video + 1, start:stop]
        return {"pixel_values_videos": pixels, **{name: inputs[name] for name in settings if name in inputs}}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """As the stock model itself joins the tiles of every image, of whose shapes alone it needs to know."""
        if inputs.get("pixel_values") is None:
            return []
        config: Any = model.config
        sizes, side = inputs["image_sizes"].cpu(), config.vision_config.image_size
        patches = (side // config.vision_config.patch_size) ** 2
        shapes = []
        for size, is_cut in zip(sizes.tolist(), cut_into_tiles(inputs, len(sizes)), strict=True):
            height, width = select_best_resolution(size, config.image_grid_pinpoints)
            tiles = 1 + (height // side) * (width // side) if is_cut else 1
            shapes.append(torch.empty(tiles, patches, 1, device="meta"))
        settings = {"image_newline": torch.empty(1, device="meta"), **self.joining(config, inputs)}
        joined, _ = model.model.pack_image_features(shapes, sizes, **settings)
        return [len(image) for image in joined]

    def joining(self, config, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the settings by which the stock model joins tiles."""
        return {"vision_aspect_ratio": inputs.get("vision_aspect_ratio", config.vision_aspect_ratio)}

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """One row a video, one row an image; of several images in one prompt none is cut into tiles, and stays so.

        Raises:
            ValueError: the stock forward cannot be told which of these images are cut.
        """
        if images is not None and inputs.get("batch_num_images") is not None:
            is_cut = cut_into_tiles(inputs, sum(map(int, inputs["batch_num_images"])))
            taken = _numbers_of_images([is_cut[image] for image in images])
            inputs = {**inputs, "batch_num_images": torch.tensor(taken) if taken else None}
        return take_rows(
            take_rows(inputs, ("pixel_values_videos", "video_lengths", "image_sizes_videos"), videos),
            ("pixel_values", "image_sizes"),
            images,
        )

    def pooled(self, model: PreTrainedModel, patches: Tensor) -> Tensor:
        """`(T, S, C)` of what the vision tower attends to, brought down to `(T, P, C)` of tokens by the model itself."""
        return model.model.apply_pooling(patches)

    def projections(self, model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
        """Return what makes the queries and the keys of the tower's layer that the features come from."""
        layers = [m for name, m in self.vision_tower(model).named_modules() if name.endswith("self_attn")]
        chosen = model.config.vision_feature_layer
        depth = chosen if isinstance(chosen, int) else chosen[-1]
        # hidden_states[0] is the tower's input.
        layer: Any = layers[depth if depth < 0 else depth - 1]
        return layer.q_proj, layer.k_proj

    def by_heads(self, model: PreTrainedModel, projected: Tensor) -> Tensor:
        """`(T, H, S, d)`, what the tower attends with, of what one of `projections` gave."""
        return projected.unflatten(-1, (model.config.vision_config.num_attention_heads, -1)).transpose(1, 2)

    @contextmanager
    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> Iterator[Callable[[], tuple[TowerAttention, ...]]]:
        """Read the tower's layer that the features come from; patches become tokens by the model's own pooling."""
        with recorded(dict(zip(("queries", "keys"), self.projections(model), strict=True))) as notes:

            def attention() -> tuple[TowerAttention, ...]:
                frames = [span.num_frames for span in layout.videos]
                queries, keys = (
                    self.by_heads(model, _last_rows(notes[name], sum(frames))) for name in ("queries", "keys")
                )
                return tuple(
                    TowerAttention(q, k, partial(self.pooled, model))
                    for q, k in zip(queries.split(frames), keys.split(frames), strict=True)
                )

            yield attention


def cut_into_tiles(inputs: dict[str, Any], count: int) -> list[bool]:
    """Return which of so many images are cut into tiles: those that are alone in their prompt, by `batch_num_images`; without it all."""
    numbers = inputs.get("batch_num_images")
    return [True] * count if numbers is None else [int(n) == 1 for n in numbers for _ in range(int(n))][:count]


def _numbers_of_images(is_cut: list[bool]) -> list[int]:
    """Return `cut_into_tiles` the other way round."""
    numbers: list[int] = []
    for cut, group in groupby(is_cut):
        count = len(list(group))
        numbers += [1] * count if cut else [count]
    if numbers and not is_cut[-1]:
        numbers[-1] = max(2, numbers[-1])  # stock code reads no more of it than there are images
    if numbers.count(1) != sum(is_cut):
        raise ValueError(
            "One image of several in its row, beside an image that is alone in its row, cannot be given to the stock model: continue these rows in "
            "calls of their own."
        )
    return numbers


def _last_rows(calls: list[Tensor], count: int) -> Tensor:
    """Return the last `count` rows of several calls; images are in a call before the videos, padded clips in one call each."""
    taken = 1
    while sum(len(call) for call in calls[-taken:]) < count:
        taken += 1
    return torch.cat(calls[-taken:])
