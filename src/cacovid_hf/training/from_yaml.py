"""`cacovid train CONFIG.yaml`: a training written down.

A config has the sections `model`, `policy`, `data` and `training`; every name in them is known, and an unknown one is refused with the nearest that is.
"""

import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import AutoConfig, ProcessorMixin, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from ..auto import load_config, load_model, load_processor
from ..checkpoints.loading import CONFIG_OVERRIDES, load_stock_model
from ..configuration import CaCoVidConfig
from ..modeling import CaCoVidForConditionalGeneration
from ..policies.settings import PolicySettings
from ..utils.blame import one_line
from ..utils.extras import pip_install
from ..utils.files import replaced
from ..utils.names import nearest
from .arguments import CONTRIBUTIONS, NONE_OF_CPO, OF_CPO, OURS, PUBLISHED, ContributionTrainingArguments, check_type
from .batches import is_stream
from .data import AnswerCollator, VideoQuestions, video_of
from .display import TrainingDisplay
from .filter import blind_filter
from .resuming import checkpoint_to_resume, last_complete_checkpoint
from .trainer import ContributionTrainer
from .video_paths import video_path

logger = logging.get_logger(__name__)

PRESETS = {"published": PUBLISHED, "ours": OURS, "contributions": CONTRIBUTIONS}
_DEFAULT_PRESET = "contributions"
# Settings of a policy that is made new, where the config says nothing of its shape.
_NEW_POLICY: dict[str, dict[str, Any]] = {"contributions": {"policy_type": "light"}}
# Of a policy that is trained on, its own shape is kept; these say how it selects.
_POLICY_SETTINGS = tuple(name for name in CONFIG_OVERRIDES if name != "policy_trained")


@dataclass
class ModelSection:
    """Which model.

    Attributes:
        name: of a stock backbone, or of a CaCoVID checkpoint whose policy is trained on: a folder or a Hub id.
        dtype: of the backbone; the policy is trained in float32.
        attn_implementation: of the backbone; None: its own.
        revision: on the Hub.
        device_map: None: each process has the whole model on its own device.
    """

    name: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    revision: str | None = None
    device_map: Any = None


@dataclass
class DataSection:
    """Which samples, each a source: a JSON or JSONL file (`data.json`), a dataset for `datasets.load_dataset` (a name, or a mapping of its
    arguments with `path`), or what a function makes (`package.module:function`, or a mapping of its arguments with `function`).

    Attributes:
        train: to learn from.
        eval: to measure the accuracy on in between; not those of the final report.
        root: folder that relative paths of videos start from, and that no path leaves; empty: paths are taken as they are.
        eval_root: the same for `eval`; None: `root`.
        allowed_roots: other folders in which videos may lie; `["/"]`: anywhere.
        num_frames: at most so many frames of a video; None: the processor's setting.
        columns: new names of the columns of files and datasets, such as `question: problem`.
    """

    train: Any = None
    eval: Any = None
    root: str = ""
    eval_root: str | None = None
    allowed_roots: list[str] = field(default_factory=list)
    num_frames: int | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass
class TrainingConfig:
    """A whole config.

    Attributes:
        model: see `ModelSection`.
        policy: settings of `CaCoVidConfig`, such as `policy_attention` and `contribution_share`.
        data: see `DataSection`.
        training: `preset` (`published`, `ours` or `contributions`), and settings of `ContributionTrainingArguments`.
    """

    model: ModelSection = field(default_factory=ModelSection)
    policy: dict[str, Any] = field(default_factory=dict)
    data: DataSection = field(default_factory=DataSection)
    training: dict[str, Any] = field(default_factory=dict)


def read_config(file: str | os.PathLike, default_model: str | os.PathLike | None = None) -> TrainingConfig:
    """Read a config from a YAML file.

    Args:
        file: the config.
        default_model: folder or Hub id of the model where the config names none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, an unknown name, no model or no training data.
    """
    path = Path(file)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise FileNotFoundError(
            f"{path} {found}: give a YAML file with the sections {', '.join(_names(TrainingConfig))}."
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({one_line(error)}): give a config as in examples/configs.") from error
    config = _section(TrainingConfig, content or {}, str(path))
    _check_names(config.policy, _POLICY_SETTINGS, "policy")
    hints = get_type_hints(PolicySettings)
    for name, value in config.policy.items():
        check_type(value, hints.get(name, str | None), f"policy.{name}")
    _check_names(config.training, ["preset", *_names(ContributionTrainingArguments)], "training")
    if config.model.name is None:
        if default_model is None:
            raise ValueError(f"{path} names no model: give model.name, a folder or a Hub id.")
        config.model.name = os.fspath(default_model)
    if config.data.train is None:
        raise ValueError(f"{path} has no training data: give data.train.")
    if config.data.eval is not None and config.data.eval == config.data.train:
        raise ValueError("data.eval is data.train: choose a checkpoint by samples that it was not trained on.")
    return config


def training_arguments(config: TrainingConfig) -> ContributionTrainingArguments:
    """Return the arguments of the `training` section: the preset's, and over them those that are written out.

    Raises:
        ValueError: an unknown preset, a value out of range.
    """
    settings = dict(config.training)
    preset = settings.pop("preset", _DEFAULT_PRESET)
    if preset not in PRESETS:
        raise ValueError(f"training.preset={preset!r} is unknown. Choose one of {', '.join(PRESETS)}.")
    recipe = PRESETS[preset]
    if settings.get("teacher", recipe.get("teacher")) is None:
        recipe = {name: value for name, value in recipe.items() if not name.startswith("teacher")}
    hints = get_type_hints(ContributionTrainingArguments)
    for name, value in settings.items():
        if name.endswith("_strategy") and value is False:
            settings[name] = value = "no"  # which is YAML's word for false
        # Those of transformers are not all checked there: a text such as "false" would count as true.
        check_type(value, hints[name], f"training.{name}")
    if "preset" not in config.training and "objective" not in settings:
        of_rollouts = [name for name in OF_CPO if name in settings]
        of_rollouts += [name for name in NONE_OF_CPO if settings.get(name)]
        if of_rollouts:
            raise ValueError(
                f"training.{of_rollouts[0]} is of rollouts, and the preset is {preset!r} where a config names none. "
                "Name training.preset, ours or published, or leave it out."
            )
    # A push is one commit of the finished policy, unless another strategy is asked for.
    defaults: dict[str, Any] = {"report_to": "none", "logging_steps": 10, "hub_strategy": "end"}
    if config.data.eval is not None:
        defaults |= {"eval_strategy": settings.get("save_strategy", "steps")}
    try:
        return ContributionTrainingArguments(**{**defaults, **recipe, **settings})
    except TypeError as error:
        raise ValueError(f"training: {error}") from error


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


def load_samples(source: Any, columns: Mapping[str, str], name: str) -> Any:
    """Return a dataset from a source; see `DataSection`.

    Raises:
        OSError: files that are missing.
        ValueError: a source of no known kind.
    """
    if isinstance(source, str):
        if Path(source).suffix in (".json", ".jsonl"):
            source = {"file": source}
        elif Path(source).is_file():
            raise ValueError(f"{name}={source!r} is not a .json or .jsonl file: give one, or the name of a dataset.")
        else:
            source = {"function" if ":" in source else "path": source}
    if not isinstance(source, Mapping) or not {"file", "path", "function"} & set(source):
        raise ValueError(f"{name}={source!r} is not a source of samples: give a file, a dataset's path, or a function.")
    arguments = dict(source)
    if "file" in arguments:
        file = arguments.pop("file")
        _check_names(arguments, (), name)
        return VideoQuestions(file, columns)
    if "function" in arguments:
        made = arguments.pop("function")
        try:
            return _function(made, name)(**arguments)
        except TypeError as error:
            raise ValueError(f"{name}: {made} cannot be called like this ({error}).") from error
    try:
        import datasets
    except ImportError:
        raise ImportError(f"{name} is a dataset, which needs the training extra: {pip_install('train')}.") from None
    path = arguments.pop("path")
    try:
        dataset = datasets.load_dataset(path, **{"split": "train", **arguments})
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: {path} cannot be read as a dataset ({one_line(error)}): give a JSON or JSONL file, a folder of data, or the Hub id of a dataset."
        ) from error
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Video):  # frames are sampled here
            dataset = dataset.cast_column(column, datasets.Video(decode=False))
    return dataset.rename_columns(dict(columns)) if columns else dataset


def check_videos(
    dataset: Any,
    root: str | os.PathLike,
    name: str,
    allowed_roots: Sequence[str] = (),
    num_samples: int = 16,
) -> None:
    """Make sure that of the first samples of `name` at least one has its video, before a model of many gigabytes is loaded.

    Raises:
        FileNotFoundError: none has.
        ValueError: there are no samples, or all of their paths leave `root` and `allowed_roots`.
    """
    if is_stream(dataset):
        beginning = iter(dataset)
        if beginning is dataset:
            return  # what is read from it is gone
        samples = list(islice(beginning, num_samples))
    else:
        samples = [dataset[index] for index in range(min(num_samples, len(dataset)))]
    if not samples:
        raise ValueError(f"{name} has no samples: check its file, split or function.")
    paths, refused = [], ""
    for sample in samples:
        video = video_of(sample) if isinstance(sample, Mapping) else None
        if not isinstance(video, str):
            return
        try:
            path = video_path(video, root, allowed_roots)
        except ValueError as error:
            refused = refused or str(error)
            continue
        if "://" in path or os.path.isfile(path):
            return
        paths.append(path)
    setting = "data.eval_root" if name == "data.eval" else "data.root"
    if not paths:
        raise ValueError(f"{name}: {refused}")
    raise FileNotFoundError(
        f"Of the first {len(samples)} videos of {name} none exists, such as {paths[0]}: set {setting} to the folder that the paths start from."
    )


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
    new = {} if shape else _NEW_POLICY.get(config.training.get("preset", _DEFAULT_PRESET), {})
    return CaCoVidForConditionalGeneration.from_backbone(backbone, **new, **config.policy), processor


def _function(name: str, place: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place}={name!r} cannot be imported ({error}): give package.module:function.") from error


def _section(kind: Any, content: Any, place: str) -> Any:
    """Return a dataclass from a mapping, section by section."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}: give names and values ({', '.join(_names(kind))}).")
    _check_names(content, _names(kind), place)
    values, hints = dict(content), get_type_hints(kind)
    for part in fields(kind):
        if part.name in values and is_dataclass(part.default_factory):
            values[part.name] = _section(part.default_factory, values[part.name] or {}, part.name)
        elif part.name in values and values[part.name] is None and part.default_factory is dict:
            values[part.name] = {}
        if part.name in values:
            check_type(values[part.name], hints[part.name], f"{place}.{part.name}")
    return kind(**values)


def _names(kind: Any) -> list[str]:
    return [part.name for part in fields(kind) if part.init]


def _check_names(content: Any, known: Iterable[str], place: str) -> None:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}: give names and values.")
    known = list(known)
    for name in content:
        if name not in known:
            remedy = nearest(name, known, f"known are {', '.join(known) or 'none'}.")
            raise ValueError(f"{place} has no setting {name!r}: {remedy}")


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-6` is a number, as in Python, and no name stands twice."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
