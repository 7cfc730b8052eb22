"""Qwen2.5-VL in vLLM: M-RoPE positions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalDataParser
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems

from .embeddings import GRIDS, SECONDS, VALUES, checked_embeddings
from .model import ServedModel, position_delta
from .positions import MediaItem, check_times, grid_item
from .processing import ServedInfo, ServedProcessor

_GRIDS = {"image": "image_grid_thw", "video": GRIDS}


def item_of(config: Any, modality: str, grid: Tensor, seconds: Any, rule: str) -> MediaItem:
    """Return an image or video from its grid `(3,)` in patches and, of a video, the seconds of a temporal step."""
    merge = config.vision_config.spatial_merge_size
    steps, height, width = grid.tolist()
    return grid_item(
        modality, (steps, height // merge, width // merge), seconds, config.vision_config.tokens_per_second, rule
    )


class Parser(Qwen2VLMultiModalDataParser):
    """As the stock one. Seconds that come with embeddings are part of what a video is known by, since its positions depend on them."""

    def _parse_video_data(self, data: Any) -> Any:
        if not isinstance(data, dict) or self.allow_missing_mm_embeddings:
            return super()._parse_video_data(data)
        merged = self._spatial_merge_size**2
        given = checked_embeddings(data, merged, self.expected_hidden_size)

        def fields(given: Mapping[str, Tensor]) -> Mapping[str, MultiModalFieldConfig]:
            return {
                VALUES: MultiModalFieldConfig.flat_from_sizes("video", given[GRIDS].prod(-1) // merged),
                GRIDS: MultiModalFieldConfig.batched("video", keep_on_cpu=True),
                SECONDS: MultiModalFieldConfig.batched("video", keep_on_cpu=True),
            }

        return DictEmbeddingItems(given, "video", set(given), fields)


class Info(ServedInfo, Qwen2_5_VLProcessingInfo):
    """As the stock one."""

    def get_data_parser(self) -> Parser:
        """See `Parser`."""
        return Parser(
            self.get_hf_config().vision_config.spatial_merge_size,
            video_needs_metadata=True,
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class Processor(ServedProcessor, Qwen2_5_VLMultiModalProcessor):
    """As the stock one, with what is asked."""

    image_token, video_token = "image_token_id", "video_token_id"

    def items(self, modality: str, processed: Mapping[str, Any]) -> list[MediaItem]:
        """By their grids."""
        grids = processed.get(_GRIDS[modality])
        if grids is None:
            return []
        seconds = processed.get(SECONDS) if modality == "video" else None
        seconds = [1.0] * len(grids) if seconds is None else seconds
        config = self.info.get_hf_config()
        return [item_of(config, modality, grid, each, self.rule) for grid, each in zip(grids, seconds, strict=True)]

    def full_length(self, item: Any) -> int:
        """Return a token per merged cell."""
        return int(item[_GRIDS["video"]].data.prod()) // self.info.get_hf_config().vision_config.spatial_merge_size ** 2

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        """As the stock one; the seconds of a step are not rounded to the model's dtype, which positions in time would be computed from."""
        processed = super()._call_hf_processor(hf_data, hf_kwargs)
        if SECONDS in processed and "video_metadata" in hf_data:
            frames = self.info.get_hf_config().vision_config.temporal_patch_size
            rates = [metadata.sampled_fps for metadata in hf_data["video_metadata"]]
            processed[SECONDS] = torch.tensor([frames / rate for rate in rates], dtype=torch.float32)
        return processed

    def _get_cache_missing_items(self, cache: Any, mm_data_items: Any, mm_hashes: Any) -> Any:
        """By vLLM's rule, times of several videos count together: those that vLLM remembers are looked at again with the others."""
        is_cached, missing = super()._get_cache_missing_items(cache, mm_data_items, mm_hashes)
        if self.rule == "transformers" or len(is_cached.get("video", ())) < 2:
            return is_cached, missing
        if any(mm_data_items[modality][n] is None for modality, row in is_cached.items() for n in range(len(row))):
            raise ValueError(
                "Of several videos, one is given by its uuid alone, and their times count together: send all again."
            )
        return {modality: [False] * len(row) for modality, row in is_cached.items()}, mm_data_items

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        """As the stock one. The times of embeddings and of separate pictures are a client's own, and refused where the model has no positions for them."""
        processed = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if SECONDS in processed:
            config = self.info.get_hf_config()
            seconds = torch.as_tensor(processed[SECONDS], dtype=torch.float64)
            positions = config.get_text_config().max_position_embeddings
            check_times(processed[GRIDS], seconds, config.vision_config.tokens_per_second, positions, self.rule)
        return processed


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=Qwen2_5_VLDummyInputsBuilder)
class CaCoVidQwen2_5_VLForConditionalGeneration(ServedModel, Qwen2_5_VLForConditionalGeneration):
    """The stock model with compression behind its vision tower."""

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        Qwen2_5_VLForConditionalGeneration.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)

    def split(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """Pixels are patches, or tokens of embeddings, those of one video behind the other."""
        grids = given[_GRIDS["video"]]
        patches = grids.prod(-1)
        cells = patches // self.config.vision_config.spatial_merge_size**2
        parts = {
            name: given[name].split(sizes.tolist())
            for name, sizes in (("pixel_values_videos", patches), (VALUES, cells))
            if name in given
        }
        videos = []
        for number in range(len(grids)):
            one = {name: values[number] for name, values in parts.items()}
            others = {name: given[name][number : number + 1] for name in (_GRIDS["video"], SECONDS) if name in given}
            videos.append({**one, **others})
        return videos

    def encode(self, given: dict[str, Any]) -> Sequence[Tensor]:
        """By the stock model."""
        return self._process_video_input(self._parse_and_validate_multimodal_inputs(**given)["video"])

    def item(self, given: dict[str, Any]) -> MediaItem:
        """By its grid and its times."""
        seconds = given[SECONDS][0].cpu() if SECONDS in given else 1.0
        return item_of(self.config, "video", given[_GRIDS["video"]][0], seconds, self.rule)

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Positions of the compressed prompt: text at its original ones, media as if whole; see `recompute_mrope_positions` for what is kept."""
        parts: list[Tensor] = []
        place = position = 0
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            offset, length, data = feature.mm_position.offset, feature.mm_position.length, feature.data
            seconds = data[SECONDS].data if SECONDS in data else 1.0
            item = item_of(self.config, feature.modality, data[_GRIDS[feature.modality]].data, seconds, self.rule)
            parts.append(torch.arange(position, position + offset - place).expand(3, -1))
            position += offset - place
            # Of a compressed video these are written again with its embeddings; nobody asks for those that a cache of the prefix holds.
            whole = item.relative + position
            parts.append(whole if length == item.length else whole[:, :1].expand(3, length))
            position += item.advance
            place = offset + length
        parts.append(torch.arange(position, position + len(input_tokens) - place).expand(3, -1))
        positions = torch.cat(parts, dim=1).contiguous()
        return positions, position_delta(positions, len(input_tokens))
