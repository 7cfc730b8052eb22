"""Something-Something V2 (arXiv 1706.04261) asked as multiple choice."""

from typing import Any

import numpy as np

from .base import Clip, FileBenchmark, Sample, lettered

NUM_OPTIONS = 4
_SEED = 0


class SomethingSomething(FileBenchmark):
    """Which of four action templates a clip shows; the three wrong ones are drawn from the label file.

    Layout: `labels/validation.json` (`id`, `template`) and `labels/labels.json` (template to number), or their older names
    `something-something-v2-validation.json` and `something-something-v2-labels.json`; clips as `20bn-something-something-v2/<id>.webm` (or `videos/`).
    """

    name = "ssv2"
    protocol = (
        "ours: four options, the wrong ones drawn by the clip's id; there is no published protocol for multiple choice"
    )

    def read(self) -> list[Sample]:
        """One sample a clip, in the order of the validation file."""
        path = self.file(
            "labels/validation.json",
            "validation.json",
            "**/something-something-v2-validation.json",
            "**/validation.json",
        )
        templates = sorted(self._templates())
        if len(templates) < NUM_OPTIONS:
            raise ValueError(f"{self.name}: the label file has {len(templates)} templates, {NUM_OPTIONS} are needed.")
        samples = []
        for row in self.rows(path)[: self.limit]:
            id = str(self.field(row, "id", path))
            right = plain(str(self.field(row, "template", path)))
            if right not in templates:
                raise ValueError(f"{self.name}: the template {right!r} of clip {id} is not in the label file.")
            options, answer = draw_options(id, right, templates)
            lines = lettered(options, lambda letter, option: f"({letter}) {option}")
            prompt = "\n".join(
                [
                    "What action is being performed in this video?",
                    *lines,
                    "Answer with the option's letter from the given choices directly.",
                ]
            )
            clip = Clip(self.video(id, "20bn-something-something-v2", "videos", "."))
            samples.append(Sample(id, clip, prompt, answer, options, {"template": right}, id))
        return samples

    def _templates(self) -> set[str]:
        path = self.file("labels/labels.json", "labels.json", "**/something-something-v2-labels.json", "**/labels.json")
        import json

        labels: Any = json.loads(path.read_text(encoding="utf-8"))
        return {plain(template) for template in labels}


def plain(template: str) -> str:
    """A template without its brackets: `Pushing [something]` -> `Pushing something`."""
    return template.replace("[", "").replace("]", "")


def draw_options(id: str, right: str, templates: list[str]) -> tuple[tuple[str, ...], str]:
    """The right template among `NUM_OPTIONS - 1` others, in an order drawn by the clip's id; and its letter."""
    rng = np.random.default_rng([_SEED, *id.encode()])
    others = [template for template in templates if template != right]
    wrong = [others[i] for i in rng.choice(len(others), NUM_OPTIONS - 1, replace=False)]
    place = int(rng.integers(NUM_OPTIONS))
    return (*wrong[:place], right, *wrong[place:]), "ABCDEFGH"[place]
