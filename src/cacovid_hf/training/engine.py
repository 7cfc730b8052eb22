"""What a trainer of samples needs of transformers' `Trainer`: loading, skipping, optimiser groups, logs, checkpoints, resuming and evaluation.

Nothing here knows the mathematics. That is `trainer.ContributionTrainer`, which fills in `compute_loss` and `sum_rewards`.
"""

import copy
import functools
import math
from collections import defaultdict
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import ProcessorMixin, Trainer
from transformers.utils import logging

from .._compat import CheckpointHooks
from ..hub.source import Source, load_weights
from ..modeling import CaCoVidForConditionalGeneration
from .arguments import SAMPLING_SETTINGS, ContributionTrainingArguments, ends_within
from .batches import HeaderCollator, SampleBatches, SampleLoader, SampleReader, is_stream
from .data import AnswerCollator
from .resuming import SampleBoundaries, check_finite, check_position, data_digest, last_complete_checkpoint
from .stills import are_images

logger = logging.get_logger(__name__)

# Samples that cannot be read, from the first on, after which training does not go on.
_HOPELESS = 100


class SampleEngine(CheckpointHooks, Trainer):
    """Trainer of a model's policy on batches of samples, each for several iterations; the backbone is frozen.

    What `Trainer` holds and wraps is the policy. The whole model stands beside it as `full_model`, its frozen part as `backbone`.

    Args:
        model: the wrapped model.
        args: settings.
        processor: makes prompts from samples, and is saved with the policy.
        train_dataset: samples, map-style or a stream.
        eval_dataset: samples for `evaluate`.
        eval_collator: makes their prompts; None: as for training.
        **kwargs: for `Trainer`.

    Raises:
        ValueError: several GPUs in one process, or a part of a pass that ends within a sample's iterations.
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
        if args.n_gpu > 1:
            raise ValueError(
                f"One process sees {args.n_gpu} GPUs and can use one. Start one process per GPU (accelerate launch), or hide the others."
            )
        self.full_model = model
        self.backbone: Any = model.backbone
        self.backbone.requires_grad_(False).eval()
        if "data_collator" not in kwargs:
            kwargs["data_collator"] = AnswerCollator(
                processor, scored_types=args.prefilled_types, still_frames=args.still_frames
            )
        super().__init__(
            model=model.policy, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs
        )
        self.model_accepts_loss_kwargs = False
        if getattr(self.backbone, "hf_device_map", None) is None and not getattr(self.backbone, "is_quantized", False):
            self.backbone.to(self.args.device)  # Trainer has moved the policy there
        self.processor = processor
        self.eval_collator = eval_collator or self.data_collator
        self.samples_of_step = 0  # read by all processes together
        self._metrics: dict[str, list[float]] = defaultdict(list)  # since the last log
        self._batches: SampleBatches | None = None
        self._skipped = 0
        self._tried: int | None = 0
        if train_dataset is not None:
            self._batches = self._training_batches()
            self._check_end()
            self.add_callback(SampleBoundaries(self._position(), args.num_iterations))

    # ---------------------------------------------------------------- for the trainer to fill in

    def sum_rewards(self, batch: dict[str, Any]) -> list[float]:
        """Return sums of the rewards of a batch of evaluation samples, one per entry of `eval_ratios`."""
        raise NotImplementedError

    def begin_run(self, checkpoint: str | None) -> None:
        """Forget other runs, or go on with what the checkpoint to resume from remembers."""

    # ---------------------------------------------------------------- a run

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with `resume_from_checkpoint` (True: the last complete one) go on exactly where that checkpoint stands.

        Raises:
            ValueError: no such checkpoint, or one of another run.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"{self.args.output_dir} has no complete checkpoint to resume from. Start anew.")
        if resume_from_checkpoint:
            check_position(resume_from_checkpoint, self._position())
        self.begin_run(resume_from_checkpoint or None)
        self._metrics.clear()
        self._skipped = 0
        self._tried = 0
        try:
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
        finally:
            # Mixed precision has put a wrapper around the policy's forward.
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self._tried and not resume_from_checkpoint:
            raise ValueError(f"None of {self._tried} samples could be read, and nothing was learnt. See the warnings.")
        return result

    def _position(self) -> dict[str, Any]:
        """Return what the place in the data, and so the meaning of a number of steps, and what is drawn there depend on."""
        position: dict[str, Any] = {"num_iterations": self.args.num_iterations, "seed": self.args.seed}
        position |= {"data_seed": self._data_seed}
        position |= {name: getattr(self.args, name) for name in SAMPLING_SETTINGS}
        if self._batches is not None:
            position["samples_per_step"] = self._batches.samples_per_step
            planned, steps = self.planned_steps, self.args.teacher_steps
            if planned is not None and steps is not None:
                position["teacher_steps"] = self.args.taught_steps(planned)  # a share is one of all steps
            dataset = self._batches.dataset
            position["dataset_size"] = None if is_stream(dataset) else len(dataset)
            position["data_digest"] = None if is_stream(dataset) else self._digest
        return position

    @functools.cached_property
    def _digest(self) -> str:
        return data_digest(self.train_dataset)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    # ---------------------------------------------------------------- loading

    def get_train_dataloader(self) -> DataLoader:
        """Every step's samples for as many steps as there are iterations on them; see `SampleBatches`."""
        if self.train_dataset is None:
            raise ValueError("There are no samples to train on. Give train_dataset.")
        self._batches = self._training_batches()
        return self._loader(self._batches, self.data_collator)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return the evaluation set once, shared by the processes."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("There are no samples to evaluate on. Give eval_dataset.")
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
            early=self._early,
        )

    @functools.cached_property
    def _early(self) -> list[bool] | None:
        """The samples that a curriculum begins with."""
        if self.args.curriculum is None:
            return None
        if is_stream(self.train_dataset):
            raise ValueError(
                f"curriculum={self.args.curriculum!r} orders the samples, and a stream has an order of its own. Put its images first, or give a file."
            )
        if not any(early := are_images(self.train_dataset)):
            raise ValueError(
                f"curriculum={self.args.curriculum!r} finds no sample with data_type 'image' to begin with. Add some, or leave it out."
            )
        return early

    @property
    def steps_of_pass(self) -> int | None:
        """Optimiser steps of one pass over the samples; None of a stream, or without samples."""
        if self._batches is None or is_stream(self._batches.dataset):
            return None
        return len(self._batches) // self.args.gradient_accumulation_steps

    @property
    def planned_steps(self) -> int | None:
        """Optimiser steps of a run; None of a stream that says nothing of its length, or without samples."""
        if self.args.max_steps > 0:
            return self.args.max_steps
        of_pass = self.steps_of_pass
        return None if of_pass is None else math.ceil(self.args.num_train_epochs * of_pass)

    def _check_end(self) -> None:
        """Refuse a number of passes that ends within the iterations on a sample, or before the teacher does."""
        steps = self.planned_steps
        if steps is None or self.args.max_steps > 0:
            return
        self.args.check_teacher_ends(steps)
        if steps % self.args.num_iterations:
            raise ValueError(
                f"num_train_epochs={self.args.num_train_epochs} is {steps} steps, which {ends_within(steps, self.args.num_iterations, 'max_steps=')}"
            )

    def _loader(self, batches: SampleBatches, collator: Any) -> SampleLoader:
        """Not prepared by accelerate: the batches are this process's own already."""
        return SampleLoader(
            SampleReader(batches.dataset),
            batch_sampler=batches,
            collate_fn=HeaderCollator(collator),
            num_workers=self.args.dataloader_num_workers,
            # A fork of a process with threads (of torch, of pyarrow) can wait forever.
            multiprocessing_context="spawn" if self.args.dataloader_num_workers else None,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return a step's batches, which must be of one group of samples in all processes; none where the last step has been taken."""
        if self.state.global_step >= self.state.max_steps:
            # Resumed from the checkpoint of the last step: the stock loop would take another.
            self.control.should_training_stop = True
            return [], None
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and batches[0]["header"].iteration == 0:
            reasons = _warn_of_skipped(batches)
            self._skipped += len(reasons)
            counts = [sum(len(batch.get("questions", ())) for batch in batches), len(reasons)]
            read, skipped = self.accelerator.reduce(torch.tensor(counts, device=device), "sum").tolist()
            self.samples_of_step = read
            self._give_up_if_hopeless(read, skipped, reasons)
        return batches, None

    def _give_up_if_hopeless(self, read: int, skipped: int, reasons: list[str]) -> None:
        """End a run that has not read one of many samples, or of all; `_tried` counts until the first that can be read."""
        if self._tried is None or read:
            self._tried = None
            return
        self._tried += skipped
        dataset: Any = self.train_dataset
        if self._tried >= (_HOPELESS if is_stream(dataset) else min(_HOPELESS, len(dataset))):
            raise ValueError(
                f"None of {self._tried} samples can be read ({reasons[0] if reasons else 'see the warnings'}). Check their paths and the "
                "data's schema."
            )

    # ---------------------------------------------------------------- optimiser and logs

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

    def note(self, **values: float | Tensor) -> None:
        """Remember figures of a sample for the next log, which has their means."""
        for name, value in values.items():
            self._metrics[name].append(float(torch.as_tensor(value).detach()))

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

    # ---------------------------------------------------------------- checkpoints

    def write_checkpoint(self, folder: str | None, state_dict: dict[str, Tensor] | None) -> None:
        """Write a checkpoint of the model's own kind: the policy under `policy.`, with its config and processor; none of weights that are not finite."""
        if not self.args.should_save:
            return
        check_finite(self.full_model.policy, str(self.args.output_dir))
        folder = folder or self.args.output_dir or "."
        if self.state.global_step:
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
            rewards, count, skipped = self._evaluate_batches(self.get_eval_dataloader(dataset))
        finally:
            policy.train(was_training)
        sums = torch.tensor([*rewards, count, skipped], device=self.args.device)
        *totals, samples, skipped = self.accelerator.reduce(sums, "sum").tolist()
        if samples == 0:
            raise ValueError("No sample of the evaluation set can be read. Check the paths of its videos.")
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
    def _evaluate_batches(self, loader: DataLoader) -> tuple[list[float], float, float]:
        """Return sums of this process's rewards, one per ratio, how many samples they are of, and how many could not be read."""
        sums, count, skipped = [0.0] * len(self.args.eval_ratios), 0, 0
        for given in loader:
            skipped += len(_warn_of_skipped([given]))
            batch: Any = self.to_device(given)
            if batch.get("questions"):
                count += len(batch["questions"])
                sums = [total + part for total, part in zip(sums, self.sum_rewards(batch), strict=True)]
        return sums, float(count), float(skipped)


def _warn_of_skipped(batches: list[dict[str, Any]]) -> list[str]:
    reasons = [reason for batch in batches for reason in batch.get("skipped", ())]
    for reason in reasons:
        logger.warning(f"Skipped {reason}")
    return reasons
