"""`stop` of a request: generation ends at these texts, and none of them is part of the answer."""

import asyncio
from collections import deque
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.cli.serving.utils import GenerateManager, GenerationState


def checked_stop(stop: Any) -> list[str]:
    """What a request says as its `stop`, as a list.

    Raises:
        ValueError: not a text or a list of them.
    """
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop={stop!r}: give a text or a list of texts, none of them empty.")
    return texts


def until_stop(text: str, stop: list[str]) -> str:
    """The text before the first of the stop texts."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]


class UntilStop:
    """A queue of an answer's parts, read in the place of another: texts end at the first stop text, also one that comes in pieces.

    Args:
        parts: texts, other items, and None at the end.
        stop: texts, none of them empty.
    """

    def __init__(self, parts: asyncio.Queue, stop: list[str]):
        self.parts, self.stop = parts, stop
        self.held, self.ended = "", False
        self.ready: deque[Any] = deque()

    async def get(self) -> Any:
        """The next part, when it is there."""
        while not self.ready:
            self._take(await self.parts.get())
        return self.ready.popleft()

    def get_nowait(self) -> Any:
        """The next part, if it is there; else an `asyncio.QueueEmpty`."""
        while not self.ready:
            self._take(self.parts.get_nowait())
        return self.ready.popleft()

    def _take(self, part: Any) -> None:
        if type(part) is str:
            if self.ended:
                return
            text = self.held + part
            before = until_stop(text, self.stop)
            self.ended = len(before) < len(text)
            kept = 0 if self.ended else self._beginning_of_a_stop(text)
            self.held, before = before[len(before) - kept :], before[: len(before) - kept]
            if before:
                self.ready.append(before)
            return
        if self.held and not self.ended:
            self.ready.append(self.held)
        self.held = ""
        self.ready.append(part)

    def _beginning_of_a_stop(self, text: str) -> int:
        """How many characters at the end of a text may be the beginning of a stop text."""
        longest = max(map(len, self.stop)) - 1
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


class StopManager(GenerateManager):
    """Generates until the stop texts of a call's config, which `generate` itself would look for with a tokenizer that it does not get."""

    def generate_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **kwargs: Any
    ) -> Any:  # type: ignore[override]
        """As in transformers, the queue without what comes from the first stop text on."""
        stop, inputs, gen_config = _with_criteria(processor, inputs, gen_config)
        queue, streamer = super().generate_streaming(model, processor, inputs, gen_config, *args, **kwargs)
        return (UntilStop(queue, stop) if stop else queue), streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: Any, *args: Any, **kwargs: Any
    ) -> Any:  # type: ignore[override]
        """As in transformers, the text without what comes from the first stop text on."""
        stop, inputs, gen_config = _with_criteria(processor, inputs, gen_config)
        text, *others = await super().generate_non_streaming(model, processor, inputs, gen_config, *args, **kwargs)
        return (until_stop(text, stop), *others)


class StopState(GenerationState):
    """Gives every model a `StopManager`."""

    def __init__(self) -> None:
        super().__init__()
        self.managers: dict[str, StopManager] = {}

    def get_manager(self, model_id: str, use_cb: bool = False) -> Any:
        """One for each model, made when it is first asked for."""
        if model_id not in self.managers:
            self.managers[model_id] = StopManager()
        return self.managers[model_id]


def _with_criteria(processor: Any, inputs: Any, gen_config: Any) -> tuple[list[str], Any, Any]:
    """The stop texts, and inputs and config of a call in which criteria stand for them."""
    stop = gen_config.stop_strings
    if not stop:
        return [], inputs, gen_config
    gen_config.stop_strings = None
    criteria = StoppingCriteriaList([StopTextCriteria(processor, inputs["input_ids"].shape[1], stop)])
    return stop, {**inputs, "stopping_criteria": criteria}, gen_config
