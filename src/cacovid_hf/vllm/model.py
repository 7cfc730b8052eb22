"""The worker: scores and keeps tokens behind the vision tower, and gives the kept tokens' positions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from ..hub.source import BACKBONE_FOLDER
from ..policies.base import Policy
from ..policies.factory import make_policy
from ..policies.settings import PolicySettings
from ..prompt import Prompt, PromptLayout, VideoSpan, ordered_places
from .config import ATTRIBUTE, ServerSettings, policy_settings, without_rows
from .marks import marked, write_positions
from .memory import ByteBounded, total_bytes
from .methods import SERVED, made
from .orders import VideoOrder
from .positions import MediaItem
from .processing import ORDERS, TEXT_IDS, TEXT_POSITIONS

# No pickles, and no second copy of the weights that some repositories hold under another name.
_FILES = ["model*.safetensors"]


@dataclass
class Wrapped:
    """What a compression method asks of a model (`CompressibleModel`). The backbone is vLLM's: no served method reads it or its family."""

    config: PolicySettings | None
    policy: Any
    backbone: Any = None
    family: Any = None


class ServedModel:
    """Stands before a family's model class in vLLM. A family says `split`, `encode`, `item` and `get_mrope_input_positions`.

    Attributes:
        position_rows: rows of positions that the language model reads, 1 or 3.
        policy: of the checkpoint; None for a stock one.
    """

    supports_multimodal_pruning = True
    supported_video_pruning_methods = ()
    allow_patterns_overrides = _FILES
    position_rows = 3
    policy: Policy | None

    def prepare(self, vllm_config: Any) -> None:
        """Make the policy, and say where the backbone's weights are."""
        served = vllm_config.model_config
        config = served.hf_config
        settings = policy_settings(config)
        self.policy = None
        if settings is not None:
            self.policy = make_policy(settings, without_rows(config)).requires_grad_(False)
            self.secondary_weights = [_backbone_weights(served)]
        self.wrapped = Wrapped(settings, self.policy)
        limits = ServerSettings.of(config)
        self.rule = limits.positions
        self.seen: ByteBounded[Tensor] = ByteBounded(int(limits.tower_cache_gb * 2**30), total_bytes)
        # In a tuple, so that it is not a part of this model, and adapters of the embedding do not reach it.
        self.text_embedding = (self.get_language_model().model.embed_tokens,)  # type: ignore[attr-defined]

    def split(self, given: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the arguments of several videos, one by one."""
        raise NotImplementedError

    def encode(self, given: dict[str, Any]) -> Sequence[Tensor]:
        """Return what the stock model makes of videos: `(N + trailing, D)` each."""
        raise NotImplementedError

    def item(self, given: dict[str, Any]) -> MediaItem:
        """Return the layout of one video."""
        raise NotImplementedError

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """As the stock model, with compressed videos, everything marked."""
        rows, ids, positions = (list(kwargs.pop(name, ())) for name in (ORDERS, TEXT_IDS, TEXT_POSITIONS))
        embeddings: list[Tensor] = []
        for modality, given in self._parse_and_validate_multimodal_inputs(**kwargs).items():  # type: ignore[attr-defined]
            if modality == "image":
                images = self._process_image_input(given)  # type: ignore[attr-defined]
                embeddings += [marked(image.flatten(0, -2)) for image in images]
            elif not rows:
                embeddings += [marked(video) for video in self.encode(kwargs)]
            else:
                for video, row, text, places in zip(self.split(kwargs), rows, ids, positions, strict=True):
                    order = VideoOrder.unpacked(row)
                    features = self.features(order.key, video)
                    embeddings.append(self.compress(features, self.item(video), order, text, places))
        return tuple(embeddings)

    def features(self, key: tuple[int, ...], video: dict[str, Any]) -> Tensor:
        """`(N + trailing, D)` of one video: remembered in host memory, so that a second question about it runs no vision tower."""
        device = self.text_embedding[0].weight.device
        if (known := self.seen.get(key)) is not None:
            return known.to(device, non_blocking=True)
        (features,) = self.encode(video)
        self.seen.put(key, features.to("cpu", copy=True))
        return features

    @torch.no_grad()
    def compress(self, features: Tensor, item: MediaItem, order: VideoOrder, ids: Tensor, positions: Tensor) -> Tensor:
        """Keep what the method chooses of one video.

        Args:
            features: `(N + trailing, D)`.
            item: its layout.
            order: what is asked.
            ids: int64 `(n,)`, the text of the prompt, as far as the method reads it.
            positions: int64 `(n,)`, the text's.

        Returns:
            `(length, D + COLUMNS)`, marked.
        """
        device, count = features.device, item.num_tokens
        own = (item.relative + order.start).to(device)
        stays = torch.ones(1, len(features), dtype=torch.bool, device=device)
        if order.length < len(features):
            before = min(order.text_before, len(ids))
            prompt = self.prompt_of(features, item, own, before, ids.to(device), positions.to(device))
            method = made(SERVED[order.method], self.wrapped.config)
            found = method.compress(prompt, self.wrapped, (order.retention_ratio,))
            stays[0, :count] = found.videos[0].keep.flatten()
            features = found.prompt.inputs_embeds[
                0, before : before + len(features)
            ]  # merged ones, if the method merges
        kept = ordered_places(stays, order.length)[0]
        places = torch.arange(order.place, order.place + order.length, device=device)
        return marked(features[kept], places, own[:, kept])

    def prompt_of(
        self, features: Tensor, item: MediaItem, own: Tensor, before: int, ids: Tensor, positions: Tensor
    ) -> Prompt:
        """Return the prompt with one video in it, uncompressed, at its original positions.

        Args:
            features: `(N + trailing, D)` of the video.
            item: its layout.
            own: `(3, N + trailing)`, its positions.
            before: how many of the text's tokens stand before it.
            ids: `(n,)`, the text.
            positions: `(n,)`, the text's.
        """
        text = self.text_embedding[0](ids).to(features.dtype)
        embeds = torch.cat([text[:before], features, text[before:]])
        rows = positions.expand(3, -1)
        everywhere = torch.cat([rows[:, :before], own, rows[:, before:]], dim=1)
        is_text = torch.ones(1, len(embeds), dtype=torch.bool)
        is_text[0, before : before + len(features)] = False
        span = VideoSpan(0, item.grid, torch.arange(before, before + item.num_tokens))
        layout = PromptLayout(valid=torch.ones_like(is_text), text=is_text, videos=(span,))
        shown = torch.cat([ids[:before], ids.new_zeros(len(features)), ids[before:]])
        return Prompt(
            layout, shown[None], embeds[None], everywhere[:, None] if self.position_rows == 3 else everywhere[:1]
        )

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Iterable[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """Take the marks off embeddings, and write the positions that they hold. Those of the text are right from the start."""
        positions = mrope_positions.clone()
        embeddings = write_positions(positions, list(multimodal_embeddings))
        return embeddings, positions, position_delta(positions, len(input_ids))


def position_delta(positions: Tensor, length: int) -> int:
    """Return what a new token's position is above its index, so that the first one follows the last text of the prompt."""
    return int(positions[:, length - 1].max()) + 1 - length


def _backbone_weights(model_config: Any) -> Any:
    """Where the weights of a checkpoint's backbone are."""
    ours = vars(model_config.hf_config)[ATTRIBUTE]
    settings: dict[str, Any] = dict(fall_back_to_pt=False, allow_patterns_overrides=_FILES)
    if ours["includes_backbone"]:
        settings |= dict(subfolder=BACKBONE_FOLDER)
        return DefaultModelLoader.Source(model_config.model, model_config.revision, **settings)
    if not ours["base"]:
        raise ValueError(f"{model_config.model} does not say which backbone it was made for: save it again with one.")
    return DefaultModelLoader.Source(ours["base"], ours["base_revision"], **settings)
