"""Ask a question about a video file and see what the answer took: tokens kept, and where the time went."""

import os
import statistics
from dataclasses import dataclass

from transformers import ProcessorMixin

from cacovid_hf.compressors import Compressor
from cacovid_hf.generation.timing import Stages, timed_generate
from cacovid_hf.modeling import CaCoVidForConditionalGeneration
from cacovid_hf.processing import sample_video
from cacovid_hf.prompt import VideoSelection
from cacovid_hf.ratio import Ratio, check_asked
from cacovid_hf.utils.chat import chat_inputs, user_message
from cacovid_hf.video.files import SampledVideo

from .notices import UNTRAINED


@dataclass(frozen=True)
class Answer:
    """An answer and what it took.

    Attributes:
        text: the answer.
        kept: video tokens that the language model read; of a method inside it, the mean over its layers.
        total: tokens of the whole video.
        times: seconds by stage, in order. `decode`: file to frames. `prepare`: frames and question to the model's inputs. `vision`: inputs to
            an embedded prompt. `policy`: scores, selection and the shorter prompt (0 where nothing is dropped). `prefill`: until the first
            new token. `generation`: the other new tokens.
        video: the frames that were read.
        selection: which of the video's tokens were kept, of a method inside the language model up to its last layer; and their scores.
        notice: one line that belongs beside the answer wherever it is shown; None if there is nothing to say.
    """

    text: str
    kept: float
    total: int
    times: dict[str, float]
    video: SampledVideo
    selection: VideoSelection
    notice: str | None = None


def check_asking(question: str, max_new_tokens: int) -> None:
    """Refuse what cannot be answered, before a model is loaded.

    Raises:
        ValueError: an empty question, or no room for an answer.
    """
    if not question.strip():
        raise ValueError("The question is empty: ask something about the video.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no room for an answer: give at least 1.")


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
    check_asking(question, max_new_tokens)
    if retention_ratio is not None:
        check_asked(retention_ratio)
    method = model.resolve_compressor(compressor)
    if not isinstance(video, SampledVideo):
        video = sample_video(processor, video, num_frames)

    stages = Stages(model.device)
    stages.enter("prepare")
    settings = {"video_metadata": [video.metadata], "do_sample_frames": False}
    inputs = chat_inputs(processor, [user_message(question, video.frames)], settings)
    inputs = inputs.to(model.device, model.dtype)
    ids, selections = timed_generate(
        model, inputs, method, stages, retention_ratio=retention_ratio, max_new_tokens=max_new_tokens
    )

    text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    selection = selections[0]
    kept: float = int(selection.keep.sum())
    total = selection.keep.numel()
    if stages.layers is not None:
        kept = round(statistics.fmean(videos[0] for videos in stages.layers.layer_tokens), 1)
        selection = stages.layers.left_of(selection)
    by_untrained_policy = kept < total and method.uses_policy and not model.config.policy_trained
    return Answer(
        text=text,
        kept=kept,
        total=total,
        times={"decode": video.seconds, **stages.times},
        video=video,
        selection=selection,
        notice=UNTRAINED if by_untrained_policy else None,
    )
