"""`stop` of a request: generation ends at these texts, and none of them is part of the answer."""

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


def until_stop(text: str, stop: list[str]) -> str:
    """Return the text before the first of the stop texts."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]


class UntilStop:
    """Passes on a text that comes in pieces, up to the first stop text, also one that comes in pieces.

    Args:
        stop: texts, none of them empty.
    """

    def __init__(self, stop: list[str]):
        self.stop = stop
        self.held, self.ended = "", False

    def feed(self, piece: str) -> str:
        """Return what is certain to stand before a stop text, of what came so far and was not passed on."""
        if self.ended:
            return ""
        text = self.held + piece
        before = until_stop(text, self.stop)
        self.ended = len(before) < len(text)
        kept = 0 if self.ended else self._beginning_of_a_stop(text)
        self.held = before[len(before) - kept :]
        return before[: len(before) - kept]

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self.held = self.held, ""
        return held

    def _beginning_of_a_stop(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop text."""
        longest = max(map(len, self.stop), default=1) - 1
        return next(
            (n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self.stop)), 0
        )


class StopTextCriteria(StoppingCriteria):
    """Ends a sequence whose answer, decoded, holds a stop text: with any tokenizer, also one that writes words and not pieces of them.

    Args:
        processor: decodes.
        prompt: length of the prompt, in tokens.
        stop: texts, none of them empty.
    """

    def __init__(self, processor: Any, prompt: int, stop: list[str]):
        self.processor, self.prompt, self.stop = processor, prompt, stop
        self.window = max(map(len, stop)) + 16  # tokens: one of them has a character, except for special ones

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Bool `(B,)`."""
        ends = [row[max(self.prompt, len(row) - self.window) :] for row in input_ids]
        texts = [self.processor.decode(end, skip_special_tokens=True) for end in ends]
        found = [any(stop in text for stop in self.stop) for text in texts]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)
