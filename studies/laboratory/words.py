"""Words of the clips as SmolLM2's tokenizer spells them: every answer is one token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cacovid_hf.tiny.synthetic import COLORS, OBJECTS, TINTS

# Of two tokens in SmolLM2's vocabulary, and what stands for them.
RENAMED = {"maroon": "wine", "teal": "jade"}
NOTHING = "empty"  # the word of a cell without an object


def renamed(text: str) -> str:
    """A text in words of the laboratory."""
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class Vocabulary:
    """How questions and answers become tokens.

    Args:
        tokenizer: SmolLM2's.
    """

    tokenizer: Any

    def question(self, text: str) -> list[int]:
        """The tokens of a question."""
        return self.tokenizer(renamed(text), add_special_tokens=False)["input_ids"]

    def answer(self, word: str) -> int:
        """The token of an answer, as it stands behind a question.

        Raises:
            ValueError: it has several.
        """
        word = renamed(word)
        ids = self.tokenizer(word if word.isdigit() else f" {word}", add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"{word!r} has {len(ids)} tokens. Give it another name of one token in RENAMED.")
        return ids[0]

    def of_cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of the objects (the last one: none), colors and tints, in the order of `synthetic`'s lists: what a cell shows."""
        objects, colors, tints = (
            torch.tensor([self.answer(word) for word in words]) for words in ((*OBJECTS, NOTHING), COLORS, TINTS)
        )
        return objects, colors, tints
