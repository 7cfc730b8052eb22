"""Combinatorial policy optimisation (CPO): the policy learns from the frozen LLM's own right and wrong answers.

A batch of samples is read and vision-encoded once and trained on for several iterations, one optimiser step each. `compute_loss` below is one
iteration, in the order of the mathematics (arXiv 2602.01649, section on training):

    old policy -> sampling -> rollouts -> rewards -> replay memory -> advantages -> clipped loss -> next ratio

The functions are in `draws`, `sampling`, `rollouts`, `judge`, `rewards` and `objective`. What has to do with transformers' `Trainer` is in `engine`.

Departures from the published code that no setting undoes:
1. All subsets of all samples of a batch are answered as one batch, not one after the other.
2. One prefill scores answers of which one is right, such as an option's letter (`rollouts.score_answers`). Only open answers are generated.
3. The rollout by "content", whose reward enters no loss, is left out.
4. Draws are functions of the seed and the sample's place in the data. So they do not depend on the number of processes, or on a resumption.
5. Several samples share a step. Each weighs the same, also where some could not be read.

Those of a single function stand in its docstring. All others are settings, see `arguments`: `PUBLISHED` is the paper's recipe, `OURS` what
won on the tiny model.

Shapes in comments: `B` prompts of one video each, `T` frames of `P` tokens, `N = T * P`, `G` token rollouts and `F` frame rollouts per
iteration, `R` rollouts of the batch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin, set_seed

from ..modeling import CaCoVidForConditionalGeneration
from ..policies.base import PolicyOutput
from ..prompt import CompressedPrompt, Prompt, stack_prompts
from .arguments import ContributionTrainingArguments
from .batches import BatchHeader
from .draws import draw_subsets, first_ratio, following_ratio
from .engine import SampleEngine
from .judge import answer_questions, judge
from .objective import advantages, cpo_loss, distillation_loss, priced, summed_advantages
from .question import Question
from .replay import BatchMemory, Rollouts, Subsets, VideoMemory, empty_prompt
from .rewards import Completion, retention_reward
from .rollouts import select_subsets
from .teacher import is_taught, teacher_attention


class ContributionTrainer(SampleEngine):
    """Trains the policy of a `CaCoVidForConditionalGeneration`; its backbone is frozen and stays bit-identical.

    The policy is trained in float32, whatever the backbone's dtype. Several processes share the samples of a step, and their gradient is that of
    one process with as many more accumulation steps; the backbone is whole on each.

    Args:
        model: the wrapped model; its policy is trained in place.
        args: settings.
        processor: makes prompts from samples; see `AnswerCollator`.
        train_dataset: samples, map-style or a stream.
        eval_dataset: samples that the accuracy is measured on in between; neither trained on nor those of the final report.
        eval_collator: makes their prompts; None: as for training.
        **kwargs: for `Trainer`.

    Raises:
        ValueError: settings of another trainer, several GPUs in one process, or a part of a pass that ends within a sample's iterations.
    """

    def __init__(
        self,
        model: CaCoVidForConditionalGeneration,
        args: ContributionTrainingArguments,
        processor: ProcessorMixin,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        eval_collator: Any = None,
        **kwargs: Any,
    ):
        if not isinstance(args, ContributionTrainingArguments):
            raise ValueError(f"args is a {type(args).__name__}. Give ContributionTrainingArguments.")
        if args.policy_attention is not None or args.policy_type is not None:
            set_seed(args.seed)
            model.reset_policy(args.policy_attention, args.policy_type)
        model.policy.frame_head.requires_grad_(args.num_frame_rollouts > 0)
        model.policy.float()
        super().__init__(model, args, processor, train_dataset, eval_dataset, eval_collator, **kwargs)
        self.rewards, self.scored_reward = args.resolved_rewards(), args.scored_reward()
        self._memories: dict[int, BatchMemory] = {}  # one per batch of a step

    # ---------------------------------------------------------------- one iteration

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """One iteration on one batch of samples: their part of the mean over all samples of the step."""
        header: BatchHeader = inputs["header"]
        if header.iteration == 0:
            self._memories.pop(header.slot, None)  # freed before the next ones are embedded
            self._memories[header.slot] = self._begin(inputs)
        memory = self._memories[header.slot]
        prompt = memory.prompt
        outputs = model(prompt.inputs_embeds, prompt.position_ids, prompt.layout)  # B times (T, P, 2) and (T, 2)
        if header.iteration == 0:
            # The old policy: it draws the subsets of all iterations, and ratios are relative to it.
            for video, output in zip(memory.videos, outputs, strict=True):
                video.old = PolicyOutput(output.token_logits.detach(), output.frame_logits.detach())
        if not outputs:
            # Nothing to learn from here, but the other processes wait for this one's gradients.
            return sum(weight.sum() * 0 for weight in model.parameters())
        if is_taught(self.args, first_step=self.state.global_step - header.iteration):
            losses = self._imitate(memory, header, outputs)
        else:
            self._roll_out(memory, header)
            losses = self._optimise(memory, outputs)
        # Gradients are averaged over batches and processes, some of which may have fewer samples: the mean is over samples.
        share = self.args.gradient_accumulation_steps * self.args.world_size / self.samples_of_step
        loss = torch.stack(losses).sum() * share
        return (loss, outputs) if return_outputs else loss

    # ---------------------------------------------------------------- the samples, embedded once

    def _begin(self, batch: dict[str, Any]) -> BatchMemory:
        """The memory of a new batch of samples."""
        header, questions = batch["header"], batch.get("questions", [])
        if not questions:
            return BatchMemory(empty_prompt(self.full_model.policy.config.hidden_size, self.args.device), [])
        numbers = [header.numbers[place] for place in batch.get("places", range(len(questions)))]
        videos = [
            VideoMemory(question, number, first_ratio(self.args, header, number))
            for question, number in zip(questions, numbers, strict=True)
        ]
        return BatchMemory(self._embed(batch["inputs"]), videos)

    @torch.no_grad()
    def _embed(self, inputs: list[dict[str, Tensor]]) -> Prompt:
        """Encode the videos and embed the prompts: the processor's inputs, one entry for all videos of one shape."""
        prompts = []
        for part in inputs:
            pixels = {
                name: value.to(self.backbone.dtype) for name, value in part.items() if name.startswith("pixel_values")
            }
            prompts.append(self.full_model.embed(**{**part, **pixels}))  # type: ignore[arg-type]
        return stack_prompts(prompts)

    # ---------------------------------------------------------------- rollouts, rewards, replay memory

    @torch.no_grad()
    def _roll_out(self, memory: BatchMemory, header: BatchHeader) -> None:
        """Draw new subsets of every video, let the backbone answer from each, and remember what they earn."""
        # Sampling, from the old policy's scores.
        prompt = memory.prompt
        pairs = zip(memory.videos, prompt.layout.videos, strict=True)
        drawn = [draw_subsets(self.args, header, video, prompt, span) for video, span in pairs]
        # Rollouts: all subsets of all videos as one batch.
        keeps = [subsets.keeps for subsets in drawn]  # B times (G + F, N)
        prompts, rows = select_subsets(prompt, keeps)  # R = B * (G + F) prompts, the video of each
        questions = [memory.videos[row].question for row in rows.tolist()]
        completions = self._answer(prompts, questions)  # R texts
        # Rewards.
        rewards = judge(completions, questions, self.rewards, self.scored_reward)  # (R,)
        retained = torch.zeros_like(rewards)
        if self.args.retention_weight:
            retained = self._retained(memory, header, drawn, judge(completions, questions, self.rewards)).to(rewards)
        # Replay memory.
        counts = [*map(len, keeps)]
        groups = torch.stack((rewards, retained), dim=1).split(counts)
        for video, subsets, group in zip(memory.videos, drawn, groups, strict=True):
            mask, frames = subsets.tokens, subsets.frames  # (G, T, P), (F, T)
            parts = group.to(mask.device)  # (G + F, 2), for the answer and for what it retains
            of_tokens, of_frames = subsets.split(parts)  # (G, 2), (F, 2)
            answered = of_tokens.sum(1)
            net = priced(answered, mask, self.args.token_price)  # (G,), less what the kept tokens cost
            saved = 1 - mask.flatten(1).float().mean(1, keepdim=True)
            video.remember(
                Rollouts(mask, net, torch.cat([of_tokens, saved], dim=1)),
                None if frames is None else Rollouts(frames, of_frames.sum(1), of_frames),
                behind_former=self.args.replay and header.iteration > 0,
            )
            self.note(reward=answered.mean(), greedy_reward=answered[0])
            self.note(kept_ratio=mask.float().mean(), sampling_ratio=video.ratio)

    def _retained(self, memory: BatchMemory, header: BatchHeader, drawn: list[Subsets], accuracies: Tensor) -> Tensor:
        """The retention reward of every rollout `(R,)`, from their accuracies; the uncompressed model answers once, at a sample's first rollouts."""
        if header.iteration == 0:
            questions = [video.question for video in memory.videos]
            whole = self.full_model.compress_prompt(memory.prompt, retention_ratio=1.0)
            full = judge(self._answer(whole, questions), questions, self.rewards)  # (B,)
            for video, accuracy in zip(memory.videos, full.tolist(), strict=True):
                video.full = accuracy
        earned: list[float] = []
        groups = accuracies.split([len(subsets.keeps) for subsets in drawn])
        for video, subsets, of_video in zip(memory.videos, drawn, groups, strict=True):
            # Token rollouts and frame rollouts are groups of their own.
            for group in filter(len, subsets.split(of_video)):
                settings = (video.full, self.args.retention_weight, self.args.retention_floor)
                earned += retention_reward(group.tolist(), *settings)
            self.note(full_accuracy=video.full)
        return torch.tensor(earned)

    def _answer(self, prompts: CompressedPrompt, questions: list[Question]) -> list[Completion]:
        return answer_questions(
            self.backbone,
            self.processor,
            prompts,
            questions,
            max_new_tokens=self.args.max_new_tokens,
            batch_size=self.args.rollout_batch_size,
        )

    # ---------------------------------------------------------------- advantages, clipped loss

    def _optimise(self, memory: BatchMemory, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Losses over the replay memory, one per video; then the ratio of its next iteration."""
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            tokens, frames = video.tokens, video.frames
            loss, statistics = cpo_loss(
                output,
                video.old,
                tokens.masks,
                self._advantages(tokens),
                None if frames is None else frames.masks,
                None if frames is None else self._advantages(frames),
                clip_low=self.args.clip_low,
                clip_high=self.args.clip_high,
                dual_clip=self.args.dual_clip,
                kl_weight=self.args.kl_weight,
                balanced=self.args.sampler != "bernoulli" or self.args.advantage == "by_token",
            )
            losses.append(loss)
            self.note(**vars(statistics))
            video.ratio = following_ratio(self.args, video)
        return losses

    def _advantages(self, rollouts: Rollouts) -> Tensor:
        """`(R,)`, over the sum of the rewards, or over each by itself."""
        if self.args.advantage != "by_reward":
            return advantages(rollouts.rewards)
        # The retention reward has its weight already; normalised by itself it needs it again. Frame rollouts have no price.
        weights = (1.0, self.args.retention_weight, self.args.token_price)[: rollouts.parts.shape[1]]
        return summed_advantages(rollouts.parts.unbind(1), weights)

    # ---------------------------------------------------------------- a teacher instead (ours, an ablation)

    def _imitate(self, memory: BatchMemory, header: BatchHeader, outputs: list[PolicyOutput]) -> list[Tensor]:
        """Losses against the teacher, one per video; its attention is read once."""
        if header.iteration == 0:
            read = teacher_attention(self.full_model, self.args, memory.prompt)
            for video, attention in zip(memory.videos, read, strict=True):
                video.attention = attention  # (T, P)
        losses = []
        for video, output in zip(memory.videos, outputs, strict=True):
            losses.append(distillation_loss(output, video.attention, frames=self.args.num_frame_rollouts > 0))
            self.note(teacher_loss=losses[-1], score_spread=output.token_scores.std(correction=0))
        return losses

    # ---------------------------------------------------------------- evaluation

    def sum_rewards(self, batch: dict[str, Any]) -> list[float]:
        """Sums of the rewards of a batch of evaluation samples, one per entry of `eval_ratios`."""
        prompt = self._embed(batch["inputs"])
        sums = []
        for ratio in self.args.eval_ratios:
            compressed = self.full_model.compress_prompt(prompt, retention_ratio=ratio)
            completions = self._answer(compressed, batch["questions"])
            # Scored answers count 1 or 0 here, whatever they earn in training.
            sums.append(judge(completions, batch["questions"], self.rewards).sum().item())
        return sums
