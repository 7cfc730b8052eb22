"""Memory of features (ours): reduced embeddings wait, and every question scores them all, keeps its budget and prefills that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...compressors.attention import Attention
from ...compressors.base import Compressor, Scores
from ...compressors.cacovid import CaCoVid
from ...compressors.registry import resolve_compressor
from ...compressors.tools.selection import NOT_FINITE
from ...prompt import VideoSpan
from ..wrapped import AnsweringModel
from .groups import Groups, Rule
from .prompts import Asked, Frame, Words, asked
from .quantised import LARGEST, Packed, in_half, pack, packed_bytes, unpack
from .questions import check_choice
from .settings import StreamSettings
from .steps import Step

# Channels that share a smallest value and a step.
BLOCK = 64
_ON_CPU = ("frames", "places", "seconds")


@dataclass(frozen=True)
class FeatureGroup:
    """Tokens of a frame, or of neighbouring frames that became one group; always as many.

    Attributes:
        tokens: their embeddings, `(n, ceil(D / BLOCK))` rows of channels.
        frames: int32 `(n,)`, the number of every token's frame, ascending.
        places: int16 `(n,)`, its place there, ascending within a frame.
        worth: float16 `(n,)`, larger = rather kept; within `LARGEST`.
        seconds: float64 `(2,)`, when the first frame that it held was shown, and the last.
    """

    tokens: Packed
    frames: Tensor
    places: Tensor
    worth: Tensor
    seconds: Tensor

    @property
    def num_bytes(self) -> int:
        """That its tensors take."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        own = {"frames": self.frames, "places": self.places, "worth": self.worth, "seconds": self.seconds}
        return self.tokens.parts | own

    def features(self, dtype: torch.dtype, width: int) -> Tensor:
        """`(n, D)`."""
        return unpack(self.tokens, dtype).flatten(-2)[..., :width]


class FeatureMemory:
    """Groups of features, and what a question chooses among them.

    Args:
        model: a wrapped model.
        settings: of the stream.
        frame: what its steps have in common.
    """

    def __init__(self, model: AnsweringModel, settings: StreamSettings, frame: Frame):
        self.model, self.settings, self.frame = model, settings, frame
        self.width: int = model.backbone.config.get_text_config().hidden_size
        self.dtype: torch.dtype = model.backbone.dtype
        self.per_group = settings.tokens_of(frame.size)
        rules = {
            "oldest": None,
            "alike": Rule(self._unlikeness, self._averaged),
            "contribution": Rule(self._dropped, self._best),
        }
        capacity = settings.max_memory // self.group_bytes
        if capacity < 1:
            raise ValueError(
                f"max_memory={settings.max_memory} holds no frame, whose {self.per_group} tokens take {self.group_bytes} bytes: give more, or keep fewer."
            )
        self.groups: Groups[FeatureGroup] = Groups(capacity, rules[settings.when_full or "alike"])

    @property
    def group_bytes(self) -> int:
        """That every group takes."""
        rows, size = self._blocks()
        numbers = packed_bytes(self.per_group * rows, size, self.settings.bits or 16, self.dtype.itemsize)
        return numbers + self.per_group * (4 + 2 + 2) + 16

    def _blocks(self) -> tuple[int, int]:
        """Rows of channels of a token, and their length."""
        return (1, self.width) if (self.settings.bits or 16) >= 16 else (-(-self.width // BLOCK), BLOCK)

    # ---------------------------------------------------------------- storing

    @property
    def num_bytes(self) -> int:
        """That it takes now."""
        return sum(group.num_bytes for group in self.groups.items)

    def stored(self, step: Step, groups: Sequence[FeatureGroup]) -> FeatureGroup:
        """Return a step as a group; what is held already has no part in it."""
        features = step.features.to(self.settings.device or step.features.device)
        where = features.device
        return FeatureGroup(
            tokens=self._packed(features),
            frames=torch.full((len(features),), step.number, dtype=torch.int32),
            places=step.places.to(torch.int16),
            worth=step.worth.clamp(-LARGEST, LARGEST).to(where, torch.float16),
            seconds=torch.tensor([step.seconds, step.seconds], dtype=torch.float64),
        )

    def _packed(self, features: Tensor) -> Packed:
        """`(n, D)` in the memory's bits."""
        rows, size = self._blocks()
        blocks = torch.nn.functional.pad(features, (0, rows * size - self.width)).unflatten(-1, (rows, size))
        return pack(blocks, self.settings.bits or 16)

    def _unlikeness(self, one: FeatureGroup, two: FeatureGroup) -> float:
        """One minus the mean cosine of the tokens at common places, or, without any, of the groups' means: as MARC compares frames."""
        first, second = (group.features(torch.float32, self.width) for group in (one, two))
        same = one.places[:, None] == two.places[None]
        rows, columns = same.nonzero(as_tuple=True)
        if not len(rows):
            first, second = first.mean(0, keepdim=True), second.mean(0, keepdim=True)
            # Nothing in common is never as alike as something.
            return 2 - float(cosine_similarity(first, second, dim=-1).mean())
        return 1 - float(cosine_similarity(first[rows], second[columns], dim=-1).mean()) * len(rows) / self.per_group

    def _averaged(self, one: FeatureGroup, two: FeatureGroup) -> FeatureGroup:
        """Tokens at common places become their mean, in the later frame; of these and the others the most worthy stay."""
        same = one.places[:, None] == two.places[None]
        rows, columns = (found.to(two.worth.device) for found in same.nonzero(as_tuple=True))
        whole, features = two.features(torch.float32, self.width), one.features(torch.float32, self.width)
        worth = two.worth.clone()
        whole[columns] = (whole[columns] + features[rows]) / 2
        worth[columns] = torch.maximum(worth[columns], one.worth[rows])
        # Steps of few bits may end above what was stored. In float32, since bfloat16 rounds `LARGEST` up.
        is_half = in_half(self.settings.bits or 16, self.dtype)
        whole = whole.clamp(-LARGEST, LARGEST) if is_half else whole.to(self.dtype)
        later = FeatureGroup(self._packed(whole), two.frames, two.places, worth, two.seconds)
        left = torch.ones(len(features), dtype=torch.bool)
        left[rows.cpu()] = False
        return self._most_worthy(_rows(one, left.nonzero()[:, 0]), later)

    def _dropped(self, one: FeatureGroup, two: FeatureGroup) -> float:
        """Return the worth that does not stay."""
        worth = torch.cat([one.worth, two.worth]).float()
        return float(worth.sort(descending=True).values[self.per_group :].clamp(min=-1e4).sum()) if len(worth) else 0.0

    def _best(self, one: FeatureGroup, two: FeatureGroup) -> FeatureGroup:
        """Return the most worthy tokens of both, as they are."""
        return self._most_worthy(one, two)

    def _most_worthy(self, one: FeatureGroup, two: FeatureGroup) -> FeatureGroup:
        """So many tokens of two groups, in order; of equal worth the earlier."""
        worth = torch.cat([one.worth, two.worth])
        chosen = worth.sort(descending=True, stable=True).indices[: self.per_group].sort().values
        first = len(one.worth)
        one, two = _rows(one, chosen[chosen < first]), _rows(two, chosen[chosen >= first] - first)
        parts = {name: torch.cat([part, two.parts[name]]) for name, part in one.parts.items()}
        parts["seconds"] = torch.stack([one.seconds[0], two.seconds[1]])
        return self.group_of(parts, one.worth.device)

    def group_of(self, parts: dict[str, Tensor], device: torch.device | str) -> FeatureGroup:
        """Return a group of its `parts`, tokens and worth on a device."""
        parts = {name: value if name in _ON_CPU else value.to(device) for name, value in parts.items()}
        own = {name: parts[name] for name in ("worth", *_ON_CPU)}
        return FeatureGroup(Packed.of(parts, self._blocks()[1], self.settings.bits or 16), **own)

    # ---------------------------------------------------------------- asking

    def answer(
        self,
        words: Words,
        groups: Sequence[FeatureGroup],
        num_tokens: int,
        compressor: "str | Compressor | None",
        arguments: dict[str, Any],
    ) -> Tensor:
        """Return the new tokens of `generate` with the tokens that a question keeps, `(sequences, n)`; arguments as of `choose`."""
        prompt, features = self.choose(words, groups, num_tokens, compressor)
        encoded = prompt.encoded(features, self.frame, 1)
        # Everything that is left goes in: the choice is made.
        how: dict[str, Any] = dict(encoded_videos=encoded, retention_ratio=1.0, compressor="uniform")
        sequences = self.model.generate(**prompt.inputs, **how, **arguments)
        return sequences[:, prompt.inputs["input_ids"].shape[1] :]

    @torch.no_grad()
    def choose(
        self, words: Words, groups: Sequence[FeatureGroup], num_tokens: int, compressor: "str | Compressor | None"
    ) -> tuple[Asked, Tensor]:
        """Return the prompt of a question with the tokens that it keeps, and their features `(B, D)`.

        Args:
            words: of the question.
            groups: a snapshot, at least one.
            num_tokens: kept at most.
            compressor: by which; None is the policy.
        """
        method = check_choice(resolve_compressor(compressor, self.model.config))
        total = len(groups) * self.per_group
        frames, places = (torch.cat([getattr(g, name) for g in groups]).long() for name in ("frames", "places"))
        if num_tokens >= total:
            return self._prompt(words, frames, places), self._features(groups)
        ratio = num_tokens / total
        if isinstance(method, (CaCoVid, Attention)):
            keep = self._keep_by_scores(method, words, groups, ratio, num_tokens)
            by_group = keep.any(1).nonzero()[:, 0].tolist()
            features = torch.cat([self._features([groups[i]])[keep[i].to(self._device)] for i in by_group])
        else:
            keep, features = self._keep_at_once(method, words, groups, ratio)
        flat = keep.flatten()
        return self._prompt(words, frames[flat], places[flat]), features

    @property
    def _device(self) -> torch.device:
        return self.frame.trailing.device

    def _features(self, groups: Sequence[FeatureGroup]) -> Tensor:
        """`(N, D)` of all their tokens, where the model is."""
        return torch.cat([group.features(self.dtype, self.width).to(self._device) for group in groups])

    def _prompt(self, words: Words, frames: Tensor, places: Tensor) -> Asked:
        return asked(self.model, words, self.frame, self.settings.fps, frames, places)

    def _embedded(self, words: Words, groups: Sequence[FeatureGroup]) -> Any:
        frames, places = (torch.cat([getattr(g, name) for g in groups]).long() for name in ("frames", "places"))
        prompt = self._prompt(words, frames, places)
        model: Any = self.model
        return model.embed(
            **prompt.inputs, encoded_videos=prompt.encoded(self._features(groups), self.frame, len(groups))
        )

    def _keep_by_scores(
        self, method: Compressor, words: Words, groups: Sequence[FeatureGroup], ratio: float, num_tokens: int
    ) -> Tensor:
        """Bool `(G, n)` on the CPU. Some groups at a time stand in front of the question as a video would, so that no more is in memory at once."""
        found: list[Scores] = []
        prompt = None
        for start in range(0, len(groups), self.settings.frames_per_window):
            prompt = self._embedded(words, groups[start : start + self.settings.frames_per_window])
            found += [scores for scores in method.score(prompt, self.model) if scores is not None]
        scores = Scores(torch.cat([s.token for s in found]), torch.cat([s.frame for s in found]))
        if not bool(torch.isfinite(scores.token).all()):
            raise ValueError(NOT_FINITE)
        span = VideoSpan(0, (len(groups), 1, self.per_group), torch.arange(scores.token.numel()))
        assert prompt is not None
        keep = method.select_at(prompt, span, scores, ratio, num_tokens)
        assert isinstance(keep, Tensor)
        return keep.cpu()

    def _keep_at_once(
        self, method: Compressor, words: Words, groups: Sequence[FeatureGroup], ratio: float
    ) -> tuple[Tensor, Tensor]:
        """Return the mask of a method that compares tokens with one another, and the features, merged if it merges."""
        found = method.compress(self._embedded(words, groups), self.model, (ratio,))
        (video,) = found.videos
        return video.keep.cpu(), found.prompt.video_features(video.span)[video.keep]


def _rows(group: FeatureGroup, rows: Tensor) -> FeatureGroup:
    """Return some tokens of a group."""
    here = rows.to(group.worth.device)
    return FeatureGroup(
        group.tokens[here], group.frames[rows.cpu()], group.places[rows.cpu()], group.worth[here], group.seconds
    )
