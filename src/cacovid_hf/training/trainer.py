"""Training of the policy by the frozen language model's own answers.

A batch of samples is vision-encoded once and trained on for several iterations, one optimiser step each. `compute_loss` below is one iteration.
What the policy learns from is a `Learner`, and a setting says which:

    imitation      `Imitation`: attention of the language model, for the first `teacher_steps` (ours)
    "cpo"          `PolicyOptimisation`: rewards of random subsets (arXiv 2602.01649, section on training)
    "contributions"  `ContributionRanking`: values of single tokens, measured with few subsets (ours)

Answers and rewards are in `judge`. What has to do with transformers' `Trainer`, checkpoints among it, is in `engine`.

Departures from the published code that no setting undoes:
1. All subsets of all samples of a batch are answered as one batch, not one after the other.
2. One prefill scores answers of which one is right, such as an option's letter (`rollouts.score_answers`). Only open answers are generated.
3. The rollout by "content", whose reward enters no loss, is left out.
4. Draws are functions of the seed and the sample's place in the data. So they do not depend on the number of processes, or on a resumption.
5. Several samples share a step. Each weighs the same, also where some could not be read.

Those of a single function stand in its docstring. All others are settings, see `arguments`: `PUBLISHED` is the paper's recipe, `OURS` by
rollouts, `CONTRIBUTIONS` what won on the tiny model, and is near what won on a language model of 30 layers.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin, set_seed

from ..modeling import CaCoVidForConditionalGeneration
from ..policies.base import PolicyOutput
from ..prompt import Prompt, stack_prompts
from .arguments import ContributionTrainingArguments
from .batches import BatchHeader
from .contributions import ContributionRanking
from .cpo import PolicyOptimisation
from .draws import first_ratio
from .engine import SampleEngine
from .imitation import Imitation
from .judge import Examiner
from .learner import Learner
from .replay import BatchMemory, VideoMemory, empty_prompt

LEARNERS = {"cpo": PolicyOptimisation, "contributions": ContributionRanking}


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
        self.examiner = Examiner(self.backbone, processor, args)
        self.imitation = Imitation(model, args, self.note, self.examiner)
        self.learner: Learner = LEARNERS[args.objective](model, args, self.note, self.examiner)
        self._memories: dict[int, BatchMemory] = {}  # one per batch of a step

    def begin_run(self, checkpoint: str | None) -> None:
        """See `SampleEngine`."""
        self.imitation.comes_back = self._comes_back_to_teacher()
        self.imitation.begin(checkpoint)
        self.learner.begin(checkpoint)

    def begin_checkpoint(self, folder: Path) -> None:
        """Write what the learners remember into a checkpoint, unless it is of the model alone and cannot be resumed."""
        if self.args.save_only_model:
            return
        if self.state.global_step < self.args.taught_steps(self.state.max_steps):
            self.imitation.save(folder)
        self.learner.save(folder)

    # ---------------------------------------------------------------- one iteration

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the loss of one iteration on one batch of samples: their part of the mean over all samples of the step."""
        header: BatchHeader = inputs["header"]
        if header.iteration == 0:
            self._memories.pop(header.slot, None)  # freed before the next ones are embedded
            self._memories[header.slot] = self._new_memory(inputs)
        memory = self._memories[header.slot]
        prompt = memory.prompt
        outputs = model(prompt.inputs_embeds, prompt.position_ids, prompt.layout)  # B times (T, P, 2) and (T, 2)
        if header.iteration == 0:
            # The old policy: it draws the subsets of all iterations, and ratios are relative to it.
            for video, output in zip(memory.videos, outputs, strict=True):
                video.old = PolicyOutput(output.token_logits.detach(), output.frame_logits.detach())
        learner = self._learner_of(header)
        if learner is not self.imitation:
            self.imitation.begin(None)  # nobody needs what the teacher showed
        losses = learner.losses(memory, header, outputs) if outputs else []
        if header.iteration == 0 and header.slot == self.args.gradient_accumulation_steps - 1:
            learner.share()
        if not losses:
            # Nothing to learn from here, but the other processes wait for this one's gradients.
            return sum(weight.sum() * 0 for weight in model.parameters())
        # Gradients are averaged over batches and processes, some of which may have fewer samples: the mean is over samples.
        share = self.args.gradient_accumulation_steps * self.args.world_size / self.samples_of_step
        loss = torch.stack(losses).sum() * share
        return (loss, outputs) if return_outputs else loss

    def _comes_back_to_teacher(self) -> bool:
        """Whether a sample comes in again before the teacher ends."""
        planned, of_pass = self.planned_steps, self.steps_of_pass
        return planned is not None and of_pass is not None and min(self.args.taught_steps(planned), planned) > of_pass

    def _learner_of(self, header: BatchHeader) -> Learner:
        """Return what a sample is learnt from, in all its iterations: by the step that it came in with."""
        first = self.state.global_step - header.iteration
        return self.imitation if first < self.args.taught_steps(self.state.max_steps) else self.learner

    # ---------------------------------------------------------------- the samples, embedded once

    def _new_memory(self, batch: dict[str, Any]) -> BatchMemory:
        """Return the memory of a new batch of samples."""
        header, questions = batch["header"], batch.get("questions", [])
        if not questions:
            return BatchMemory(empty_prompt(self.full_model.policy.config.hidden_size, self.args.device), [])
        videos = []
        for question, place in zip(questions, batch.get("places", range(len(questions))), strict=True):
            number, index = header.numbers[place], header.indices[place] if header.indices else None
            videos.append(VideoMemory(question, number, first_ratio(self.args, header, number), index))
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

    # ---------------------------------------------------------------- evaluation

    def sum_rewards(self, batch: dict[str, Any]) -> list[float]:
        """Return sums of the rewards of a batch of evaluation samples, one per entry of `eval_ratios`."""
        prompt = self._embed(batch["inputs"])
        sums = []
        for ratio in self.args.eval_ratios:
            compressed = self.full_model.compress_prompt(prompt, retention_ratio=ratio)
            completions = self.examiner.answer(compressed, batch["questions"])
            sums.append(self.examiner.accuracy(completions, batch["questions"]).sum().item())
        return sums
