"""Memory of keys and values after StreamingTOM (CVPR 2026, arXiv 2510.18269): the language model reads frames as they come, questions retrieve groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..._compat import CACHE
from ...backbones.layer_kinds import has_windows
from ...compressors.baselines import Uniform
from ...policies.stock_parts import check_readable
from ...prompt import CompressedPrompt
from ..inputs import effective_settings
from ..refused import check_generation
from ..stock import generate_compressed
from ..wrapped import AnsweringModel
from .groups import Groups, Rule
from .layers import Layers, retrieving
from .prompts import Frame, Words, dense_positions, positions_of
from .quantised import LARGEST, Packed, pack, packed_bytes, unpack
from .settings import StreamSettings
from .steps import Step

_ON_CPU = ("frames", "places", "seconds")


@dataclass(frozen=True)
class KeyValueGroup:
    """What the language model made of a frame.

    Attributes:
        states: `(layers, 2, H, d, n)`, keys before the rotary embedding, and values; a row is a channel of a head over the group's tokens.
        keys: float16 `(layers, H * d)`, the mean of the keys over the tokens; of keys that float16 cannot hold a multiple, whose cosines are the same.
        frames: int32 `(n,)`, the number of the frame.
        places: int16 `(n,)`, ascending.
        seconds: float64 `(2,)`, when the first frame that it stands for was shown, and the last.
    """

    states: Packed
    keys: Tensor
    frames: Tensor
    places: Tensor
    seconds: Tensor

    @property
    def num_bytes(self) -> int:
        """That its tensors take, steps of the quantisation included."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def parts(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        own = {"keys": self.keys, "frames": self.frames, "places": self.places, "seconds": self.seconds}
        return self.states.parts | own


class KeyValueMemory:
    """Groups of keys and values, one per frame, and the words in front of the video in full precision.

    A frame attends to the words in front of it and to the last `window` tokens as they were stored. In each layer, a question attends to the words and to the groups
    whose mean key is most like its mean query, in the order of time.

    Departures from the authors' code: keys are stored before the rotary embedding and turned when they are read, at the positions of a video of the groups that are
    read. There, positions repeat once the window is full, and keys are turned twice. Frames come in one at a time, so that nothing depends on how they are fed.
    Steps of the quantisation are counted in every number of bytes. What is full makes room by a rule.

    Args:
        model: a wrapped model.
        settings: of the stream.
        frame: what its steps have in common.
        words: of any question; what stands in front of the video is read once.
    """

    def __init__(self, model: AnsweringModel, settings: StreamSettings, frame: Frame, words: Words):
        self.model, self.settings, self.frame = model, settings, frame
        self.words = replace(words, behind=words.behind[:1])
        self.layers = Layers(model.backbone.get_decoder())
        check_readable(self.layers.config, range(len(self.layers)))
        if has_windows(self.layers.config):
            raise ValueError(
                "memory='kv' retrieves from anywhere in the video, and this language model has layers of sliding attention: use memory='features'."
            )
        self.dtype: torch.dtype = model.backbone.dtype
        self.per_group = settings.tokens_of(frame.size)
        rule = Rule(self._unlikeness, self._later) if settings.when_full == "alike" else None
        self.first = self._read_words()
        capacity = (settings.max_memory - self.first.nbytes) // self.group_bytes
        if capacity < 1:
            raise ValueError(
                f"max_memory={settings.max_memory} holds no frame: the words in front of the video take {self.first.nbytes} bytes, a frame {self.group_bytes}. "
                "Give more, or keep fewer tokens or bits."
            )
        self.groups: Groups[KeyValueGroup] = Groups(int(capacity), rule)
        self._dense: tuple[int, Tensor] = (0, torch.zeros(0))

    @property
    def group_bytes(self) -> int:
        """That every group takes."""
        count, channels = len(self.layers), self.layers.heads * self.layers.head_dim
        numbers = packed_bytes(count * 2 * channels, self.per_group, self.settings.bits or 4, self.dtype.itemsize)
        return numbers + count * channels * 2 + self.per_group * (4 + 2) + 16

    @property
    def num_bytes(self) -> int:
        """That it takes now."""
        return self.first.nbytes + sum(group.num_bytes for group in self.groups.items)

    def group_of(self, parts: dict[str, Tensor], device: torch.device | str) -> KeyValueGroup:
        """Return a group of its `parts`, states and keys on a device."""
        parts = {name: value if name in _ON_CPU else value.to(device) for name, value in parts.items()}
        states = Packed.of(parts, self.per_group, self.settings.bits or 4)
        return KeyValueGroup(states, **{name: parts[name] for name in ("keys", *_ON_CPU)})

    # ---------------------------------------------------------------- storing

    def _read_words(self) -> Tensor:
        """`(layers, 2, H, d, a)` of the `a` words in front of the video."""
        embeds = self._embedded(self.words.before)
        if not len(self.words.before):
            shape = (len(self.layers), 2, self.layers.heads, self.layers.head_dim, 0)
            return torch.zeros(shape, dtype=self.dtype, device=embeds.device)
        positions = self._dense_positions(1)[..., : len(self.words.before)]
        return self.layers.read(embeds, positions.to(embeds.device), None)

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        """`(1, n, D)` of words."""
        embeddings = self.model.backbone.get_input_embeddings()
        with torch.no_grad():
            return embeddings(torch.tensor([list(ids)], dtype=torch.long, device=embeddings.weight.device))

    def _dense_positions(self, num_frames: int) -> Tensor:
        return dense_positions(self.model, self.words, self.frame, self.settings.fps, num_frames)

    def _positions(self, dense: Tensor, words: Words, places: Sequence[Tensor]) -> Tensor:
        """Positions of a prompt with the groups that have these places."""
        ranks = torch.arange(len(places)).repeat_interleave(self.per_group)
        return positions_of(self.model, words, self.frame, dense, ranks, torch.cat(list(places)).long())

    @torch.no_grad()
    def stored(self, step: Step, groups: Sequence[KeyValueGroup]) -> KeyValueGroup:
        """Return a step as a group, read behind the last ones of those that are held."""
        within = max(1, self.settings.window // self.per_group)
        window = groups[-within:]
        count = len(window) + 1
        # Of a full window it is always the same; a question about a frame that waits may come from another thread.
        known, dense = self._dense
        if known != count:
            dense = self._dense_positions(count)
            self._dense = count, dense
        positions = self._positions(dense, self.words, [g.places for g in window] + [step.places])
        total = len(self.words.before) + self.per_group * count
        held = self._states(window, None)
        if positions.ndim == 3:  # text positions, whose jumps would be read as packed sequences
            positions[0] = torch.arange(positions.shape[-1])
        embeds = step.features[None].to(self.dtype)
        where = positions[..., total - self.per_group : total].to(embeds.device)
        states = self.layers.read(embeds, where, (held, positions[..., : total - self.per_group]))
        device = self.settings.device or embeds.device
        return KeyValueGroup(
            states=pack(states.to(device), self.settings.bits or 4),
            keys=_mean_keys(states[:, 0]).to(device),
            frames=torch.full((self.per_group,), step.number, dtype=torch.int32),
            places=step.places.to(torch.int16),
            seconds=torch.tensor([step.seconds, step.seconds], dtype=torch.float64),
        )

    def _states(self, groups: Sequence[KeyValueGroup], layer: int | None) -> Tensor:
        """`(layers, 2, H, d, m)` of the words and some groups; of one layer `(2, H, d, m)`."""
        of = slice(None) if layer is None else layer
        first = self.first[of]
        if not groups:
            return first
        parts = {name: torch.stack([g.states.parts[name][of] for g in groups], -2) for name in groups[0].states.parts}
        if "low" in parts:  # one per row, without numbers
            parts |= {name: torch.stack([g.states.parts[name][of] for g in groups], -1) for name in ("low", "step")}
        numbers = unpack(Packed.of(parts, self.per_group, self.settings.bits or 4), self.dtype)
        return torch.cat([first, numbers.flatten(-2).to(first.device)], dim=-1)

    def _unlikeness(self, one: KeyValueGroup, two: KeyValueGroup) -> float:
        """One minus the cosine of their mean keys, mean over the layers."""
        return 1 - float(cosine_similarity(one.keys.float(), two.keys.float(), dim=-1).mean())

    def _later(self, one: KeyValueGroup, two: KeyValueGroup) -> KeyValueGroup:
        """Return the later one, which stands for both."""
        return replace(two, seconds=torch.stack([one.seconds[0], two.seconds[1]]))

    # ---------------------------------------------------------------- asking

    @torch.no_grad()
    def answer(
        self,
        words: Words,
        groups: Sequence[KeyValueGroup],
        num_tokens: int,
        compressor: Any,
        arguments: dict[str, Any],
    ) -> Tensor:
        """Return the new tokens of `generate` behind the groups that a question retrieves, `(sequences, n)`.

        Args:
            words: of the question.
            groups: a snapshot, at least one.
            num_tokens: `ceil(num_tokens / n)` groups are retrieved, each layer its own.
            compressor: None.
            arguments: of `generate`.

        Raises:
            ValueError: a compressor, or another prompt in front of the video than the one that was read.
        """
        if compressor is not None:
            raise ValueError("compressor chooses among features, and memory='kv' retrieves by keys: leave it out.")
        if words.before != self.words.before:
            raise ValueError(
                "The chat template puts something of the question in front of the video, which memory='kv' has read already: use memory='features'."
            )
        backbone, family = self.model.backbone, self.model.family
        count = min(len(groups), -(-num_tokens // self.per_group))
        dense = dense_positions(self.model, words, self.frame, self.settings.fps, count)
        behind = torch.cat([self.frame.trailing[None], self._embedded(words.behind).to(self.frame.trailing)], dim=1)
        length = len(self.words.before) + count * self.per_group
        places = torch.stack([group.places for group in groups])
        means = torch.stack([group.keys for group in groups], dim=1)

        def fetch(layer: int, query: Tensor) -> tuple[Tensor, Tensor]:
            """Return turned keys and values `(1, H, m, d)` of what this layer retrieves for a query `(H * d,)`."""
            like = cosine_similarity(means[layer].float(), query.float().to(means.device)[None], dim=-1)
            chosen = like.sort(descending=True, stable=True).indices[:count].sort().values.tolist()
            states = self._states([groups[i] for i in chosen], layer)
            positions = self._positions(dense, words, [places[i] for i in chosen])[..., :length]
            return self.layers.turned(layer, states, positions)

        video = family.video_token_id(backbone.config)
        ids = [*words.before, *[video] * (count * self.per_group + family.trailing_tokens), *words.behind]
        input_ids = torch.tensor([ids], device=behind.device)
        positions = self._positions(dense, words, list(places[:count])).to(behind.device)
        if positions.ndim == 3:
            positions[0] = torch.arange(len(ids), device=behind.device)
        prompt = CompressedPrompt(
            input_ids=input_ids,
            inputs_embeds=torch.cat([behind.new_zeros(1, length, behind.shape[-1]), behind], dim=1),
            attention_mask=torch.ones_like(input_ids),
            position_ids=positions,
            kept_indices=torch.arange(len(ids), device=behind.device)[None],
            videos=(),
        )
        settings = effective_settings(backbone, arguments.get("generation_config"), arguments)
        check_generation(settings, arguments, Uniform(), family, backbone.config)
        arguments = dict(arguments)
        config = arguments.pop("generation_config", None)
        with retrieving(self.layers, length, fetch) as cache:
            sequences = generate_compressed(
                backbone,
                family,
                self.model.stock_generate,
                prompt,
                input_ids,
                settings,
                config,
                arguments | {CACHE: cache},
            )
        return sequences[:, len(ids) :]


def _mean_keys(keys: Tensor) -> Tensor:
    """Float16 `(layers, H * d)` of `(layers, H, d, n)`; each layer is made smaller as a whole where float16 would be infinite."""
    wide = keys.float().flatten(1, 2)
    return (wide / (wide.abs().amax((1, 2), keepdim=True) / LARGEST).clamp(min=1)).mean(-1).half()
