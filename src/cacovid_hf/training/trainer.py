"""Combinatorial policy optimisation (CPO) on transformers' `Trainer`: the policy learns from the frozen LLM's own right and wrong answers.

What Trainer holds and wraps is the policy, called through its `forward` (data parallelism synchronises only there); the frozen model stands
beside it. A batch of samples is read and vision-encoded once and trained on for several iterations, one optimiser step each:

    old policy -> sampling -> rollouts -> rewards -> replay memory -> advantages -> clipped loss

Departures from the published code are settings, see `arguments` (arXiv 2602.01649, section on training).
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin, Trainer, set_seed

from ..modeling import CaCoVidForConditionalGeneration
from ..policy import PolicyOutput
from .arguments import ContributionTrainingArguments
from .batches import RepeatedBatches
from .data import AnswerCollator
from .memory import Memory
from .objective import advantages, cpo_loss, next_ratio
from .rollouts import cut, score_answers
from .sampling import SAMPLERS, sample_frames


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
        if args.policy_attention is not None:
            set_seed(args.seed)
            model.reset_policy(args.policy_attention)
        model.policy.frame_head.requires_grad_(args.num_frame_rollouts > 0)
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
        if self.args.dynamic_ratio and not self.args.target_ratios:
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
        prompt = self.full_model.embed(**inputs)  # type: ignore[arg-type]
        ratios = [self.args.sampling_ratio] * len(prompt.layout.videos)
        if choices := self.args.target_ratios:
            drawn = torch.randint(len(choices), (len(prompt.layout.videos),), generator=self.generator)
            ratios = [choices[i] for i in drawn.tolist()]
        return Memory(prompt, [], ratios)

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
        if not self.args.replay:
            memory.forget()
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
