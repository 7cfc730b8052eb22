"""`cacovid train CONFIG.yaml`: the training that a config describes, made and run."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, ProcessorMixin, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from ..auto import load_config, load_model, load_processor
from ..checkpoints.loading import load_stock_model
from ..configuration import CaCoVidConfig
from ..modeling import CaCoVidForConditionalGeneration
from ..utils.files import replaced
from .arguments import ContributionTrainingArguments
from .batches import is_stream
from .config import TrainingConfig, read_config, training_arguments
from .data import AnswerCollator
from .display import TrainingDisplay
from .filter import blind_filter, check_filter
from .presets import DEFAULT_PRESET, NEW_POLICY
from .resuming import checkpoint_to_resume, last_complete_checkpoint
from .sources import check_videos, load_samples
from .trainer import ContributionTrainer

logger = logging.get_logger(__name__)


def make_trainer(config: TrainingConfig) -> ContributionTrainer:
    """Everything that a config says, loaded: model, data, trainer.

    Raises:
        OSError: files that are missing.
        ValueError: a setting out of range, data that cannot be read.
    """
    args = training_arguments(config)
    train_dataset = load_samples(config.data.train, config.data.columns, "data.train")
    eval_dataset = (
        None if config.data.eval is None else load_samples(config.data.eval, config.data.columns, "data.eval")
    )
    if is_stream(train_dataset) and args.max_steps <= 0:
        raise ValueError(
            f"training.max_steps={args.max_steps} with a stream as data.train, whose end nobody knows: give the number of steps, "
            f"{args.num_iterations} (num_iterations) for each batch of samples."
        )
    eval_root = config.data.root if config.data.eval_root is None else config.data.eval_root
    allowed = config.data.allowed_roots
    check_videos(train_dataset, config.data.root, "data.train", allowed)
    if eval_dataset is not None:
        check_videos(eval_dataset, eval_root, "data.eval", allowed)
    set_seed(args.seed)
    model, processor = _load(config, args)
    settings: dict[str, Any] = {
        "allowed_roots": allowed,
        "scored_types": args.prefilled_types,
        "num_frames": config.data.num_frames,
    }
    collator = AnswerCollator(processor, root=config.data.root, still_frames=args.still_frames, **settings)
    trainer = ContributionTrainer(
        model,
        args,
        processor,
        train_dataset,
        eval_dataset,
        data_collator=collator,
        eval_collator=AnswerCollator(processor, root=eval_root, **settings),
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not args.disable_tqdm:
        trainer.add_callback(TrainingDisplay())
    return trainer


def run_training(
    file: str | os.PathLike, resume: bool = False, default_model: str | os.PathLike | None = None
) -> str | None:
    """Train as a config says, and save the policy in its `output_dir`; of several processes, each calls this.

    Args:
        file: the config.
        resume: go on from the last complete checkpoint in `output_dir`; from the beginning, with a warning, if there is none yet, so that a run
            that may be ended at any time can be started by one command.
        default_model: see `read_config`.

    Returns:
        One line for the user: where the policy is; None in all processes but the first.

    Raises:
        OSError: files that are missing.
        ValueError: see `read_config`, `make_trainer` and `ContributionTrainer.train`; or, without `resume`, a folder that has checkpoints.
        KeyboardInterrupt: stopped by the user; it says how to go on.
    """
    config = read_config(file, default_model)
    folder = str(training_arguments(config).output_dir)
    # The first process's answer: the others may be on machines without its folder, or look when it has written one.
    (found,) = broadcast_object_list([checkpoint_to_resume(folder) if resume else last_complete_checkpoint(folder)])
    if found is not None and not resume:
        raise ValueError(
            f"{folder} has checkpoints of an earlier run ({found}): resume it (--resume), or choose another output_dir."
        )
    try:
        trainer = make_trainer(config)
        if trainer.is_world_process_zero():
            if resume and found is None:
                logger.warning(
                    f"{folder} has no complete checkpoint to resume from: training begins at its first step."
                )
            Path(folder).mkdir(parents=True, exist_ok=True)
            with replaced(Path(folder, "training.yaml")) as temporary:
                temporary.write_text(Path(file).read_text(encoding="utf-8"), encoding="utf-8")
        try:
            trainer.train(resume_from_checkpoint=found)
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, TrainingDisplay):
                    callback.stop()
        trainer.save_model(folder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(file, folder)) from None
    PartialState().destroy_process_group()
    if not trainer.is_world_process_zero():
        return None
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    return f"The policy of step {trainer.state.best_global_step if best else trainer.state.global_step} is in {folder}"


def _how_to_go_on(file: str | os.PathLike, folder: str) -> str:
    """One line for whoever stopped a training."""
    command = f"cacovid train {file}"
    if PartialState().num_processes > 1:
        command = f"accelerate launch ... -m cacovid_hf train {file}"
    if (found := last_complete_checkpoint(folder)) is None:
        return f"stopped before the first checkpoint (training.save_steps), nothing is kept; to begin anew: {command}"
    return f"stopped; the last checkpoint is {found}; to go on from it: {command} --resume"


def run_blind_filter(
    samples: str,
    out: str | os.PathLike,
    model: str | os.PathLike,
    *,
    threshold: float = 0.5,
    batch_size: int = 16,
    limit: int | None = None,
) -> list[str]:
    """Filter a source of samples by a model's blind answers; see `blind_filter`.

    Returns:
        Lines for the user.
    """
    check_filter(Path(out), threshold, limit)
    dataset = load_samples(samples, {}, "SAMPLES")
    described = load_config(model)
    summary = blind_filter(
        load_model(model, described),
        load_processor(model, described),
        dataset,
        out,
        threshold=threshold,
        batch_size=batch_size,
        limit=limit,
    )
    lines = [f"{summary.kept} of {summary.total} samples kept in {out}"]
    for kind in sorted({*summary.answered, *summary.kept_by_type}):
        right, wrong = summary.answered[kind], summary.kept_by_type[kind]
        lines.append(f"{kind}: {right} of {right + wrong} answered without the video")
    lines += [f"skipped {count}: {reason}" for reason, count in summary.skipped.most_common()]
    return lines


def _load(
    config: TrainingConfig, args: ContributionTrainingArguments
) -> tuple[CaCoVidForConditionalGeneration, ProcessorMixin]:
    name: Any = config.model.name
    dtype = config.model.dtype
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"model.dtype={dtype!r} is unknown: give auto, or a dtype of torch such as bfloat16.")
    loading: dict[str, Any] = {"dtype": dtype}
    for key in ("attn_implementation", "revision"):
        if (value := getattr(config.model, key)) is not None:
            loading[key] = value
    if config.model.device_map is not None or args.device.type != "cpu":
        loading["device_map"] = config.model.device_map or {"": args.device}
    if config.model.revision is None:
        described = load_config(name)
    else:
        described = AutoConfig.from_pretrained(name, revision=config.model.revision, trust_remote_code=False)
    processor = load_processor(name, described)
    if isinstance(described, CaCoVidConfig):
        return load_model(name, described, **loading, **config.policy), processor
    backbone = load_stock_model(name, **loading)
    set_seed(args.seed)
    shape = {"policy_type", "policy_attention"} & (config.policy.keys() | config.training.keys())
    new = {} if shape else NEW_POLICY.get(config.training.get("preset", DEFAULT_PRESET), {})
    return CaCoVidForConditionalGeneration.from_backbone(backbone, **new, **config.policy), processor
