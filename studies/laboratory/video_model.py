"""A stock LLaVA-OneVision: the embedded model's vision tower, a projector of its own, SmolLM2.

The projector is taught first and alone: the token of a cell comes to lie near the sum of the words of what the cell shows (object, color, tint).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from cacovid_hf.prompt import ReducedAttention
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.backbone import build_processor
from cacovid_hf.tiny.synthetic import GRID, dense_frames
from studies.laboratory.language_model import language_model
from studies.laboratory.words import Vocabulary

IMAGE_TOKEN, VIDEO_TOKEN = 3, 5  # of SmolLM2's vocabulary, for code repositories: never used here
RIDGE_BATCHES, RIDGE_FRAMES, RIDGE = 10, 64, 0.1
STEPS, FRAMES, LEARNING_RATE, DISTANCE_WEIGHT = 100, 48, 1.5e-3, 0.3
_STREAM = 21


def build(work: Path, seed: int) -> tuple[LlavaOnevisionForConditionalGeneration, Any]:
    """The model, its projector untrained, and SmolLM2's tokenizer.

    Args:
        work: folder of the laboratory.
        seed: of the untrained projector.
    """
    words, tokenizer = language_model(work)
    tiny = AutoModelForImageTextToText.from_pretrained(model_path() / "backbone")
    config = LlavaOnevisionConfig(
        vision_config=tiny.config.vision_config,
        text_config=words.config,
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        image_grid_pinpoints=tiny.config.image_grid_pinpoints,
        vision_feature_select_strategy=tiny.config.vision_feature_select_strategy,
        vision_feature_layer=tiny.config.vision_feature_layer,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(config)
    model.model.language_model.load_state_dict(words.model.state_dict())
    model.tie_weights()
    model.model.vision_tower.load_state_dict(tiny.model.vision_tower.state_dict())
    hidden = tiny.model.multi_modal_projector.linear_1
    newline = tokenizer("\n")["input_ids"][0]
    with torch.no_grad():
        projector = model.model.multi_modal_projector
        projector.linear_1.weight[: hidden.out_features] = hidden.weight
        projector.linear_1.bias[: hidden.out_features] = hidden.bias
        model.model.image_newline.copy_(model.get_input_embeddings().weight[newline])
    return model.eval().requires_grad_(False), tokenizer


def pixels(clips: Any) -> Tensor:
    """What the tower sees of clips, uint8 `(B, T, H, W, 3)`: `(B, T, 3, H, W)`."""
    return build_processor().video_processor(list(clips), return_tensors="pt")["pixel_values_videos"]


@torch.no_grad()
def video_tokens(model: Any, clips: Any) -> Tensor:
    """Tokens of clips as they enter the language model, without the newline behind: `(B, N, D)`."""
    features = model.get_video_features(pixels(clips)).pooler_output
    # Not all versions of transformers put the newline behind them here.
    return torch.stack([tokens[: len(frames) * GRID**2] for tokens, frames in zip(features, clips, strict=True)])


def tower_attention(model: Any, clips: Any) -> tuple[ReducedAttention, ...]:
    """What the vision tower of a wrapped model attends to in each of some clips."""
    found = model.encode_videos(pixel_values_videos=pixels(clips), with_tower_attention=True).tower
    assert found is not None
    return found


@dataclass(frozen=True)
class _Cells:
    """Frames full of objects, as the tower sees them, and what their cells show.

    Attributes:
        hidden: the tower's output.
        labels: of objects (none: the last class), colors (-1: none) and tints, `(frames, cells)` each.
        target: sum of the words' embeddings, `(frames, cells, D)`.
    """

    hidden: Tensor
    labels: tuple[Tensor, Tensor, Tensor]
    target: Tensor


class ProjectorTraining:
    """Teaches the projector of a model that `build` made; 100 steps, about a minute of one core.

    Args:
        model: trained in place.
        vocabulary: SmolLM2's.
        seed: of the frames.
    """

    def __init__(self, model: Any, vocabulary: Vocabulary, seed: int):
        self.model, self.seed = model, seed
        self.projector = model.model.multi_modal_projector
        embeddings = model.get_input_embeddings().weight
        self.words = tuple(embeddings[ids] for ids in vocabulary.of_cells())

    def run(self) -> dict[str, float]:
        """Train; what held-out cells are taken for by the nearest word: `object`, `color`, `tint`, shares of them."""
        self._fit_last_layer()
        weights = list(self.projector.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
        for step, cells in enumerate(self._batches(STEPS, FRAMES, first=RIDGE_BATCHES)):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / STEPS)) / 2
            optimizer.zero_grad()
            self._loss(cells).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
        self.projector.requires_grad_(False)
        (held_out,) = self._batches(1, RIDGE_FRAMES, first=RIDGE_BATCHES + STEPS)
        nearest = self._nearest(self._tokens(held_out))
        return {
            name: (found.argmax(-1) == label)[label >= 0].float().mean().item()
            for name, found, label in zip(("object", "color", "tint"), nearest, held_out.labels, strict=True)
        }

    def _batches(self, count: int, frames: int, first: int) -> Iterator[_Cells]:
        objects, colors, tints = self.words
        for number in range(first, first + count):
            images, labels = dense_frames(frames, (_STREAM, self.seed, number))
            thing, color, tint = torch.from_numpy(labels).unbind(-1)
            thing = torch.where(thing < 0, len(objects) - 1, thing)
            with torch.no_grad():
                states = self.model.model.vision_tower(pixels(images[:, None]).flatten(0, 1), output_hidden_states=True)
            hidden = states.hidden_states[self.model.config.vision_feature_layer]
            of_color = colors[color.clamp(min=0)] * (color >= 0)[..., None]
            yield _Cells(hidden, (thing, color, tint), objects[thing] + tints[tint] + of_color)

    def _tokens(self, cells: _Cells) -> Tensor:
        return self.model.model.apply_pooling(self.projector(cells.hidden))

    def _nearest(self, tokens: Tensor) -> list[Tensor]:
        """Logits over the words of each class, larger = nearer."""
        centred = [words - words.mean(0) for words in self.words]
        return [tokens @ words.T - words.square().sum(-1) / 2 for words in centred]

    def _loss(self, cells: _Cells) -> Tensor:
        tokens = self._tokens(cells)
        loss = DISTANCE_WEIGHT * (tokens - cells.target).square().sum() / cells.target.square().sum()
        for found, label in zip(self._nearest(tokens), cells.labels, strict=True):
            loss = loss + F.cross_entropy(found[label >= 0], label[label >= 0])
        return loss

    @torch.no_grad()
    def _fit_last_layer(self) -> None:
        """Ridge regression from the hidden units to the words: where training starts."""
        last = self.projector.linear_2
        size = last.in_features + 1
        products = torch.zeros(size, size, dtype=torch.float64)
        targets = torch.zeros(size, last.out_features, dtype=torch.float64)
        for cells in self._batches(RIDGE_BATCHES, RIDGE_FRAMES, first=0):
            hidden = F.gelu(self.projector.linear_1(cells.hidden))
            units = self.model.model.apply_pooling(hidden).flatten(0, 1).double()
            units = torch.cat([units, units.new_ones(len(units), 1)], dim=1)
            products += units.T @ units
            targets += units.T @ cells.target.flatten(0, 1).double()
        found = torch.linalg.solve(products + RIDGE * torch.eye(size, dtype=torch.float64), targets).float()
        last.weight.copy_(found[:-1].T)
        last.bias.copy_(found[-1])
