"""Random checkpoints with heads of 32, which vLLM's attention on CPUs takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from helpers.models import BY_NAME, stock_model
from helpers.processors import tiny_processor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader

TEXT = dict(hidden_size=128, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2)


@contextmanager
def twice_the_sections(family: str) -> Iterator[None]:
    """M-RoPE sections for heads of 32 instead of 16, where the family has them."""
    row = type(BY_NAME[family])
    narrow = vars(row).get("rope")
    if narrow is None:
        yield
        return
    row.rope = {**narrow, "mrope_section": [2 * size for size in narrow["mrope_section"]]}
    try:
        yield
    finally:
        row.rope = narrow


def write_checkpoint(family: str, folder: Path, *, base: Path | None = None, **policy: Any) -> None:
    """A policy whose scores depend on the question as much as on the token.

    Args:
        family: of the backbone.
        folder: to write into.
        base: where to write the backbone and its processor; None: into the checkpoint itself.
        **policy: for `from_backbone`.
    """
    with twice_the_sections(family):
        backbone = stock_model(family, **TEXT)
    backbone.generation_config.suppress_tokens = None
    torch.manual_seed(7)
    model = CaCoVidForConditionalGeneration.from_backbone(backbone, **policy)
    with torch.no_grad():
        for name, weight in model.policy.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.2 if "layer" in name else 0.5)
    if base is None:
        model.save_pretrained(folder, include_backbone=True)
        with_video_reader(tiny_processor(family)).save_pretrained(folder)
        return
    backbone.save_pretrained(base)
    tiny_processor(family).save_pretrained(base)
    model.config.base_model_name_or_path = str(base)
    model.save_pretrained(folder)
