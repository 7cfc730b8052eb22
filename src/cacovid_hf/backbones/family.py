"""What is particular to a family of video language models: how its prompts are laid out, and what its language model receives.

A family says only which placeholders are video tokens, each video's grid, what is never dropped, and what else the language model receives of a token.
What every family has in common stands in `base`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..prompt import EncodedVideos, PromptLayout, TowerAttention
from .beside import handed_over
from .layer_kinds import has_windows
from .windows import masked_by_places


class Family(ABC):
    """A family of video language models: how its prompts are laid out. Stateless.

    Subclasses set `model_type` and implement what is abstract; where the family has its own, `video_settings`, `frames_per_step`,
    `settings_of_file` and `position_ids`; and for the methods that look at the vision tower's attention, `tower_attention`.
    `places`, `video_token_id` and `filler_id` are for families whose videos have no placeholder of their own. `extra_names`, `extra_width`, `extra` and
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
        """Return the id of a video's placeholders."""
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
        """Return what the processor's `replace_video_token` reads of one video of this grid, beside its metadata: of its `video_settings`, one row each."""
        return settings

    def filler_id(self, config) -> int:
        """Return a word that stands where embeddings are overwritten; its own may have no effect."""
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
        """Return the pixel inputs of some frames (temporal grid steps) of one video, as those of a video of their own."""

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
    def image_lengths(self, model: PreTrainedModel, inputs: dict[str, Any]) -> list[int]:
        """How many placeholders each image of the call has, in the order of the pixel inputs; [] without images."""

    @abstractmethod
    def take(self, inputs: dict[str, Any], videos: list[int] | None, images: list[int] | None) -> dict[str, Any]:
        """Return the inputs with these videos and images alone, by number; None: all of them."""

    def without_videos(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of a call without what holds its videos, and with its images."""
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

    @property
    def counts_positions(self) -> bool:
        """Whether positions are counted one by one, so that they are known without pixels."""
        return type(self).position_ids is Family.position_ids

    def language_model(self, model: PreTrainedModel) -> nn.Module:
        """Return the decoder that receives the embedded prompt."""
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
        """Return the language model's arguments for the `(R, n, E)` of one forward: `extra` the other way round."""
        return {}

    def behind_layers(self, config, extra: Tensor | None) -> tuple[Tensor, ...]:
        """Return what stock code adds to the states behind its first layers, `(B, K, D)` for each, of the `extra` `(B, K, E)` of a prompt."""
        return ()

    def stock_arguments(self, model: PreTrainedModel, input_ids: Tensor) -> dict[str, Any]:
        """Return what the stock forward needs beside the embeddings of these ids `(R, n)`, because it looks it up by id."""
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

    # ---------------------------------------------------------------- the vision tower

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
