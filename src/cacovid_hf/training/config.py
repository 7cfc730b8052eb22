"""A training written down in YAML, read and checked.

A config has the sections `model`, `policy`, `data` and `training`; every name in them is known, and an unknown one is refused with the nearest that is.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..checkpoints.loading import CONFIG_OVERRIDES
from ..policies.settings import PolicySettings
from ..utils.blame import one_line
from ..utils.checks import check_names, check_type
from .arguments import ContributionTrainingArguments
from .presets import DEFAULT_PRESET, NONE_OF_CPO, OF_CPO, PRESETS

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
    check_names(config.policy, _POLICY_SETTINGS, "policy")
    hints = get_type_hints(PolicySettings)
    for name, value in config.policy.items():
        check_type(value, hints.get(name, str | None), f"policy.{name}")
    check_names(config.training, ["preset", *_names(ContributionTrainingArguments)], "training")
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
    preset = settings.pop("preset", DEFAULT_PRESET)
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
        saved = settings.get("save_strategy")
        defaults |= {"eval_strategy": saved if saved in ("steps", "epoch") else "steps"}
    try:
        return ContributionTrainingArguments(**{**defaults, **recipe, **settings})
    except TypeError as error:
        raise ValueError(f"training: {error}") from error


def _section(kind: Any, content: Any, place: str) -> Any:
    """Return a dataclass from a mapping, section by section."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{place} is {content!r}: give names and values ({', '.join(_names(kind))}).")
    check_names(content, _names(kind), place)
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
