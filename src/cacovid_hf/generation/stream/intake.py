"""Frames as they come: through the vision tower one temporal step at a time, and down to the tokens that are stored."""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.video_utils import VideoMetadata

from ...compressors.base import Merged
from ...compressors.cacovid import CaCoVid
from ...compressors.registry import resolve_compressor
from ...compressors.streamingtom import StreamingTom, reduce_frames
from ...compressors.tools.selection import NOT_FINITE
from ...compressors.tools.tokens import highest_tokens
from ...prompt import Prompt, PromptLayout, ReducedAttention, VideoSpan, stack_prompts
from ...utils.tensors import full_precision
from ..wrapped import WrappedModel
from .prompts import Frame, Words, asked
from .settings import StreamSettings
from .steps import Before, Step


class Intake:
    """Encodes and reduces frames of one stream; what went before is in the caller's hands.

    Args:
        model: a wrapped model.
        reader: its video processor.
        settings: of the stream.
        standing: the settings' standing questions as words of prompts.
    """

    def __init__(self, model: WrappedModel, reader: Any, settings: StreamSettings, standing: Sequence[Words]):
        self.model, self.reader, self.settings, self.standing = model, reader, settings, standing
        self.method = resolve_compressor(settings.reducer, model.config)
        # The standing questions about one frame, embedded; only its features change.
        self._asked: tuple[Frame, Prompt] | None = None
        self.per_step = model.family.frames_per_step(model.backbone.config)

    def accept(self, before: Before, picture: Any, seconds: float) -> Before:
        """Check a frame, bring it to the stream's size, and let it wait for its step.

        Raises:
            ValueError: not a picture, or a time that goes back.
        """
        # Grey, with a palette or with transparency, as cameras and GIFs have them.
        picture = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
            raise ValueError(
                f"A frame has shape {picture.shape} and type {picture.dtype}: give RGB pictures uint8 (height, width, 3)."
            )
        is_number = isinstance(seconds, (Real, np.ndarray, Tensor)) and getattr(seconds, "ndim", 0) == 0
        if not is_number or not np.isfinite(float(seconds)):
            raise ValueError(f"A frame has the time {seconds!r}: give seconds, a finite number.")
        if before.last is not None and seconds < before.last:
            raise ValueError(
                f"A frame at {seconds} seconds comes after one at {before.last}: give times in order, or reset the stream."
            )
        size = before.size or picture.shape[:2]
        other = picture.shape[:2] != size
        # A copy: the caller may write the next frame into the same array.
        picture = _resized(picture, size) if other else picture.copy()
        return replace(
            before,
            num_frames=before.num_frames + 1,
            last=float(seconds),
            size=(int(size[0]), int(size[1])),
            resized=before.resized + other,
            waiting=(*before.waiting, picture),
            seconds=before.seconds if before.waiting else float(seconds),
        )

    def is_complete(self, before: Before) -> bool:
        """Whether the waiting frames are a step."""
        return len(before.waiting) == self.per_step

    @torch.no_grad()
    def take(self, before: Before, frame: Frame | None) -> tuple[Before, Step, Frame]:
        """Return the waiting frames as a step, the last one repeated if they are too few, as processors do.

        Args:
            before: with a waiting frame.
            frame: what the stream's steps have in common; None: this is the first.
        """
        pictures = np.stack([*before.waiting, *[before.waiting[-1]] * (self.per_step - len(before.waiting))])
        features, attention, frame = self._encoded(pictures, frame)
        step = self._reduced(before, features, attention, frame)
        after = replace(before, num_steps=before.num_steps + 1, features=features, waiting=())
        return after, step, frame

    def standing_bytes(self) -> int:
        """Return the bytes of the standing questions' prompts about one frame."""
        known = self._asked
        return 0 if known is None else known[1].inputs_embeds.nbytes + known[1].position_ids.nbytes

    def frame_of(self, size: tuple[int, int]) -> Frame:
        """Return what steps of pictures of this height and width have in common, with zeros in `trailing`."""
        grid, pixels = self._processed(np.zeros((self.per_step, *size, 3), np.uint8))
        like = self.model.backbone.get_input_embeddings().weight
        trailing = like.new_zeros(self.model.family.trailing_tokens, like.shape[1])
        return Frame(grid[1], grid[2], self._without_pixels(pixels), trailing)

    def _processed(self, pictures: np.ndarray) -> tuple[tuple[int, int, int], dict[str, Tensor]]:
        """Return the grid of a step, and what the processor makes of it."""
        count = len(pictures)
        metadata = VideoMetadata(total_num_frames=count, fps=self.settings.fps, frames_indices=list(range(count)))
        pixels = dict(
            self.reader(videos=[pictures], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt")
        )
        pixels.pop("video_metadata", None)
        (grid,) = self.model.family.video_grids(self.model.backbone.config, pixels)
        return grid, pixels

    def _without_pixels(self, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in pixels.items() if name not in self.model.family.video_inputs}

    def _encoded(self, pictures: np.ndarray, frame: Frame | None) -> tuple[Tensor, "ReducedAttention | None", Frame]:
        """`(P, D)` of a step, and what the tower attended to, if the reducer reads that."""
        family, backbone = self.model.family, self.model.backbone
        grid, pixels = self._processed(pictures)
        size, attention = grid[1] * grid[2], None
        floats = {n: v.to(backbone.dtype) if n in family.video_inputs else v for n, v in pixels.items()}
        if self.method.reads_tower:
            found, attention = family.encode_frames_with_attention(backbone, floats, grid)
        else:
            found = family.encode_frames(backbone, floats, size)
        if frame is None:
            # A copy: a part of a tensor would hold all of it.
            frame = Frame(grid[1], grid[2], self._without_pixels(pixels), found[size:].clone())
        return found[:size].clone(), attention, frame

    def _reduced(self, before: Before, features: Tensor, attention: "ReducedAttention | None", frame: Frame) -> Step:
        size = len(features)
        count = self.settings.tokens_of(size)
        with full_precision(features.device):
            chosen, worth = self._chosen(before, features, attention, frame, count)
        keep = torch.ones(size, dtype=torch.bool) if chosen is None else chosen
        if isinstance(keep, Merged):
            keep, merged = keep
            features = merged[0].to(features)
            keep = keep[0]
        places = keep.nonzero()[:, 0]
        return Step(before.num_steps, before.seconds, features[places], places.cpu(), worth[places].float())

    def _chosen(
        self, before: Before, features: Tensor, attention: "ReducedAttention | None", frame: Frame, count: int
    ) -> tuple[Any, Tensor]:
        """Return a mask `(P,)` or `Merged` of one frame (None: all stays), and the worth `(P,)` of its tokens."""
        size, method = len(features), self.method
        if isinstance(method, CaCoVid):
            worth = self._contribution(features, frame)
            return (None if count == size else highest_tokens(worth[None], count)[0]), worth
        received = None if attention is None else attention.received()[0].to(features.device)
        worth = features.new_ones(size) if received is None else received
        if count == size:
            return None, worth
        if isinstance(method, StreamingTom):
            settings = (method.threshold, method.own_weight, method.num_neighbours)
            assert received is not None
            return reduce_frames(
                features[None], received[None], torch.tensor([count]), *settings, before.features
            ), worth
        layout = PromptLayout(
            valid=torch.ones(1, size, dtype=torch.bool),
            text=torch.zeros(1, size, dtype=torch.bool),
            videos=(VideoSpan(0, (1, frame.height, frame.width), torch.arange(size)),),
        )
        ids = torch.zeros(1, size, dtype=torch.long, device=features.device)
        tower = None if attention is None else (attention,)
        prompt = Prompt(layout, ids, features[None], torch.arange(size, device=features.device)[None], tower)
        chosen = method.select_at(prompt, layout.videos[0], None, count / size, count)
        return chosen if isinstance(chosen, Merged) else chosen[0], worth

    def _contribution(self, features: Tensor, frame: Frame) -> Tensor:
        """`(P,)`, the largest score of every token over the standing questions."""
        # Read once: a question may come from another thread, after a reset about frames of another size.
        known = self._asked
        if known is None or known[0] is not frame:
            known = frame, stack_prompts([self._question(words, features, frame) for words in self.standing])
            self._asked = known
        prompt = known[1]
        embeds = prompt.inputs_embeds.clone()
        for span in prompt.layout.videos:
            embeds[span.row, span.positions.to(embeds.device)] = features.to(embeds)
        scores = self.method.score(replace(prompt, inputs_embeds=embeds), self.model)
        worth = torch.stack([found.token[0] for found in scores if found is not None]).amax(0)
        if not bool(worth.isfinite().all()):
            raise ValueError(NOT_FINITE)
        return worth

    def _question(self, words: Words, features: Tensor, frame: Frame) -> Prompt:
        """Return a standing question about one frame."""
        model: Any = self.model
        size = len(features)
        prompt = asked(model, words, frame, self.settings.fps, torch.zeros(size).long(), torch.arange(size))
        return model.embed(**prompt.inputs, encoded_videos=prompt.encoded(features, frame, 1))


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture `(h, w, 3)` brought to another height and width, smoothed where it shrinks."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    found = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)
    return found[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
