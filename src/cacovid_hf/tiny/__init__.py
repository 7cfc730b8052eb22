"""The embedded tiny video language model, its example clips and its synthetic questions."""

import json
from dataclasses import dataclass
from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class ExampleQuestion:
    """A question about an example clip and its right answer, one word."""

    text: str
    answer: str


@dataclass(frozen=True)
class ExampleClip:
    """An mp4 file of the package and questions about it."""

    path: Path
    questions: tuple[ExampleQuestion, ...]


def model_path() -> Path:
    """Folder of the embedded model and its processor, for `from_pretrained`."""
    return _ASSETS / "model"


def clips() -> list[ExampleClip]:
    """Return the example clips: 84 x 84 pixels, 8 seconds, one new frame a second, each with a question of every kind."""
    folder = _ASSETS / "clips"
    listed = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
    return [
        ExampleClip(folder / clip["file"], tuple(ExampleQuestion(**question) for question in clip["questions"]))
        for clip in listed
    ]
