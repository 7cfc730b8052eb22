"""Write the example clips: `python -m cacovid_hf.tiny.examples --out DIR`.

A clip is taken if the embedded model, given all its video tokens, answers its first question rightly from the mp4 file;
what it answers from compressed videos plays no part.
"""

import argparse
import json
from itertools import count
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..utils.files import replaced
from ..video.files import read_video
from . import model_path
from .accuracy import first_words
from .mp4 import write_mp4
from .synthetic import NUM_FRAMES, QUESTION_KINDS, Clip, Question, make_clip

_EXAMPLE_STREAM = 4


def write_examples(folder: Path, model: PreTrainedModel, processor: ProcessorMixin, num_clips: int = 5) -> None:
    """Make `folder` with `num_clips` mp4 files and `clips.json`, their questions, one of each kind a clip."""
    listed: list[dict[str, object]] = []
    with replaced(folder) as unfinished:
        unfinished.mkdir(parents=True)
        for index in count():
            if len(listed) == num_clips:
                break
            clip = make_clip((_EXAMPLE_STREAM, index))
            questions = _one_of_each_kind(clip, index)
            path = unfinished / f"clip{len(listed)}.mp4"
            write_mp4(path, clip.frames)
            frames, _ = read_video(path, num_frames=NUM_FRAMES)
            if first_words(model, processor, [frames], [questions[0].text]) != [questions[0].answer]:
                continue  # the next clip takes its name
            listed.append(
                {
                    "file": path.name,
                    "questions": [{"text": q.text, "answer": q.answer} for q in questions],
                }
            )
        (unfinished / "clips.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _one_of_each_kind(clip: Clip, index: int) -> list[Question]:
    """One question of each kind about the clip, a random one; the kinds begin with another for each clip."""
    rng = np.random.default_rng((_EXAMPLE_STREAM, index, 1))
    kinds = np.roll(QUESTION_KINDS, -index)
    candidates = [[question for question in clip.questions if question.kind == kind] for kind in kinds]
    return [questions[rng.integers(len(questions))] for questions in candidates]


def main() -> None:
    """Command line: write the clips of the embedded model to `--out`."""
    parser = argparse.ArgumentParser(description="Write the example clips of the embedded model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make for the clips and clips.json")
    parser.add_argument(
        "--model", type=Path, default=model_path(), help="folder of the model that must know the answers"
    )
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"--out {arguments.out} exists already: remove it or name another folder")
    torch.set_num_threads(2)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model)
    write_examples(arguments.out, model, AutoProcessor.from_pretrained(arguments.model))


if __name__ == "__main__":
    main()
