"""The one thread that computes: questions wait in a queue and are answered one after another."""

import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin, StoppingCriteria, StoppingCriteriaList, TextStreamer

from cacovid_hf.compressors import Compressor

from .errors import Refused
from .finished import Finished
from .interrupts import Interrupt, Interrupted
from .requests import AnswerRequest
from .stop_texts import StopTextCriteria, UntilStop, until_stop

logger = logging.getLogger("uvicorn.error")


@dataclass(frozen=True)
class Settings:
    """How one question is answered.

    Attributes:
        arguments: of `generate`.
        stop: texts that end the answer.
        seed: of its draws; None: another one each time.
        streamed: whether pieces of the text are wanted while it grows.
    """

    arguments: dict[str, Any]
    stop: list[str]
    seed: int | None
    streamed: bool


@dataclass
class Job:
    """A question in the queue.

    Attributes:
        inputs: of the model.
        settings: see there.
        interrupt: told when nobody waits any more.
        tell: called in the worker's thread with a piece of text, then with `Finished`; or with an exception.
    """

    inputs: Mapping[str, Any]
    settings: Settings
    interrupt: Interrupt
    tell: Callable[[Any], None]
    started: float = field(default_factory=time.monotonic)


class Worker:
    """Answers jobs in a thread of its own.

    Args:
        model: a `CaCoVidForConditionalGeneration`.
        processor: decodes.
        compressor: of requests that say nothing; None: the policy.
    """

    def __init__(self, model: Any, processor: ProcessorMixin, compressor: Compressor | None = None):
        self.model, self.processor, self.compressor = model, processor, compressor
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.current: Job | None = None
        self.thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self.thread.start()

    def submit(self, job: Job) -> None:
        """Put a question into the queue; whoever calls bounds how many there are."""
        self.jobs.put(job)

    def close(self, seconds: float) -> None:
        """Stop what runs at its next token, and wait so long for it."""
        if (job := self.current) is not None:
            job.interrupt.set()
        self.jobs.put(None)
        self.thread.join(seconds)

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.current = job
            try:
                job.tell(self._answered(job))
            except (Interrupted, Refused) as error:
                job.tell(error.with_traceback(None))  # whose frames hold the job
            except ValueError as error:
                job.tell(Refused(str(error)))
            except torch.OutOfMemoryError:
                job.tell(Refused("There is not enough memory for this request: send a shorter video.", status=500))
            except Exception as error:
                logger.exception("A request failed.")
                job.tell(error)
            finally:
                self.current = job = None

    def _answered(self, job: Job) -> Finished:
        if job.interrupt.is_set():
            raise Interrupted
        settings, inputs = job.settings, job.inputs
        length = inputs["input_ids"].shape[1]
        watch = _Watch(job.interrupt)
        criteria: list[StoppingCriteria] = [watch]
        if settings.stop:
            criteria.append(StopTextCriteria(self.processor, length, settings.stop))
        arguments = {"compressor": self.compressor, **settings.arguments}
        if settings.streamed and arguments.get("num_beams", 1) == 1:
            arguments["streamer"] = _Pieces(self.processor, settings.stop, job.tell)
        device = self.model.device
        # No other thread of the server draws numbers; the cards of a model that lies on several are all seeded.
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.type == "cuda" else []):
            torch.manual_seed(secrets.randbits(63) if settings.seed is None else settings.seed)
            ids = self.model.generate(
                **{name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()},
                stopping_criteria=StoppingCriteriaList(criteria),
                **arguments,
            )
        if job.interrupt.is_set():
            raise Interrupted
        new = ids[0, length:]
        text = self.processor.decode(new, skip_special_tokens=True)
        before = until_stop(text, settings.stop)
        is_long = len(new) >= arguments["max_new_tokens"] and int(new[-1]) not in self._end_tokens()
        reason = "length" if is_long and len(before) == len(text) else "stop"
        return Finished(before, reason, length, len(new), watch.first_token_seconds)

    def _end_tokens(self) -> set[int]:
        ends = self.model.backbone.generation_config.eos_token_id
        return set(ends) if isinstance(ends, (list, tuple)) else {ends}


class _Watch(StoppingCriteria):
    """Ends the generation when nobody waits for it, and notes when its first token came."""

    def __init__(self, interrupt: Interrupt):
        self.interrupt, self.started = interrupt, time.monotonic()
        self.first_token_seconds = 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Bool `(B,)`."""
        self.first_token_seconds = self.first_token_seconds or time.monotonic() - self.started
        return torch.full((len(input_ids),), self.interrupt.is_set(), device=input_ids.device, dtype=torch.bool)


class _Pieces(TextStreamer):
    """Tells the words of an answer as they are finished, up to a stop text."""

    def __init__(self, processor: Any, stop: list[str], tell: Callable[[Any], None]):
        super().__init__(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.until, self.tell = UntilStop(stop), tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """As `TextStreamer` finds them."""
        piece = self.until.feed(text) + (self.until.rest() if stream_end else "")
        if piece:
            self.tell(piece)


def settings_of_request(request: AnswerRequest, room: int, most: int) -> Settings:
    """How a request is to be answered.

    Args:
        request: see there.
        room: positions that its prompt leaves.
        most: new tokens that a request may ask for.

    Raises:
        Refused: an answer that has no place behind the prompt.
    """
    asked = request.new_tokens
    if asked is not None and asked > room:
        raise Refused(
            f"An answer of {asked} tokens does not fit behind the prompt, which leaves {room} positions: ask for fewer.",
            param="max_tokens",
        )
    arguments: dict[str, Any] = {"max_new_tokens": min(most, room) if asked is None else asked}
    if request.min_tokens:
        if request.min_tokens > arguments["max_new_tokens"]:
            raise Refused(
                f"min_tokens={request.min_tokens} is over the {arguments['max_new_tokens']} tokens of the answer: ask for fewer.",
                param="min_tokens",
            )
        arguments["min_new_tokens"] = request.min_tokens
    sampling = {name: getattr(request, name) for name in ("temperature", "top_p", "top_k")}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if request.temperature == 0:
        arguments["do_sample"] = False
    elif sampling:
        arguments |= {"do_sample": True, "temperature": 1.0, **sampling}
    if request.num_beams > 1:
        arguments["num_beams"] = request.num_beams
    for name in ("repetition_penalty", "retention_ratio", "compressor"):
        if (value := getattr(request, name)) is not None:
            arguments[name] = value
    return Settings(arguments, request.stop, request.seed, request.stream)
