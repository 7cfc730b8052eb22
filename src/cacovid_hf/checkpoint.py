"""Checkpoints on disk and on the Hub: `config.json`, the policy's `model.safetensors`, and for a self-contained one a folder `backbone`.

Only safetensors are read, only by name and shape; everything is written under a temporary name first.
"""

import difflib
import os
import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from ._compat import PRIVATE_LOADING_ARGUMENTS, attention_implementation, forget_name
from .backbones import backbone_family
from .configuration import CaCoVidConfig
from .hub.card import CardFacts, check_card, write_card
from .hub.custom_generate import FOLDER as CODE_FOLDER
from .hub.custom_generate import generated_files
from .hub.source import WEIGHTS, Source
from .policy_settings import check_made_for
from .processing import AUTO_MODULE, AUTO_SOURCE
from .wrapping import check_policy_size

if TYPE_CHECKING:
    from .modeling import CaCoVidForConditionalGeneration

logger = logging.get_logger(__name__)

BACKBONE_FOLDER = "backbone"
AUTO_CLASSES = {"AutoConfig": "CaCoVidConfig", "AutoModelForImageTextToText": "CaCoVidForConditionalGeneration"}
# What of the Hub's arguments goes on to the backbone, whose own revision is pinned in the config.
SHARED_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
CONFIG_OVERRIDES = (
    "retention_ratio",
    "auto_floor",
    "auto_cap",
    "auto_threshold",
    "contribution_share",
    "frame_cap",
    "scope",
    "policy_type",
    "policy_attention",
    "base_model_name_or_path",
    "base_model_revision",
    "policy_trained",
)
# Beside those of `CaCoVidForConditionalGeneration.save_pretrained` itself; older callers of transformers pass the second row.
SAVING_ARGUMENTS = (
    *(
        "include_backbone",
        "is_main_process",
        "state_dict",
        "push_to_hub",
        "card",
        "custom_generate",
        "max_shard_size",
        "variant",
        "token",
    ),
    *("save_function", "safe_serialization", "save_peft_format", "save_original_format", "distributed_checkpoint"),
)
NEVER_FORWARDED = (
    "trust_remote_code",
    "code_revision",
    "use_safetensors",
    "weights_only",
    *PRIVATE_LOADING_ARGUMENTS,
    "adapter_kwargs",
)


def load_config(source: Source, config: CaCoVidConfig | None, overrides: dict[str, Any]) -> CaCoVidConfig:
    """The checkpoint's config, or the one given, with `overrides`, checked again."""
    if config is None:
        stored = source.config()
        if stored.get("model_type") != CaCoVidConfig.model_type:
            raise ValueError(
                f"{source.name} has no CaCoVid config (model_type {stored.get('model_type')!r}): wrap a stock model with from_backbone."
            )
        config = CaCoVidConfig.from_pretrained(source.name, **source.hub)
    elif source.file("config.json"):
        source.config()
    if not isinstance(config, CaCoVidConfig):
        raise ValueError(f"config is a {type(config).__name__}: give a CaCoVidConfig, or leave it out.")
    return CaCoVidConfig.from_dict({**config.to_dict(), **overrides}) if overrides else config


def check_nothing_to_load(kwargs: dict[str, Any]) -> None:
    """Raise a `ValueError` if there are settings for a backbone that is loaded already."""
    if useless := sorted(name for name, value in kwargs.items() if name not in NEVER_FORWARDED and value is not None):
        near = difflib.get_close_matches(useless[0], CONFIG_OVERRIDES, n=1)
        raise ValueError(
            f"{', '.join(useless)} would do nothing, because backbone is a model that is loaded already: "
            + (f"did you mean {near[0]}?" if near else "load it so, or give its id or folder.")
        )


def load_backbone(
    config: CaCoVidConfig, source: Source, backbone: str | os.PathLike | None, kwargs: dict[str, Any]
) -> PreTrainedModel:
    """Load the backbone of a checkpoint: the caller's, the one inside it, or the one its config names, at its own revision."""
    shared = {key: source.hub[key] for key in SHARED_HUB_ARGUMENTS if key in source.hub}
    settings = {key: value for key, value in kwargs.items() if key not in NEVER_FORWARDED}
    if (attention := attention_implementation(config)) is not None:
        settings.setdefault("attn_implementation", attention)
    if backbone is not None:
        place = Source(os.fspath(backbone), shared)
    elif config.includes_backbone:
        place = source.inside(BACKBONE_FOLDER)
        if place.file("config.json") is None:
            raise FileNotFoundError(
                f"{source.name} should include its backbone, and has no {BACKBONE_FOLDER}/config.json: copy or download it again."
            )
    elif name := config.base_model_name_or_path:
        pinned = {"revision": config.base_model_revision}
        place = Source(name, {**shared, **(pinned if config.base_model_revision and not os.path.isdir(name) else {})})
    else:
        raise ValueError(
            f"{source.name} does not say which backbone it was made for: give backbone= (an id, a folder or a model)."
        )
    try:
        check_backbone(place, config, settings)
        return load_stock_model(place.name, **place.hub, **settings)
    except OSError as error:
        if backbone is not None or config.includes_backbone:
            raise
        raise OSError(
            f"The backbone {place.name} that {source.name} was made for cannot be loaded ({' '.join(str(error).split())}): give backbone= (an id, a "
            "folder or a model)."
        ) from error


def check_backbone(place: Source, config: CaCoVidConfig, settings: dict[str, Any]) -> None:
    """Look at a backbone's config and at the headers of its weights before stock loading allocates anything for it.

    Raises:
        ValueError: another family or size than the policy's, files outside the folder, pickles, or weights too small for the config.
        OSError: files that are missing.
    """
    if place.file("adapter_config.json") and not place.file("adapter_model.safetensors"):
        raise ValueError(
            f"{place.name} holds an adapter that is no safetensors file, which is never opened: convert it."
        )
    if settings.get("gguf_file") or settings.get("variant") or place.file("config.json") is None:
        return  # stock loading knows where these are, or says what is missing
    backbone_family(
        SimpleNamespace(model_type=place.config().get("model_type"))
    )  # before anything offers to run its code
    found = AutoConfig.from_pretrained(place.name, trust_remote_code=False, **place.hub)
    check_policy_size(config.get_text_config(), found)
    stored = place.stored("")
    size = sum(os.path.getsize(path) for path in {tensor.path for tensor in stored.values()})
    if (least := least_parameters(found)) > 8 * size:  # not even one bit each
        raise ValueError(
            f"The config of {place.name} describes at least {least:,} parameters, its weights have {size:,} bytes: one of the two is "
            "damaged; copy or download it again."
        )


def least_parameters(config: Any) -> int:
    """A lower bound of a backbone's parameters, from its config alone."""
    text, vision = config.get_text_config(), config.vision_config
    layers: int = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None) or 0
    return (
        text.vocab_size * text.hidden_size
        + 3 * text.num_hidden_layers * text.hidden_size * text.intermediate_size
        + 2 * layers * vision.hidden_size * vision.intermediate_size
    )


def load_stock_model(name: str | os.PathLike, **settings: Any) -> PreTrainedModel:
    """Load a stock model from safetensors, and refuse damaged or incomplete weights, which stock loading fills with random numbers.

    Raises:
        ValueError: weights that are damaged, do not fit the config or are not all there.
    """
    if settings.pop("output_loading_info", False):
        raise ValueError("output_loading_info=True is not supported: weights that do not fit are an error here.")
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            name, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
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
    card: CardFacts | bool,
    custom_generate: bool,
    backbone_kwargs: dict[str, Any],
) -> None:
    """Write a checkpoint; see `CaCoVidForConditionalGeneration.save_pretrained`."""
    check_made_for(model.config, model.policy)
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.includes_backbone = include_backbone
    tensors = part_of(model.state_dict() if state_dict is None else state_dict, "policy.", "state_dict", model.policy)
    base = config.base_model_name_or_path
    if not include_backbone and is_tuned(model.backbone):
        logger.warning_once(
            "The backbone is being tuned (parameters that require gradients, in training mode or with gradients), and the policy is saved alone: pass "
            "include_backbone=True, or save model.backbone or its PEFT adapter too."
        )
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
            f"The backbone is the local folder {base}, and config.json and the card will say so: this policy-only checkpoint loads only where that "
            "folder is. Give base_model_name_or_path, or save with include_backbone=True."
        )
    folder = Path(folder)
    if card is not False:
        check_card(folder, card if isinstance(card, CardFacts) else CardFacts())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if include_backbone:
            inner = None if state_dict is None else part_of(state_dict, "backbone.", "state_dict")
            with replaced(folder / BACKBONE_FOLDER) as temporary:
                model.backbone.save_pretrained(temporary, state_dict=inner, **backbone_kwargs)
        write(folder, config, tensors, card, custom_generate)
    except OSError as error:
        raise OSError(
            f"The checkpoint cannot be written to {folder} ({error}): choose a folder that can be written."
        ) from error


def is_tuned(backbone: nn.Module) -> bool:
    """Whether a backbone looks like one in the middle of training."""
    return any(
        weight.requires_grad and (backbone.training or weight.grad is not None) for weight in backbone.parameters()
    )


def write(
    folder: Path,
    config: CaCoVidConfig,
    policy: dict[str, Tensor],
    card: CardFacts | bool,
    custom_generate: bool = False,
    name: str | None = None,
) -> None:
    """Write everything of a checkpoint but a backbone into an existing folder; `policy` without its prefix, `config` is completed."""
    config.architectures = [AUTO_CLASSES["AutoModelForImageTextToText"]]
    config.dtype = next(iter(policy.values())).dtype
    config.auto_map = {name: f"{AUTO_MODULE}.{kind}" for name, kind in AUTO_CLASSES.items()}
    forget_name(config.backbone_config)  # base_model_name_or_path says it, and only where it is meant to be said
    with replaced(folder / WEIGHTS) as temporary:
        save_file({f"policy.{name}": tensor for name, tensor in policy.items()}, temporary, metadata={"format": "pt"})
    with replaced(folder / "config.json") as temporary:
        config.to_json_file(temporary)
    with replaced(folder / f"{AUTO_MODULE}.py") as temporary:
        temporary.write_text(AUTO_SOURCE, encoding="utf-8")
    if custom_generate:
        with replaced(folder / CODE_FOLDER) as temporary:
            write_files(temporary, generated_files(str(folder.resolve())))
    if card is not False:
        facts = card if isinstance(card, CardFacts) else None
        processor_inside = (folder / "processor_config.json").is_file()
        write_card(folder, config, name or folder.resolve().name, facts, processor_inside=processor_inside)


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


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Make a folder of text files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


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
