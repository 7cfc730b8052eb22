"""What the studies of training share: the tiny model, one training run of its policy, and questions to measure it by."""

import functools
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.policies.base import PolicyOutput
from cacovid_hf.tiny import model_path
from cacovid_hf.tiny.dataset import QuestionDataset
from cacovid_hf.training.objective import advantages, cpo_loss, priced
from cacovid_hf.training.rollouts import AnswerScores, score_answers, select_subsets
from studies.questions import EmbeddedQuestions, embed_questions, embed_samples

TOKENS_PER_FRAME = 36
ITERATIONS = 2


@functools.cache
def processor() -> Any:
    """Of the embedded model."""
    return AutoProcessor.from_pretrained(model_path())


def untrained(seed: int, **config: Any) -> CaCoVidForConditionalGeneration:
    """A new policy, its layer from layer 0, around the embedded backbone; selection by token scores alone."""
    trained: Any = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32)
    torch.manual_seed(seed)
    config = {"contribution_share": 1.0, "scope": "tokens"} | config
    return CaCoVidForConditionalGeneration.from_backbone(
        trained.backbone, base_model_name_or_path=None, **config
    ).eval()


def ask(model: CaCoVidForConditionalGeneration, count: int, seed: int, batch_size: int = 50) -> list[EmbeddedQuestions]:
    """Embed `count` questions of a seed, balanced by kind, that no training draws."""
    return embed_questions(model, processor(), count, seed, batch_size=batch_size)


def answered(model: CaCoVidForConditionalGeneration, asked: EmbeddedQuestions, keeps: list[Tensor]) -> AnswerScores:
    """How the backbone answers from subsets, bool `(G, N)` a question; `B * G` scores, question by question."""
    prompts, rows = select_subsets(asked.prompt, keeps)
    return score_answers(model.backbone, prompts, [asked.answers[row] for row in rows.tolist()])


@torch.no_grad()
def token_scores(model: CaCoVidForConditionalGeneration, asked: EmbeddedQuestions) -> list[Tensor]:
    """The policy's scores `(T, P)` of every question's video."""
    outputs = model.policy(asked.prompt.inputs_embeds, asked.prompt.position_ids, asked.prompt.layout)
    return [output.token_scores for output in outputs]


@torch.no_grad()
def at_ratio(model: CaCoVidForConditionalGeneration, batches: list[EmbeddedQuestions], ratio: Any) -> dict[str, Tensor]:
    """Per question, float32: `exact` (1 or 0), `probability` of the right answer, and how many tokens were `kept`."""
    found: dict[str, list[Tensor]] = {"exact": [], "probability": [], "kept": []}
    for asked in batches:
        prompts = model.compress_prompt(asked.prompt, retention_ratio=ratio)
        scores = score_answers(model.backbone, prompts, asked.answers)
        found["exact"].append(scores.exact.float())
        found["probability"].append(scores.probability)
        found["kept"].append(torch.tensor([float(video.keep.sum()) for video in prompts.videos]))
    return {name: torch.cat(values) for name, values in found.items()}


def learn(
    model: CaCoVidForConditionalGeneration,
    batches: list[EmbeddedQuestions],
    draw: Callable[[Tensor, torch.Generator], Tensor],
    *,
    seed: int,
    token_price: float = 0.0,
    learning_rate: float = 1.5e-3,
    kl_weight: float = 0.05,
    balanced: bool = True,
    watch: Callable[[int], None] | None = None,
    every: int = 10,
) -> list[dict[str, float]]:
    """Train the policy on questions that are embedded once for many runs: the mathematics of `ContributionTrainer`, in one loop.

    Our recipe: two iterations on a batch with a replay memory, probability as reward, dual clip 3, gradient norm 0.1, AdamW with beta2 0.99, cosine
    schedule after 20 steps; no frame rollouts.

    Args:
        model: its policy is trained in place.
        batches: one is two optimiser steps.
        draw: token scores `(T, P)` and a generator to rollouts, bool `(G, T, P)`, the first one greedy.
        seed: of the rollouts.
        token_price: see `ContributionTrainingArguments`.
        learning_rate: largest.
        kl_weight: of the divergence from the coin flip.
        balanced: see `cpo_loss`.
        watch: called with the step, before the first one and after every `every`.
        every: optimiser steps.

    Returns:
        What happened, a row a step.
    """
    policy, generator = model.policy, torch.Generator().manual_seed(seed)
    weights = [weight for name, weight in policy.named_parameters() if not name.startswith("frame_head")]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, ITERATIONS * len(batches))
    log: list[dict[str, float]] = []
    if watch is not None:
        watch(0)
    for batch in batches:
        prompt = batch.prompt
        old: list[PolicyOutput] = []
        masks: list[Tensor] = []
        rewards: list[Tensor] = []
        for iteration in range(ITERATIONS):
            outputs = policy(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
            if iteration == 0:
                old = [PolicyOutput(o.token_logits.detach(), o.frame_logits.detach()) for o in outputs]
            drawn = [draw(output.token_scores, generator) for output in old]
            scored = answered(model, batch, [mask.flatten(1) for mask in drawn]).probability
            found = list(scored.split([len(mask) for mask in drawn]))
            paid = [priced(reward, mask, token_price) for reward, mask in zip(found, drawn, strict=True)]
            masks = [torch.cat(pair) for pair in zip(masks, drawn, strict=True)] if masks else drawn
            rewards = [torch.cat(pair) for pair in zip(rewards, paid, strict=True)] if rewards else paid
            pieces = [
                cpo_loss(
                    output,
                    before,
                    mask,
                    advantages(reward),
                    dual_clip=3.0,
                    kl_weight=kl_weight,
                    balanced=balanced,
                )
                for output, before, mask, reward in zip(outputs, old, masks, rewards, strict=True)
            ]
            optimizer.zero_grad()
            torch.stack([loss for loss, _ in pieces]).mean().backward()
            torch.nn.utils.clip_grad_norm_(weights, 0.1)
            optimizer.step()
            schedule.step()
            row = {
                name: mean(getattr(s, name).item() for _, s in pieces)
                for name in ("entropy", "score_spread", "clip_fraction")
            }
            row |= {
                "reward": scored.mean().item(),
                "reward_std": mean(reward.std().item() for reward in found),
                "kept_ratio": mean(mask.float().mean().item() for mask in drawn),
            }
            log.append({name: round(value, 4) for name, value in row.items()})
            if watch is not None and len(log) % every == 0:
                watch(len(log))
    model.config.policy_trained = True
    return log


def training_questions(
    model: CaCoVidForConditionalGeneration, count: int, batch_size: int, seed: int
) -> list[EmbeddedQuestions]:
    """Questions to train on, from the stream that no test draws from."""
    samples = QuestionDataset(count, seed=seed)
    return embed_samples(model, processor(), [samples[i] for i in range(count)], batch_size)
