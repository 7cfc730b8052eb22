"""Video questions in Video-R1's schema, from files of any size, and how samples become prompts.

A sample is a dict: `problem` (the question), `solution` (the answer, maybe within `<answer>` tags), `problem_type` (one of the five of
`rewards.REWARDS`), `options` (for multiple choice, in any form that `utils.options.read_options` takes) and its video, as `path` (relative to a root) or `video`
(a path, frames `(T, H, W, 3)`, or what `datasets` makes of an undecoded video: a dict of `path` and `bytes`).
"""

import io
import json
import os
from array import array
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from ..processing import with_video_reader
from ..utils.answer_tags import final_answer
from ..utils.chat import chat_inputs, user_message
from ..utils.option_letters import right_letter
from ..utils.options import have_letters, options_in, read_options
from ..utils.text_files import WIDE_MARKS, read_text
from ..utils.values import check_depth, fault_of_line, is_missing, one_line, shortened, shown, text_of
from ..video.files import read_chosen_frames
from .question import Question
from .rewards import REWARDS, Solution
from .stills import IMAGE, picture_of, still_video
from .video_paths import video_path

logger = logging.get_logger(__name__)

# What is asked for beside the question; ours.
INSTRUCTIONS = {
    "multiple choice": "Answer with the option's letter from the given choices directly.",
    "numerical": "Answer with a single number.",
    "OCR": "Answer with the text alone.",
    "regression": "Answer with a single number.",
}
_NOT_A_VIDEO = "is not a video"
# The only key of a sample whose line cannot be read: why.
_DAMAGED = "cacovid_hf: damaged line"
# What data of others can raise: of a sample, it says why the sample is skipped.
_FAULTS_OF_DATA = (ValueError, TypeError, LookupError, OSError, ArithmeticError, RecursionError)


class VideoQuestions(torch.utils.data.Dataset):
    """A JSON or JSONL file of samples, map-style; of JSONL only the places of its lines are in memory (eight bytes each).

    A line that cannot be read becomes a sample that says why, with the file's name and the line's number; `AnswerCollator` skips it and counts it.

    Args:
        file: a JSON array of samples (read whole), or one sample a line, in UTF-8. Of a file in UTF-16 or UTF-32, known by its byte order mark, all
            is read.
        columns: new names of the samples' keys, such as `{"question": "problem"}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or no samples in it.
    """

    def __init__(self, file: str | os.PathLike, columns: Mapping[str, str] | None = None):
        self.file, self.columns = Path(file), dict(columns or {})
        if not self.file.is_file():
            raise FileNotFoundError(f"{self.file} is not a file: give a JSON or JSONL file of samples.")
        self.samples: list[dict[str, Any]] | None = None
        self.places = array("q")
        self._blanks = array("q")  # of each blank line, how many others stand before it
        with open(self.file, "rb") as lines:
            beginning = lines.read(4)
            lines.seek(0)
            if beginning.startswith(WIDE_MARKS) or _first_character(lines) == b"[":
                self.samples = self._read_whole()
            else:
                place = 0
                for line in lines:
                    if line.strip(b" \t\r\n\xef\xbb\xbf"):
                        self.places.append(place)
                    else:
                        self._blanks.append(len(self.places))
                    place += len(line)
        if len(self) == 0:
            raise ValueError(f"{self.file} has no samples: give one JSON object per line, or an array of them.")

    def __len__(self) -> int:
        return len(self.places) if self.samples is None else len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        sample = self._read(index)
        return {self.columns.get(key, key): value for key, value in sample.items()} if self.columns else sample

    def _read(self, index: int) -> dict[str, Any]:
        if self.samples is not None:
            return self.samples[index]
        # Opened each time: workers of a loader must not share a place in the file.
        with open(self.file, "rb") as lines:
            lines.seek(self.places[index])
            line = lines.readline()
        return _sample(line, f"{self.file}, line {index + 1 + bisect_right(self._blanks, index)}")

    def _read_whole(self) -> list[dict[str, Any]]:
        try:
            text = read_text(self.file)
            if not text.lstrip().startswith("["):
                lines = enumerate(text.split("\n"), start=1)
                return [_sample(line, f"{self.file}, line {number}") for number, line in lines if line.strip()]
            samples = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.file} is not JSON ({one_line(error)}): give an array of samples, or one sample per line."
            ) from error
        for number, sample in enumerate(samples, start=1):
            if not isinstance(sample, dict):
                raise ValueError(
                    f"{self.file} holds something else than JSON objects (sample {number} is {shown(sample)}): give an array of samples."
                )
        return [_checked(sample, f"{self.file}, sample {number}") for number, sample in enumerate(samples, start=1)]


def _first_character(file) -> bytes:
    character = file.read(1)
    while character and (character.isspace() or character in b"\xef\xbb\xbf"):
        character = file.read(1)
    file.seek(0)
    return character


def _sample(line: bytes | str, name: str) -> dict[str, Any]:
    """Return the sample of a line, or one that says why it cannot be read: one bad line of millions ends nothing."""
    try:
        sample = json.loads(line.decode("utf-8-sig") if isinstance(line, bytes) else line)
    except (ValueError, RecursionError) as error:
        return _damaged(name, f"the line is not JSON ({fault_of_line(error)}): correct it, or leave it out")
    if not isinstance(sample, dict):
        return _damaged(name, f"the line is {shown(sample)}: give a JSON object")
    return _checked(sample, name)


def _checked(sample: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        check_depth(sample)
    except ValueError as error:
        return _damaged(name, f"{error}: give texts, numbers and lists")
    return sample


def _damaged(name: str, reason: str) -> dict[str, Any]:
    return {"problem_id": name, _DAMAGED: reason}


def video_of(sample: Mapping[str, Any]) -> Any:
    """Return what a sample has as its video; None if it has none. A table has every column in every row, some without a value."""
    video = sample.get("video")
    return sample.get("path") if video is None else video


def question_text(sample: Mapping[str, Any], instructions: Mapping[str, str] = INSTRUCTIONS) -> str:
    """Return the question as it is asked: the problem, its options a line each, and how to answer.

    Options of multiple choice are asked with their letters, `A. red`, however they are given. Multiple choice without options, and problem types without
    instruction, are asked as they stand.

    Raises:
        ValueError: the problem is not a text, or the options cannot be read.
    """
    lines = [text_of(sample["problem"], "the problem").replace("<video>", "").strip()]
    problem_type = _problem_type(sample)
    if choices := _choices(sample):
        lines += [f"{letter}. {text}" for letter, text in choices.items()]
    elif options := _options(sample):
        lines += [text_of(option, "an option") for option in options]
    elif problem_type == "multiple choice":
        return lines[0]
    if problem_type in instructions:
        lines.append(instructions[problem_type])
    return "\n".join(lines)


def right_answer(sample: Mapping[str, Any]) -> str:
    """Return the solution without tags; of multiple choice with options, the letter of the option that it is.

    Raises:
        ValueError: it is not one of the options.
    """
    if choices := _choices(sample):
        prefer = "letter" if have_letters(sample["options"]) else None
        return right_letter(sample["solution"], choices, prefer)
    return final_answer(text_of(sample["solution"], "the solution"))


def _choices(sample: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of multiple choice by letter; none if there are no options, or one line without letters that is asked as it stands."""
    options = sample.get("options")
    if _problem_type(sample) != "multiple choice" or not _options(sample):
        return {}
    if isinstance(options, str) and len(parts := options_in(options)) == 1 and parts[0] == options.strip():
        return {}
    return read_options(options)


def _options(sample: Mapping[str, Any]) -> list[Any]:
    """Return the options as lines, without the empty ones of a table."""
    options = sample.get("options")
    if options is None:
        return []
    if isinstance(options, str):
        return [options.strip()] if options.strip() else []
    if isinstance(options, Mapping):
        return [f"{letter}. {text}" for letter, text in options.items() if not is_missing(text)]
    if not isinstance(options, Sized) or isinstance(options, bytes):
        raise ValueError(f"options={shown(options)} is of type {type(options).__name__}: give a list of texts.")
    return [option for option in list(options) if not is_missing(option)]  # type: ignore[call-overload]


class AnswerCollator:
    """Turns samples into prompts with their questions' answers; those whose video cannot be read are left out and said.

    Args:
        processor: its chat template takes videos; it says how frames are sampled.
        root: folder that relative paths of videos start from, and that no path leaves; `""`: paths are taken as they are.
        allowed_roots: other folders in which videos may lie; `["/"]`: anywhere. See `video_paths.video_path`.
        scored_types: problem types whose solution a prefill scores; the answers of the others are generated.
        instructions: see `question_text`.
        num_frames: at most so many frames of a video file; None: the processor's setting.
        blind: ask without the videos, which are not opened.
        still_frames: samples of `data_type: image` are shown as videos of so many frames, see `stills.still_video`; None: they are left out.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        root: str | os.PathLike = "",
        allowed_roots: Sequence[str | os.PathLike] = (),
        scored_types: Collection[str] = ("multiple choice",),
        instructions: Mapping[str, str] = INSTRUCTIONS,
        num_frames: int | None = None,
        blind: bool = False,
        still_frames: int | None = None,
    ):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} leaves nothing to see: give at least 1.")
        self.processor, self.root, self.allowed_roots = processor, root, tuple(allowed_roots)
        self.scored_types = tuple(scored_types)
        self.instructions, self.num_frames, self.blind = instructions, num_frames, blind
        self.still_frames = still_frames
        self._reader = with_video_reader(processor).video_processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Prompts of the samples that can be read.

        Returns:
            `inputs`: the processor's, a list with one entry for all prompts whose videos have one shape; `questions`: one per prompt, in that
            order; `places`: of the prompts among the samples; `skipped`: why each of the other samples is left out.
        """
        groups: dict[tuple[int, ...], list[tuple[int, Any, VideoMetadata | None, str, Question]]] = {}
        skipped = []
        for place, sample in enumerate(samples):
            try:
                text, question = self._question(sample)
                frames, metadata = (None, None) if self.blind else self._frames(sample)
            except _FAULTS_OF_DATA as error:
                skipped.append(_reason(sample, place, error))
            else:
                shape = () if frames is None else frames.shape
                groups.setdefault((*shape, metadata is None), []).append((place, frames, metadata, text, question))
        inputs, ordered = [], []
        pending = list(groups.values())
        while pending:
            group = pending.pop(0)
            _, videos, clips, texts, _ = zip(*group, strict=True)
            try:
                inputs.append(self._prompts(videos, clips, texts))
            except _FAULTS_OF_DATA as error:
                # One video may have a shape that the processor refuses.
                if len(group) > 1:
                    pending = [[one] for one in group] + pending
                else:
                    place = group[0][0]
                    skipped.append(_reason(samples[place], place, error))
            else:
                ordered += group
        questions, places = [sample[4] for sample in ordered], [sample[0] for sample in ordered]
        return {"inputs": inputs, "questions": questions, "places": places, "skipped": skipped}

    def _question(self, sample: Mapping[str, Any]) -> tuple[str, Question]:
        if not isinstance(sample, Mapping):
            raise ValueError(f"the sample is a {type(sample).__name__}: give a dict")
        if _DAMAGED in sample:
            raise ValueError(sample[_DAMAGED])
        problem_type = _problem_type(sample)
        if problem_type not in REWARDS:
            raise ValueError(f"problem_type={problem_type!r} is unknown: use one of {', '.join(map(repr, REWARDS))}.")
        for key in ("problem", "solution"):
            if is_missing(sample.get(key)) or sample[key] == "":
                raise ValueError(f"the sample has no {key}")
        known = (None, "video", *(() if self.still_frames is None else (IMAGE,)))
        if sample.get("data_type") not in known:
            raise ValueError(f"data_type={sample['data_type']!r} {_NOT_A_VIDEO}")
        solution = right_answer(sample)
        answer = None
        if problem_type not in self.scored_types:
            if (choices := _choices(sample)) and solution in choices:
                solution = Solution(f"{solution}. {choices[solution]}", choices)  # a written answer may be either
        else:
            ids = self.processor.tokenizer(solution, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"solution={sample['solution']!r} has no tokens")
            answer = torch.tensor(ids, dtype=torch.long)
        text = question_text(sample, self.instructions)
        for name in ("image_token", "video_token"):
            if (token := vars(self.processor).get(name)) and token in text:
                raise ValueError(f"the question has {token}, which stands for a picture or video: leave it out.")
        return text, Question(solution, problem_type, answer)

    def _frames(self, sample: Mapping[str, Any]) -> tuple[Any, VideoMetadata | None]:
        """Frames `(T, H, W, 3)`, and where in the clip they stand if they come from a file."""
        if sample.get("data_type") == IMAGE and self.still_frames is not None:
            return still_video(picture_of(sample, self.root, self.allowed_roots), self.still_frames), None
        video = video_of(sample)
        if video is None:
            raise ValueError("the sample has neither video nor path")

        def choose(metadata: VideoMetadata) -> Any:
            return self._reader.sample_frames(metadata=metadata, num_frames=self.num_frames)

        if isinstance(video, Mapping):
            video = io.BytesIO(video["bytes"]) if video.get("bytes") is not None else video.get("path")
        if isinstance(video, bytes):
            video = io.BytesIO(video)
        if isinstance(video, io.BytesIO):
            return read_chosen_frames(video, choose)
        if isinstance(video, (str, os.PathLike)):
            return self._reader.fetch_videos(video_path(video, self.root, self.allowed_roots), choose)
        frames = np.asarray(video)
        if frames.ndim != 4 or 0 in frames.shape or frames.dtype.kind not in "uif":
            raise ValueError(
                f"the video is a {type(video).__name__} of shape {frames.shape}: give a path, bytes, or frames (T, H, W, 3)"
            )
        return frames, None

    def _prompts(
        self, frames: Sequence[Any], metadata: Sequence[VideoMetadata | None], texts: Sequence[str]
    ) -> dict[str, Any]:
        chats = [
            [user_message(text) if video is None else user_message(text, video)]
            for video, text in zip(frames, texts, strict=True)
        ]
        settings: dict[str, Any] = {"padding": True}
        if metadata[0] is not None:
            settings |= {"video_metadata": [[one] for one in metadata], "do_sample_frames": False}
        return dict(chat_inputs(self.processor, chats, settings))


def _problem_type(sample: Mapping[str, Any]) -> Any:
    given = sample.get("problem_type")
    return "multiple choice" if given is None else given


def _reason(sample: Mapping[str, Any], place: int, error: Exception) -> str:
    """Why a sample is skipped, on one line that begins with its name."""
    return one_line(f"{_name(sample, place)}: {error or type(error).__name__}")


def _name(sample: Mapping[str, Any], place: int) -> str:
    if not isinstance(sample, Mapping):
        return f"sample {place}"
    video = sample.get("path")
    video = sample.get("video") if video is None else video
    video = video.get("path") if isinstance(video, Mapping) else video
    name = str(video if isinstance(video, (str, os.PathLike)) else sample.get("problem_id", f"sample {place}"))
    return shortened(name)
