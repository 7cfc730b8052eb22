"""The front end: what a request asks goes with its videos to the worker, and into the hashes that all of vLLM's caches know them by."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from .config import ATTRIBUTE, SERVER, ServerSettings, policy_settings
from .frame_limits import LOADER, PACKAGE, frames_to_plan, limits_of_server
from .memory import ByteBounded, total_bytes
from .orders import VideoOrder, check_room, orders_of
from .positions import MediaItem
from .requests import NAMES, OURS, RATIO, SCOPE, Asked, asked_of, check_kwargs, check_ours_alone, check_prompt

ORDERS, TEXT_IDS, TEXT_POSITIONS = "cacovid_orders", "cacovid_text_ids", "cacovid_text_positions"
"""Fields of a video that the worker gets: see `VideoOrder`, and `(n,)` ids and positions of the prompt's text."""
_HASH = "cacovid-"


def asked_in(kwargs: Mapping[str, Any]) -> Asked | None:
    """Return what `apply` put into the keyword arguments."""
    return (kwargs.get(SCOPE) or {}).get(OURS)


def without_ours(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that the stock processor knows."""
    rest = {name: value for name, value in kwargs.items() if name not in (*NAMES, SCOPE)}
    scoped = {name: value for name, value in (kwargs.get(SCOPE) or {}).items() if name != OURS}
    return {**rest, SCOPE: scoped} if scoped else rest


class ServedInfo:
    """Stands before a family's `ProcessingInfo`."""

    ctx: Any

    def __init__(self, ctx: Any):
        """As the stock one; of a checkpoint without a processor, the backbone's is loaded."""
        ours = vars(ctx.model_config.hf_config).get(ATTRIBUTE) or {}
        self.checkpoint = ctx.model_config.model
        if "processor" in ours:
            elsewhere = copy.copy(ctx.model_config)
            elsewhere.model, elsewhere.revision = ours["processor"], ours["processor_revision"]
            ctx = replace(ctx, model_config=elsewhere)
        super().__init__(ctx)  # type: ignore[call-arg]

    def get_hf_processor(self, **kwargs: object) -> Any:
        """As the stock one, without what is ours."""
        return super().get_hf_processor(**without_ours(kwargs))  # type: ignore[misc]

    def get_num_frames_with_most_features(self, seq_len: int, mm_counts: Mapping[str, int], *stock: Any) -> int:
        """As many as the server reads of a file, where it reads by this package; stock vLLM plans for 14 or 16 at most."""
        given = self.ctx.model_config.multimodal_config.media_io_kwargs.get("video", {})
        if given.get(LOADER) != PACKAGE:
            return super().get_num_frames_with_most_features(seq_len, mm_counts, *stock)  # type: ignore[misc]
        room = self._get_max_video_frames(seq_len)  # type: ignore[attr-defined]
        return frames_to_plan(limits_of_server(given), room, mm_counts.get("video", 0))


class ServedProcessor:
    """Stands before a family's `MultiModalProcessor`. A family says `image_token`, `video_token` and `items`."""

    info: Any
    image_token: ClassVar[str]
    video_token: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        config = self.info.get_hf_config()
        self.placeholders: dict[int, str] = {
            getattr(config, self.image_token): "image",
            getattr(config, self.video_token): "video",
        }
        self.video_id: int = getattr(config, self.video_token)
        settings = ServerSettings.of(config)
        self.rule = settings.positions
        self._takes_sizes = settings.request_sizes
        self._pixels: ByteBounded[BatchFeature] = ByteBounded(int(settings.pixel_cache_gb * 2**30), total_bytes)

    def items(self, modality: str, processed: Mapping[str, Any]) -> list[MediaItem]:
        """Return the images or videos in what the stock processor returned."""
        raise NotImplementedError

    def full_length(self, item: Any) -> int:
        """Placeholders of one uncompressed video, from its fields."""
        raise NotImplementedError

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Return what memory is planned for: whole videos, since a request may ask for them."""
        return replace(super().get_dummy_inputs(*args, **kwargs), hf_processor_mm_kwargs={RATIO: 1.0})  # type: ignore[misc]

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """As the stock one.

        Raises:
            ValueError: what the request asks for is not served.
        """
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        check_kwargs(kwargs)
        if not self._takes_sizes:
            check_ours_alone(kwargs)
        request = {name: kwargs.pop(name) for name in NAMES if kwargs.get(name) is not None}
        config = self.info.get_hf_config()
        server, settings = vars(config)[SERVER], policy_settings(config)
        videos = inputs.mm_data_items.get_all_counts().get("video", 0)
        asked = asked_of(request, server, settings, videos)
        inputs = replace(inputs, hf_processor_mm_kwargs=kwargs)
        if asked is not None:
            check_prompt(inputs.prompt, self.placeholders, asked, settings)
            digests = super()._get_mm_hashes(inputs)  # type: ignore[misc]
            known = tuple((modality, tuple(found)) for modality, found in sorted(digests.items()))
            asked = replace(asked, prompt=tuple(inputs.prompt), digests=known)
            inputs = replace(
                inputs, hf_processor_mm_kwargs={**kwargs, SCOPE: {**(kwargs.get(SCOPE) or {}), OURS: asked}}
            )
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Of a prompt with compressed videos, every item's hash depends on all that its selection and its place depend on."""
        asked = asked_in(inputs.hf_processor_mm_kwargs)
        if asked is None:
            return super()._get_mm_hashes(inputs)  # type: ignore[misc]
        identity = repr((self.info.checkpoint, self.rule, asked.identity(self.video_id)))
        whole = hashlib.sha256(identity.encode()).hexdigest()
        return {
            modality: [
                _HASH + hashlib.sha256(f"{whole} {modality} {number}".encode()).hexdigest()
                for number in range(len(digests))
            ]
            for modality, digests in asked.digests
        }

    def _get_cache_missing_items(self, cache: Any, mm_data_items: Any, mm_hashes: Any) -> Any:
        """All or nothing where videos are compressed: what is known of one item depends on the grids of all."""
        is_cached, missing = super()._get_cache_missing_items(cache, mm_data_items, mm_hashes)  # type: ignore[misc]
        compressed = any(digest.startswith(_HASH) for digests in mm_hashes.values() for digest in digests)
        if compressed and not all(all(row) for row in is_cached.values()):
            return {modality: [False] * len(row) for modality, row in is_cached.items()}, mm_data_items
        return is_cached, missing

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        """As the stock one, with our fields; pixels of recent videos are remembered, whatever was asked about them."""
        asked = asked_in(hf_kwargs)
        if asked is None or not mm_items.get_all_counts().get("video", 0):
            return super()._apply_hf_processor_main(mm_items, without_ours(hf_kwargs))  # type: ignore[misc]
        processed = self._pixels.get(asked.digests)
        if processed is None:
            processed = super()._apply_hf_processor_main(mm_items, without_ours(hf_kwargs))  # type: ignore[misc]
            self._pixels.put(asked.digests, processed)
        return BatchFeature({**processed, **self._fields(processed, asked)})

    def _fields(self, processed: Mapping[str, Any], asked: Asked) -> dict[str, Tensor]:
        items = {modality: self.items(modality, processed) for modality in ("image", "video")}
        orders, plan = orders_of(asked, self.placeholders, items)
        check_room(orders, self.info.get_hf_config().get_text_config().max_position_embeddings)
        read = len(plan.text_ids) if asked.reads_question else 0
        return {
            ORDERS: torch.stack([order.packed() for order in orders]),
            TEXT_IDS: plan.text_ids[:read].expand(len(orders), -1),
            TEXT_POSITIONS: plan.text_positions[:read].expand(len(orders), -1),
        }

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        for name in (ORDERS, TEXT_IDS, TEXT_POSITIONS):
            if name in hf_inputs:
                fields[name] = MultiModalFieldConfig.batched("video", keep_on_cpu=name == ORDERS)
        return fields

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        """Give each video as many placeholders as its budget."""
        stock = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]

        def replacement(number: int) -> list[int]:
            item = out_mm_kwargs["video"][number]
            length = VideoOrder.unpacked(item[ORDERS].data).length if ORDERS in item else self.full_length(item)
            return [self.video_id] * length

        others = [update for update in stock if update.modality != "video"]
        return [*others, PromptReplacement("video", [self.video_id], replacement)]
