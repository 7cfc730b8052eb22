"""Training the policy of a tiny model: the recipes in miniature, and one call that runs either."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin, TrainerCallback, set_seed

from ..modeling import CaCoVidForConditionalGeneration
from ..policies.settings import PUBLISHED_SELECTION, Selection
from ..training.arguments import ContributionTrainingArguments
from ..training.presets import CONTRIBUTIONS, OURS, PUBLISHED
from ..training.trainer import ContributionTrainer
from .dataset import QuestionDataset

# Budgets of 5 of the 288 tokens at first; the small layer and the heads learn fast.
_SMALL: dict[str, Any] = {
    "sampling_ratio": 5 / 288,
    "learning_rate": 1.5e-3,
    "max_grad_norm": 0.1,
    "adam_beta2": 0.99,
}
PRESETS: dict[str, dict[str, Any]] = {
    "ours": OURS | _SMALL | {"ratio_floor": 2 / 288, "ratio_ceiling": 32 / 288},
    "contributions": CONTRIBUTIONS | _SMALL,
    # One token a frame, the least that a budget by frames can have, to four.
    "published": PUBLISHED | {"sampling_ratio": 1 / 36, "ratio_ceiling": 4 / 36, "learning_rate": 1.5e-3},
}
PASSES = {"contributions": 8}  # over the questions; else each is new
SELECTION: dict[str, dict[str, Any]] = {
    "ours": {"policy_attention": "question", **asdict(Selection())},
    "contributions": {"policy_type": "light", **asdict(Selection())},
    "published": {"policy_attention": "causal", **asdict(PUBLISHED_SELECTION)},
}


def train_policy(
    backbone: Any,
    processor: ProcessorMixin,
    output_dir: str | Path,
    *,
    preset: str = "ours",
    steps: int = 500,
    batch_size: int = 32,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
    watch: Callable[[CaCoVidForConditionalGeneration, int], None] | None = None,
    watch_every: int = 25,
    trainer_class: type[ContributionTrainer] = ContributionTrainer,
    dataset: Any = None,
) -> tuple[CaCoVidForConditionalGeneration, ContributionTrainer]:
    """Train a new policy around a tiny backbone, on fresh clips with a question each.

    Args:
        backbone: a stock tiny model.
        processor: its processor.
        output_dir: for what `Trainer` writes; nothing, unless the settings ask for checkpoints.
        preset: `"ours"`, `"contributions"` or `"published"`.
        steps: optimiser steps.
        batch_size: questions a step.
        seed: of the policy, the clips and the rollouts; no seed draws the clips of a test.
        settings: of `ContributionTrainingArguments`, over the preset's.
        selection: of `CaCoVidConfig`, over the preset's.
        watch: called with the model, in evaluation mode, and the step: before the first one and after every `watch_every`.
        watch_every: optimiser steps between two calls of it.
        trainer_class: for experiments.
        dataset: samples to train on instead of fresh ones.

    Returns:
        The wrapped model with its trained policy in evaluation mode, and the trainer with its log.
    """
    defaults: dict[str, Any] = {
        "warmup_steps": 20,
        "lr_scheduler_type": "cosine",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    args = ContributionTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        seed=seed,
        **(defaults | PRESETS[preset] | (settings or {})),
    )
    set_seed(seed)  # the new heads
    model = CaCoVidForConditionalGeneration.from_backbone(
        backbone, base_model_name_or_path=None, **(SELECTION[preset] | (selection or {}))
    )
    samples = -(-steps // (args.num_iterations * PASSES.get(preset, 1))) * batch_size
    callbacks = [] if watch is None else [_Watch(model, watch, watch_every)]
    if dataset is None:
        dataset = QuestionDataset(samples, seed=seed)
    trainer = trainer_class(model, args, processor, dataset, callbacks=callbacks)
    trainer.train()
    model.policy.eval()
    model.config.policy_trained = True
    return model, trainer


class _Watch(TrainerCallback):
    """Shows the model as it learns."""

    def __init__(self, model: CaCoVidForConditionalGeneration, watch: Callable[..., None], every: int):
        self.model, self.watch, self.every = model, watch, every

    def _show(self, step: int) -> None:
        self.model.policy.eval()
        try:
            self.watch(self.model, step)
        finally:
            self.model.policy.train()

    def on_train_begin(self, args, state, control, **kwargs):
        self._show(0)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self._show(state.global_step)
