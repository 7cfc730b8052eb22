"""A batch of conversations about videos to responses, and what each took."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from ..compressors import Compressor
from ..generation.timing import Stages, timed_generate
from ..modeling import CaCoVidForConditionalGeneration
from ..utils.chat import chat_inputs


@dataclass(frozen=True)
class Response:
    """What a model wrote.

    Attributes:
        text: stripped, without special tokens.
        kept: video tokens of the prompt that the language model's layers saw, on average; the same in all of them if the method acts before it.
        total: video tokens of the prompt.
        times_ms: milliseconds by stage (`vision`, `compression`, `prefill`, `generation`): the batch's, divided by its size.
    """

    text: str
    kept: float
    total: int
    times_ms: dict[str, float]


def prepare(
    model: CaCoVidForConditionalGeneration, processor: ProcessorMixin, conversations: list[list[dict[str, Any]]]
) -> Any:
    """Conversations, whose videos are `SampledVideo`, to inputs on the model's device, padded on the left."""
    metadata: list[Any] = []

    def plain(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] != "video":
            return part
        metadata.append(part["video"].metadata)
        return {**part, "video": part["video"].frames}

    messages: Any = [
        [{**message, "content": [plain(part) for part in message["content"]]} for message in conversation]
        for conversation in conversations
    ]
    options: dict[str, Any] = {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}
    if len(conversations) > 1:
        options |= {"padding": True, "padding_side": "left"}
    return chat_inputs(processor, messages, options).to(model.device, model.dtype)


def clock(device: torch.device) -> Callable[[], float]:
    """Return the clock of times, in seconds: on a CPU and one thread that of the process, which leaves out what other processes took; else the wall's."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def with_encoded_videos(model: CaCoVidForConditionalGeneration, inputs: Any) -> tuple[dict[str, Any], float]:
    """Return inputs whose videos have gone through the vision tower, for any number of calls, and the milliseconds a row that this took.

    Methods that read the tower's attention need the pixels.
    """
    stages = Stages(model.device, clock(model.device))
    stages.enter("vision")
    encoded = model.encode_videos(**inputs, frames_per_chunk=None)
    stages.enter(None)
    return {**model.family.without_videos(dict(inputs)), "encoded_videos": encoded}, 1000 * stages.times[
        "vision"
    ] / len(inputs["input_ids"])


def respond(
    model: CaCoVidForConditionalGeneration,
    processor: ProcessorMixin,
    inputs: Any,
    method: Compressor,
    retention_ratio: float | None,
    max_new_tokens: int,
) -> list[Response]:
    """Answer greedily, by a plain `model.generate`; one response a row of `inputs`."""
    stages = Stages(model.device, clock(model.device))
    ids, selections = timed_generate(
        model, inputs, method, stages, retention_ratio=retention_ratio, max_new_tokens=max_new_tokens
    )
    times = {"compression" if name == "policy" else name: seconds for name, seconds in stages.times.items()}
    times_ms = {name: 1000 * times[name] / len(ids) for name in ("vision", "compression", "prefill", "generation")}
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    kept, total = [0.0] * len(ids), [0] * len(ids)
    for video, selection in enumerate(selections):
        total[selection.row] += selection.keep.numel()
        if stages.layers is None:
            kept[selection.row] += int(selection.keep.sum())
        else:
            kept[selection.row] += statistics.fmean(layer[video] for layer in stages.layers.layer_tokens)
    return [Response(text.strip(), k, n, times_ms) for text, k, n in zip(texts, kept, total, strict=True)]
