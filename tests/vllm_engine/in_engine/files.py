"""Real video files of Qwen2.5-VL, read by vLLM's way and by transformers': the same frames at the same times, so the same answers."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers.media import write_video
from in_engine import engines
from in_engine.cases import NEW_TOKENS, VIDEO
from in_engine.reference import Reference
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

FAMILY = "qwen2_5_vl"
PROMPT = f"what color {VIDEO[FAMILY]} is the circle answer"
# Frames a second and frames: fewer than one a second, one, and more, of which one a second is sampled.
FILES = ((Fraction(1, 2), 11), (Fraction(1), 9), (Fraction(30), 100))


@torch.no_grad()
def asked(llm: Any, found: Reference, folder: Path) -> dict[str, int]:
    """How many answers there are about files, whole and compressed, and how many are those of transformers."""
    reading = dict(llm.model_config.multimodal_config.media_io_kwargs["video"])
    loader = VIDEO_LOADER_REGISTRY.load(reading.pop("video_backend"))
    same = []
    for fps, count in FILES:
        path = folder / f"{count}.mp4"
        pictures = np.random.default_rng(count).integers(0, 255, (count, 84, 112, 3), dtype=np.uint8)
        write_video(path, list(pictures), fps=fps)
        inputs = found.processor(text=[PROMPT], videos=[str(path)], return_tensors="pt")
        for ratio in (1.0, 0.25):
            sampled = loader.load_bytes(path.read_bytes(), **reading)
            request = {"prompt": PROMPT, "multi_modal_data": {"video": [sampled]}}
            got = engines.answers(llm, [{**request, "mm_processor_kwargs": {"retention_ratio": ratio}}])
            how = dict(retention_ratio=ratio, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
            ids = found.model.generate(**inputs, **how)
            same.append(got[0]["tokens"] == ids[0, inputs["input_ids"].shape[1] :].tolist())
    return {"asked": len(same), "same": sum(same)}
