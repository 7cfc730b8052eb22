"""LLaVA-OneVision in vLLM: 1-D positions, given as three equal rows (see `registry`), and a newline token behind each video."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataParser

from ..backbones import BACKBONES
from .model import ServedModel, position_delta
from .orders import VideoOrder
from .positions import MediaItem, flat_item
from .processing import ORDERS, ServedInfo, ServedProcessor

_FAMILY = BACKBONES["llava_onevision"]
_PIXELS = "pixel_values_videos"


def video_item(config: Any, pixels: Tensor) -> MediaItem:
    """Return a video from its pixels `(T, channels, H, W)`."""
    (grid,) = _FAMILY.video_grids(config, {_PIXELS: pixels[None]})
    return flat_item("video", grid, _FAMILY.trailing_tokens)


class Parser(MultiModalDataParser):
    """As the stock one, which takes embeddings of videos and then has no use for them."""

    def _parse_video_data(self, data: Any) -> Any:
        if isinstance(data, dict) or self.is_embeddings(data):
            raise ValueError("Embeddings of videos are not served for LLaVA-OneVision: give the videos.")
        return super()._parse_video_data(data)


class Info(ServedInfo, LlavaOnevisionProcessingInfo):
    """As the stock one."""

    def get_data_parser(self) -> Parser:
        """See `Parser`."""
        return Parser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )


class Processor(ServedProcessor, LlavaOnevisionMultiModalProcessor):
    """As the stock one, with what is asked."""

    image_token, video_token = "image_token_index", "video_token_index"

    def items(self, modality: str, processed: Mapping[str, Any]) -> list[MediaItem]:
        """Videos by their pixels, images by their sizes or embeddings."""
        if modality == "video":
            config = self.info.get_hf_config()
            return [video_item(config, pixels) for pixels in processed.get(_PIXELS, ())]
        counts = [len(embeds) for embeds in processed.get("image_embeds", ())] or [
            self.info.get_num_image_tokens(image_width=int(width), image_height=int(height))
            for height, width in processed.get("image_sizes", ())
        ]
        return [flat_item("image", (1, 1, count)) for count in counts]

    def full_length(self, item: Any) -> int:
        """Return a square per frame, and the newline."""
        return video_item(self.info.get_hf_config(), item[_PIXELS].data).length


@MULTIMODAL_REGISTRY.register_processor(Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder)
class CaCoVidLlavaOnevisionForConditionalGeneration(ServedModel, LlavaOnevisionForConditionalGeneration):
    """The stock model with compression behind its vision tower."""

    supports_mrope = True
    position_rows = 1

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        LlavaOnevisionForConditionalGeneration.__init__(self, vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)

    def split(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """One row per video."""
        return [{_PIXELS: pixels[None]} for pixels in given[_PIXELS]]

    def encode(self, given: dict[str, Any]) -> Sequence[Tensor]:
        """By the stock model."""
        videos = self._process_video_pixels(self._parse_and_validate_multimodal_inputs(**given)["video"])
        return [features.flatten(0, -2) for features in videos]

    def item(self, given: dict[str, Any]) -> MediaItem:
        """By its pixels."""
        return video_item(self.config, given[_PIXELS][0])

    def get_mrope_input_positions(self, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Positions of the compressed prompt: text behind a video stands where it would behind the whole one."""
        positions = torch.arange(len(input_tokens))
        for feature in mm_features:
            if ORDERS in feature.data:
                order = VideoOrder.unpacked(feature.data[ORDERS].data)
                positions[feature.mm_position.offset + order.length :] += order.advance - order.length
        rows = positions.expand(3, -1).contiguous()
        return rows, position_delta(rows, len(input_tokens))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As the stock model, which does not know the names that transformers gives SigLIP's weights since 5.20."""
        return super().load_weights((_older_name(name), tensor) for name, tensor in weights)


def _older_name(name: str) -> str:
    """`...vision_tower.encoder...` to `...vision_tower.vision_model.encoder...`."""
    before, tower, rest = name.partition("vision_tower.")
    return f"{before}{tower}vision_model.{rest}" if tower and not rest.startswith("vision_model.") else name
