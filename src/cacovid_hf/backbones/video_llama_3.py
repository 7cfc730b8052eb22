"""VideoLLaMA3: a time before each frame, patches merged two by two, 1-D positions. What its own processor would drop is refused: ours takes that place."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..prompt import PromptLayout
from .base import Backbone, take_rows
from .packed_patches import PackedPatchesBackbone


class VideoLlama3Backbone(PackedPatchesBackbone):
    """`VideoLlama3ForConditionalGeneration`, of prompts made with `use_token_compression=False`."""

    model_type = "video_llama_3"
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_compression_mask")
    video_settings: ClassVar[tuple[str, ...]] = ("video_grid_thw", "video_merge_sizes")
    words_around_frames = True
    position_ids = Backbone.position_ids

    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`video_grid_thw` is `(videos, 3)` in patches, `video_merge_sizes` `(videos,)` how many of them make a side of a token."""
        found = self.patch_grids(inputs)
        if not found:
            return []
        merges = inputs.get("video_merge_sizes")
        if merges is None:
            raise ValueError(
                "video_grid_thw is given without video_merge_sizes: pass everything that the processor returned."
            )
        return [(t, h // m, w // m) for (t, h, w), m in zip(found, merges.tolist(), strict=True)]

    def layout(
        self,
        config,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        grids: list[tuple[int, int, int]] | None = None,
    ) -> PromptLayout:
        """As every family's, of videos whose tokens are all there."""
        _refuse_compressed(inputs)
        return super().layout(config, input_ids, attention_mask, inputs, grids)

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """Count the words of a frame, which is `Time 1.5s:` and its placeholders; a comma stands between frames, and goes with the later one."""
        return len(before), 0

    def num_words_before_first(self, config, before: list[int], between: list[int]) -> int:
        """From the last word of the text in front on that a time begins with, which is the second one between two frames."""
        begins = between[1:2]
        place = next((n for n, token in enumerate(reversed(before), 1) if [token] == begins), 0)
        # A time ends alike, and is at most as long as the longer ones: they count up.
        return place if place <= len(between) and before[-1:] == between[-1:] else 0

    def inputs_of_words(self, settings: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Any]:
        """Return a mask of all tokens, by which the processor counts a frame's placeholders."""
        tokens = int(settings["video_grid_thw"].prod() // settings["video_merge_sizes"].prod() ** 2)
        return {**settings, "video_compression_mask": torch.ones(tokens, dtype=torch.bool)}

    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """Every frame is encoded by itself."""
        _refuse_compressed(inputs)
        merges = inputs["video_merge_sizes"][video : video + 1]
        return {**super().frames(inputs, video, start, stop), "video_merge_sizes": merges}

    def frames_per_step(self, config) -> int:
        """One."""
        return 1

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """Return the grid, and how patches are merged."""
        merges = pixels["video_merge_sizes"]
        return {**super().settings_of_file(config, pixels, steps, metadata), "video_merge_sizes": merges}

    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """`image_merge_sizes` `(images,)` says how many patches make a side of a token."""
        grids, merges = inputs.get("image_grid_thw"), inputs.get("image_merge_sizes")
        return [] if grids is None or merges is None else (grids.prod(dim=-1) // merges**2).tolist()

    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """As of all packed patches; the mask of tokens, which are all there, is not needed."""
        if videos is not None:
            inputs = {name: value for name, value in inputs.items() if name != "video_compression_mask"}
        return take_rows(super().take(inputs, videos, images), ("image_merge_sizes",), images)

    def tower_attention_module(self, model: PreTrainedModel) -> nn.Module:
        """Return the attention of the last layer."""
        return model.model.vision_model.encoder.layers[-1].self_attn

    def tower_queries_keys(self, notes: dict[str, list[Any]], attention: Any) -> tuple[Tensor, Tensor]:
        """Two projections."""
        queries, keys = (notes[name][-1].unflatten(-1, (attention.num_heads, -1)) for name in ("q_proj", "k_proj"))
        return queries, keys


def _refuse_compressed(inputs: dict[str, Any]) -> None:
    mask = inputs.get("video_compression_mask")
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        raise ValueError(
            f"The processor dropped {int((~mask).sum())} video tokens of its own, and its frames no longer form a grid. Set "
            "processor.video_processor.use_token_compression = False, and let retention_ratio choose."
        )
