"""Checkpoints on disk and on the Hub: `config.json`, the policy's `model.safetensors`, and for a self-contained one a folder `backbone`.

Only safetensors are read, only by name and shape; everything is written under a temporary name first.
"""

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import cached_file, logging

from .configuration import CaCoVidConfig

if TYPE_CHECKING:
    from .modeling import CaCoVidForConditionalGeneration

logger = logging.get_logger(__name__)

WEIGHTS, INDEX, BACKBONE_FOLDER = "model.safetensors", "model.safetensors.index.json", "backbone"
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token", "revision", "subfolder")
# What of the Hub's arguments goes on to the backbone, whose own revision is pinned in the config.
SHARED_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
CONFIG_OVERRIDES = (
    "retention_ratio",
    "contribution_share",
    "frame_cap",
    "scope",
    "policy_type",
    "policy_attention",
    "base_model_name_or_path",
    "base_model_revision",
    "policy_trained",
)
NEVER_FORWARDED = (
    "trust_remote_code",
    "code_revision",
    "use_safetensors",
    "weights_only",
    "_from_auto",
    "_commit_hash",
    "adapter_kwargs",
)


@dataclass(frozen=True)
class Source:
    """Where a checkpoint is: a folder or a Hub id, and the arguments to reach it."""

    name: str
    hub: dict[str, Any]

    @classmethod
    def of(cls, name: str | os.PathLike, kwargs: dict[str, Any]) -> "Source":
        """Take the Hub's arguments out of those of a `from_pretrained`."""
        return cls(os.fspath(name), {key: kwargs.pop(key) for key in HUB_ARGUMENTS if kwargs.get(key) is not None})

    def config(self, config: CaCoVidConfig | None, overrides: dict[str, Any]) -> CaCoVidConfig:
        """The checkpoint's config with `overrides`, checked again."""
        if config is None:
            if self.file("config.json") is None:
                raise FileNotFoundError(
                    f"{self.name} has no config.json: give the folder or the Hub id of a CaCoVid checkpoint."
                )
            config = CaCoVidConfig.from_pretrained(self.name, **self.hub)
        if not isinstance(config, CaCoVidConfig) or config.model_type != CaCoVidConfig.model_type:
            raise ValueError(
                f"{self.name} has no CaCoVid config (model_type {config.model_type!r}): wrap a stock model with from_backbone."
            )
        return CaCoVidConfig.from_dict({**config.to_dict(), **overrides}) if overrides else config

    def file(self, filename: str) -> str | None:
        """Local path of one of the checkpoint's files, fetched if need be; None if there is none."""
        if Path(filename).name != filename:
            raise ValueError(f"{self.name} names a file outside its folder, {filename!r}: do not use this checkpoint.")
        return cached_file(self.name, filename, _raise_exceptions_for_missing_entries=False, **self.hub)

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix` (taken off their names), from one file or from shards; no other is read."""
        if single := self.file(WEIGHTS):
            return read_tensors(single, prefix)
        index = self.file(INDEX)
        if index is None:
            if self.file("pytorch_model.bin"):
                raise ValueError(
                    f"{self.name} holds only pickled weights (pytorch_model.bin), which are never opened: save it as {WEIGHTS}."
                )
            raise FileNotFoundError(f"{self.name} has no {WEIGHTS}: save a model there with save_pretrained.")
        with open(index, encoding="utf-8") as file:
            weight_map: dict[str, str] = json.load(file)["weight_map"]
        tensors = {}
        for shard in sorted({shard for name, shard in weight_map.items() if name.startswith(prefix)}):
            path = self.file(shard)
            if path is None:
                raise FileNotFoundError(
                    f"{self.name} lacks the shard {shard}, which {INDEX} names: copy or download it again."
                )
            tensors.update(read_tensors(path, prefix))
        return tensors


def read_tensors(path: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names start with `prefix`, the prefix taken off."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({error}): it is damaged or a renamed pickle, which is never opened."
        ) from error


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: Source) -> None:
    """Copy `tensors` into `module`; a `ValueError` names what is missing, left over or misshapen."""
    expected = module.state_dict()
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(set(expected) & set(tensors))
        if tensors[name].shape != expected[name].shape
    ]
    problems = (
        [f"missing: {', '.join(missing)}"] * bool(missing) + [f"unexpected: {', '.join(extra)}"] * bool(extra) + shapes
    )
    if problems:
        raise ValueError(
            f"The policy's weights in {source.name} do not fit its config ({'; '.join(problems)}): they belong to another version or backbone."
        )
    module.load_state_dict(tensors)


def load_backbone(
    config: CaCoVidConfig, source: Source, backbone: str | os.PathLike | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    """Load the backbone of a checkpoint: the caller's, the one inside it, or the one its config names, at its own revision."""
    shared = {key: source.hub[key] for key in SHARED_HUB_ARGUMENTS if key in source.hub}
    settings = {key: value for key, value in kwargs.items() if key not in NEVER_FORWARDED}
    if config._attn_implementation is not None:
        settings.setdefault("attn_implementation", config._attn_implementation)
    if backbone is not None:
        name = os.fspath(backbone)
    elif config.includes_backbone:
        name = source.name
        inner = "/".join(part for part in (source.hub.get("subfolder"), BACKBONE_FOLDER) if part)
        shared |= {"subfolder": inner} | {key: source.hub[key] for key in ("revision",) if key in source.hub}
    elif config.base_model_name_or_path:
        name = config.base_model_name_or_path
        shared |= (
            {"revision": config.base_model_revision} if config.base_model_revision and not os.path.isdir(name) else {}
        )
    else:
        raise ValueError(
            f"{source.name} does not say which backbone it was made for: give backbone= (an id, a folder or a model)."
        )
    try:
        return load_stock_model(name, **shared, **settings)
    except OSError as error:
        if backbone is not None or config.includes_backbone:
            raise
        raise OSError(
            f"The backbone {name} that {source.name} was made for cannot be loaded ({' '.join(str(error).split())}): give backbone= (an id, a "
            "folder or a model)."
        ) from error


def load_stock_model(name: str | os.PathLike, **settings: Any) -> PreTrainedModel:
    """Load a stock model from safetensors, and refuse damaged or incomplete weights, which stock loading fills with random numbers.

    Raises:
        ValueError: weights that are damaged, do not fit the config or are not all there.
    """
    if settings.pop("output_loading_info", False):
        raise ValueError("output_loading_info=True is not supported: weights that do not fit are an error here.")
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, use_safetensors=True, output_loading_info=True, **settings
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"The weights of {os.fspath(name)} are damaged or do not fit its config ({' '.join(str(error).split())[:300]}): copy or download them again."
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"The weights of {os.fspath(name)} lack {', '.join(missing[:3])}{more}: copy or download them again."
        )
    return model


def save(
    model: "CaCoVidForConditionalGeneration",
    folder: str | os.PathLike,
    *,
    include_backbone: bool,
    state_dict: dict[str, Tensor] | None,
    backbone_kwargs: dict[str, Any],
) -> None:
    """Write a checkpoint; see `CaCoVidForConditionalGeneration.save_pretrained`."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.includes_backbone = include_backbone
    config.architectures = [type(model).__name__]
    config.dtype = model.policy.dtype
    config.backbone_config._name_or_path = ""  # base_model_name_or_path says it, and only where it is meant to be said
    tensors = part_of(model.state_dict() if state_dict is None else state_dict, "policy.", "state_dict", model.policy)
    base = config.base_model_name_or_path
    if include_backbone:
        if "peft_config" in vars(model.backbone):
            raise ValueError(
                "The backbone carries PEFT adapters, and a self-contained checkpoint would lose them: merge them first "
                "(merge_and_unload), or save the policy alone."
            )
    elif not base:
        raise ValueError(
            "The backbone has no id, so a policy-only checkpoint could not be loaded again: give base_model_name_or_path to "
            "from_backbone, or save with include_backbone=True."
        )
    elif os.path.isdir(base):
        logger.warning(
            f"The backbone is the local folder {base}: this policy-only checkpoint loads only where that folder is. Give "
            "base_model_name_or_path, or save with include_backbone=True."
        )
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if include_backbone:
            inner = None if state_dict is None else part_of(state_dict, "backbone.", "state_dict")
            with replaced(folder / BACKBONE_FOLDER) as temporary:
                model.backbone.save_pretrained(temporary, state_dict=inner, **backbone_kwargs)
        with replaced(folder / WEIGHTS) as temporary:
            save_file(
                {f"policy.{name}": tensor for name, tensor in tensors.items()}, temporary, metadata={"format": "pt"}
            )
        with replaced(folder / "config.json") as temporary:
            config.to_json_file(temporary)
    except OSError as error:
        raise OSError(
            f"The checkpoint cannot be written to {folder} ({error}): choose a folder that can be written."
        ) from error


def part_of(
    state_dict: dict[str, Tensor], prefix: str, name: str, module: nn.Module | None = None
) -> dict[str, Tensor]:
    """The tensors of a state dict under `prefix`, the prefix taken off, contiguous and on the CPU."""
    part = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    lacking = sorted(set(module.state_dict()) - set(part)) if module is not None else []
    if not part or lacking:
        raise ValueError(
            f"{name} lacks {prefix}{lacking[0] if lacking else '*'}: give the state dict of the whole model."
        )
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in part.items()}


class replaced:
    """A temporary path that takes the place of `path` when the block ends well, and is removed when it does not."""

    def __init__(self, path: Path):
        self.path, self.temporary = path, path.with_name(f".{path.name}.{uuid.uuid4().hex}")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, error_type, error, trace) -> None:
        try:
            if error_type is None:
                # A folder cannot be replaced in one step: the old one steps aside until the new one stands.
                aside = self.temporary.with_name(f"{self.temporary.name}.old")
                was_folder = self.path.is_dir()
                if was_folder:
                    os.replace(self.path, aside)
                os.replace(self.temporary, self.path)
                if was_folder:
                    shutil.rmtree(aside)
        finally:
            if self.temporary.is_dir():
                shutil.rmtree(self.temporary, ignore_errors=True)
            else:
                self.temporary.unlink(missing_ok=True)
