"""Something-Something V2 (arXiv 1706.04261) asked as multiple choice."""

from functools import cached_property
from typing import ClassVar

import numpy as np

from ...utils.option_letters import right_letter
from ...utils.options import comparable
from .base import Clip, FileBenchmark, Sample, choices_of
from .tables import Row, read_json

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

    patterns: ClassVar[tuple[str, ...]] = (
        "labels/validation.json",
        "validation.json",
        "**/something-something-v2-validation.json",
        "**/validation.json",
    )

    def sample(self, row: Row) -> Sample:
        """Return a clip and four templates."""
        id, given = row.text("id"), plain(row.text("template"))
        right = given if given in self._templates else self._comparable.get(comparable(given))
        clip = Clip(self.copy.video(id, ["20bn-something-something-v2", "videos", "."]))
        if right is None:
            problem = f"{row.place}: the template {given!r} is not in the label file: correct it."
            return Sample(id, clip, "", None, (), {"template": given}, id, problem)
        drawn, _ = draw_options(id, right, self._templates)
        options, lines = choices_of(drawn, "({letter}) {text}")
        prompt = "\n".join(
            [
                "What action is being performed in this video?",
                *lines,
                "Answer with the option's letter from the given choices directly.",
            ]
        )
        return Sample(id, clip, prompt, None, options, {"template": right}, id)

    def answer(self, row: Row, options: dict[str, str]) -> str:
        """By its text."""
        return right_letter(plain(row.text("template")), options, "text")

    @cached_property
    def _templates(self) -> list[str]:
        (path, *_) = self.copy.tables(
            "labels/labels.json", "labels.json", "**/something-something-v2-labels.json", "**/labels.json"
        )
        labels = read_json(path)
        if not isinstance(labels, (dict, list)) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"{path} is not an object of templates: copy or download it again.")
        templates = sorted({plain(template) for template in labels})
        if len(templates) < NUM_OPTIONS:
            raise ValueError(f"the label file has {len(templates)} templates, {NUM_OPTIONS} are needed.")
        return templates

    @cached_property
    def _comparable(self) -> dict[str, str]:
        return {comparable(template): template for template in self._templates}


def plain(template: str) -> str:
    """Return a template without its brackets: `Pushing [something]` -> `Pushing something`."""
    return template.replace("[", "").replace("]", "")


def draw_options(id: str, right: str, templates: list[str]) -> tuple[tuple[str, ...], str]:
    """Return the right template among `NUM_OPTIONS - 1` others, in an order drawn by the clip's id; and its letter."""
    rng = np.random.default_rng([_SEED, *id.encode()])
    others = [template for template in templates if template != right]
    wrong = [others[i] for i in rng.choice(len(others), NUM_OPTIONS - 1, replace=False)]
    place = int(rng.integers(NUM_OPTIONS))
    return (*wrong[:place], right, *wrong[place:]), "ABCDEFGH"[place]
