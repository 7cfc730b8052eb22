"""Families whose pixels are patches, those of one video or image after the other, merged side by side; M-RoPE positions. Qwen2-VL began it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..prompt import PromptLayout, TowerAttention
from .base import Backbone, take_rows
from .tower import recorded

logger = logging.get_logger(__name__)


class PackedPatchesBackbone(Backbone):
    """A family with `video_grid_thw` and `image_grid_thw`; positions are text, time, height and width rows."""

    video_settings: ClassVar[tuple[str, ...]] = ("video_grid_thw",)

    def patch_grids(self, inputs: dict[str, Any]) -> list[list[int]]:
        """`[T, h, w]` of every video in patches, [] without videos.

        Raises:
            ValueError: grids without pixels, or pixels without grids.
        """
        grids, pixels = inputs.get("video_grid_thw"), inputs.get("pixel_values_videos")
        if (grids is None) != (pixels is None):
            given, missing = (
                ("pixel_values_videos", "video_grid_thw")
                if grids is None
                else ("video_grid_thw", "pixel_values_videos")
            )
            raise ValueError(f"{given} is given without {missing}: pass everything that the processor returned.")
        return [] if grids is None else grids.tolist()

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`video_grid_thw` is `(videos, 3)` in patches."""
        found = self.patch_grids(inputs)
        merge = config.vision_config.spatial_merge_size if found else 1
        return [(t, h // merge, w // merge) for t, h, w in found]

    def position_ids(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any]
    ) -> Tensor:
        """`(4, B, L)`: text positions, then time, height and width from the model's own `get_rope_index`.

        As in stock generation, plain text positions stand in all rows if `mm_token_type_ids` is missing.
        """
        text = super().position_ids(model, input_ids, attention_mask, inputs)
        token_types = inputs.get("mm_token_type_ids")
        if token_types is None:
            logger.warning_once(
                "mm_token_type_ids is missing: as in stock generation, video tokens get plain text positions instead of time, height and "
                "width. Pass everything that the processor returned."
            )
            return text.expand(4, -1, -1)
        settings = {name: inputs.get(name) for name in ("image_grid_thw", *self.video_settings)}
        mrope, _ = model.model.get_rope_index(
            input_ids, mm_token_type_ids=token_types, attention_mask=attention_mask, **settings
        )
        return torch.cat([text[None], mrope.to(text)])

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every temporal step is encoded by itself: attention ends with it."""
        grids = inputs["video_grid_thw"].cpu()
        _, height, width = grids[video].tolist()
        first = int(grids[:video].prod(dim=-1).sum())
        pixels = inputs["pixel_values_videos"][first + start * height * width : first + stop * height * width]
        return {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[stop - start, height, width]])}

    def frames_per_step(self, config) -> int:
        """Usually two."""
        return config.vision_config.temporal_patch_size

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the grid."""
        _, height, width = pixels["video_grid_thw"][0].tolist()
        return {"video_grid_thw": torch.tensor([[steps, height, width]])}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`image_grid_thw` is `(images, 3)` in patches."""
        grids = inputs.get("image_grid_thw")
        vision: Any = model.config.vision_config
        return [] if grids is None else (grids.prod(dim=-1) // vision.spatial_merge_size**2).tolist()

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """Pixels are patches, those of one video or image after the other."""
        for pixels, grids, settings, numbers in (
            ("pixel_values_videos", "video_grid_thw", self.video_settings, videos),
            ("pixel_values", "image_grid_thw", ("image_grid_thw",), images),
        ):
            if numbers is not None and inputs.get(pixels) is not None:
                parts = inputs[pixels].split(inputs[grids].prod(dim=-1).tolist())
                taken = torch.cat([parts[number] for number in numbers]) if numbers else None
                inputs = {**inputs, pixels: taken}
            inputs = take_rows(inputs, settings, numbers)
        return inputs

    def tower_layer(self, config) -> int:
        """Return the last block that attends to whole frames."""
        return config.vision_config.depth - 1

    def tower_window(self, config) -> int | None:
        """Side, in tokens, of the windows in whose order the vision tower takes a frame; None: raster order."""
        return None

    def tower_attention_module(self, model: PreTrainedModel) -> nn.Module:
        """Return the attention of the block `tower_layer`."""
        return model.model.visual.blocks[self.tower_layer(model.config)].attn

    def tower_queries_keys(self, notes: dict[str, list[Any]], attention: Any) -> tuple[Tensor, Tensor]:
        """`(S, H, d)` each, of all patches of the tower's last call, before they are turned: of what its projections gave, by name."""
        queries, keys, _ = notes["qkv"][-1].unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
        return queries, keys

    @contextmanager
    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> Iterator[Callable[[], tuple[TowerAttention, ...]]]:
        """Of `tower_attention_module`; the patches of a merged cell are averaged, and come back from window order."""
        attends: Any = self.tower_attention_module(model)
        window = self.tower_window(model.config)
        with recorded({**dict(attends.named_children()), "block": attends}) as notes:

            def attention() -> tuple[TowerAttention, ...]:
                # Of images the tower knows in a call before.
                queries, keys = self.tower_queries_keys(notes, attends)
                cos, sin = (table[:, None].float() for table in notes["block.kwargs"][-1]["position_embeddings"])
                queries, keys = (x.float() * cos + _quarter_turn(x.float()) * sin for x in (queries, keys))
                # One processor merges the patches of all videos alike.
                patches = len(queries) // sum(span.num_tokens for span in layout.videos)
                sizes = [span.num_tokens * patches for span in layout.videos]
                found = []
                for span, q, k in zip(layout.videos, queries.split(sizes), keys.split(sizes), strict=True):
                    q, k = (x.unflatten(0, (span.num_frames, -1)).transpose(1, 2) for x in (q, k))
                    # One window is the frame in raster order.
                    places = window_places(span.grid[1], span.grid[2], window or max(span.grid)).to(q.device)
                    found.append(TowerAttention(q, k, partial(_cell_means, patches=patches, places=places)))
                return tuple(found)

            yield attention


def _cell_means(values: Tensor, patches: int, places: Tensor) -> Tensor:
    """Patches `(T, S, C)` in window order to merged cells `(T, P, C)` in raster order."""
    return values.unflatten(1, (-1, patches)).mean(2)[:, places]


def window_places(height: int, width: int, window: int) -> Tensor:
    """Where each cell of a `height x width` frame, in raster order, stands when the frame is taken window by window: int64 `(P,)`."""
    y, x = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
    windows = (y // window) * (width // window + 1) + x // window
    return windows.flatten().argsort(stable=True).argsort()


def _quarter_turn(x: Tensor) -> Tensor:
    """Return the other coordinate of every rotated pair `(i, i + d/2)`: `(-x2, x1)`."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)
