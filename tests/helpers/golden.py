"""The numbers of the published code in `tests/golden`: what its README says, read."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from cacovid_hf.prompt import PromptLayout, VideoSpan

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(part: str) -> tuple[dict, dict[str, Tensor]]:
    """The cases and the tensors of one part: `policy`, `select`, `train` or `peers`."""
    index = json.loads((GOLDEN / "index.json").read_text(encoding="utf-8"))
    return index[part], load_file(GOLDEN / f"{part}.safetensors")


def with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins so, named by what follows."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def policy_cases(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Every case of `policy`: its name, the published name of its attention, and its grid."""
    for key in tensors:
        if key.endswith(".token_compress_logits"):
            name, attention = key.removesuffix(".token_compress_logits").rsplit(".", 1)
            yield name, attention, tuple(int(size) for size in name.split(".")[1].split("x"))


def policy_layout(tensors: dict[str, Tensor], name: str, grid: tuple[int, ...]) -> PromptLayout:
    """Where the one video of a case stands."""
    valid, is_video = (tensors[f"{name}.{kind}_mask"].bool() for kind in ("attention", "video"))
    span = VideoSpan(0, grid, is_video[0].nonzero()[:, 0])
    return PromptLayout(valid=valid, text=valid & ~is_video, videos=(span,))
