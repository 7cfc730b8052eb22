"""The prompt of a question about some tokens of a stream: its words around them, and every position."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from ...prompt import EncodedVideos
from ...utils.chat import ids_of_texts, user_message
from ..inputs import embedding_arguments
from ..wrapped import WrappedModel


@dataclass(frozen=True)
class Words:
    """The ids of a chat with one video.

    Attributes:
        before: in front of the video.
        behind: behind it, the question among them.
    """

    before: tuple[int, ...]
    behind: tuple[int, ...]


def words_of(model: WrappedModel, processor: Any, question: str) -> Words:
    """Return a question about the stream as the chat template puts it.

    Raises:
        ValueError: an empty question, or a template that does not show the video once.
    """
    if not isinstance(question, str):
        raise ValueError(
            f"The question is a {type(question).__name__}: give one text. Ask several one after the other."
        )
    if not question.strip():
        raise ValueError("The question is empty: ask something about the stream.")
    message = user_message(question)
    chat = [{**message, "content": [{"type": "video"}, *message["content"]]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    (row,) = ids_of_texts(processor.tokenizer, [text])
    video = model.family.video_token_id(model.backbone.config)
    if row.count(video) != 1:
        raise ValueError(
            f"The chat template shows the video {row.count(video)} times: use the processor of the model, and a question without its placeholder."
        )
    place = row.index(video)
    return Words(tuple(row[:place]), tuple(row[place + 1 :]))


@dataclass(frozen=True)
class Frame:
    """What every frame (temporal step) of a stream has in common.

    Attributes:
        height: tokens along its height.
        width: likewise.
        pixels: the processor's inputs of a step, without the pixels.
        trailing: `(t, D)`, what the family puts behind a video.
    """

    height: int
    width: int
    pixels: dict[str, Tensor]
    trailing: Tensor

    @property
    def size(self) -> int:
        """`P`, tokens of a frame."""
        return self.height * self.width


@dataclass(frozen=True)
class Asked:
    """A prompt with some tokens of some frames.

    Attributes:
        inputs: `input_ids` and `attention_mask` `(1, L)`, `position_ids` `(1, L)` or `(4, 1, L)`, and the family's token types.
        num_before: places in front of the video.
        num_tokens: of the video.
    """

    inputs: dict[str, Tensor]
    num_before: int
    num_tokens: int

    def encoded(self, features: Tensor, frame: Frame, groups: int) -> EncodedVideos:
        """`(N, D)` features of its tokens as a video of so many groups of equal size."""
        grid = (groups, 1, self.num_tokens // groups)
        return EncodedVideos((grid,), (torch.cat([features, frame.trailing.to(features)]),), {})


def asked(model: WrappedModel, words: Words, frame: Frame, fps: float, frames: Tensor, places: Tensor) -> Asked:
    """Lay out a prompt in which tokens have the positions of a video of their frames alone.

    The frames that have a token are numbered anew, without gaps; places within a frame, and all words, are where the stock model puts them. Where a language model
    with positions in one row was not made for so many, the tokens are counted one by one.

    Args:
        model: a wrapped model.
        words: around the video.
        frame: its common parts.
        fps: of the stream.
        frames: int64 `(N,)` ascending, the number in the stream of every token's frame.
        places: int64 `(N,)`, ascending within a frame.
    """
    backbone, family = model.backbone, model.family
    device = backbone.get_input_embeddings().weight.device
    numbers, ranks = frames.unique_consecutive(return_inverse=True)
    dense = dense_positions(model, words, frame, fps, len(numbers))
    positions = positions_of(model, words, frame, dense, ranks, places)
    video = family.video_token_id(backbone.config)
    ids = [*words.before, *[video] * (len(places) + family.trailing_tokens), *words.behind]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    inputs["position_ids"] = positions
    if "mm_token_type_ids" in embedding_arguments(backbone, family):
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == video).long()
    return Asked({name: value.to(device) for name, value in inputs.items()}, len(words.before), len(places))


def positions_of(
    model: WrappedModel, words: Words, frame: Frame, dense: Tensor, ranks: Tensor, places: Tensor
) -> Tensor:
    """Positions `(1, L)` or `(4, 1, L)` of a prompt with some tokens of a video.

    Args:
        model: a wrapped model.
        words: around the video.
        frame: its common parts.
        dense: what `dense_positions` gave of its frames.
        ranks: int64 `(N,)` ascending, the frame of every token, counted from 0 without gaps.
        places: int64 `(N,)`.
    """
    start, size = len(words.before), (int(ranks[-1]) + 1) * frame.size
    chosen = start + ranks * frame.size + places
    positions = dense[..., torch.cat([torch.arange(start), chosen, torch.arange(start + size, dense.shape[-1])])]
    longest = getattr(model.backbone.config.get_text_config(), "max_position_embeddings", None)
    if dense.ndim == 2 and longest is not None and int(dense.max()) >= longest:
        return torch.arange(positions.shape[-1])[None]
    return positions


def dense_positions(model: WrappedModel, words: Words, frame: Frame, fps: float, num_frames: int) -> Tensor:
    """Positions `(1, L)` or `(4, 1, L)` on the CPU of a prompt with all tokens of so many frames, by the stock model's own rule."""
    backbone, family = model.backbone, model.family
    video = family.video_token_id(backbone.config)
    size = num_frames * frame.size + family.trailing_tokens
    ids = torch.tensor([[*words.before, *[video] * size, *words.behind]])
    per_step = family.frames_per_step(backbone.config)
    metadata = VideoMetadata(
        total_num_frames=num_frames * per_step, fps=fps, frames_indices=list(range(num_frames * per_step))
    )
    inputs = family.settings_of_file(backbone.config, frame.pixels, num_frames, metadata)
    inputs["mm_token_type_ids"] = 2 * (ids == video).long()
    return family.position_ids(backbone, ids, torch.ones_like(ids), inputs).cpu()
