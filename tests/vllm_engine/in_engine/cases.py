"""Requests that transformers and vLLM both answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

WORDS = ["what", "color", "is", "the", "circle", "square", "red", "green", "blue"]
NEW_TOKENS = 16
VIDEO = {"qwen2_5_vl": "<|vision_start|><video><|vision_end|>", "llava_onevision": "<video>"}


@dataclass(frozen=True)
class Text:
    """Random words."""

    seed: int
    count: int

    def words(self) -> str:
        numbers = np.random.default_rng(self.seed).integers(0, 60, self.count)
        return " ".join(WORDS[n] if n < len(WORDS) else f"w{20 + n}" for n in numbers)


@dataclass(frozen=True)
class Clip:
    """Random frames at a rate."""

    seed: int
    frames: int = 16
    fps: float = 2.0

    def pixels(self) -> np.ndarray:
        return np.random.default_rng(1000 + self.seed).integers(0, 255, (self.frames, 84, 112, 3), dtype=np.uint8)

    def metadata(self) -> dict[str, Any]:
        return dict(
            total_num_frames=self.frames,
            fps=self.fps,
            duration=self.frames / self.fps,
            frames_indices=list(range(self.frames)),
            video_backend="opencv",
        )


@dataclass(frozen=True)
class Picture:
    """A random picture."""

    seed: int

    def image(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(2000 + self.seed).integers(0, 255, (56, 84, 3), dtype=np.uint8))


@dataclass(frozen=True)
class Case:
    """A prompt, and what is asked of its videos."""

    parts: Sequence[Text | Clip | Picture]
    ratio: float | list[float] | None = None
    method: str | None = None

    def prompt(self, family: str) -> str:
        video = VIDEO[family]
        marks = {Clip: video, Picture: video.replace("<video>", "<image>")}
        pieces = [part.words() if isinstance(part, Text) else marks[type(part)] for part in self.parts]
        return " ".join([*pieces, "answer"])

    def clips(self) -> list[Clip]:
        return [part for part in self.parts if isinstance(part, Clip)]

    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    def request(self, family: str) -> dict[str, Any]:
        """For `LLM.generate`."""
        with_times = family == "qwen2_5_vl"
        clips = [
            (clip.pixels(), {**clip.metadata(), "do_sample_frames": False}) if with_times else clip.pixels()
            for clip in self.clips()
        ]
        media = {"video": clips, "image": [picture.image() for picture in self.pictures()]}
        asked = {"retention_ratio": self.ratio, "compressor": self.method}
        request: dict[str, Any] = {"prompt": self.prompt(family)}
        if found := {name: items for name, items in media.items() if items}:
            request["multi_modal_data"] = found
        if kwargs := {name: value for name, value in asked.items() if value is not None}:
            request["mm_processor_kwargs"] = kwargs
        return request


def _about(question: Text, ratio: Any, *, clip: Clip = Clip(0), method: str | None = None) -> Case:
    return Case((Text(1, 20), clip, question), ratio, method)


CASES: list[Case] = [
    _about(Text(2, 12), 0.25),
    _about(Text(3, 9), 0.25),  # the same clip, another question
    _about(Text(2, 12), 0.5),  # the same question, another ratio
    _about(Text(2, 12), 1.0),
    _about(Text(3, 9), 1.0),
    Case((Text(4, 5), Clip(1, 12, 4.0), Text(5, 30)), 0.1),
    Case((Text(6, 3), Clip(0), Text(7, 2), Clip(2, 8, 1.0), Text(8, 8)), [0.25, 0.5]),
    Case((Text(6, 3), Clip(0), Clip(1, 12, 4.0), Text(8, 8)), 0.3),
    Case((Text(6, 3), Clip(0), Clip(1, 12, 4.0), Text(8, 8)), [1.0, 0.1]),
    Case((Text(9, 40), Text(10, 4))),
    Case((Text(1, 5), Clip(0, fps=0.25), Text(2, 3)), 0.25),  # its time runs past the text behind it
    Case((Text(1, 5), Clip(0, fps=0.25), Text(2, 3)), 1.0),
    Case((Text(1, 5), Picture(3), Text(11, 2), Clip(0), Text(2, 30)), 0.25),
    Case((Text(1, 5), Picture(4), Text(11, 2), Clip(0), Text(3, 30)), 0.25),  # another picture and question
    Case((Text(1, 5), Picture(3), Text(11, 2), Clip(0), Text(3, 30)), 0.25),  # the first picture again
    Case((Text(1, 5), Clip(0), Text(11, 2), Picture(3), Text(2, 10)), 0.25),  # the picture behind the video
    Case((Text(1, 5), Clip(3), Text(2, 7), Text(12, 6), Text(3, 5)), 0.25),  # a later turn asks again
    _about(Text(2, 12), 0.25, method="divprune"),
    _about(Text(3, 9), 0.25, method="divprune"),
    _about(Text(2, 12), 0.25, method="vidcom2"),
    _about(Text(2, 12), 0.1, method="uniform"),
    _about(Text(2, 12), 0.25, method="simplecluster"),
    _about(Text(2, 12), 0.25, method="prunevid"),
    Case((Text(6, 3), Clip(0), Text(7, 2), Clip(2, 8, 1.0), Text(8, 8)), [0.25, 0.5], "divprune"),
]
