"""What transformers answers: the path of this package without vLLM."""

from pathlib import Path
from typing import Any

import torch
from in_engine.cases import NEW_TOKENS, Case
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader


class Reference:
    """Answers of a checkpoint by transformers."""

    def __init__(self, folder: Path, processor: Path | None = None, dtype: torch.dtype = torch.float32):
        self.model = CaCoVidForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        self.processor = with_video_reader(AutoProcessor.from_pretrained(processor or folder))
        self.family = self.model.backbone.config.model_type

    def inputs(self, case: Case) -> dict[str, Any]:
        """What `generate` takes."""
        media: dict[str, Any] = {}
        if clips := case.clips():
            media["videos"] = [clip.pixels() for clip in clips]
            media["video_metadata"] = [VideoMetadata(**clip.metadata()) for clip in clips]
            media["do_sample_frames"] = False
        if pictures := case.pictures():
            media["images"] = [picture.image() for picture in pictures]
        made = self.processor(text=[case.prompt(self.family)], return_tensors="pt", **media)
        return {
            name: value.to(self.model.dtype) if name.startswith("pixel_values") else value
            for name, value in made.items()
        }

    @torch.no_grad()
    def answer(self, case: Case, new_tokens: int = NEW_TOKENS) -> dict[str, Any]:
        """New tokens, and the length of the compressed prompt."""
        inputs = self.inputs(case)
        how = {} if case.ratio is None else {"retention_ratio": case.ratio}
        method = {} if case.method is None else {"compressor": case.method}
        length = (
            self.model.compress(**inputs, **how, **method).input_ids.shape[1] if how else inputs["input_ids"].shape[1]
        )
        ids = self.model.generate(
            **inputs, **how, **method, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        return {"tokens": ids[0, inputs["input_ids"].shape[1] :].tolist(), "length": length}

    @torch.no_grad()
    def kept(self, case: Case) -> list[int]:
        """Which tokens of the first video stay."""
        found = self.model.compress(**self.inputs(case), retention_ratio=case.ratio, compressor=case.method)
        return found.videos[0].keep.flatten().nonzero()[:, 0].tolist()
