"""Train the embedded model from nothing: `python -m cacovid_hf.tiny.pretrain --out DIR --seed 0`, minutes on two cores.

1. The vision tower and projector learn to turn a cell of a frame into a token that lies near the word embeddings of what
   the cell shows: object, color and tint.
2. They are frozen, and the tokens of all training clips are computed once.
3. The language model learns to answer. Many questions stand behind one video prefix in a packed sequence, each seeing the
   prefix and itself. First the prefix is short, and each kind of question weighs the more the worse it is answered. The
   kinds are learnt in sudden jumps at times that no fixed schedule fits, so this ends when all are answered well; a try
   in which one is not learnt in time starts again. Only then the learning rate falls, on whole videos and on random
   subsets of tokens in turn. Tokens keep their original positions, as they do when a prompt is compressed.
"""

import argparse
import copy
import json
import logging
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

from ..utils.files import replaced
from .accuracy import answer_accuracy
from .backbone import ANSWER_TOKEN, build_model, build_processor
from .synthetic import COLORS, GRID, NUM_FRAMES, OBJECTS, QUESTION_KINDS, TINTS, dense_frames, make_clip

logger = logging.getLogger(__name__)

_TOKENS = NUM_FRAMES * GRID * GRID
_DENSE_STREAM, _CLIP_STREAM = 2, 3

VISION_STEPS, VISION_BATCH, VISION_LR = 200, 96, 3e-3
NUM_CLIPS, BATCH, LR = 2048, 32, 1e-3
QUESTIONS_PER_CLIP = {"color": 3, "shape": 3, "scene_of_shape": 3, "digit": 2, "scene_of_digit": 2, "order": 1}
MAX_FEW_STEPS, FEW_TOKENS = 1000, (4, 25)  # tokens from, and up to but without
BEGUN, SOME_TOKENS = 0.7, 32  # once each kind is answered so well, so many tokens
MASTERED = 0.97  # of every kind: then on to whole videos
VIDEO_STEPS, MIN_RATIO = 300, 0.02


@dataclass(frozen=True)
class TrainingRecord:
    """What a training took: seconds by part (wall clock), tries, steps on few tokens of the one that succeeded."""

    seed: int
    vision_seconds: float
    features_seconds: float
    language_seconds: float
    tries: int
    few_steps: int


def pretrain(
    seed: int = 0, max_tries: int = 3
) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor, TrainingRecord]:
    """Train a model from nothing, float32 on the CPU.

    Args:
        seed: of the weights, the clips and the batches.
        max_tries: of the language model; one in which a kind of question is not learnt in time is given up.

    Returns:
        The model in evaluation mode, its processor, and what the training took.

    Raises:
        RuntimeError: not every kind of question was learnt in any of them.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    model, processor = build_model(), build_processor()
    _train_vision(model, processor, seed)
    vision_end = time.perf_counter()
    examples = _Examples.render(model, processor, seed)
    features_end = time.perf_counter()
    after_vision = model
    tries = 0
    few_steps = None
    while few_steps is None:
        if tries == max_tries:
            raise RuntimeError(
                f"seed {seed}: not every kind of question was learnt in any of {tries} tries. Choose another seed or more tries."
            )
        tries += 1
        model = copy.deepcopy(after_vision)
        few_steps = _train_language_model(model, examples)
    end = time.perf_counter()
    return (
        model.eval(),
        processor,
        TrainingRecord(seed, vision_end - start, features_end - vision_end, end - features_end, tries, few_steps),
    )


def _train_vision(model: LlavaOnevisionForConditionalGeneration, processor: LlavaOnevisionProcessor, seed: int) -> None:
    """Train vision tower, projector and word embeddings to classify each cell by its nearest word embeddings."""
    embeddings = cast(nn.Embedding, model.get_input_embeddings()).weight  # (vocabulary, D)
    width = embeddings.shape[1]
    nn.init.normal_(embeddings, std=width**-0.5)
    nothing = nn.Parameter(torch.randn(2, width) * width**-0.5)  # in place of an object and of a color
    words = [torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(names))) for names in (OBJECTS, COLORS, TINTS)]
    parameters = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
        embeddings,
        nothing,
    ]
    optimizer = torch.optim.AdamW(parameters, lr=VISION_LR)
    for step in range(VISION_STEPS):
        frames, labels = dense_frames(VISION_BATCH, (_DENSE_STREAM, seed, step))
        tokens = _video_tokens(model, processor, frames[:, None])  # (B, P, D)
        classes = [
            torch.cat([embeddings[words[0]], nothing[:1]]),
            torch.cat([embeddings[words[1]], nothing[1:]]),
            embeddings[words[2]],
        ]
        normed = F.rms_norm(tokens, (width,))
        loss = torch.zeros(())
        accuracies = []
        for kind, vectors in enumerate(classes):
            label = torch.from_numpy(labels[..., kind]) % len(vectors)  # -1, nothing, is the last class
            logits = normed @ vectors.T
            loss = loss + F.cross_entropy(logits.flatten(0, 1), label.flatten())
            accuracies.append((logits.argmax(-1) == label).float().mean().item())
        warm_up = min(1.0, (step + 1) / 20)
        _update(optimizer, loss, VISION_LR * warm_up * 0.5 * (1 + math.cos(math.pi * step / VISION_STEPS)))
        if (step + 1) % 50 == 0:
            shown = " ".join(f"{accuracy:.3f}" for accuracy in accuracies)
            logger.info("vision step %d of %d: accuracy of object, color, tint %s", step + 1, VISION_STEPS, shown)
    with torch.no_grad():  # tokens of rms 1
        rms = tokens.pow(2).mean().sqrt()
        model.model.multi_modal_projector.linear_2.weight /= rms
        model.model.multi_modal_projector.linear_2.bias /= rms


def _video_tokens(
    model: LlavaOnevisionForConditionalGeneration, processor: LlavaOnevisionProcessor, frames: np.ndarray
) -> Tensor:
    """Video tokens `(B, N, D)` of frames `(B, T, H, W, 3)`, without the newline that some versions append to them."""
    pixels = processor.video_processor(list(frames), return_tensors="pt")["pixel_values_videos"]
    return model.model.get_video_features(pixels).pooler_output[:, : frames.shape[1] * GRID * GRID]


@dataclass(frozen=True)
class _Examples:
    """Training clips as the frozen vision tower sees them: C clips, Q questions a clip, of the same kinds in each."""

    tokens: Tensor  # (C, N, D)
    evidence: Tensor  # (C, Q, N) bool: tokens that show the answer
    turns: Tensor  # (C, Q, M) token ids: the words of the question, <ans>, the answer
    kinds: Tensor  # (Q,) index in QUESTION_KINDS

    @cached_property
    def objects(self) -> Tensor:
        """Tokens that show a shape or a digit, bool (C, N)."""
        return self.evidence[:, self.kinds != QUESTION_KINDS.index("order")].any(dim=1)

    @classmethod
    def render(
        cls, model: LlavaOnevisionForConditionalGeneration, processor: LlavaOnevisionProcessor, seed: int
    ) -> "_Examples":
        tokens, evidence, turns = [], [], []
        for index in range(NUM_CLIPS):
            clip = make_clip((_CLIP_STREAM, seed, index))
            with torch.no_grad():
                tokens.append(_video_tokens(model, processor, clip.frames[None])[0])
            evidence.append(torch.from_numpy(np.stack([q.evidence for q in clip.questions])).flatten(1))
            words = [f"{question.text} {ANSWER_TOKEN} {question.answer}" for question in clip.questions]
            turns.append(torch.from_numpy(processor.tokenizer(words, return_tensors="np")["input_ids"]))
            if (index + 1) % 512 == 0:
                logger.info("features of %d of %d clips", index + 1, NUM_CLIPS)
        kinds = [QUESTION_KINDS.index(question.kind) for question in clip.questions]
        return cls(torch.stack(tokens), torch.stack(evidence), torch.stack(turns), torch.tensor(kinds))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return a random batch: clips (B,) and for each the same number of questions of each kind (B, S), in order of kind."""
        chosen = []
        for kind, count in enumerate(QUESTIONS_PER_CLIP.values()):
            candidates = (self.kinds == kind).nonzero()[:, 0]
            chosen.append(candidates[torch.rand(BATCH, len(candidates)).argsort(dim=1)[:, :count]])
        return torch.randint(len(self.tokens), (BATCH,)), torch.cat(chosen, dim=1)


def _train_language_model(model: LlavaOnevisionForConditionalGeneration, examples: _Examples) -> int | None:
    """Train the language model; returns the steps on few tokens, or None: not every kind was learnt."""
    _prime_attention(model)
    parameters = [*model.model.language_model.parameters(), model.model.image_newline]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.05)
    few_steps = _learn_from_few_tokens(model, examples, optimizer)
    if few_steps is not None:
        _learn_from_videos(model, examples, optimizer)
    return few_steps


def _learn_from_few_tokens(
    model: LlavaOnevisionForConditionalGeneration, examples: _Examples, optimizer: torch.optim.Optimizer
) -> int | None:
    """Learn to answer from a few object tokens, at a constant rate; returns the steps it took, or None: not learnt.

    Only questions that the tokens can answer count. With all eight shapes among the tokens, to look at any of them is no
    better than a guess and learning stalls; with some of them it is, and leads on to looking at the right one.
    """
    kind_of = torch.tensor([i for i, count in enumerate(QUESTIONS_PER_CLIP.values()) for _ in range(count)])  # (S,)
    is_kind = F.one_hot(kind_of).float()  # (S, kinds)
    accuracy = torch.zeros(len(QUESTION_KINDS))  # running
    for step in range(1, MAX_FEW_STEPS + 1):
        num_tokens = int(torch.randint(*FEW_TOKENS, ())) if accuracy.min() < BEGUN else SOME_TOKENS
        losses, right, answerable = _answer(model, examples, num_tokens, objects_first=True)
        weights = answerable * (1.1 - accuracy)[kind_of]
        _update(optimizer, (losses * weights).sum() / weights.sum(), LR * min(1.0, step / 30))
        asked = answerable.float().sum(0) @ is_kind
        accuracy.lerp_((right & answerable).float().sum(0) @ is_kind / asked.clamp(min=1), 0.1)
        if step % 50 == 0:
            shown = ", ".join(f"{kind} {value:.2f}" for kind, value in zip(QUESTION_KINDS, accuracy, strict=True))
            logger.info("step %d on few tokens: %s", step, shown)
        if accuracy.min() > MASTERED:
            return step
    return MAX_FEW_STEPS if accuracy.min() > BEGUN else None


def _learn_from_videos(
    model: LlavaOnevisionForConditionalGeneration, examples: _Examples, optimizer: torch.optim.Optimizer
) -> None:
    """Go on with whole videos and random subsets of their tokens in turn, the rate falling to zero.

    Here every question counts, so that where the evidence is missing the answer's probability comes to be that of a guess.
    """
    accuracy = 0.0  # running, on whole videos
    for step in range(VIDEO_STEPS):
        whole = step % 2 == 0
        num_tokens = _TOKENS if whole else int(_TOKENS * MIN_RATIO ** torch.rand(()).item())
        losses, right, _ = _answer(model, examples, num_tokens, objects_first=step % 4 == 1)
        _update(optimizer, losses.mean(), LR * 0.5 * (1 + math.cos(math.pi * step / VIDEO_STEPS)))
        if whole:
            accuracy += 0.1 * (right.float().mean().item() - accuracy)
        if (step + 1) % 50 == 0:
            logger.info("step %d of %d on videos: %.3f", step + 1, VIDEO_STEPS, accuracy)


def _prime_attention(model: LlavaOnevisionForConditionalGeneration) -> None:
    """Let attention compare and copy from the start: q = k a random projection, v another, o the transpose of v.

    A query then finds the keys that share words with it and brings their content along (mimetic initialisation, Trockman
    and Kolter 2023, with random slices of the hidden size). From the default start this takes many times longer to learn.
    """
    attentions: list[Any] = [layer.self_attn for layer in model.model.language_model.layers]

    def projection(keys: Tensor) -> Tensor:  # (kv heads * head_dim, D), orthonormal rows
        return nn.init.orthogonal_(torch.empty_like(keys))

    def for_query_heads(rows: Tensor, attention: Any) -> Tensor:  # (heads * head_dim, D)
        heads = rows.unflatten(0, (-1, attention.head_dim))
        return heads.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)

    with torch.no_grad():
        for attention in attentions:
            compared, copied = projection(attention.k_proj.weight), projection(attention.v_proj.weight)
            attention.q_proj.weight += for_query_heads(compared, attention)
            attention.k_proj.weight += compared
            attention.v_proj.weight.copy_(copied)
            attention.o_proj.weight.copy_(0.5 * for_query_heads(copied, attention).T)


def _answer(
    model: LlavaOnevisionForConditionalGeneration, examples: _Examples, num_tokens: int, objects_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Answer a random batch, S questions behind each video, from `num_tokens` of its tokens at their own positions.

    The tokens are drawn at random, those of objects before all others if `objects_first`. Returns `(B, S)` each: the losses
    (with a tenth of the loss of the end of sequence), which answers are right, which questions the tokens can answer.
    """
    clips, chosen = examples.draw()
    order = torch.rand(BATCH, _TOKENS)
    if objects_first:
        order = order + examples.objects[clips]
    kept = order.topk(num_tokens, dim=1).indices.sort(dim=1).values  # (B, K)
    evidence = examples.evidence[clips[:, None], chosen]  # (B, S, N)
    answerable = evidence.gather(2, kept[:, None].expand(-1, evidence.shape[1], -1)).any(dim=2)
    turns = examples.turns[clips[:, None], chosen]  # (B, S, M)
    language_model = model.model.language_model
    bos_token_id, eos_token_id = model.generation_config.bos_token_id, model.generation_config.eos_token_id
    inputs_embeds = torch.cat(
        [
            language_model.embed_tokens(torch.full((BATCH, 1), bos_token_id)),
            examples.tokens[clips[:, None], kept],
            model.model.image_newline.expand(BATCH, 1, -1),
            language_model.embed_tokens(turns.flatten(1)),
        ],
        dim=1,
    )
    first = torch.zeros(BATCH, 1, dtype=torch.long)
    newline = first + _TOKENS + 1
    in_turn = newline + 1 + torch.arange(turns.shape[2]).repeat(turns.shape[1])
    hidden = language_model(
        inputs_embeds=inputs_embeds,
        position_ids=torch.cat([first, kept + 1, newline, in_turn], dim=1),
        attention_mask=_packed_mask(num_tokens + 2, turns.shape[1], turns.shape[2]),
        use_cache=False,
    ).last_hidden_state[:, num_tokens + 2 :]
    logits = model.lm_head(hidden.unflatten(1, turns.shape[1:]))  # (B, S, M, vocabulary)
    answers = turns[..., -1]
    losses = F.cross_entropy(logits[..., -2, :].transpose(1, 2), answers, reduction="none")
    end_losses = F.cross_entropy(
        logits[..., -1, :].transpose(1, 2), torch.full_like(answers, eos_token_id), reduction="none"
    )
    return losses + 0.1 * end_losses, logits[..., -2, :].argmax(-1) == answers, answerable


def _packed_mask(prefix: int, num_turns: int, turn: int) -> Tensor:
    """Attention mask bool `(1, 1, L, L)`: causal, and a turn sees the prefix and itself but no other turn."""
    number = torch.cat([torch.full((prefix,), -1), torch.arange(num_turns).repeat_interleave(turn)])  # (L,)
    visible = (number[None, :] == -1) | (number[None, :] == number[:, None])
    return visible.tril()[None, None]


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def _report(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    record: TrainingRecord,
    commit: str | None,
) -> dict[str, object]:
    """Measure the trained model on fresh questions, and say on what."""
    accuracies: dict[str, object] = {}
    for name, through_mp4 in (("frames", False), ("mp4", True)):
        measured = answer_accuracy(model, processor, num_questions=1200, seed=0, through_mp4=through_mp4)
        logger.info("accuracy on %s: %.4f +- %.4f", name, measured.accuracy, measured.standard_error)
        accuracies[name] = {
            "questions": measured.total,
            "accuracy": measured.accuracy,
            "standard_error": measured.standard_error,
            "by_kind": measured.by_kind,
        }
    return {
        "training": asdict(record),
        "commit": commit,
        "held_out_accuracy": accuracies,
        "parameters": model.num_parameters(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads, float32",
    }


def _commit() -> str | None:
    """Of the code that is about to train."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip() or None


def main() -> None:
    """Command line: train, save the model and its processor under `--out`, measure it for `--report`."""
    parser = argparse.ArgumentParser(description="Train the embedded tiny video language model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make for the model and its processor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tries", type=int, default=3, help="of the language model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=Path, help="JSON file to write with the measured accuracy")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} exists already: remove it or name another folder")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)

    commit = _commit()
    model, processor, record = pretrain(arguments.seed, arguments.max_tries)
    with replaced(arguments.out) as unfinished:
        model.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
    if arguments.report is not None:
        text = json.dumps(_report(model, processor, record, commit), indent=2) + "\n"
        with replaced(arguments.report) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
