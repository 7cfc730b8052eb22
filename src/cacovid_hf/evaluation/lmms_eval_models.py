"""CaCoVID as a model of lmms-eval 0.7.3: `lmms_eval --model cacovid --model_args pretrained=...,retention_ratio=0.25,compressor=...`.

Two interfaces, as lmms-eval wants them: `simple` gets the visuals of a document and a text, `chat` gets messages. Both end in one way: messages, our
video reader, the processor, `model.generate`.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image
from tqdm import tqdm

from .. import auto
from ..ratio import check_retention_ratio
from ..tiny import model_path
from ..video.files import SampledVideo
from .clips import read_clip
from .datasets import Clip
from .lmms_eval_arguments import generation_options, video_and_times
from .methods import make_method
from .processes import Processes
from .respond import prepare

Messages = list[dict[str, Any]]
MAX_NEW_TOKENS = 1024  # where a task does not say, as lmms-eval's own models do


class CaCoVidSimple(lmms):
    """The interface of visuals and a text.

    Args:
        pretrained: a CaCoVID checkpoint or a stock model of a supported family, a folder or a Hub id; `tiny` is the embedded one.
        retention_ratio: fraction of the video tokens kept, in (0, 1]; None is the checkpoint's, or all.
        compressor: a method's name, also with settings (`cacovid:scope=video`); None is the policy.
        num_frames: at most so many frames of a video; None is the processor's setting.
        dtype: `auto` is the checkpoint's own.
        attn_implementation: of the backbone; None is transformers' choice.
        device: such as `cuda:0`; None: the accelerators, if there are any.
        batch_size: requests in one call of `generate`.
        max_batch_size: not used; lmms-eval passes it.

    Raises:
        ValueError: an argument that is unknown or out of range.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "tiny",
        retention_ratio: float | None = None,
        compressor: str | None = None,
        num_frames: int | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(
                f"{', '.join(sorted(unknown))} is not a model argument of cacovid: choose among pretrained, retention_ratio, compressor, num_frames, dtype, "
                "attn_implementation."
            )
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size}: give the number of requests in one call, at least 1.")
        self.retention_ratio = None if retention_ratio is None else check_retention_ratio(retention_ratio)
        self.batch_size, self.num_frames = int(batch_size), num_frames
        processes = Processes.join()
        self._rank, self._world_size = processes.rank, processes.world
        if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype={dtype!r} is not a dtype of torch: give auto, bfloat16, float16 or float32.")
        loading: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
        if attn_implementation is not None:
            loading["attn_implementation"] = attn_implementation
        if processes.world > 1 or device is not None:
            loading["device_map"] = {"": str(processes.device if processes.world > 1 else device)}
        source: Any = model_path() if pretrained == "tiny" else pretrained
        config = auto.load_config(source)
        self.processor = auto.load_processor(source, config)
        self.model = auto.load_model(source, config, **loading).eval()
        self.method = None if compressor is None else make_method(compressor, self.model)
        self._told: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the inputs belong."""
        return self.model.device

    def messages(self, instance: Instance) -> tuple[Messages, dict[str, Any]]:
        """Return a request as messages, and its generation arguments."""
        context, generation, doc_to_visual, doc_id, task, split = instance.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        content = [
            {"type": "image" if isinstance(visual, Image.Image) else "video", "url": visual} for visual in visuals
        ]
        return [{"role": "user", "content": [*content, {"type": "text", "text": context}]}], generation

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer the requests; a video that cannot be read is logged as an error and answered with nothing."""
        results: list[GenerationResult | None] = [None] * len(requests)
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding")
        for indices, conversations, generation in self._batches(requests):
            for index, result in zip(indices, self._answer(conversations, generation), strict=True):
                results[index] = result
                self.cache_hook.add_partial("generate_until", (requests[index].args[0], generation), result.text)
            bar.update(len(indices))
        bar.close()
        return [GenerationResult("", TokenCounts(output_tokens=0)) if result is None else result for result in results]

    def _batches(self, requests: list[Instance]) -> Iterator[tuple[list[int], list[Messages], dict[str, Any]]]:
        """Return requests with media read, in batches of one set of generation arguments and one shape of frames."""
        for start in range(0, len(requests), self.batch_size):
            groups: dict[str, tuple[list[int], list[Messages], dict[str, Any]]] = {}
            for index in range(start, min(start + self.batch_size, len(requests))):
                messages, generation = self.messages(requests[index])
                try:
                    messages = self._with_media(messages)
                except (ValueError, OSError) as error:
                    logger.error(f"Request {index} is answered with nothing: {error}")
                    continue
                shapes = [
                    part["video"].frames.shape
                    for message in messages
                    for part in message["content"]
                    if part["type"] == "video"
                ]
                key = json.dumps([generation, shapes], sort_keys=True, default=str)
                indices, conversations, _ = groups.setdefault(key, ([], [], generation))
                indices.append(index)
                conversations.append(messages)
            yield from groups.values()

    def _with_media(self, messages: Messages) -> Messages:
        """Messages whose videos are sampled."""
        read = []
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            read.append({"role": message["role"], "content": [self._part(part) for part in content]})
        return read

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        kind, url = part["type"], part.get("url")
        if kind == "text":
            return {"type": "text", "text": part["text"]}
        if kind == "image":
            return {"type": "image", "image": url}
        if kind == "video":
            return {"type": "video", "video": self._video(*video_and_times(part))}
        raise ValueError(f"Content of type {kind!r} is not supported: text, images and videos are.")

    def _video(self, video: Any, start: float | None, end: float | None) -> SampledVideo:
        if isinstance(video, (str, Path)):
            return read_clip(self.processor, Clip(Path(video), start, end), self.num_frames)
        if isinstance(video, Sequence) and all(isinstance(frame, Image.Image) for frame in video):
            video = np.stack([np.asarray(frame.convert("RGB")) for frame in video])
        frames = np.asarray(video)
        if frames.ndim != 4:
            raise ValueError(f"A video is a {type(video).__name__}: give a path, pictures or an array of frames.")
        return read_clip(self.processor, frames, self.num_frames)

    def _answer(self, conversations: list[Messages], generation: dict[str, Any]) -> list[GenerationResult]:
        inputs = prepare(self.model, self.processor, conversations)
        options, stops, unserved = generation_options(generation, MAX_NEW_TOKENS)
        for name in unserved.keys() - self._told:
            logger.warning(f"{name}={unserved[name]!r} of a task is no argument of generate, and is left out.")
            self._told.add(name)
        sequences = self.model.generate(
            **inputs, retention_ratio=self.retention_ratio, compressor=self.method, **options
        )
        new = sequences[:, inputs["input_ids"].shape[1] :]
        pad = self.processor.tokenizer.pad_token_id
        results = []
        for ids, text in zip(new, self.processor.batch_decode(new, skip_special_tokens=True), strict=True):
            for stop in stops:
                text = text.split(stop)[0]
            count = int((ids != pad).sum()) if pad is not None else len(ids)
            results.append(GenerationResult(text.strip(), TokenCounts(output_tokens=count)))
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "cacovid answers tasks of output_type generate_until: choose the task's generation variant."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("cacovid answers tasks of one round: choose one of output_type generate_until.")


class CaCoVidChat(CaCoVidSimple):
    """The interface of messages, which lmms-eval prefers."""

    is_simple = False

    def messages(self, instance: Instance) -> tuple[Messages, dict[str, Any]]:
        """As of the simple interface, from the task's own messages."""
        _, doc_to_messages, generation, doc_id, task, split = instance.args
        return doc_to_messages(self.task_dict[task][split][doc_id]), generation
