"""What the page asks for: clips read and encoded once, answers that grow, and the tokens that a method keeps at any ratio."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from cacovid_hf.generation.session import VideoSession
from cacovid_hf.generation.timing import Stages, timed_generate
from cacovid_hf.processing import sample_video
from cacovid_hf.prompt import Prompt, VideoSelection
from cacovid_hf.ratio import Ratio
from cacovid_hf.utils.chat import chat_inputs, user_message
from cacovid_hf.video.files import SampledVideo
from cacovid_hf.video.limits import ReadingLimits, reading_limits

from ..notices import UNTRAINED
from .costs import Cost, prompt_cost
from .line import Interrupt
from .scored_once import ScoredOnce

ALL_TOKENS = "all tokens"
# Keeps everything where all is asked for, without looking at it.
_STOCK = "uniform"


@dataclass(frozen=True)
class Clip:
    """A video behind the vision tower.

    Attributes:
        path: of its file.
        sampled: the frames that were read.
        session: asks about it.
        has_tower: whether the vision tower's attention is there, too.
        times: seconds of `decode`, `prepare` and `vision`.
    """

    path: str
    sampled: SampledVideo
    session: VideoSession
    has_tower: bool
    times: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """The tokens that a method keeps for one question, at any ratio.

    Attributes:
        model: the wrapped model.
        prompt: the question and its video, embedded.
        method: with the scores of this question.
        asked: what it kept when the question was answered.
    """

    model: Any
    prompt: Prompt
    method: ScoredOnce
    asked: VideoSelection

    def at(self, ratio: Ratio) -> VideoSelection:
        """Return what is kept at a ratio; a method inside the language model has only what it kept when asked.

        Raises:
            ValueError: a ratio that the method does not serve.
        """
        if self.method.inside_llm:
            return self.asked
        with torch.no_grad():
            return self.model.compress_prompt(self.prompt, retention_ratio=ratio, compressor=self.method).videos[0]


@dataclass(frozen=True)
class Answer:
    """An answer, which may be growing.

    Attributes:
        method: its name, or `ALL_TOKENS`.
        ratio: that was asked for.
        text: so far.
        stage: what goes on; None: it is finished.
        times: seconds by stage, see `cacovid_cli.ask.Answer`.
        kept: video tokens that the language model read, over its layers on average; None: not known yet.
        total: of the video.
        cost: of the prompt.
        choice: of the method.
        notice: one line that belongs beside the answer.
    """

    method: str
    ratio: Ratio
    text: str = ""
    stage: str | None = "waiting"
    times: dict[str, float] | None = None
    kept: float | None = None
    total: int | None = None
    cost: Cost | None = None
    choice: Choice | None = None
    notice: str | None = None

    @property
    def first_token_seconds(self) -> float:
        """From the file to the first new token."""
        return sum(seconds for stage, seconds in (self.times or {}).items() if stage != "generation")


class Studio:
    """A model and its processor; calls are for one thread at a time, except of `Choice.at`.

    Args:
        model: a wrapped model.
        processor: of the model, reading video files.
        limits: of the files that visitors bring.
    """

    def __init__(
        self,
        model: Any,
        processor: ProcessorMixin,
        limits: ReadingLimits | None = None,
    ):
        self.model, self.processor = model, processor
        self.limits = limits or ReadingLimits()

    def read(
        self,
        path: str,
        num_frames: int | None,
        methods: Sequence[str],
        interrupt: Interrupt,
        tell: Callable[[str], None],
        before: Clip | None = None,
    ) -> Clip:
        """Read a video and run the vision tower over it.

        Args:
            path: of the file.
            num_frames: at most so many; None: the processor's.
            methods: that will be asked for.
            interrupt: ends it.
            tell: called with what goes on.
            before: a clip of the same file and number of frames, whose frames are used again.

        Raises:
            ValueError, OSError: not a readable video.
            Stopped: by the interrupt.
        """
        tower = any(self.model.resolve_compressor(name).reads_tower for name in methods)
        if before is not None and (before.has_tower or not tower):
            return before
        if before is None:
            tell("Reading the video")
            with reading_limits(self.limits, _Guard(interrupt)):
                sampled = sample_video(self.processor, path, num_frames)
        else:
            sampled = before.sampled
        interrupt.check()
        tell(f"Encoding {len(sampled.frames)} frames")
        stages = Stages(self.model.device)
        stages.enter("prepare")
        settings = {"video_metadata": [sampled.metadata], "do_sample_frames": False}
        inputs = chat_inputs(self.processor, [user_message("?", sampled.frames)], settings)
        inputs = inputs.to(self.model.device, self.model.dtype)
        stages.enter("vision")
        pixels = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
        pixels["video_metadata"] = [sampled.metadata]
        encoded = self.model.encode_videos(with_tower_attention=tower, **pixels)
        stages.enter(None)
        times = {"decode": sampled.seconds, "prepare": stages.times["prepare"], "vision": stages.times["vision"]}
        interrupt.check()
        return Clip(path, sampled, VideoSession(self.model, encoded, self.processor), tower, times)

    def answer(
        self,
        clip: Clip,
        question: str,
        method: str,
        ratio: Ratio,
        max_new_tokens: int,
        interrupt: Interrupt,
        tell: Callable[[Answer], None],
    ) -> Answer:
        """Answer a question about a clip, greedily.

        Args:
            clip: from `read`.
            question: about it.
            method: a name, or `ALL_TOKENS`.
            ratio: of the tokens to keep.
            max_new_tokens: of the answer.
            interrupt: ends it.
            tell: called with the answer as it grows.

        Raises:
            ValueError: a ratio that the method does not serve, and whatever `generate` refuses.
            Stopped: by the interrupt.
        """
        model, session = self.model, clip.session
        compressor = ScoredOnce(model.resolve_compressor(_STOCK if method == ALL_TOKENS else method))
        told = Growing(Answer(method, ratio), self.processor, model.device, interrupt, tell)
        told.enter("prepare")
        content = [{"type": "video"}, {"type": "text", "text": question}]
        prompt = session.prompt([[{"role": "user", "content": content}]])
        inputs = {**prompt, "encoded_videos": session.encoded}
        _, (selection,) = timed_generate(
            model, inputs, compressor, told, retention_ratio=ratio, max_new_tokens=max_new_tokens
        )
        for stage, seconds in clip.times.items():
            told.times[stage] = told.times.get(stage, 0.0) + seconds
        order = ("decode", *(stage for stage in told.times if stage != "decode"))
        layers = None if told.layers is None else [counts[0] for counts in told.layers.layer_tokens]
        kept = int(selection.keep.sum()) if layers is None else sum(layers) / len(layers)
        words = prompt["input_ids"].shape[1] - selection.keep.numel()
        dropped = kept < selection.keep.numel()
        untrained = dropped and compressor.uses_policy and not model.config.policy_trained
        answer = replace(
            told.answer,
            stage=None,
            times={stage: told.times[stage] for stage in order},
            kept=kept,
            total=selection.keep.numel(),
            cost=self._cost(compressor, words, selection, layers),
            choice=None if method == ALL_TOKENS else self._choice(inputs, compressor, selection, told),
            notice=UNTRAINED if untrained else None,
        )
        tell(answer)
        return answer

    def _cost(self, method: ScoredOnce, words: int, selection: VideoSelection, layers: list[int] | None) -> Cost:
        config: Any = self.model.config
        counts = [int(selection.keep.sum())] if layers is None else layers
        policy = None
        if method.uses_policy and selection.token_scores is not None:
            policy = (config.policy_type, config.policy_attention, selection.keep.numel(), words)
        return prompt_cost(self.model.backbone.config, self.model.dtype, [words + count for count in counts], policy)

    def _choice(self, inputs: dict[str, Any], method: ScoredOnce, selection: VideoSelection, told: "Growing") -> Choice:
        with torch.no_grad():
            prompt = self.model.embed(with_tower_attention=method.reads_tower, **inputs)
        if told.layers is not None:
            selection = told.layers.left_of(selection)
        return Choice(self.model, prompt, method, selection)


class Growing(Stages):
    """The stages of an answer, told while they pass, with its words.

    Args:
        answer: to begin with.
        processor: decodes.
        device: of the model.
        interrupt: looked at between stages and tokens.
        tell: called with the answer so far.
    """

    def __init__(
        self,
        answer: Answer,
        processor: Any,
        device: torch.device,
        interrupt: Interrupt,
        tell: Callable[[Answer], None],
    ):
        super().__init__(device)
        self.answer, self.processor, self.interrupt, self.tell = answer, processor, interrupt, tell
        self._ids: list[int] = []

    def enter(self, stage: str | None) -> None:
        """As `Stages`; tells the stage."""
        super().enter(stage)
        if stage is not None:
            self.interrupt.check()
            self._told(stage=stage)

    def put(self, value: Tensor) -> None:
        """As `Stages`; tells the words."""
        super().put(value)
        if self._num_put > 1:
            self.interrupt.check()
            self._ids += value.flatten().tolist()
            text = self.processor.decode(self._ids, skip_special_tokens=True).strip()
            self._told(text=text.rstrip("\ufffd"))  # half a letter

    def _told(self, **changes: Any) -> None:
        self.answer = replace(self.answer, **changes)
        self.tell(self.answer)


class _Guard:
    """Ends the reading of a video by an interrupt (a `cacovid_hf.video.limits.ReadingGuard`)."""

    def __init__(self, interrupt: Interrupt):
        self.interrupt = interrupt

    def going_on(self) -> None:
        """Raise `Stopped` if it is set."""
        self.interrupt.check()

    def holding(self, pixels: int) -> None:
        """Any number within the limits."""


def warm_up(studio: Studio, path: str | os.PathLike) -> float:
    """Answer once, so that the first visitor's times are those of all others; returns the seconds that it took."""
    started, interrupt = time.perf_counter(), Interrupt()
    clip = studio.read(os.fspath(path), 4, (), interrupt, lambda words: None)
    for method in ("cacovid", ALL_TOKENS):
        studio.answer(clip, "What?", method, 1.0, 2, interrupt, lambda answer: None)
    return time.perf_counter() - started
