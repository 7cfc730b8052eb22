"""Combinatorial policy optimisation (CPO) on transformers' `Trainer`: the policy learns from the frozen LLM's own right and wrong answers.

What Trainer holds and wraps is the policy, called through its `forward` (data parallelism synchronises only there); the frozen model stands
beside it. A batch of samples is read and vision-encoded once and trained on for several iterations, one optimiser step each:

    old policy -> sampling -> rollouts -> rewards -> replay memory -> advantages -> clipped loss

Departures from the published code are settings, see `arguments` (arXiv 2602.01649, section on training).
"""

import copy
import functools
import math
from collections import defaultdict
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, Trainer, set_seed
from transformers.utils import logging

from .._compat import CheckpointHooks
from ..compressors.attention import video_attention
from ..hub.source import Source, load_weights
from ..modeling import CaCoVidForConditionalGeneration
from ..policies.base import PolicyOutput
from ..prompt import Prompt, PromptLayout, stack_prompts
from .arguments import SAMPLING_SETTINGS, ContributionTrainingArguments, ends_within
from .batches import SampleBatches, SampleLoader, SampleReader, Turn, TurnCollator, is_stream
from .data import AnswerCollator
from .judge import Judge
from .objective import advantages, cpo_loss, distillation_loss, next_ratio, priced
from .replay import Memory
from .resuming import SampleBoundaries, check_finite, check_position, data_digest, last_complete_checkpoint
from .rollouts import cut
from .sampling import SAMPLERS, sample_bernoulli, sample_frames

logger = logging.get_logger(__name__)

# Samples that cannot be read, from the first on, after which training does not go on.
_HOPELESS = 100


class ContributionTrainer(CheckpointHooks, Trainer):
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

    args: ContributionTrainingArguments

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
            raise ValueError(f"args is a {type(args).__name__}: give ContributionTrainingArguments.")
        if args.policy_attention is not None:
            set_seed(args.seed)
            model.reset_policy(args.policy_attention)
        model.policy.frame_head.requires_grad_(args.num_frame_rollouts > 0)
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs and can use one: start a process a GPU (accelerate launch), or hide the others."
            )
        self.full_model = model
        self.backbone: Any = model.backbone
        self.backbone.requires_grad_(False).eval()
        model.policy.float()
        if "data_collator" not in kwargs:
            kwargs["data_collator"] = AnswerCollator(processor, scored_types=args.prefilled_types)
        super().__init__(
            model=model.policy, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        self.model_accepts_loss_kwargs = False
        if getattr(self.backbone, "hf_device_map", None) is None and not getattr(self.backbone, "is_quantized", False):
            self.backbone.to(self.args.device)  # Trainer has moved the policy there
        self.processor = processor
        self.eval_collator = eval_collator or self.data_collator
        self.judge = Judge(
            self.backbone,
            processor,
            args.resolved_rewards(),
            max_new_tokens=args.max_new_tokens,
            batch_size=args.rollout_batch_size,
        )
        self._batches: SampleBatches | None = None
        self._memories: dict[int, Memory] = {}
        self._samples_of_step = 0
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self._skipped = 0
        self._tried: int | None = 0
        if train_dataset is not None:
            self._batches = self._training_batches()
            self._check_end(self._batches)
            self.add_callback(SampleBoundaries(self._position(), args.num_iterations))

    # ---------------------------------------------------------------- the engine's hooks

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint` (True: the last complete one) go on exactly where that checkpoint stands.

        Raises:
            ValueError: no such checkpoint, or one of another run.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no complete checkpoint to resume from: start anew.")
        if resume_from_checkpoint:
            check_position(resume_from_checkpoint, self._position())
        self._memories.clear()
        self._metrics.clear()
        self._skipped = 0
        self._tried = 0
        try:
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            # Mixed precision has put a wrapper around the policy's forward.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self._tried and not resume_from_checkpoint:
            raise ValueError(f"None of {self._tried} samples could be read, and nothing was learnt: see the warnings.")
        return result

    def get_train_dataloader(self) -> DataLoader:
        """Every step's samples for as many steps as there are iterations on them; see `SampleBatches`."""
        if self.train_dataset is None:
            raise ValueError("There is nothing to train on: give train_dataset.")
        self._batches = self._training_batches()
        return self._loader(self._batches, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The evaluation set once, shared by the processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("There is nothing to evaluate on: give eval_dataset.")
        return self._loader(
            SampleBatches(
                dataset,
                batch_size=self.args.per_device_eval_batch_size,
                num_processes=self.args.world_size,
                process_index=self.args.process_index,
            ),
            self.eval_collator,
        )

    def _training_batches(self) -> SampleBatches:
        return SampleBatches(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            batches_per_step=self.args.gradient_accumulation_steps,
            repeats=self.args.num_iterations,
            num_processes=self.args.world_size,
            process_index=self.args.process_index,
            shuffle_seed=self._data_seed,
        )

    def _check_end(self, batches: SampleBatches) -> None:
        """Refuse a number of passes that ends within the iterations on a sample."""
        if self.args.max_steps > 0 or is_stream(batches.dataset):
            return
        steps = math.ceil(self.args.num_train_epochs * (len(batches) // self.args.gradient_accumulation_steps))
        if steps % self.args.num_iterations:
            raise ValueError(
                f"num_train_epochs={self.args.num_train_epochs} is {steps} steps, which {ends_within(steps, self.args.num_iterations, 'max_steps=')}"
            )

    def _loader(self, batches: SampleBatches, collator: Any) -> SampleLoader:
        """Not prepared by accelerate: the batches are this process's own already."""
        return SampleLoader(
            SampleReader(batches.dataset),
            batch_sampler=batches,
            collate_fn=TurnCollator(collator),
            num_workers=self.args.dataloader_num_workers,
            # A fork of a process with threads (of torch, of pyarrow) can wait forever.
            multiprocessing_context="spawn" if self.args.dataloader_num_workers else None,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    @functools.cached_property
    def _digest(self) -> str:
        return data_digest(self.train_dataset)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _position(self) -> dict[str, Any]:
        """What the place in the data, and so the meaning of a number of steps, and what is drawn there depend on."""
        position: dict[str, Any] = {"num_iterations": self.args.num_iterations, "seed": self.args.seed}
        position |= {"data_seed": self._data_seed}
        position |= {name: getattr(self.args, name) for name in SAMPLING_SETTINGS}
        if self._batches is not None:
            position["samples_per_step"] = self._batches.samples_per_step
            dataset = self._batches.dataset
            position["dataset_size"] = None if is_stream(dataset) else len(dataset)
            position["data_digest"] = None if is_stream(dataset) else self._digest
        return position

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """A step's batches, which must be of one group of samples in all processes; none where the last step has been taken."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the checkpoint of the last step: the stock loop would take another.
            self.control.should_training_stop = True
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and batches[0]["turn"].iteration == 0:
            self._memories.clear()
            reasons = self._warn_of_skipped(batches)
            self._skipped += len(reasons)
            counts = [sum(len(batch.get("questions", ())) for batch in batches), len(reasons)]
            read, skipped = self.accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
            self._samples_of_step = read
            self._give_up_if_hopeless(read, skipped, reasons)
        return batches, None

    @staticmethod
    def _warn_of_skipped(batches: list[dict[str, Any]]) -> list[str]:
        reasons = [reason for batch in batches for reason in batch.get("skipped", ())]
        for reason in reasons:
            logger.warning(f"Skipped {reason}")
        return reasons

    def _give_up_if_hopeless(self, read: int, skipped: int, reasons: list[str]) -> None:
        """End a run that has not read one of many samples, or of all; `_tried` counts until the first that can be read."""
        if self._tried is None or read:
            self._tried = None
            return
        self._tried += skipped
        dataset: Any = self.train_dataset
        if self._tried >= (_HOPELESS if is_stream(dataset) else min(_HOPELESS, len(dataset))):
            raise ValueError(
                f"None of {self._tried} samples can be read ({reasons[0] if reasons else 'see the warnings'}): check their paths and the "
                "data's schema."
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
        """Add the means of what happened since the last log, over all processes."""
        if "loss" in logs or "train_loss" in logs:  # at the end there may be some that no log has told yet
            parts = [(dict(self._metrics), self._skipped)]
            if self.args.world_size > 1:
                parts = gather_object(parts)
            self._metrics.clear()
            self._skipped = 0
            for name in dict.fromkeys(name for metrics, _ in parts for name in metrics):
                values = [value for metrics, _ in parts for value in metrics.get(name, ())]
                logs[name] = sum(values) / len(values)
            before = [entry["skipped_samples"] for entry in self.state.log_history if "skipped_samples" in entry]
            if skipped := sum(before[-1:]) + sum(skipped for _, skipped in parts):
                logs["skipped_samples"] = skipped
        super().log(logs, *args, **kwargs)

    def write_checkpoint(self, folder: str | None, state_dict: dict[str, Tensor] | None) -> None:
        """A checkpoint of the model's own kind: the policy under `policy.`, with its config and processor; none of weights that are not finite."""
        if not self.args.should_save:
            return
        check_finite(self.full_model.policy, str(self.args.output_dir))
        folder = folder or self.args.output_dir or "."
        self.full_model.config.policy_trained = True
        self.full_model.save_pretrained(
            folder,
            state_dict=None if state_dict is None else {f"policy.{name}": value for name, value in state_dict.items()},
            # A policy without its backbone's id could not be loaded again.
            include_backbone=not self.full_model.config.base_model_name_or_path,
        )
        self.processor.save_pretrained(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what is saved has its own card already, which a push is to leave as it is."""

    def read_checkpoint(self, folder: str, model: nn.Module | None) -> None:
        """Load the policy, strictly: the stock way would find none of its names under their prefix, and go on without a word."""
        if self.is_fsdp_enabled:
            super().read_checkpoint(folder, model)
            return
        source = Source(folder, {})
        policy = self.full_model.policy
        loaded = copy.deepcopy(policy).to("meta")
        load_weights(loaded, source.stored("policy."), source.name)
        policy.load_state_dict(loaded.state_dict())  # in place: the optimiser and the device stay

    def read_best_checkpoint(self) -> None:
        """Load the policy of the best checkpoint."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super().read_best_checkpoint()
        else:
            self.read_checkpoint(str(self.state.best_model_checkpoint), None)

    # ---------------------------------------------------------------- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Accuracy (mean reward) on a set of samples at each of `eval_ratios`, with the selection that the model's config sets.

        Args:
            eval_dataset: samples, or a dict of several sets, whose names then stand in the metrics; None: the trainer's.
            ignore_keys: has no meaning here.
            metric_key_prefix: of the metrics' names.

        Returns:
            `<prefix>_accuracy_at_<ratio>`, their mean `<prefix>_accuracy`, `<prefix>_samples`, and `<prefix>_skipped_samples` if there are any.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            metrics: dict[str, float] = {}
            for name, part in dataset.items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        policy = self.full_model.policy
        was_training = policy.training
        policy.eval()
        try:
            rewards, count, skipped = self._accuracies(self.get_eval_dataloader(dataset))
        finally:
            policy.train(was_training)
        sums = torch.tensor([*rewards, count, skipped], device=self.args.device)
        *totals, samples, skipped = self.accelerator.reduce(sums, "sum").tolist()
        if samples == 0:
            raise ValueError("No sample of the evaluation set can be read: check the paths of its videos.")
        values = [reward / samples for reward in totals]
        metrics = {
            f"{metric_key_prefix}_accuracy_at_{ratio:g}": value
            for ratio, value in zip(self.args.eval_ratios, values, strict=True)
        }
        metrics |= {
            f"{metric_key_prefix}_accuracy": sum(values) / len(values),
            f"{metric_key_prefix}_samples": int(samples),
        }
        if skipped:
            metrics[f"{metric_key_prefix}_skipped_samples"] = int(skipped)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _accuracies(self, loader: DataLoader) -> tuple[list[float], float, float]:
        """Sums of this process's rewards, one a ratio, how many samples they are of, and how many could not be read."""
        sums, count, skipped = [0.0] * len(self.args.eval_ratios), 0, 0
        for given in loader:
            skipped += len(self._warn_of_skipped([given]))
            batch: Any = self.to_device(given)
            if not batch.get("questions"):
                continue
            prompt = self._embed(batch["inputs"])
            count += len(batch["questions"])
            for place, ratio in enumerate(self.args.eval_ratios):
                compressed = self.full_model.compress_prompt(prompt, retention_ratio=ratio)
                judged = self.judge(compressed, batch["questions"])
                sums[place] += judged.sum().item()
        return sums, float(count), float(skipped)

    # ---------------------------------------------------------------- combinatorial policy optimisation

    def compute_loss(  # type: ignore[override]
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """One iteration on one batch of samples: their part of the mean over all samples of the step."""
        turn: Turn = inputs["turn"]
        if turn.iteration == 0:
            self._memories[turn.slot] = self._remember(inputs)
        memory = self._memories[turn.slot]
        prompt = memory.prompt
        current = model(prompt.inputs_embeds, prompt.position_ids, prompt.layout)
        if turn.iteration == 0:
            memory.old = [PolicyOutput(o.token_logits.detach(), o.frame_logits.detach()) for o in current]
        if not current:
            # Nothing to learn from here, but the other processes wait for this one's gradients.
            return sum(weight.sum() * 0 for weight in model.parameters())
        # A sample is imitated or explored for all its iterations, by the step that it came in with.
        taught = self.args.teacher and (
            self.args.teacher_steps is None or self.state.global_step - turn.iteration < self.args.teacher_steps
        )
        losses = self._imitate(memory, current) if taught else self._optimise(memory, turn, current)
        # Gradients are averaged over batches and processes, some of which may have fewer samples: the mean is over samples.
        share = self.args.gradient_accumulation_steps * self.args.world_size / self._samples_of_step
        loss = torch.stack(losses).sum() * share
        return (loss, current) if return_outputs else loss

    def _optimise(self, memory: Memory, turn: Turn, current: list[PolicyOutput]) -> list[Tensor]:
        """Losses of the rollouts, one a video."""
        self._roll_out(memory, turn)

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
                balanced=self.args.sampler != "bernoulli",
            )
            losses.append(loss)
            for field in fields(statistics):
                self._metrics[field.name].append(float(getattr(statistics, field.name)))
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
        return losses

    def _imitate(self, memory: Memory, current: list[PolicyOutput]) -> list[Tensor]:
        """Losses against the teacher, one a video; its attention is read once."""
        if not memory.attention:
            count = len(self.backbone.get_decoder().layers)
            layers = range(count) if self.args.teacher_layer is None else [self.args.teacher_layer]
            read = video_attention(self.full_model, memory.prompt, layers, "question")
            memory.attention = [torch.stack(found).mean(0) for found in zip(*read.values(), strict=True)]
        frames = self.args.num_frame_rollouts > 0
        losses = [
            distillation_loss(output, attention, frames=frames)
            for output, attention in zip(current, memory.attention, strict=True)
        ]
        self._metrics["teacher_loss"] += [loss.item() for loss in losses]
        self._metrics["score_spread"] += [output.token_scores.std(correction=0).item() for output in current]
        return losses

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

    def _remember(self, batch: dict[str, Any]) -> Memory:
        """Begin with a batch of samples; they are embedded once for all their iterations."""
        questions = batch.get("questions", [])
        if questions:
            prompt = self._embed(batch["inputs"])
        else:
            none = torch.zeros(0, 0, dtype=torch.long, device=self.args.device)
            size = self.full_model.policy.config.hidden_size
            prompt = Prompt(PromptLayout(none.bool(), none.bool(), ()), none, torch.zeros(0, 0, size), none)
        turn: Turn = batch["turn"]
        numbers = [turn.numbers[place] for place in batch.get("places", range(len(questions)))]
        ratios = [self.args.sampling_ratio] * len(questions)
        if choices := self.args.target_ratios:
            ratios = [
                choices[int(torch.randint(len(choices), (), generator=self._generator(turn, number, "ratio")))]
                for number in numbers
            ]
        return Memory(prompt, questions, numbers, [], ratios)

    def _generator(self, turn: Turn, number: int, purpose: str = "rollouts") -> torch.Generator:
        """The chance of one sample and iteration: the same whichever process draws, and whatever was drawn before."""
        entropy = (self.args.seed, turn.epoch, number, turn.iteration, ("rollouts", "ratio").index(purpose))
        seed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    @torch.no_grad()
    def _roll_out(self, memory: Memory, turn: Turn) -> None:
        """Draw subsets from the old policy, let the backbone answer from each, and remember masks and rewards."""
        prompt, spans = memory.prompt, memory.prompt.layout.videos
        tokens, frames, frame_tokens = [], [], []
        for video, span in enumerate(spans):
            features = prompt.video_features(span)
            old, ratio = memory.old[video], memory.ratios[video]
            generator = self._generator(turn, memory.numbers[video])
            tokens.append(self._sample(old.token_scores, ratio, generator))
            chosen, kept = sample_frames(
                old.frame_scores,
                features,
                ratio,
                self.args.num_frame_rollouts,
                scope=self.args.sampling_scope,
                generator=generator,
            )
            frames.append(chosen)
            frame_tokens.append(kept)
        keeps = [torch.cat([a, b]).flatten(1) for a, b in zip(tokens, frame_tokens, strict=True)]  # (G + G', N)
        prompts, rows = cut(prompt, keeps)
        questions = [memory.questions[row] for row in rows.tolist()]
        rewards = self.judge(prompts, questions, dense=self.args.reward == "probability")
        start = 0
        if not self.args.replay:
            memory.forget()
        first = not memory.token_masks
        for video, (mask, frame) in enumerate(zip(tokens, frames, strict=True)):
            answered = rewards[start : start + len(mask)].to(mask.device)
            token_rewards = priced(answered, mask, self.args.token_price)
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
            self._metrics["reward"].append(answered.mean().item())
            self._metrics["greedy_reward"].append(answered[0].item())
            self._metrics["kept_ratio"].append(mask.float().mean().item())
            self._metrics["sampling_ratio"].append(memory.ratios[video])

    def _sample(self, scores: Tensor, ratio: float, generator: torch.Generator) -> Tensor:
        """Token subsets, bool `(G, T, P)`, the first one greedy."""
        if self.args.sampler == "bernoulli":
            return sample_bernoulli(scores, self.args.num_token_rollouts, generator=generator)
        settings: dict[str, Any] = {"generator": generator, "scope": self.args.sampling_scope}
        if self.args.sampler == "ocss":
            settings |= {"spread": self.args.group_spread, "group_cap": self.args.group_cap}
        return SAMPLERS[self.args.sampler](scores, ratio, self.args.num_token_rollouts, **settings)
