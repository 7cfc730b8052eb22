"""Checkpoints on disk and on the Hub: `config.json`, the policy's `model.safetensors`, and for a self-contained one a folder `backbone`.

Only safetensors are read, only by name and shape. A save replaces all files together: see `utils.staging`.
"""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from .._compat import forget_name
from ..configuration import CaCoVidConfig
from ..hub.auto_file import AUTO_MODULE, AUTO_SOURCE
from ..hub.card import CARD, CardFacts, card_text, check_card, write_card
from ..hub.custom_generate import FOLDER as CODE_FOLDER
from ..hub.custom_generate import generated_files
from ..hub.source import BACKBONE_FOLDER, WEIGHTS
from ..policies.settings import check_made_for
from ..utils.files import write_files
from ..utils.staging import replaced_together

logger = logging.get_logger(__name__)

AUTO_CLASSES = {"AutoConfig": "CaCoVidConfig", "AutoModelForImageTextToText": "CaCoVidForConditionalGeneration"}
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


def save(
    model: Any,
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
        logger.warning_once(
            f"The backbone is the local folder {base}, and config.json and the card will say so: this policy-only checkpoint loads only where that "
            "folder is. Give base_model_name_or_path, or save with include_backbone=True."
        )
    folder = Path(folder)
    if card is not False:
        check_card(folder, card if isinstance(card, CardFacts) else CardFacts())
    try:
        with replaced_together(folder) as staged:
            if include_backbone:
                inner = None if state_dict is None else part_of(state_dict, "backbone.", "state_dict")
                model.backbone.save_pretrained(staged / BACKBONE_FOLDER, state_dict=inner, **backbone_kwargs)
            write(staged, config, tensors, card, custom_generate, place=folder)
    except (OSError, SafetensorError) as error:
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error  # one of its files says so already
        raise OSError(
            f"The checkpoint cannot be written to {folder} ({reason}): free disk space, or choose a folder that can be written."
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
    *,
    place: Path,
) -> None:
    """Write everything of a checkpoint but a backbone into an empty folder.

    Args:
        folder: to write into.
        config: is completed.
        policy: its tensors by their names without prefix.
        card: see `save_pretrained`.
        custom_generate: see `save_pretrained`.
        place: where the files will stand; a card that is there is brought up to date.
    """
    config.architectures = [AUTO_CLASSES["AutoModelForImageTextToText"]]
    config.dtype = next(iter(policy.values())).dtype
    config.auto_map = {name: f"{AUTO_MODULE}.{kind}" for name, kind in AUTO_CLASSES.items()}
    forget_name(config.backbone_config)  # base_model_name_or_path says it, and only where it is meant to be said
    tensors = {f"policy.{name}": tensor for name, tensor in policy.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.to_json_file(folder / "config.json")
    (folder / f"{AUTO_MODULE}.py").write_text(AUTO_SOURCE, encoding="utf-8")
    if custom_generate:
        write_files(folder / CODE_FOLDER, generated_files(str(place.resolve())))
    if card is not False:
        facts = card if isinstance(card, CardFacts) else None
        there = card_text(place / CARD) if (place / CARD).is_file() else None
        processor_inside = (place / "processor_config.json").is_file()
        write_card(folder, config, place.resolve().name, facts, there, processor_inside)


def part_of(
    state_dict: dict[str, Tensor], prefix: str, name: str, module: nn.Module | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a state dict under `prefix`, the prefix taken off, contiguous and on the CPU."""
    part = {key[len(prefix) :]: tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
    lacking = sorted(set(module.state_dict()) - set(part)) if module is not None else []
    if not part or lacking:
        raise ValueError(
            f"{name} lacks {prefix}{lacking[0] if lacking else '*'}: give the state dict of the whole model."
        )
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in part.items()}
