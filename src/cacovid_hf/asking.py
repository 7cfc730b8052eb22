"""Ask a question about a video file and see what the answer took: tokens kept, and where the time went."""

import functools
import importlib.util
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.video_utils import VideoMetadata

from ._compat import cached_file_or_none
from .adaptive import AutoBudget, Ratio, check_ratio, with_auto
from .backbones import backbone_family
from .checkpoint import load_stock_model
from .compressors import CaCoVid, Compressor
from .configuration import CaCoVidConfig
from .modeling import CaCoVidForConditionalGeneration
from .processing import with_video_reader
from .prompt import VideoSelection
from .timing import Stages, timed_generate

UNTRAINED = "the policy is untrained: expect answers of a random subset's quality"


@dataclass(frozen=True)
class SampledVideo:
    """Frames of a video file.

    Attributes:
        frames: uint8 `(F, H, W, 3)`, RGB.
        metadata: where in the clip they stand.
        seconds: how long reading and decoding took.
    """

    frames: np.ndarray
    metadata: VideoMetadata
    seconds: float

    @property
    def timestamps(self) -> list[float] | None:
        """The time of each frame in the clip, in seconds; None if that is unknown."""
        is_known = self.metadata.fps and self.metadata.frames_indices is not None
        return self.metadata.timestamps if is_known else None


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Attributes:
        text: the answer.
        kept: video tokens that the language model read.
        total: tokens of the whole video.
        times: seconds by stage, in order. `decode`: file to frames. `prepare`: frames and question to the model's inputs. `vision`: inputs to
            an embedded prompt. `policy`: scores, selection and the shorter prompt (0 where nothing is dropped). `prefill`: until the first
            new token. `generation`: the other new tokens.
        video: the frames that were read.
        selection: which of the video's tokens were kept, and their scores.
        notice: one line that belongs beside the answer wherever it is shown; None if there is nothing to say.
    """

    text: str
    kept: int
    total: int
    times: dict[str, float]
    video: SampledVideo
    selection: VideoSelection
    notice: str | None = None


def load_config(name: str | os.PathLike, revision: str | None = None) -> PreTrainedConfig:
    """The config of a CaCoVid checkpoint or of a stock model.

    Args:
        name: a folder or a Hub id.
        revision: commit, branch or tag of a Hub id; None is its main branch.

    Raises:
        ValueError: there is no such model, its family is not supported, or a revision of a folder is asked for.
    """
    if revision is not None and os.path.isdir(name):
        raise ValueError(f"revision={revision!r} is for a Hub id, and {os.fspath(name)} is a folder: leave it out.")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ValueError(
            f"{os.fspath(name)} cannot be loaded ({reason}): give the folder or the Hub id of a CaCoVID checkpoint, or of a stock model of "
            "a supported family."
        ) from error
    backbone_family(config.backbone_config if isinstance(config, CaCoVidConfig) else config)
    return config


def load_processor(
    name: str | os.PathLike, config: PreTrainedConfig | None = None, revision: str | None = None
) -> ProcessorMixin:
    """The processor of a model (a folder or a Hub id), reading video files; of a checkpoint without one, its backbone's.

    Args:
        name: as for `load_config`.
        config: what `load_config` returned, if it was called before.
        revision: as for `load_config`; the backbone's own is the one that the checkpoint pins.

    Raises:
        ValueError: there is no such model, or neither it nor its backbone has a processor.
    """
    config = load_config(name, revision) if config is None else config
    sources: list[tuple[Any, str | None]] = [(name, revision)]
    if isinstance(config, CaCoVidConfig) and config.base_model_name_or_path:
        sources.append((config.base_model_name_or_path, config.base_model_revision))
    for source, revision in sources:
        options = {"revision": revision} if revision and not os.path.isdir(source) else {}
        if any(
            cached_file_or_none(source, file, **options)
            for file in ("processor_config.json", "preprocessor_config.json")
        ):
            return with_video_reader(AutoProcessor.from_pretrained(source, trust_remote_code=False, **options))
    raise ValueError(
        f"{' and '.join(os.fspath(source) for source, _ in sources)} have no processor: save one there with processor.save_pretrained."
    )


def load_model(
    name: str | os.PathLike, config: PreTrainedConfig | None = None, revision: str | None = None, **loading: Any
) -> CaCoVidForConditionalGeneration:
    """A CaCoVid checkpoint, or a stock backbone wrapped with an untrained policy (the same one each time), ready to answer.

    It is loaded in its own dtype, onto the accelerators if there are any.

    Args:
        name: as for `load_config`.
        config: what `load_config` returned, if it was called before.
        revision: as for `load_config`.
        **loading: for `from_pretrained`, such as `dtype` or `device_map`.

    Raises:
        OSError: files are missing.
        ValueError: there is no such model, its files are damaged, or its family is not supported.
    """
    config = load_config(name, revision) if config is None else config
    at: dict[str, Any] = {} if revision is None else {"revision": revision}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    loading.setdefault("dtype", "auto")
    if device is not None and importlib.util.find_spec("accelerate"):
        loading.setdefault("device_map", "auto")
    if isinstance(config, CaCoVidConfig):
        model = CaCoVidForConditionalGeneration.from_pretrained(name, **at, **loading)
    else:
        backbone = load_stock_model(name, **at, **loading)
        pinned = {} if revision is None else {"base_model_revision": revision}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = CaCoVidForConditionalGeneration.from_backbone(backbone, **pinned)
    if device is not None and "device_map" not in loading:
        model = model.to(device)  # type: ignore[arg-type]
    return model


def sample_video(processor: ProcessorMixin, video: str | os.PathLike, num_frames: int | None = None) -> SampledVideo:
    """Read the frames of a video file that a model is to see.

    Args:
        processor: of the model; its video processor says how frames are sampled (see `cacovid_hf.read_video`).
        video: a path or an http(s) address.
        num_frames: at most so many frames; None is the processor's setting.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a readable video, or `num_frames` out of range.
    """
    started = time.perf_counter()
    reader = with_video_reader(processor).video_processor
    choose = functools.partial(reader.sample_frames, num_frames=num_frames)
    frames, metadata = reader.fetch_videos(os.fspath(video), choose)
    return SampledVideo(frames, metadata, time.perf_counter() - started)


def ask(
    model: CaCoVidForConditionalGeneration,
    processor: ProcessorMixin,
    video: SampledVideo | str | os.PathLike,
    question: str,
    *,
    num_frames: int | None = None,
    retention_ratio: Ratio | None = None,
    compressor: str | Compressor | None = None,
    max_new_tokens: int = 64,
) -> Answer:
    """Answer a question about one video, greedily; the answer is that of a plain `model.generate`, which is what runs.

    Args:
        model: a wrapped model.
        processor: its processor.
        video: as for `sample_video`, or what that returned.
        question: about the video.
        num_frames: as for `sample_video`.
        retention_ratio: fraction of the video tokens kept, in (0, 1], `"auto"` or an `AutoBudget`; None is the config's default, which may be None too: keep all.
        compressor: a method's name or an instance with its settings; None is the policy.
        max_new_tokens: of the answer, at least 1.

    Raises:
        FileNotFoundError: no such video.
        ValueError: not a readable video, or a setting out of range.
    """
    if not question.strip():
        raise ValueError("The question is empty: ask something about the video.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for an answer: give at least 1.")
    if retention_ratio is not None:
        check_ratio(with_auto(retention_ratio, AutoBudget()))
    method = model.resolve_compressor(compressor)
    if not isinstance(video, SampledVideo):
        video = sample_video(processor, video, num_frames)

    stages = Stages(model.device)
    stages.enter("prepare")
    content = [{"type": "video", "video": video.frames}, {"type": "text", "text": question}]
    messages: list[Any] = [{"role": "user", "content": content}]
    inputs: Any = processor.apply_chat_template(
        messages,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"video_metadata": [video.metadata], "do_sample_frames": False},
    )
    inputs = inputs.to(model.device, model.dtype)
    ids, selections = timed_generate(
        model, inputs, method, stages, retention_ratio=retention_ratio, max_new_tokens=max_new_tokens
    )

    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    selection = selections[0]
    kept, total = int(selection.keep.sum()), selection.keep.numel()
    by_untrained_policy = kept < total and isinstance(method, CaCoVid) and not model.config.policy_trained
    return Answer(
        text=text,
        kept=kept,
        total=total,
        times={"decode": video.seconds, **stages.times},
        video=video,
        selection=selection,
        notice=UNTRAINED if by_untrained_policy else None,
    )
