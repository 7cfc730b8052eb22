"""MiniCPM-V 4.6: two marks around every frame, patches packed in one row, 1-D positions. Most layers of its language model are linear attention.

The processor returns how large every frame is, and not which frames are of one video. Ours says it by an argument of its own, `video_grid_thw`.
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


class MiniCPMV46Backbone(Backbone):
    """`MiniCPMV4_6ForConditionalGeneration`, of videos whose frames are not cut into slices."""

    model_type = "minicpmv4_6"
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "target_sizes_videos")
    video_settings: ClassVar[tuple[str, ...]] = ("video_grid_thw",)
    # The last three are of the stock video processor, for the words.
    own_inputs: ClassVar[tuple[str, ...]] = (
        "video_grid_thw",
        "num_frames_per_video",
        "num_patches_per_frame",
        "grids_videos",
    )
    words_around_frames = True
    words_have_times = False
    since = "5.23"  # 5.17 encodes pictures of two sizes in one call as if they were of one

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """One mark on either side."""
        return min(1, len(before)), min(1, len(behind))

    def inputs_of_words(self, settings: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Any]:
        """Return the sizes of the frames, none of which is cut."""
        steps, *size = settings["video_grid_thw"][0].tolist()
        return {
            "num_frames_per_video": [steps],
            "target_sizes_videos": torch.tensor([size] * steps),
            "grids_videos": torch.zeros(steps, 2, dtype=torch.long),
        }

    # ---------------------------------------------------------------- inputs

    def token_sides(self, config, inputs: dict[str, Any]) -> tuple[int, int]:
        """Patches along the height and the width of a token; the tower merges them two by two once more, unless the call or the config says `4x`."""
        merges = 1 if (inputs.get("downsample_mode") or config.downsample_mode) == "4x" else 2
        height, width = _merged_behind_the_tower(config)
        return merges * height, merges * width

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
            ValueError: also, videos of which nothing says where one ends.
        """
        if inputs.get("pixel_values_videos") is not None and inputs.get("video_grid_thw") is None:
            raise ValueError(
                "Frames of one video cannot be told from those of the next without video_grid_thw. Make the inputs with "
                "cacovid_hf.with_video_reader(processor), and pass all of them."
            )
        return super().layout(config, input_ids, attention_mask, inputs, grids)

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`video_grid_thw` is `(videos, 3)` in patches; without it, as a stock processor leaves it, no video is known."""
        grids = inputs.get("video_grid_thw")
        if grids is None:
            return []
        if missing := [name for name in self.video_inputs if inputs.get(name) is None]:
            raise ValueError(
                f"video_grid_thw is given without {' and '.join(missing)}: pass everything that the processor returned."
            )
        height, width = self.token_sides(config, inputs)
        return [(t, h // height, w // width) for t, h, w in grids.tolist()]

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every frame is encoded by itself."""
        grids = inputs["video_grid_thw"].cpu()
        _, *size = grids[video].tolist()
        first, patches = int(grids[:video].prod(dim=-1).sum()), size[0] * size[1]
        pixels = inputs["pixel_values_videos"]
        width = pixels.shape[2]
        mode = {name: inputs[name] for name in ("downsample_mode",) if name in inputs}
        return {
            "pixel_values_videos": pixels[..., (first + start * patches) * width : (first + stop * patches) * width],
            "target_sizes_videos": torch.tensor([size] * (stop - start)),
            "video_grid_thw": torch.tensor([[stop - start, *size]]),
            **mode,
        }

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the grid."""
        _, height, width = pixels["video_grid_thw"][0].tolist()
        return {"video_grid_thw": torch.tensor([[steps, height, width]])}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`target_sizes` is `(pictures, 2)` in patches; each slice of an image counts as one."""
        sizes = inputs.get("target_sizes")
        height, width = self.token_sides(model.config, inputs)
        return [] if sizes is None else [(h // height) * (w // width) for h, w in sizes.tolist()]

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """Pixels are patches in one row, those of one video or image after the other."""
        if videos is not None and inputs.get("video_grid_thw") is not None:
            grids = inputs["video_grid_thw"].tolist()
            ends = [0, *accumulate(steps for steps, _, _ in grids)]
            frames = [row for video in videos for row in range(ends[video], ends[video + 1])]
            inputs = _take_patches(inputs, "pixel_values_videos", [t * h * w for t, h, w in grids], videos)
            inputs = take_rows(take_rows(inputs, ("target_sizes_videos",), frames), ("video_grid_thw",), videos)
        if images is not None and inputs.get("target_sizes") is not None:
            patches = inputs["target_sizes"].prod(dim=-1).tolist()
            inputs = _take_patches(inputs, "pixel_values", patches, images)
        return take_rows(inputs, ("target_sizes",), images)

    # ---------------------------------------------------------------- the vision tower

    @contextmanager
    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> Iterator[Callable[[], tuple[TowerAttention, ...]]]:
        """Of the last layer, whose patches are merged already if the tower merges them."""
        attends = model.model.vision_tower.encoder.layers[-1].self_attn
        sides = _merged_behind_the_tower(model.config)
        with recorded({"queries": attends.q_proj, "keys": attends.k_proj}) as notes:

            def attention() -> tuple[TowerAttention, ...]:
                # Of images the tower knows in a call before. (patches, heads, d)
                queries, keys = (
                    notes[name][-1][0].unflatten(-1, (attends.num_heads, -1)) for name in ("queries", "keys")
                )
                sizes = [span.num_tokens * sides[0] * sides[1] for span in layout.videos]
                found = []
                for span, q, k in zip(layout.videos, queries.split(sizes), keys.split(sizes), strict=True):
                    q, k = (x.unflatten(0, (span.num_frames, -1)).transpose(1, 2) for x in (q, k))
                    found.append(TowerAttention(q, k, partial(token_means, grid=span.grid, sides=sides)))
                return tuple(found)

            yield attention


def _merged_behind_the_tower(config) -> tuple[int, int]:
    """How many of the tower's last patches make the height and the width of a token."""
    height, width = config.merge_kernel_size
    return height**config.merger_times, width**config.merger_times


def _take_patches(inputs: dict[str, Any], name: str, counts: list[int], numbers: list[int]) -> dict[str, Any]:
    """Return the inputs with the patches of these videos or images alone, of so many each; pixels are `(1, channels, p, patches * p)`."""
    pixels = inputs.get(name)
    if pixels is None or not numbers:
        return {**inputs, name: None}
    parts = pixels.split([count * pixels.shape[2] for count in counts], dim=-1)
    return {**inputs, name: torch.cat([parts[number] for number in numbers], dim=-1)}
