"""The laboratory of the hard kinds."""

import functools
from typing import Any

import torch

from cacovid_hf.tiny.synthetic import Clip
from studies.laboratory.hard_clips import CHANCE, HARD_KINDS, make_hard_clip
from studies.laboratory.hard_reading import HardReader
from studies.laboratory.headroom import by_kind, share
from studies.laboratory.laboratory import Laboratory
from studies.laboratory.models import VALIDATION_CLIPS, save
from studies.laboratory.packing import answered_right, everything
from studies.laboratory.questions import ALL_KINDS, READING, VALIDATION, Asked, ask, balanced, clips_of
from studies.laboratory.words import Vocabulary

HARD_STREAM = 10  # is added to a stream of seeds
HARD_READING_CLIPS, HARD_REPORTED_CLIPS = 300, 32
HARD_PER_KIND = 2  # questions of each hard kind about a clip, kind after kind


def questions_of(kind: str) -> slice:
    """Which of a clip's questions are of a hard kind, in the order in which cells tell the answers."""
    first = HARD_KINDS.index(kind) * HARD_PER_KIND
    return slice(first, first + HARD_PER_KIND)


class HardLaboratory(Laboratory):
    """The same with the clips of `hard_clips`: its readers are those of another laboratory, trained further, and its tables are of the hard kinds.

    Args:
        easy: the other one.
    """

    prefix = "hard-"
    reported_clips = HARD_REPORTED_CLIPS

    def __init__(self, easy: Laboratory):
        super().__init__(easy.work)
        self.easy = easy

    def video_model(self, seed: int) -> tuple[Any, Vocabulary, dict[str, float]]:
        """That of the other."""
        return self.easy.video_model(seed)

    @functools.cache  # noqa: B019
    def asked(self, seed: int, stream: int, clips: int) -> Asked:
        """As of the other, about clips of a stream of their own; two questions of every hard kind about each, of the reader's training all."""
        model, vocabulary, _ = self.video_model(seed)
        found = ask(model, vocabulary, clips, HARD_STREAM + stream, seed, make_hard_clip, ALL_KINDS)
        return (
            found
            if stream == READING
            else balanced(found, HARD_PER_KIND, torch.Generator().manual_seed(seed), HARD_KINDS)
        )

    def clips(self, seed: int, stream: int, count: int) -> list[Clip]:
        """Those of the hard kinds."""
        return clips_of(count, HARD_STREAM + stream, seed, make_hard_clip)

    def every_kind(self, seed: int) -> Asked:
        """Two questions of every kind, old and hard, about clips that nothing is trained on."""
        model, vocabulary, _ = self.video_model(seed)
        found = ask(model, vocabulary, VALIDATION_CLIPS, HARD_STREAM + VALIDATION, seed, make_hard_clip, ALL_KINDS)
        return balanced(found, 2, torch.Generator().manual_seed(seed), ALL_KINDS)

    def unread(self, seed: int, strength: int) -> dict[str, Any]:
        """What the other's reader makes of these questions."""
        asked = self.every_kind(seed)
        right = answered_right(self.easy.reader(seed, strength), asked, everything(len(asked)))
        return {"accuracy": share(right), "by_kind": by_kind(asked, right)}

    def read(self, seed: int, strength: int) -> dict[str, Any]:
        """Train a reader of the other further, and say what it has learnt, of new and old kinds, and how it now reads the old clips."""
        model, validation = self.video_model(seed)[0], self.every_kind(seed)
        path = self.reader_path(seed, strength)
        begun = path.with_suffix(".begun.pt")
        self.easy.reader(seed, strength)
        reader = HardReader(model, self.asked(seed, READING, HARD_READING_CLIPS), validation, seed)
        if begun.exists():
            reader.load_state_dict(torch.load(begun, weights_only=False))
        reader.run(keep=lambda: save(begun, reader.state_dict()))
        save(path, reader.state_dict())
        begun.unlink(missing_ok=True)
        old, progress = self.easy.asked(seed, VALIDATION, VALIDATION_CLIPS), reader.progress
        right = answered_right(model, validation, everything(len(validation)))
        return {
            "steps": progress.step,
            "questions": progress.questions,
            "tokens": progress.tokens,
            "processor_seconds": round(progress.seconds, 1),
            "accuracy": share(right),
            "by_kind": by_kind(validation, right),
            "chance": {kind: round(value, 4) for kind, value in CHANCE.items()},
            "old_clips": share(answered_right(model, old, everything(len(old)))),
        }
