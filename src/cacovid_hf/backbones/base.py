"""The seam between a stock multimodal model and its language model: shared by every family, safe under threads.

Every supported model ends its multimodal forward in one call `language_model(inputs_embeds=..., ...)`. A forward pre-hook there, attached
for one call, takes the arguments and stops the forward, so the stock code itself embeds the prompt. A family says only which
placeholders are video tokens, each video's grid, what is never dropped, and what else the language model receives of a token.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..prompt import EncodedVideos, Prompt, PromptLayout, ReducedAttention, TowerAttention, VideoSpan
from ..utils.hooks import Hook, attached
from .beside import handed_over
from .layer_kinds import has_windows
from .loaded import embedding_device
from .windows import masked_by_places

# Enough to keep a device busy, while the vision tower's memory stays that of a short video.
FRAMES_PER_CHUNK = 64


# What a call of the language model may hold: what a prompt carries, and what does not change its embeddings.
CARRIED = ("inputs_embeds", "attention_mask", "position_ids")
WITHOUT_EFFECT = ("use_cache", "logits_to_keep", "output_router_logits", "return_dict", "labels")


class _Captured(Exception):
    """Carries the language model's arguments out of the stock forward."""

    def __init__(self, arguments: dict[str, Any]):
        super().__init__("the language model's arguments were captured")
        self.arguments = arguments


class Backbone(ABC):
    """A family of video language models: how its prompts are laid out. Stateless.

    Subclasses set `model_type` and implement what is abstract; where the family has its own, `video_settings`, `frames_per_step`,
    `settings_of_file` and `position_ids`; and for the methods that look at the vision tower's attention, `tower_attention`.
    `places`, `video_token_id`, `image_begins` and `filler_id` are for families whose videos have no placeholder of their own. `extra_names`, `extra_width`, `extra` and
    `extra_arguments` are for language models that receive more of a token than its embedding.

    Attributes:
        model_type: `config.model_type` of the family.
        video_inputs: names of the arguments that hold the pixels of videos.
        video_settings: names of the other arguments that belong to videos, one row a video.
        trailing_tokens: placeholders at the end of each video that are not video tokens: always kept, never scored.
        words_around_frames: whether words stand between a video's frames (times, marks), see `num_words_around`.
        words_have_times: whether times are among them, so that they cannot be written without a video's metadata.
        own_inputs: names of arguments that our processor adds, and that the stock forward does not take.
        extra_names: names of the language model's arguments that `extra` holds.
        looked_up: names of those that `stock_arguments` makes from ids.
        since: the oldest transformers that has the family as it is read here; None: every supported one.
    """

    model_type: ClassVar[str]
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)
    video_settings: ClassVar[tuple[str, ...]] = ()
    trailing_tokens: ClassVar[int] = 0
    words_around_frames: ClassVar[bool] = False
    words_have_times: ClassVar[bool] = True
    own_inputs: ClassVar[tuple[str, ...]] = ()
    extra_names: ClassVar[tuple[str, ...]] = ()
    looked_up: ClassVar[tuple[str, ...]] = ()
    since: ClassVar[str | None] = None

    # ---------------------------------------------------------------- places

    def video_token_id(self, config) -> int:
        """The id of a video's placeholders."""
        return config.video_token_id

    def places(self, config, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Where the placeholders of videos stand, and those of images: bool `(B, L)` each, on the device of the ids.

        Args:
            config: the backbone's.
            input_ids: `(B, L)`.
            inputs: the other arguments of the call.
        """
        return input_ids == config.video_token_id, input_ids == config.image_token_id

    def num_words_around(self, config, before: list[int], behind: list[int]) -> tuple[int, int]:
        """How many of the ids directly before a frame's placeholders are words of this frame, and how many directly behind them.

        Words of frames are not the question, and may go with a frame of which nothing is kept.

        Args:
            config: the backbone's.
            before: ids since the frame before, or since the prompt's beginning (the last 64 at most).
            behind: ids up to the next frame, or to the prompt's end (the first 64 at most).
        """
        return 0, 0

    def num_words_before_first(self, config, before: list[int], between: list[int]) -> int:
        """How many of the ids directly before a video's first frame are its words; without this method as `num_words_around` says.

        Args:
            config: the backbone's.
            before: ids since the video before, or since the prompt's beginning (the last 64 at most).
            between: ids between the first two frames, which show what words look like; [] of a video of one frame.
        """
        return self.num_words_around(config, before, [])[0]

    def inputs_of_words(self, settings: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Any]:
        """What the processor's `replace_video_token` reads of one video of this grid, beside its metadata: of its `video_settings`, one row each."""
        return settings

    def _with_words(self, config, ids: list[int], span: VideoSpan, start: int, stop: int) -> VideoSpan:
        """A span with the places of its frames' words, of a row of ids whose places from `start` and before `stop` may be words."""
        places, frames = [], []
        firsts = span.positions[:: span.tokens_per_frame].tolist()
        lasts = span.positions[span.tokens_per_frame - 1 :: span.tokens_per_frame].tolist()
        for frame, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            begin = lasts[frame - 1] + 1 if frame else start
            end = firsts[frame + 1] if frame + 1 < len(firsts) else stop
            before, behind = self.num_words_around(
                config, ids[max(begin, first - 64) : first], ids[last + 1 : end][:64]
            )
            if not frame:
                between = ids[last + 1 : end] if len(firsts) > 1 else []
                before = self.num_words_before_first(config, ids[max(begin, first - 64) : first], between)
            found = [*range(first - before, first), *range(last + 1, last + 1 + behind)]
            places += found
            frames += [frame] * len(found)
        return replace(span, word_places=torch.tensor(places).long(), word_frames=torch.tensor(frames).long())

    def filler_id(self, config) -> int:
        """A word that stands where embeddings are overwritten; its own may have no effect."""
        placeholders = (self.video_token_id(config), config.image_token_id)
        return next(i for i in range(3) if i not in placeholders)

    # ---------------------------------------------------------------- inputs

    @abstractmethod
    def video_grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """`(T, h, w)` of every video of the call, in the order of the pixel inputs, in tokens of the language model."""

    def grids(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]]:
        """As `video_grids`, of a call whose videos may be encoded already (`encoded_videos`)."""
        encoded: EncodedVideos | None = inputs.get("encoded_videos")
        return self.video_grids(config, inputs) if encoded is None else list(encoded.grids)

    def grids_if_given(self, config, inputs: dict[str, Any]) -> list[tuple[int, int, int]] | None:
        """As `grids`; None without pixels, whose grids later steps of a generation may still carry."""
        given = any(inputs.get(name) is not None for name in ("encoded_videos", *self.video_inputs))
        return self.grids(config, inputs) if given else None

    @abstractmethod
    def frames(self, inputs: dict[str, Any], video: int, start: int, stop: int) -> dict[str, Any]:
        """The pixel inputs of some frames (temporal grid steps) of one video, as those of a video of their own."""

    def encodes_apart(self, inputs: dict[str, Any]) -> bool:
        """Whether the stock forward does not take the videos of a call as they are, such as clips padded to one length: each is encoded by itself."""
        return False

    def frames_per_step(self, config) -> int:
        """Frames of a video that one temporal grid step holds."""
        return 1

    def settings_of_file(self, config, pixels: dict[str, Any], steps: int, metadata: Any) -> dict[str, Tensor]:
        """`video_settings` of a video of so many steps, from the pixel inputs of a part of it and its `VideoMetadata`."""
        return {}

    @abstractmethod
    def num_images(self, inputs: dict[str, Any]) -> int:
        """How many images the pixel inputs of the call hold."""

    def image_begins(self, config, is_image: Tensor) -> Tensor:
        """Where each of the images that `num_images` counts begins, bool `(B, L)`, given their placeholders."""
        return is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]

    @abstractmethod
    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """The inputs with these videos and images alone, by number; None: all of them."""

    def without_videos(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a call without what holds its videos, and with its images."""
        names = (*self.video_inputs, *self.video_settings)
        return {name: value for name, value in self.take(inputs, [], None).items() if name not in names}

    def num_placeholders(self, config, inputs: dict[str, Any]) -> int:
        """How many video placeholders the pixel inputs of the call stand for."""
        return sum(t * h * w + self.trailing_tokens for t, h, w in self.grids(config, inputs))

    def position_ids(
        self, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, inputs: dict[str, Any]
    ) -> Tensor:
        """Positions of the uncompressed prompt as stock generation gives them: `(B, L)`, counted over the tokens that are not padding."""
        return (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 0)

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        """The decoder that receives the embedded prompt."""
        return model.get_decoder()

    # ---------------------------------------------------------------- beside the embeddings

    def extra_width(self, config) -> int:
        """`E`, how many numbers the language model receives of each token beside its embedding."""
        return 0

    def extra(self, config, found: dict[str, Any]) -> Tensor | None:
        """`(B, L, E)`, what the language model receives beside the embeddings; None: zeros.

        Args:
            config: the backbone's.
            found: the keyword arguments of its call by the stock forward, and those of that forward itself.
        """
        return None

    def extra_arguments(self, config, extra: Tensor) -> dict[str, Any]:
        """The language model's arguments for the `(R, n, E)` of one forward: `extra` the other way round."""
        return {}

    def stock_arguments(self, model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
        """What the stock forward needs beside the embeddings of these ids `(R, n)`, because it looks it up by id."""
        return {}

    def joint_frames(self, config) -> bool:
        """Whether tokens of a frame see each other in both directions in layers of sliding attention; the first number of `extra` is then 1 at those."""
        return False

    def is_plain(self, config) -> bool:
        """Whether embeddings, mask and positions of a compressed prompt are all that stock code needs."""
        return not (self.extra_width(config) or self.looked_up or has_windows(config))

    @contextmanager
    def handed_over(self, model: PreTrainedModel, places: Tensor, extra: Tensor | None) -> Iterator[None]:
        """Enter this around stock code that runs a prompt given as embeddings.

        Its language model receives `extra` too, and its windows count the places of the uncompressed prompt.

        Args:
            model: the stock model.
            places: int64 `(B, K)`, in the uncompressed prompt, -1 at padding.
            extra: `(B, K, E)`, of a prompt whose language model receives more than embeddings.
        """
        decoder = self.language_model(model)
        with handed_over(decoder, extra, partial(self.extra_arguments, model.config)):
            if not has_windows(model.config):
                yield
                return
            joint = extra[..., 0] > 0 if extra is not None and self.joint_frames(model.config) else None
            with masked_by_places(decoder, places, joint):
                yield

    # ---------------------------------------------------------------- prompts

    def tower_attention(
        self, model: PreTrainedModel, layout: PromptLayout
    ) -> AbstractContextManager[Callable[[], tuple[TowerAttention, ...]]]:
        """Record the vision tower within a `with` block; what that yields, called behind the stock forward, gives the attention of every video.

        Raises:
            ValueError: the family does not say how.
        """
        raise ValueError(
            f"Backbone family {self.model_type!r} does not give its vision tower's attention: choose a method that needs none, such as "
            "'cacovid' or 'divprune' (CONTRIBUTING.md says what a family implements)."
        )

    def layout(
        self,
        config,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        grids: list[tuple[int, int, int]] | None = None,
    ) -> PromptLayout:
        """Find the videos of a batch of prompts.

        Args:
            config: the backbone's.
            input_ids: `(B, L)`.
            attention_mask: `(B, L)`, 0 at padding.
            inputs: the other arguments of the call, for the grids.
            grids: those, if they are known; None: as `grids` of the inputs.

        Raises:
            ValueError: placeholders and pixel inputs do not fit, or a prompt ends inside a video.
        """
        input_ids, valid = input_ids.cpu(), attention_mask.cpu().bool()
        is_video, is_image = self.places(config, input_ids, inputs)
        grids = self.grids(config, inputs) if grids is None else grids
        sizes = [t * h * w for t, h, w in grids]
        expected, found = sum(sizes) + self.trailing_tokens * len(sizes), int(is_video.sum())
        if expected != found:
            raise ValueError(
                f"The prompt has {found} video placeholders, the pixel inputs of {len(sizes)} video(s) stand for {expected}: make "
                "both with one call of the processor, one video input for every video in the messages."
            )
        spans: list[VideoSpan] = []
        for row in range(input_ids.shape[0]):
            places = is_video[row].nonzero()[:, 0]
            while len(places):
                number = len(spans)
                end = sizes[number] + self.trailing_tokens
                if len(places) < end:
                    raise ValueError(
                        f"Row {row} of the prompt has {len(places)} placeholders left for video {number}, which needs {end}: a video must lie "
                        "in one row; make the batch with one call of the processor."
                    )
                spans.append(VideoSpan(row, grids[number], places[: sizes[number]]))
                places = places[end:]
        if bool((is_video & ~valid).any()):
            raise ValueError("attention_mask is 0 at video placeholders: mask padding only, or leave it out.")
        last = input_ids.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)
        for span in spans:
            if span.positions[-1] == last[span.row]:
                raise ValueError(
                    f"Row {span.row} of the prompt ends inside a video, and the answer is read at its last token: put the question after "
                    "the video and use add_generation_prompt=True."
                )
        text = valid & ~is_video & ~is_image
        if self.words_around_frames:
            start = dict.fromkeys(range(len(input_ids)), 0)
            for number, span in enumerate(spans):
                row = span.row
                span = self._with_words(config, input_ids[row].tolist(), span, start[row], int(last[row]))
                start[row] = int(span.positions[-1]) + 1
                text[row, span.word_places] = False
                spans[number] = span
        return PromptLayout(valid=valid, text=text, videos=tuple(spans))

    def embed(
        self,
        model: PreTrainedModel,
        layout: PromptLayout,
        input_ids: Tensor,
        attention_mask: Tensor,
        inputs: dict[str, Any],
        *,
        with_tower_attention: bool = False,
        frames_per_chunk: int | None = FRAMES_PER_CHUNK,
    ) -> Prompt:
        """Run the stock model up to its language model: vision encoded, prompt embedded.

        Videos of more than `frames_per_chunk` frames (temporal grid steps) in all are encoded in chunks of so many, which bounds the memory
        of the vision tower; None encodes everything at once, as the stock model does.

        `inputs` are the arguments of the stock forward; `position_ids` among them are taken as they are, and `encoded_videos`, if any,
        in place of the videos' pixels. `with_tower_attention` fills `Prompt.tower`.
        """
        inputs = dict(inputs)
        encoded: EncodedVideos | None = inputs.pop("encoded_videos", None)
        if encoded is not None and encoded.tower is None and with_tower_attention:
            raise ValueError(
                "What the vision tower attended to is not known of these encoded videos. Encode them with with_tower_attention=True, or choose a method "
                "that does not read it."
            )
        position_ids = inputs.pop("position_ids", None)
        if position_ids is None:
            position_ids = self.position_ids(model, input_ids, attention_mask, inputs)
        else:
            position_ids = position_ids.expand(*position_ids.shape[:-2], *input_ids.shape)
        features: Iterable[Tensor] | None = None
        tower: tuple[TowerAttention | ReducedAttention, ...] | None = None
        many = frames_per_chunk is not None and sum(span.num_frames for span in layout.videos) > frames_per_chunk
        if encoded is not None:
            features, tower = encoded.features, encoded.tower if with_tower_attention else None
        elif (many or self.encodes_apart(inputs)) and with_tower_attention:
            features, tower = self.encode_with_attention(model, inputs, frames_per_chunk)
        elif many or self.encodes_apart(inputs):
            features = self.encode(model, inputs, frames_per_chunk)
        ids = input_ids
        if features is not None:
            is_video, _ = self.places(model.config, input_ids, inputs)
            inputs = self.without_videos(inputs)
            ids = input_ids.masked_fill(is_video, self.filler_id(model.config))
        inputs = {name: value for name, value in inputs.items() if name not in self.own_inputs}
        arguments = {**inputs, "input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
        if with_tower_attention and layout.videos and tower is None:
            with self.tower_attention(model, layout) as attention:
                embeds, extra = self._embedded(model, arguments)
            return Prompt(layout, input_ids, embeds, position_ids, attention(), extra, self.is_plain(model.config))
        embeds, extra = self._embedded(model, arguments)
        if features is not None:
            width = embeds.shape[-1]
            wide = embeds if extra is None else torch.cat([embeds, extra], dim=-1)
            wide = with_features(wide, is_video.nonzero(), features)
            embeds, extra = wide[..., :width], None if extra is None else wide[..., width:]
        return Prompt(layout, input_ids, embeds, position_ids, tower, extra, self.is_plain(model.config))

    def encode(self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None) -> Iterator[Tensor]:
        """Encode the videos of a call a chunk of frames (temporal grid steps) at a time; both towers look at one of them alone.

        A chunk is a video to the stock model: it is embedded behind the seam as a prompt of placeholders.

        Returns:
            `(n, D + E)` each: embeddings of the call's video placeholders, in order, and what the language model receives beside them.
        """
        for _, pixels, grid, is_last in self._chunks(model, inputs, frames_per_chunk):
            num_tokens = math.prod(grid)
            features = self.encode_frames(model, pixels, num_tokens)
            yield features if is_last else features[:num_tokens]

    def encode_with_attention(
        self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None
    ) -> tuple[list[Tensor], tuple[ReducedAttention, ...]]:
        """As `encode`, and what the vision tower attended to in every video: brought down to tokens chunk by chunk, so that no more is held of a video.

        Raises:
            ValueError: the family does not say how.
        """
        features: list[Tensor] = []
        parts: dict[int, list[ReducedAttention]] = {}
        for video, pixels, grid, is_last in self._chunks(model, inputs, frames_per_chunk):
            found, attention = self.encode_frames_with_attention(model, pixels, grid)
            features.append(found if is_last else found[: math.prod(grid)])
            parts.setdefault(video, []).append(attention)
        return features, tuple(ReducedAttention.joined(of_video) for of_video in parts.values())

    def _chunks(
        self, model: PreTrainedModel, inputs: dict[str, Any], frames_per_chunk: int | None
    ) -> Iterator[tuple[int, dict[str, Any], tuple[int, int, int], bool]]:
        """Every chunk of the call's videos: the video's number, the pixels, the grid, and whether it is the video's last."""
        for video, (steps, height, width) in enumerate(self.video_grids(model.config, inputs)):
            for start in range(0, steps, frames_per_chunk or steps):
                stop = min(start + (frames_per_chunk or steps), steps)
                yield video, self.frames(inputs, video, start, stop), (stop - start, height, width), stop == steps

    def encode_frames_with_attention(
        self, model: PreTrainedModel, pixels: dict[str, Any], grid: tuple[int, int, int]
    ) -> tuple[Tensor, ReducedAttention]:
        """As `encode_frames` of one video of this grid, and what the vision tower attended to."""
        num_tokens = math.prod(grid)
        everywhere = torch.ones(1, num_tokens + self.trailing_tokens, dtype=torch.bool)
        span = VideoSpan(0, grid, torch.arange(num_tokens))
        layout = PromptLayout(everywhere, torch.zeros_like(everywhere), (span,))
        with self.tower_attention(model, layout) as attention:
            features = self.encode_frames(model, pixels, num_tokens)
        return features, attention()[0].reduced()

    def encode_frames(self, model: PreTrainedModel, pixels: dict[str, Any], num_tokens: int) -> Tensor:
        """`(num_tokens + trailing_tokens, D + E)`: one video of so many tokens, and what stands at its end (see `EncodedVideos`)."""
        device = embedding_device(model)
        pixels = {
            n: value.to(device) if isinstance(value, Tensor) else value
            for n, value in pixels.items()
            if n not in self.own_inputs
        }
        ids = torch.full((1, num_tokens + self.trailing_tokens), self.video_token_id(model.config), device=device)
        arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.zeros_like(ids)}
        embeds, extra = self._embedded(model, {**pixels, **arguments})
        return embeds[0] if extra is None else torch.cat([embeds[0], extra[0]], dim=-1)

    def _embedded(self, model: PreTrainedModel, arguments: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What reaches the language model: embeddings `(B, L, D)`, and `(B, L, E)` beside them if it receives more.

        Raises:
            ValueError: the language model gets something else too, which the compressed prompt would be without.
        """
        arguments = {**arguments, "use_cache": False}
        found = capture_language_model_inputs(model, self.language_model(model), arguments)
        known = (*CARRIED, *WITHOUT_EFFECT, *self.extra_names, *self.looked_up)
        if unknown := sorted(name for name, value in found.items() if value is not None and name not in known):
            raise ValueError(
                f"{type(model).__name__} also gives its language model {', '.join(unknown)}, which a compressed prompt does not carry. Use "
                "a backbone whose language model reads embeddings, mask and positions alone."
            )
        embeds, width = found["inputs_embeds"], self.extra_width(model.config)
        if not width:
            return embeds, None
        extra = self.extra(model.config, {**arguments, **found})
        return embeds, embeds.new_zeros(*embeds.shape[:2], width) if extra is None else extra.to(embeds)


def with_features(embeds: Tensor, places: Tensor, features: Iterable[Tensor]) -> Tensor:
    """`embeds` `(B, L, D)` with `features`, `(n, D)` each, one after the other at `places` `(N, 2)` (row, place); written in place unless gradients reach it."""
    embeds = embeds.clone() if embeds.requires_grad else embeds
    rows, columns = places.unbind(dim=1)
    start = 0
    for part in features:
        if part.shape[-1] != embeds.shape[-1]:
            raise ValueError(
                f"The videos were encoded with hidden size {part.shape[-1]}, the model has {embeds.shape[-1]}: encode them with this model."
            )
        stop = start + len(part)
        embeds[rows[start:stop], columns[start:stop]] = part.to(embeds)
        start = stop
    return embeds


def capture_language_model_inputs(
    model: nn.Module, language_model: nn.Module, inputs: dict[str, Any]
) -> dict[str, Any]:
    """Call `model(**inputs)` and return the keyword arguments that reach `language_model`, which is not run."""

    def stop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        raise _Captured(kwargs)

    try:
        with attached(Hook(language_model, pre=stop, first=True)):
            model(**inputs)
    except _Captured as captured:
        return captured.arguments
    raise RuntimeError(
        f"{type(model).__name__} did not call its language model: this version of transformers is not supported."
    )


def take_rows(inputs: dict[str, Any], names: Sequence[str], rows: list[int] | None) -> dict[str, Any]:
    """`inputs` with these rows alone of the named tensors (or lists); None: all; no row: the name is left out."""
    if rows is None:
        return inputs
    taken = {name: value for name, value in inputs.items() if name not in names or value is None}
    for name in names:
        if rows and inputs.get(name) is not None:
            value = inputs[name]
            taken[name] = value[rows] if isinstance(value, Tensor) else [value[row] for row in rows]
    return taken
