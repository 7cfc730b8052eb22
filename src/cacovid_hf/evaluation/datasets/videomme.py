"""VideoMME (arXiv 2405.21075), as lmms-eval 0.7.3 lays it out and asks it."""

import re
from pathlib import Path

from .base import Clip, FileBenchmark, Sample, without_labels

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

    def read(self) -> list[Sample]:
        """One sample a row."""
        path = self.file("videomme/test*.parquet", "test*.parquet", "**/test*.parquet", "**/test*.json*")
        samples = []
        for row in self.rows(path):
            video, options = str(self.field(row, "videoID", path)), [str(o) for o in self.field(row, "options", path)]
            lines = [_INSTRUCTION, self.field(row, "question", path), *options]
            if self.subtitles:
                prompt = "\n".join(["This video's subtitles are listed below: ", self._subtitles(video), *lines])
                prompt += "\nThe best answer is:"
            else:
                prompt = "\n".join(lines) + "\n\nAnswer with the option's letter from the given choices directly."
            groups = {name: str(self.field(row, name, path)) for name in (*self.breakdown, "sub_category")}
            samples.append(
                Sample(
                    str(self.field(row, "question_id", path)),
                    Clip(self.video(video, "data", "videos")),
                    prompt,
                    str(self.field(row, "answer", path)).strip().upper(),
                    without_labels(options),
                    groups,
                    video,
                )
            )
        return samples

    def _subtitles(self, video: str) -> str:
        path = self.root / "subtitle" / f"{video}.srt"
        return "\n".join(read_srt(path)) if path.is_file() else "No subtitles available"


class VideoMMEWithSubtitles(VideoMME):
    """VideoMME with the subtitles above the question."""

    name = "videomme_w_subtitle"
    subtitles = True
    protocol = (
        "prompt and accuracy of lmms-eval 0.7.3 (task videomme_w_subtitle), but all subtitles, where lmms-eval leaves out those between the "
        "sampled frames"
    )


def read_srt(path: Path) -> list[str]:
    """The lines that a SubRip file shows, without numbers, times and tags; those that repeat the line before are left out."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")):
        _, arrow, shown = block.partition("-->")
        if not arrow:
            continue
        text = " ".join(_TAG.sub("", line).strip() for line in shown.split("\n")[1:]).strip()
        if text and (not lines or lines[-1] != text):
            lines.append(text)
    return lines
