"""The checkpoint of the published code, under our names: its policy alone, of which the language model around it is never read.

Names there: `compression_policy.` with `layers.0.*` (a Qwen2 layer), `layernorm.weight`, `token_compress.*`, `frame_compress.*`, and `mode_selection.*`,
which no loss trained and no inference uses (facts of the published format; nothing of its code or weights is part of this package).
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import extract_commit_hash

from ..backbones import BACKBONES, backbone_family
from ..configuration import CaCoVidConfig
from ..hub.card import CARD, CardFacts
from ..hub.source import Source, StoredTensor, check_weights
from ..policies.factory import make_policy
from ..policies.settings import PUBLISHED_SELECTION
from ..utils.files import replaced
from .saving import write

PREFIX = "compression_policy."
# Published name to ours; what is read and dropped has no name here.
RENAMED = {
    "layers.0.": "layer.",
    "layernorm.": "norm.",
    "token_compress.": "token_head.",
    "frame_compress.": "frame_head.",
}
DROPPED = "mode_selection."
# What was published: the backbones of the paper by hidden and intermediate size.
BASES = {
    ("llava_onevision", 3584, 18944): "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ("qwen2_5_vl", 2048, 11008): "Qwen/Qwen2.5-VL-3B-Instruct",
}
SETTINGS: dict[str, Any] = dict(
    policy_type="full", policy_attention="causal", **asdict(PUBLISHED_SELECTION), policy_trained=True
)
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


@dataclass(frozen=True)
class Published:
    """A published checkpoint, found and checked by its headers; no tensor has been read yet.

    Attributes:
        source: where it is.
        tensors: by our names.
        dropped: published tensors that nothing uses.
        config: of the checkpoint that it becomes.
        license: what the source says of its license; None if it says nothing.
    """

    source: Source
    tensors: dict[str, StoredTensor]
    dropped: dict[str, StoredTensor]
    config: CaCoVidConfig
    license: str | None

    @property
    def license_question(self) -> str:
        """To be put before whoever asks for the import."""
        said = (
            f"{self.source.name} names {self.license} as its license; read it."
            if self.license
            else f"{self.source.name} publishes no license for its weights, so no right to use, change or pass them on is granted by it."
        )
        return (
            f"{said}\nThe weights are not part of cacovid-hf and not covered by its license. Whether you may use them, and pass the result on, is "
            "between you and their authors."
        )


def import_published(
    source: str | os.PathLike,
    to: str | os.PathLike,
    *,
    base: "str | os.PathLike | PreTrainedConfig | None" = None,
    base_revision: str | None = None,
    **hub: Any,
) -> CaCoVidConfig:
    """Convert the policy of a published checkpoint; whether its license allows that is the caller's to know.

    Args:
        source: a folder or a Hub id; single or sharded safetensors.
        to: a new folder.
        base: the backbone that the policy was trained for, or its config; None tells it from the source's config and sizes.
        base_revision: of the backbone; None is the commit that its name stands for now.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

    Returns:
        The config of the new checkpoint.

    Raises:
        ValueError: tensors that are missing, extra, misshapen or not finite, by their published names; a backbone that cannot be told.
        OSError: files that are missing.
    """
    found = find(source, base=base, base_revision=base_revision, to=to, **hub)
    for _ in convert(found, to):
        pass
    return found.config


def find(
    source: str | os.PathLike,
    *,
    to: str | os.PathLike,
    base: "str | os.PathLike | PreTrainedConfig | None" = None,
    base_revision: str | None = None,
    **hub: Any,
) -> Published:
    """Find a published checkpoint and its backbone's config, and check that the one fits the other; see `import_published`."""
    if (folder := Path(to)).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: give a new folder.")
    place = Source.of(source, {key: value for key, value in hub.items() if value is not None}).pinned()
    stored = place.stored(PREFIX)
    if not stored:
        raise ValueError(
            f"{place.name} has no tensor named {PREFIX}*: give a checkpoint of the published CaCoVID code."
        )
    name, revision, backbone = _backbone(place, stored, base, base_revision)
    config = CaCoVidConfig(
        backbone_config=backbone, base_model_name_or_path=name, base_model_revision=revision, **SETTINGS
    )
    dropped = {key: tensor for key, tensor in stored.items() if key.startswith(DROPPED)}
    tensors = {_our_name(key): tensor for key, tensor in stored.items() if key not in dropped}
    _check(config, tensors, place.name)
    return Published(place, tensors, dropped, config, _license(place))


def convert(found: Published, to: str | os.PathLike) -> Iterator[str]:
    """Read the policy, write it to a new folder, and say what was done, line by line."""
    tensors = {name: _finite(stored, found.source.name) for name, stored in found.tensors.items()}
    for stored in found.dropped.values():
        _finite(stored, found.source.name)
    revision = found.source.hub.get("revision")
    origin = found.source.name + (f" at {revision}" if revision else "")
    notes = [
        f"Converted from {origin}. The license of these weights is not ours to give: {found.license or 'the source states none'}.",
    ]
    folder = Path(to).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced(folder) as temporary:
        temporary.mkdir()
        write(temporary, found.config, tensors, CardFacts(notes=notes), place=folder)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    base, base_revision = found.config.base_model_name_or_path, found.config.base_model_revision
    yield f"policy    {len(tensors)} tensors, {parameters:,} parameters, {next(iter(tensors.values())).dtype}".replace(
        "torch.", ""
    )
    yield f"dropped   {len(found.dropped)} tensors ({DROPPED}*), which nothing uses"
    yield f"backbone  {base or 'not named: load with backbone='}" + (f" at {base_revision}" if base_revision else "")
    yield f"settings  {', '.join(f'{key} {value}' for key, value in SETTINGS.items())}"
    yield f"written   {folder}"


def _our_name(published: str) -> str:
    for old, new in RENAMED.items():
        if published.startswith(old):
            return new + published[len(old) :]
    return f"{PREFIX}{published}"  # which no policy has, so that it is named as unexpected


def _published_name(ours: str) -> str:
    for old, new in RENAMED.items():
        if ours.startswith(new):
            return PREFIX + old + ours[len(new) :]
    return ours


def _check(config: CaCoVidConfig, tensors: dict[str, StoredTensor], name: str) -> None:
    """Raise a `ValueError` in published names if the policy of `config` is not exactly `tensors`."""
    with torch.device("meta"):
        policy = make_policy(config, config.backbone_config)
    expected = {_published_name(key): tensor for key, tensor in policy.state_dict().items()}
    check_weights(expected, {_published_name(key): tensor for key, tensor in tensors.items()}, name)


def _finite(stored: StoredTensor, name: str) -> Tensor:
    tensor = stored.read()
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{stored.name} of {name} holds NaN or infinite values: copy or download it again.")
    return tensor


def _backbone(
    source: Source, stored: dict[str, StoredTensor], base: Any, revision: str | None
) -> tuple[str | None, str | None, PreTrainedConfig]:
    """Id, revision and config of the backbone: as told, or told from the source."""
    if isinstance(base, PreTrainedConfig):
        backbone_family(base)
        return base.name_or_path or None, revision, base
    values = source.config() if source.file("config.json") else {}
    family = values.get("model_type")
    if base is None:
        sizes = _sizes(stored)
        base = BASES.get((family if family in BACKBONES else "llava_onevision", *sizes))
    if base is None and family in BACKBONES:
        return None, None, AutoConfig.from_pretrained(source.name, trust_remote_code=False, **source.hub)
    if base is None:
        raise ValueError(
            f"The backbone of {source.name} cannot be told from its sizes (hidden and intermediate size {_sizes(stored)}): give base (--base)."
        )
    hub = {key: value for key, value in source.hub.items() if key not in ("revision", "subfolder")}
    place = Source(os.fspath(base), {**hub, **({"revision": revision} if revision else {})})
    place.config()
    commit = extract_commit_hash(place.file("config.json"), None)
    config = AutoConfig.from_pretrained(place.name, trust_remote_code=False, **place.hub)
    backbone_family(config)
    return place.name, commit or revision, config


def _sizes(stored: dict[str, StoredTensor]) -> tuple[int, int]:
    shape = stored["layers.0.mlp.up_proj.weight"].shape if "layers.0.mlp.up_proj.weight" in stored else ()
    return (shape[1], shape[0]) if len(shape) == 2 else (0, 0)


def _license(source: Source) -> str | None:
    for file in LICENSE_FILES:
        if source.file(file):
            return f"its file {file}"
    path = source.file(CARD)
    if path is None:
        return None
    card = ModelCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)
    return card.data.get("license")
