"""Load a checkpoint: its config, and its backbone from safetensors alone."""

import os
import reprlib
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from .._compat import PRIVATE_LOADING_ARGUMENTS, attention_implementation
from ..backbones import backbone_family
from ..configuration import CaCoVidConfig
from ..hub.source import BACKBONE_FOLDER, HUB_ARGUMENTS, Source, is_absent_folder, load_weights
from ..policies.base import Policy
from ..policies.factory import check_policy_size, make_policy
from ..policies.settings import PolicySettings
from ..utils.blame import blamed_on, one_line
from ..utils.names import nearest
from ..utils.tensors import first_not_finite

logger = logging.get_logger(__name__)

# What of the Hub's arguments goes on to the backbone, whose own revision is pinned in the config.
SHARED_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


CONFIG_OVERRIDES = (
    *(field.name for field in fields(PolicySettings)),
    "base_model_name_or_path",
    "base_model_revision",
    "policy_trained",
)


NEVER_FORWARDED = (
    "trust_remote_code",
    "code_revision",
    "use_safetensors",
    "weights_only",
    *PRIVATE_LOADING_ARGUMENTS,
    "adapter_kwargs",
)


_COUNTS = ("max_new_tokens", "max_length", "num_beams", "num_return_sequences")
_FACTORS = ("temperature", "repetition_penalty")


def load_config(source: Source, config: CaCoVidConfig | None, overrides: dict[str, Any]) -> CaCoVidConfig:
    """Return the checkpoint's config, or the one given, with `overrides`, checked again."""
    if config is None:
        stored = source.config()
        if stored.get("model_type") != CaCoVidConfig.model_type:
            raise ValueError(
                f"{source.name} has no CaCoVid config (model_type {stored.get('model_type')!r}): wrap a stock model with from_backbone."
            )
        inner = stored.get("backbone_config")
        if not isinstance(inner, dict) or not inner.get("model_type"):
            raise ValueError(
                f"config.json of {source.name} has no backbone_config with a model_type: copy or download it again."
            )
        known = [field.name for field in fields(CaCoVidConfig)]
        for name in sorted(set(stored) - set(known) - {"model_type", "auto_map"}):
            if remedy := nearest(name, known, ""):
                logger.warning(
                    f"config.json of {source.name} has the unknown setting {name}, which does nothing: {remedy}"
                )
        with blamed_on("config.json", source.name):
            config = CaCoVidConfig.from_pretrained(source.name, **source.hub)
    elif source.file("config.json"):
        source.config()
    if not isinstance(config, CaCoVidConfig):
        raise ValueError(f"config is a {type(config).__name__}: give a CaCoVidConfig, or leave it out.")
    return CaCoVidConfig.from_dict({**config.to_dict(), **overrides}) if overrides else config


def load_policy(source: Source, config: CaCoVidConfig) -> Policy:
    """Return the policy of a checkpoint, on the CPU.

    Raises:
        OSError: files that are missing.
        ValueError: weights that are damaged or do not fit the config.
    """
    with blamed_on("config.json", source.name), torch.device("meta"):
        policy = make_policy(config, config.backbone_config)
    load_weights(policy, source.stored("policy."), source.name)
    return policy


def check_nothing_to_load(kwargs: dict[str, Any]) -> None:
    """Raise a `ValueError` if there are settings for a backbone that is loaded already."""
    if useless := sorted(name for name, value in kwargs.items() if name not in NEVER_FORWARDED and value is not None):
        remedy = nearest(useless[0], CONFIG_OVERRIDES, "load it so, or give its id or folder.")
        raise ValueError(
            f"{', '.join(useless)} would do nothing, because backbone is a model that is loaded already: {remedy}"
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
        raise ValueError(f"{source.name} does not say which backbone it was made for: {backbone_remedy(source.name)}")
    try:
        check_backbone(place, config, settings)
        return load_stock_model(place.name, **place.hub, **settings)
    except OSError as error:
        if backbone is not None or config.includes_backbone:
            raise
        raise backbone_not_loaded(place.name, source.name, " ".join(str(error).split())) from error


def backbone_not_loaded(backbone: str, checkpoint: str, reason: str) -> OSError:
    """Return the error about a backbone that is not where a checkpoint says; `reason` may have a remedy of its own, which is left out."""
    gone = is_absent_folder(backbone)
    reason = "there is no such folder here" if gone else reason.split(": try again")[0].rstrip(".")
    return OSError(
        f"The backbone {backbone} that {checkpoint} was made for cannot be loaded ({reason}): {backbone_remedy(checkpoint)}"
    )


def backbone_remedy(checkpoint: str) -> str:
    """Return what tells a checkpoint where its backbone is, on the command line and in Python."""
    return f"write its id or folder as base_model_name_or_path into config.json of {checkpoint}, or in Python give backbone=."


def check_backbone(place: Source, config: CaCoVidConfig | None, settings: dict[str, Any]) -> None:
    """Look at a backbone's config and at the headers of its weights before stock loading allocates anything for it.

    Args:
        place: where it is.
        config: of the policy that it must fit; None if there is none yet.
        settings: of stock loading.

    Raises:
        ValueError: another family or size than the policy's, files outside the folder, pickles, or weights too small for the config.
        OSError: files that are missing.
    """
    if place.file("adapter_config.json") and not place.file("adapter_model.safetensors"):
        raise ValueError(
            f"{place.name} holds an adapter that is not a safetensors file, which is never opened: save it with PEFT's save_pretrained."
        )
    if settings.get("gguf_file") or settings.get("variant") or place.file("config.json") is None:
        return  # stock loading knows where these are, or says what is missing
    backbone_family(
        SimpleNamespace(model_type=place.config().get("model_type"))
    )  # before anything offers to run its code
    if (
        generation := place.json("generation_config.json")
    ) is not None:  # stock loading passes over one that is no JSON
        _check_generation(generation, f"generation_config.json of {place.name}")
        with blamed_on("generation_config.json", place.name):
            GenerationConfig.from_pretrained(place.name, **place.hub)
    with blamed_on("config.json", place.name):
        found = AutoConfig.from_pretrained(place.name, trust_remote_code=False, **place.hub)
        type(found).from_dict(found.to_dict())  # values under a second name are checked by this alone
        least = least_parameters(found)
    if config is not None:
        check_policy_size(config.get_text_config(), found)
    stored = place.stored("")
    size = sum(os.path.getsize(path) for path in {tensor.path for tensor in stored.values()})
    if least > 8 * size:  # not even one bit each
        raise ValueError(
            f"The config of {place.name} describes at least {least:,} parameters, its weights have {size:,} bytes: one of the two is "
            "damaged. Copy or download it again."
        )


def _check_generation(values: dict[str, Any], file: str) -> None:
    """Refuse settings that would fail in the first answer.

    Raises:
        ValueError: naming the file and the value.
    """
    for name, value in values.items():
        if value is None:
            continue
        wanted = ""
        if name.endswith("_token_id"):
            ids = value if isinstance(value, list) else [value]
            wanted = (
                "" if all(type(one) is int and one >= -1 for one in ids) else "a token's number, or a list of these"
            )
        elif name in _COUNTS:
            wanted = "" if type(value) is int and value >= 1 else "a whole number of at least 1"
        elif name in _FACTORS:
            wanted = "" if isinstance(value, (int, float)) and value >= 0 else "a number of at least 0"
        if wanted:
            raise ValueError(
                f"{file} says {name}={reprlib.repr(value)}, which must be {wanted}: copy or download it again."
            )


def least_parameters(config: Any) -> int:
    """Return a lower bound of a backbone's parameters, from its config alone: embeddings and MLPs of the language model (of experts, one per layer)."""
    text = config.get_text_config()
    widths = [text.to_dict().get(name) for name in ("intermediate_size", "moe_intermediate_size")]
    width = min(value for value in widths if value)
    return text.vocab_size * text.hidden_size + 3 * text.num_hidden_layers * text.hidden_size * width


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
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        hub = {key: settings[key] for key in HUB_ARGUMENTS if key in settings}
        with blamed_on("config.json", os.fspath(name)), torch.device("meta"):
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
            AutoModelForImageTextToText.from_config(config)
        if isinstance(error, ValueError) or "unexpected keyword argument" in str(error):
            raise  # the caller's settings are to blame
        raise ValueError(
            f"The weights of {os.fspath(name)} are damaged or do not fit its config.json ({one_line(error)}): copy or download them again."
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"The weights of {os.fspath(name)} lack {', '.join(missing[:3])}{more} of its config.json: copy or download them again."
        )
    if (bad := first_not_finite(model.named_parameters())) is not None:
        raise ValueError(
            f"{bad} in the weights of {os.fspath(name)} holds NaN or infinite values: copy or download them again."
        )
    return model
