"""Combinatorial policy optimisation (CPO) on transformers' `Trainer`: the policy learns from the frozen LLM's own right and wrong answers.

What Trainer holds and wraps is the policy, called through its `forward` (data parallelism synchronises only there); the frozen model stands
beside it. A batch of samples is read and vision-encoded once and trained on for several iterations, one optimiser step each:

    old policy -> sampling -> rollouts -> rewards -> replay memory -> advantages -> clipped loss

Departures from the published code are settings; `PUBLISHED` and `OURS` are the two recipes (arXiv 2602.01649, section on training).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, Trainer, TrainingArguments

from ..modeling import CaCoVidForConditionalGeneration
from ..policy import PolicyOutput
from ..prompt import Prompt
from .objective import advantages, cpo_loss, next_ratio
from .rollouts import cut, score_answers
from .sampling import SAMPLERS, SAMPLING_SCOPES, sample_frames

REWARDS = ("accuracy", "probability")

# The recipe of the paper, and ours as far as it was tried in miniature (benchmarks/results/training/tiny_policy_seed0.json).
PUBLISHED: dict[str, Any] = {}
OURS: dict[str, Any] = {
    "sampler": "multinomial",
    "sampling_scope": "video",
    "reward": "probability",
    "dual_clip": 3.0,
    "kl_weight": 0.05,
    "num_token_rollouts": 12,
    "num_frame_rollouts": 4,
    "num_iterations": 2,
    "layer_learning_rate_factor": 1.0,
}


@dataclass
class ContributionTrainingArguments(TrainingArguments):
    """Settings of the policy's training beside those of `TrainingArguments`; the defaults are the published recipe.

    Args:
        num_iterations: optimiser steps on each batch of samples.
        num_token_rollouts: subsets a sample and iteration that the token scores choose, the greedy one included.
        num_frame_rollouts: subsets that the frame scores choose, the greedy one included; 0 leaves the frame head untrained.
        sampler: how token subsets are drawn: `"ocss"` (paper), `"multinomial"` (Gumbel top-k) or `"random"`.
        sampling_scope: `"frame"` (paper) draws the same number in every frame, `"video"` from all tokens at once.
        group_spread: lambda of OCSS, how many groups a frame is split into (fewer with larger values).
        group_cap: largest probability of a group as a multiple of an equal share, OCSS only.
        sampling_ratio: fraction of the tokens in a rollout at first.
        dynamic_ratio: whether to halve and double it by the mean reward.
        ratio_low: mean reward at or under which it doubles.
        ratio_high: mean reward at or over which it halves.
        ratio_floor: smallest ratio, unless it starts lower.
        ratio_ceiling: largest ratio, unless it starts higher.
        clip_low: how far the ratio to the old policy may fall.
        clip_high: how far it may rise.
        dual_clip: bound of the loss of choices that did worse and have become likelier (ours; None: unbounded, as published).
        kl_weight: of the divergence from a coin flip, against scores that grow without bound.
        reward: `"accuracy"` (the whole answer, 1 or 0) or `"probability"` (of the answer; dense).
        layer_learning_rate_factor: of the attention layer, which starts from trained weights, relative to the heads.
        rollout_batch_size: rollouts in one forward of the backbone.
    """

    num_iterations: int = 5
    num_token_rollouts: int = 23
    num_frame_rollouts: int = 8
    sampler: str = "ocss"
    sampling_scope: str = "frame"
    group_spread: float = 2.0
    group_cap: float = 2.0
    sampling_ratio: float = 0.02
    dynamic_ratio: bool = True
    ratio_low: float = 0.125
    ratio_high: float = 0.875
    ratio_floor: float = 0.01
    ratio_ceiling: float = 0.12
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None
    kl_weight: float = 0.0
    reward: str = "accuracy"
    layer_learning_rate_factor: float = 0.1
    rollout_batch_size: int = 512
    learning_rate: float = field(default=1e-6)
    weight_decay: float = field(default=0.01)
    max_grad_norm: float = field(default=5.0)
    lr_scheduler_type: str = field(default="cosine")
    remove_unused_columns: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        for name, choices in (("sampler", SAMPLERS), ("sampling_scope", SAMPLING_SCOPES), ("reward", REWARDS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown: choose one of {', '.join(map(repr, choices))}."
                )
        for name, least in (
            ("num_iterations", 1),
            ("num_token_rollouts", 2),
            ("num_frame_rollouts", 0),
            ("rollout_batch_size", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is too small: give at least {least}.")
        if not 0.0 < self.sampling_ratio <= 1.0:
            raise ValueError(
                f"sampling_ratio={self.sampling_ratio} is outside (0, 1]: give the fraction of tokens in a rollout."
            )


class AnswerCollator:
    """Turns samples into one batch of prompts with their answers' tokens.

    A sample is a dict: `video` (whatever the processor's chat template takes: frames `(T, H, W, 3)` or a path), `problem` (the question) and
    `solution` (the answer). Each sample is a prompt with one video.
    """

    def __init__(self, processor: ProcessorMixin):
        self.processor = processor

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The processor's inputs of the prompts, and `answers`, one int64 `(A,)` a sample."""
        messages: Any = [
            [
                {
                    "role": "user",
                    "content": [{"type": "video", "video": s["video"]}, {"type": "text", "text": s["problem"]}],
                }
            ]
            for s in samples
        ]
        inputs: Any = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        )
        tokenizer = self.processor.tokenizer
        answers = [
            torch.tensor(tokenizer(str(s["solution"]), add_special_tokens=False)["input_ids"], dtype=torch.long)
            for s in samples
        ]
        for sample, answer in zip(samples, answers, strict=True):
            if len(answer) == 0:
                raise ValueError(f"solution={sample['solution']!r} has no tokens: leave samples without an answer out.")
        return {"inputs": dict(inputs), "answers": answers}


class RepeatedBatches:
    """Each group of batches (one optimiser step's) again and again, for the iterations on it; read once."""

    def __init__(self, loader: DataLoader, group: int, repeats: int):
        self.loader, self.group, self.repeats = loader, group, repeats

    def __len__(self) -> int:
        return len(self.loader) * self.repeats

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        group: list[dict[str, Any]] = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == self.group:
                yield from self._repeated(group)
                group = []
        yield from self._repeated(group)

    def _repeated(self, group: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for iteration in range(self.repeats):
            for slot, batch in enumerate(group):
                yield {**batch, "iteration": iteration, "slot": slot}


@dataclass
class Memory:
    """What is remembered of a batch over its iterations.

    Attributes:
        prompt: the embedded prompts.
        old: the policy's output at the first iteration, by video.
        ratios: the current sampling ratio, by video.
        token_masks: bool `(G, T, P)` so far, by video.
        token_rewards: `(G,)` so far, by video.
        frame_masks: bool `(G', T)` so far, by video.
        frame_rewards: `(G',)` so far, by video.
    """

    prompt: Prompt
    old: list[PolicyOutput]
    ratios: list[float]
    token_masks: list[Tensor] = field(default_factory=list)
    token_rewards: list[Tensor] = field(default_factory=list)
    frame_masks: list[Tensor] = field(default_factory=list)
    frame_rewards: list[Tensor] = field(default_factory=list)


class ContributionTrainer(Trainer):
    """Trains the policy of a `CaCoVidForConditionalGeneration`; its backbone is frozen and stays bit-identical.

    Args:
        model: the wrapped model; its policy is trained in place.
        args: settings.
        processor: makes prompts from samples; see `AnswerCollator`.
        train_dataset: samples.
        **kwargs: for `Trainer`.
    """

    args: ContributionTrainingArguments

    def __init__(
        self,
        model: CaCoVidForConditionalGeneration,
        args: ContributionTrainingArguments,
        processor: ProcessorMixin,
        train_dataset: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, ContributionTrainingArguments):
            raise ValueError(f"args is a {type(args).__name__}: give ContributionTrainingArguments.")
        self.full_model = model
        self.backbone: Any = model.backbone
        self.backbone.requires_grad_(False).eval()
        kwargs.setdefault("data_collator", AnswerCollator(processor))
        super().__init__(model=model.policy, args=args, train_dataset=train_dataset, **kwargs)
        self.processor = processor
        self.generator = torch.Generator().manual_seed(args.seed + self.args.process_index)
        self._memories: dict[int, Memory] = {}
        self._metrics: dict[str, list[float]] = defaultdict(list)

    # ---------------------------------------------------------------- the engine's hooks

    def get_train_dataloader(self) -> Any:
        """The stock loader, each optimiser step's batches repeated for the iterations on them."""
        return RepeatedBatches(
            super().get_train_dataloader(), self.args.gradient_accumulation_steps, self.args.num_iterations
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or whatever the arguments say; the attention layer learns at its own rate."""
        if self.optimizer is None:
            policy: Any = self.model if model is None else model
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, policy)
            rate = settings.pop("lr", self.args.learning_rate)
            layer = [p for n, p in policy.named_parameters() if n.startswith("layer.") and p.requires_grad]
            rest = [p for n, p in policy.named_parameters() if not n.startswith("layer.") and p.requires_grad]
            groups = [
                {"params": rest, "lr": rate, "weight_decay": self.args.weight_decay},
                {
                    "params": layer,
                    "lr": rate * self.args.layer_learning_rate_factor,
                    "weight_decay": self.args.weight_decay,
                },
            ]
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means of what happened since the last log."""
        means = {name: sum(values) / len(values) for name, values in self._metrics.items() if values}
        self._metrics.clear()
        super().log({**logs, **means}, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """A checkpoint of the model's own kind: the policy under `policy.`, with its config and processor."""
        folder = output_dir or self.args.output_dir or "."
        weights = state_dict if state_dict is not None else self.accelerator.unwrap_model(self.model).state_dict()
        self.full_model.config.policy_trained = True
        self.full_model.save_pretrained(
            folder, state_dict={f"policy.{name}": tensor for name, tensor in weights.items()}
        )
        self.processor.save_pretrained(folder)

    # ---------------------------------------------------------------- combinatorial policy optimisation

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """One iteration on one batch of samples."""
        slot = inputs["slot"]
        if inputs["iteration"] == 0:
            self._memories[slot] = self._encode(inputs["inputs"])
        memory = self._memories[slot]
        prompt = memory.prompt
        current = model(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        if inputs["iteration"] == 0:
            memory.old = [PolicyOutput(o.token_logits.detach(), o.frame_logits.detach()) for o in current]
        self._roll_out(memory, inputs["answers"])

        losses = []
        for video, output in enumerate(current):
            loss, statistics = cpo_loss(
                output,
                memory.old[video],
                memory.token_masks[video],
                advantages(memory.token_rewards[video]),
                memory.frame_masks[video],
                advantages(memory.frame_rewards[video]),
                clip_low=self.args.clip_low,
                clip_high=self.args.clip_high,
                dual_clip=self.args.dual_clip,
                kl_weight=self.args.kl_weight,
            )
            losses.append(loss)
            for name, value in vars(statistics).items():
                self._metrics[name].append(float(value))
        if self.args.dynamic_ratio:
            for video, rewards in enumerate(memory.token_rewards):
                memory.ratios[video] = next_ratio(
                    memory.ratios[video],
                    rewards.mean().item(),
                    start=self.args.sampling_ratio,
                    low=self.args.ratio_low,
                    high=self.args.ratio_high,
                    floor=self.args.ratio_floor,
                    ceiling=self.args.ratio_ceiling,
                )
        loss = torch.stack(losses).mean()
        return (loss, current) if return_outputs else loss

    @torch.no_grad()
    def _encode(self, inputs: dict[str, Tensor]) -> Memory:
        """Embed a batch of prompts, once for all its iterations."""
        inputs = dict(inputs)
        ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
        family = self.full_model.family
        layout = family.layout(self.backbone.config, ids, mask, inputs)
        prompt = family.embed(self.backbone, layout, ids, mask, inputs)
        return Memory(prompt, [], [self.args.sampling_ratio] * len(layout.videos))

    @torch.no_grad()
    def _roll_out(self, memory: Memory, answers: list[Tensor]) -> None:
        """Draw subsets from the old policy, let the backbone answer from each, and remember masks and rewards."""
        prompt, spans = memory.prompt, memory.prompt.layout.videos
        tokens, frames, frame_tokens = [], [], []
        for video, span in enumerate(spans):
            features = prompt.video_features(span)
            old, ratio = memory.old[video], memory.ratios[video]
            tokens.append(self._sample(old.token_scores, ratio))
            chosen, kept = sample_frames(
                old.frame_scores,
                features,
                ratio,
                self.args.num_frame_rollouts,
                scope=self.args.sampling_scope,
                generator=self.generator,
            )
            frames.append(chosen)
            frame_tokens.append(kept)
        keeps = [torch.cat([a, b]).flatten(1) for a, b in zip(tokens, frame_tokens, strict=True)]  # (G + G', N)
        prompts, rows = cut(prompt, keeps)
        given = [answers[row] for row in rows.tolist()]
        scores = score_answers(self.backbone, prompts, given, batch_size=self.args.rollout_batch_size)
        rewards = scores.probability if self.args.reward == "probability" else scores.exact.float()
        start = 0
        first = not memory.token_masks
        for video, (mask, frame) in enumerate(zip(tokens, frames, strict=True)):
            token_rewards = rewards[start : start + len(mask)].to(mask.device)
            frame_rewards = rewards[start + len(mask) : start + len(mask) + len(frame)].to(mask.device)
            start += len(mask) + len(frame)
            if first:
                memory.token_masks.append(mask)
                memory.token_rewards.append(token_rewards)
                memory.frame_masks.append(frame)
                memory.frame_rewards.append(frame_rewards)
            else:
                memory.token_masks[video] = torch.cat([memory.token_masks[video], mask])
                memory.token_rewards[video] = torch.cat([memory.token_rewards[video], token_rewards])
                memory.frame_masks[video] = torch.cat([memory.frame_masks[video], frame])
                memory.frame_rewards[video] = torch.cat([memory.frame_rewards[video], frame_rewards])
            self._metrics["reward"].append(token_rewards.mean().item())
            self._metrics["greedy_reward"].append(token_rewards[0].item())
            self._metrics["sampling_ratio"].append(memory.ratios[video])

    def _sample(self, scores: Tensor, ratio: float) -> Tensor:
        """Token subsets, bool `(G, T, P)`, the first one greedy."""
        settings: dict[str, Any] = {"generator": self.generator, "scope": self.args.sampling_scope}
        if self.args.sampler == "ocss":
            settings |= {"spread": self.args.group_spread, "group_cap": self.args.group_cap}
        return SAMPLERS[self.args.sampler](scores, ratio, self.args.num_token_rollouts, **settings)
