"""VideoMME (arXiv 2405.21075), as lmms-eval 0.7.3 lays it out and asks it."""

import re
from pathlib import Path
from typing import ClassVar

from ...utils.text_files import read_text
from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row

_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
_TAG = re.compile(r"<[^>]+>")


class VideoMME(FileBenchmark):
    """2,700 questions on 900 videos, four options each.

    Layout: `videomme/test-*.parquet` (columns `videoID`, `question_id`, `duration`, `domain`, `sub_category`, `task_type`, `question`, `options`,
    `answer`), `data/<videoID>.mp4` (or `videos/`), `subtitle/<videoID>.srt`.
    """

    name = "videomme"
    breakdown = ("duration", "domain", "task_type")
    protocol = "prompt and accuracy of lmms-eval 0.7.3 (task videomme)"
    subtitles = False
    patterns: ClassVar[tuple[str, ...]] = (
        "videomme/test*.parquet",
        "test*.parquet",
        "**/test*.parquet",
        "**/test*.json*",
    )

    def read(self) -> list[Sample]:
        """All samples; with subtitles, some video must have them."""
        self._has_subtitles = False
        samples = super().read()
        if self.subtitles and not self._has_subtitles:
            raise ValueError(
                f"no video has subtitles below {self.root / 'subtitle'}: add them, or use {VideoMME.name}."
            )
        return samples

    def sample(self, row: Row) -> Sample:
        """Return a question with four options."""
        video = row.text("videoID")
        options, shown = choices_of(row.field("options"))
        lines = [_INSTRUCTION, row.text("question"), *shown]
        if self.subtitles:
            prompt = "\n".join(["This video's subtitles are listed below: ", self._subtitles(video), *lines])
            prompt += "\nThe best answer is:"
        else:
            prompt = "\n".join(lines) + "\n\nAnswer with the option's letter from the given choices directly."
        groups = {name: row.text(name) for name in (*self.breakdown, "sub_category")}
        clip = Clip(self.copy.video(video, ["data", "videos"]))
        return Sample(row.text("question_id"), clip, prompt, None, options, groups, video)

    def _subtitles(self, video: str) -> str:
        path = self.copy.file(f"{video}.srt", "subtitle", "subtitles")
        self._has_subtitles |= path is not None
        return "\n".join(read_srt(path)) if path else "No subtitles available"


class VideoMMEWithSubtitles(VideoMME):
    """VideoMME with the subtitles above the question."""

    name = "videomme_w_subtitle"
    subtitles = True
    protocol = (
        "prompt and accuracy of lmms-eval 0.7.3 (task videomme_w_subtitle), but all subtitles, where lmms-eval leaves out those between the "
        "sampled frames"
    )


def read_srt(path: Path) -> list[str]:
    """Return the lines that a SubRip file shows, without numbers, times and tags; those that repeat the line before are left out."""
    lines: list[str] = []
    try:
        text = read_text(path)
    except ValueError:
        text = path.read_text(encoding="utf-8", errors="replace")
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        _, arrow, shown = block.partition("-->")
        if not arrow:
            continue
        text = " ".join(_TAG.sub("", line).strip() for line in shown.split("\n")[1:]).strip()
        if text and (not lines or lines[-1] != text):
            lines.append(text)
    return lines
