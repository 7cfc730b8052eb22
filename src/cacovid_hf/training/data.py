"""Video questions in Video-R1's schema, from files of any size, and how samples become prompts.

A sample is a dict: `problem` (the question), `solution` (the answer, maybe within `<answer>` tags), `problem_type` (one of the five of
`rewards.REWARDS`), `options` (for multiple choice: texts, or a dict of texts by letter) and its video, as `path` (relative to a root) or `video`
(a path, frames `(T, H, W, 3)`, or what `datasets` makes of an undecoded video: a dict of `path` and `bytes`).
"""

import io
import json
import os
from array import array
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from ..processing import with_video_reader
from ..video import read_chosen_frames
from .judging import Question
from .rewards import REWARDS, extract_answer

logger = logging.get_logger(__name__)

# What is asked for beside the question; ours.
INSTRUCTIONS = {
    "multiple choice": "Answer with the option's letter from the given choices directly.",
    "numerical": "Answer with a single number.",
    "OCR": "Answer with the text alone.",
    "regression": "Answer with a single number.",
}
_NOT_A_VIDEO = "is no video"


class VideoQuestions(torch.utils.data.Dataset):
    """A JSON or JSONL file of samples, map-style; of JSONL only the places of its lines are in memory (eight bytes each).

    Args:
        file: a JSON array of samples (read whole), or one sample a line.
        columns: new names of the samples' keys, such as `{"question": "problem"}`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, or no samples in it.
    """

    def __init__(self, file: str | os.PathLike, columns: Mapping[str, str] | None = None):
        self.file, self.columns = Path(file), dict(columns or {})
        if not self.file.is_file():
            raise FileNotFoundError(f"{self.file} is no file: give a JSON or JSONL file of samples.")
        self.samples: list[dict[str, Any]] | None = None
        self.places = array("q")
        with open(self.file, "rb") as lines:
            if _first_character(lines) == b"[":
                self.samples = _read_array(self.file)
            else:
                place = 0
                for line in lines:
                    if line.strip():
                        self.places.append(place)
                    place += len(line)
        if len(self) == 0:
            raise ValueError(f"{self.file} has no samples: give one JSON object a line, or an array of them.")

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
        try:
            sample = json.loads(line)
        except ValueError:
            sample = None
        # One bad line of millions is skipped and reported like a broken video.
        return sample if isinstance(sample, dict) else {"problem_id": f"{self.file} at byte {self.places[index]}"}


def _first_character(file) -> bytes:
    character = file.read(1)
    while character and (character.isspace() or character in b"\xef\xbb\xbf"):
        character = file.read(1)
    file.seek(0)
    return character


def _read_array(file: Path) -> list[dict[str, Any]]:
    try:
        samples = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}): give an array of samples, or one sample a line.") from error
    if not all(isinstance(sample, dict) for sample in samples):
        raise ValueError(f"{file} holds something else than JSON objects: give an array of samples.")
    return samples


def video_of(sample: Mapping[str, Any]) -> Any:
    """What a sample has as its video; None if it has none. A table has every column in every row, some without a value."""
    video = sample.get("video")
    return sample.get("path") if video is None else video


def question_text(sample: Mapping[str, Any], instructions: Mapping[str, str] = INSTRUCTIONS) -> str:
    """The question as it is asked: the problem, its options a line each, and how to answer.

    Multiple choice without options, and problem types without instruction, are asked as they stand.
    """
    lines = [str(sample["problem"]).replace("<video>", "").strip()]
    options, problem_type = sample.get("options"), _problem_type(sample)
    if isinstance(options, Mapping):  # by their letters; a table has every letter in every row, some without a text
        options = [f"{letter}. {text}" for letter, text in options.items() if text is not None]
    if options is not None and len(options):
        lines += [options] if isinstance(options, str) else [str(option) for option in options]
    elif problem_type == "multiple choice":
        return lines[0]
    if problem_type in instructions:
        lines.append(instructions[problem_type])
    return "\n".join(lines)


class AnswerCollator:
    """Turns samples into prompts with their questions' answers; those whose video cannot be read are left out and said.

    Args:
        processor: its chat template takes videos; it says how frames are sampled.
        root: folder that relative paths of videos start from.
        scored_types: problem types whose solution a prefill scores; the answers of the others are generated.
        instructions: see `question_text`.
        num_frames: at most so many frames of a video file; None: the processor's setting.
        blind: ask without the videos, which are not opened.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        root: str | os.PathLike = "",
        scored_types: Collection[str] = ("multiple choice",),
        instructions: Mapping[str, str] = INSTRUCTIONS,
        num_frames: int | None = None,
        blind: bool = False,
    ):
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"num_frames={num_frames} leaves nothing to see: give at least 1.")
        self.processor, self.root, self.scored_types = processor, Path(root), tuple(scored_types)
        self.instructions, self.num_frames, self.blind = instructions, num_frames, blind
        self._reader = with_video_reader(processor).video_processor

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Prompts of the samples that can be read.

        Returns:
            `inputs`: the processor's, a list with one entry for all prompts whose videos have one shape; `questions`: one a prompt, in that
            order; `places`: of the prompts among the samples; `skipped`: why each of the other samples is left out.
        """
        groups: dict[tuple[int, ...], list[tuple[int, Any, VideoMetadata | None, str, Question]]] = {}
        skipped = []
        for place, sample in enumerate(samples):
            try:
                text, question = self._question(sample)
                frames, metadata = (None, None) if self.blind else self._frames(sample)
            except (ValueError, TypeError, LookupError, OSError) as error:
                skipped.append(f"{_name(sample, place)}: {' '.join(str(error).split())}")
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
            except ValueError as error:
                # One video may have a shape that the processor refuses.
                if len(group) > 1:
                    pending = [[one] for one in group] + pending
                else:
                    place = group[0][0]
                    skipped.append(f"{_name(samples[place], place)}: {' '.join(str(error).split())}")
            else:
                ordered += group
        questions, places = [sample[4] for sample in ordered], [sample[0] for sample in ordered]
        return {"inputs": inputs, "questions": questions, "places": places, "skipped": skipped}

    def _question(self, sample: Mapping[str, Any]) -> tuple[str, Question]:
        if not isinstance(sample, Mapping):
            raise ValueError(f"the sample is a {type(sample).__name__}: give a dict")
        problem_type = _problem_type(sample)
        if problem_type not in REWARDS:
            raise ValueError(f"problem_type={problem_type!r} is unknown: use one of {', '.join(map(repr, REWARDS))}.")
        for key in ("problem", "solution"):
            if sample.get(key) in (None, ""):
                raise ValueError(f"the sample has no {key}")
        if sample.get("data_type") not in (None, "video"):
            raise ValueError(f"data_type={sample['data_type']!r} {_NOT_A_VIDEO}")
        solution = extract_answer(str(sample["solution"]))
        answer = None
        if problem_type in self.scored_types:
            ids = self.processor.tokenizer(solution, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"solution={sample['solution']!r} has no tokens")
            answer = torch.tensor(ids, dtype=torch.long)
        return question_text(sample, self.instructions), Question(solution, problem_type, answer)

    def _frames(self, sample: Mapping[str, Any]) -> tuple[Any, VideoMetadata | None]:
        """Frames `(T, H, W, 3)`, and where in the clip they stand if they come from a file."""
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
            address = os.fspath(video)
            return self._reader.fetch_videos(address if "://" in address else str(self.root / address), choose)
        frames = np.asarray(video)
        if frames.ndim != 4 or 0 in frames.shape or frames.dtype.kind not in "uif":
            raise ValueError(
                f"the video is a {type(video).__name__} of shape {frames.shape}: give a path, bytes, or frames (T, H, W, 3)"
            )
        return frames, None

    def _prompts(
        self, frames: Sequence[Any], metadata: Sequence[VideoMetadata | None], texts: Sequence[str]
    ) -> dict[str, Any]:
        messages: Any = []
        for video, text in zip(frames, texts, strict=True):
            content = [] if video is None else [{"type": "video", "video": video}]
            messages.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
        settings: dict[str, Any] = {"padding": True}
        if metadata[0] is not None:
            settings |= {"video_metadata": [[one] for one in metadata], "do_sample_frames": False}
        inputs: Any = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs=settings,
        )
        return dict(inputs)


def _problem_type(sample: Mapping[str, Any]) -> Any:
    given = sample.get("problem_type")
    return "multiple choice" if given is None else given


def _name(sample: Mapping[str, Any], place: int) -> str:
    if not isinstance(sample, Mapping):
        return f"sample {place}"
    video = sample.get("path")
    video = sample.get("video") if video is None else video
    video = video.get("path") if isinstance(video, Mapping) else video
    return str(video if isinstance(video, (str, os.PathLike)) else sample.get("problem_id", f"sample {place}"))
