"""What a request may say: a closed list of fields, each with its bounds. Everything else is refused by name."""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from cacovid_hf.compressors import COMPRESSORS
from cacovid_hf.ratio import check_asked
from cacovid_hf.utils.names import nearest

from .errors import Refused
from .limits import Limits

_STOP_TEXTS, _STOP_CHARACTERS = 16, 256
_SHOWN = 60  # characters of a value in a message
_SMALLEST = 0.01  # that scores are divided by, so that none of them becomes infinite
# More brackets, commas and colons than any chat has; base64 holds none of them. Trees of them take long to parse.
_JSON_MARKS = 200_000
_STEP = 1 << 20  # bytes

# Fields of OpenAI's API that are not offered, the values of theirs that ask for nothing, and what is done.
_NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer is given for a request"),
    "best_of": ((1,), "one answer is given for a request"),
    "logprobs": ((False,), "probabilities are not returned"),
    "top_logprobs": ((0,), "probabilities are not returned"),
    "frequency_penalty": ((0,), "use repetition_penalty"),
    "presence_penalty": ((0,), "use repetition_penalty"),
    "logit_bias": (({},), "scores of tokens are the model's own"),
    "tools": (([],), "these models call no tools"),
    "tool_choice": (("none", "auto"), "these models call no tools"),
    "parallel_tool_calls": ((True, False), "these models call no tools"),
    "functions": (([],), "these models call no tools"),
    "function_call": (("none", "auto"), "these models call no tools"),
    "response_format": (({"type": "text"},), "answers are texts"),
    "text": (({"format": {"type": "text"}}, {}), "answers are texts"),
    "modalities": ((["text"],), "answers are texts"),
    "audio": ((), "answers are texts"),
    "prediction": ((), "answers are not predicted"),
    "reasoning": (({},), "these models do not reason apart"),
    "reasoning_effort": (("none",), "these models do not reason apart"),
    "store": ((False,), "nothing is stored"),
    "background": ((False,), "nothing is stored"),
    "previous_response_id": ((), "nothing is stored: send the whole conversation"),
    "conversation": ((), "nothing is stored: send the whole conversation"),
    "metadata": (({},), "nothing is stored"),
    "include": (([],), "nothing more is returned"),
    "truncation": (("disabled",), "prompts are not cut"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "generation_config": ((), "give its settings as fields of the request"),
    "chat_template": ((), "the template is the model's"),
    "chat_template_kwargs": (({},), "the template is the model's, and settings of a video stand beside it"),
    "mm_processor_kwargs": (({},), "settings of a video stand beside it"),
}
# What a message of an assistant has when it is sent back, empty.
_EMPTY_IN_MESSAGE = ("name", "refusal", "tool_calls", "tool_call_id", "function_call", "audio", "annotations")


class _Strict(BaseModel):
    """A number in quotes is not a number, true is not 1, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Message(_Strict):
    """One message. Its parts are followed or refused by `cacovid_hf.video.messages.follow_messages`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[str | dict[str, Any]]
    type: Literal["message"] = "message"

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in _EMPTY_IN_MESSAGE:
            if data.get(name) not in (None, []):
                raise ValueError(f"{name} of a message is not offered: leave it out.")
        return {name: value for name, value in data.items() if name not in _EMPTY_IN_MESSAGE and value is not None}

    @field_validator("content")
    @classmethod
    def _few_parts(cls, content: Any, info: ValidationInfo) -> Any:
        most = _limits(info).messages
        if isinstance(content, list) and len(content) > most:
            raise ValueError(f"a message has {len(content)} parts, over this server's limit of {most}")
        return content

    def as_chat(self) -> dict[str, Any]:
        """As `follow_messages` and templates take it, a text as a part: some templates look at parts alone."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.content if isinstance(self.content, list) else [self.content]}


class StreamOptions(_Strict):
    """Of a streamed chat completion."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class AnswerRequest(_Strict):
    """What requests of both kinds may say. Fields that are null are as missing."""

    model: str | None = Field(None, max_length=512)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=1_000_000)
    repetition_penalty: float | None = Field(None, ge=_SMALLEST, le=10)
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 63) - 1)
    min_tokens: int = Field(0, ge=0)
    num_beams: int = Field(1, ge=1)
    stop: list[str] = Field(default_factory=list)
    retention_ratio: Any = None
    compressor: str | None = None
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, (neutral, done) in _NOT_OFFERED.items():
            value = data.get(name)
            if value is not None and not any(_is_same(value, one) for one in neutral):
                raise ValueError(f"{name}={_shown(value)} is not offered: {done}.")
        return {name: value for name, value in data.items() if value is not None and name not in _NOT_OFFERED}

    @field_validator("temperature")
    @classmethod
    def _greedy_or_warm(cls, value: float | None) -> float | None:
        if value is not None and 0 < value < _SMALLEST:
            raise ValueError(f"temperature={value} is too small to divide by: give 0, or at least {_SMALLEST}.")
        return value

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_texts(cls, stop: Any) -> list[str]:
        texts = [stop] if isinstance(stop, str) else stop
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop={_shown(stop)}: give a text or a list of texts, none of them empty.")
        if len(texts) > _STOP_TEXTS or any(len(text) > _STOP_CHARACTERS for text in texts):
            raise ValueError(f"stop: give at most {_STOP_TEXTS} texts of at most {_STOP_CHARACTERS} characters.")
        return texts

    @field_validator("retention_ratio")
    @classmethod
    def _ratio(cls, ratio: Any, info: ValidationInfo) -> Any:
        if isinstance(ratio, list) and len(ratio) > _limits(info).videos:
            raise ValueError(f"retention_ratio has {len(ratio)} values: give one number, or one per video.")
        check_asked(ratio)
        return ratio

    @field_validator("compressor")
    @classmethod
    def _method(cls, name: str | None) -> str | None:
        if name is not None and name not in COMPRESSORS:
            remedy = nearest(name, COMPRESSORS, f"choose one of {', '.join(COMPRESSORS)}.")
            raise ValueError(f"compressor={_shown(name)} is unknown: {remedy}")
        return name

    @field_validator("num_beams")
    @classmethod
    def _beams(cls, value: int, info: ValidationInfo) -> int:
        return _at_most(value, _limits(info).beams, "num_beams")

    @field_validator("min_tokens", "max_tokens", "max_completion_tokens", "max_output_tokens", check_fields=False)
    @classmethod
    def _tokens(cls, value: int | None, info: ValidationInfo) -> int | None:
        return _at_most(value, _limits(info).new_tokens, str(info.field_name))

    def take_chat(self) -> list[dict[str, Any]]:
        """Return the conversation, which may be large; the request does not hold it any more."""
        raise NotImplementedError

    @property
    def new_tokens(self) -> int | None:
        """The most that the answer may have; None if the request does not say."""
        raise NotImplementedError


class ChatRequest(AnswerRequest):
    """Of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream_options: StreamOptions = StreamOptions()

    @field_validator("messages")
    @classmethod
    def _few_messages(cls, messages: list[Message], info: ValidationInfo) -> list[Message]:
        return _few(messages, _limits(info).messages)

    def take_chat(self) -> list[dict[str, Any]]:
        """See `AnswerRequest`."""
        taken, self.messages = self.messages, []
        return [message.as_chat() for message in taken]

    @property
    def new_tokens(self) -> int | None:
        """`max_completion_tokens`, or else the older name of it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class ResponsesRequest(AnswerRequest):
    """Of `/v1/responses`."""

    input: str | list[Message]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)

    @field_validator("input")
    @classmethod
    def _few_messages(cls, messages: Any, info: ValidationInfo) -> Any:
        if not messages:
            raise ValueError("the input is empty: there is nothing to answer")
        return messages if isinstance(messages, str) else _few(messages, _limits(info).messages)

    def take_chat(self) -> list[dict[str, Any]]:
        """See `AnswerRequest`; the instructions come first."""
        asked = [Message(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        told = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        self.input, self.instructions = "", None
        return [message.as_chat() for message in (*told, *asked)]

    @property
    def new_tokens(self) -> int | None:
        """`max_output_tokens`."""
        return self.max_output_tokens


Request = TypeVar("Request", bound=AnswerRequest)


def parse(kind: type[Request], body: bytes, limits: Limits) -> Request:
    """Return what the body of a request says.

    Raises:
        Refused: it is not JSON, or not what is offered; the message names the first field that is wrong.
    """
    # Part by part, so that other threads get their turns.
    parts = range(0, len(body), _STEP)
    if (
        sum(body.count(mark, place, place + _STEP) for place in parts for mark in (b",", b"[", b"{", b":"))
        > _JSON_MARKS
    ):
        raise Refused(f"The request has more than {_JSON_MARKS} brackets, commas and colons: send a smaller one.")
    try:
        return kind.model_validate_json(body, context=limits)
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _refusal(error: ValidationError, kind: type[AnswerRequest]) -> Refused:
    errors = error.errors(include_url=False, include_context=False)
    # A union has an error for each of its members: the one that came furthest says most.
    first = max(
        (one for one in errors[:100] if one["loc"][:1] == errors[0]["loc"][:1]), key=lambda one: len(one["loc"])
    )
    # Of a union, the place is followed by the names of its members.
    place = [step for step in first["loc"] if not (isinstance(step, str) and ("[" in step or step in ("str", "dict")))]
    param = ".".join(map(str, place)) or None
    message, given = first["msg"], first["input"]
    if first["type"] == "json_invalid":
        return Refused(f"The request is not JSON ({message.removeprefix('Invalid JSON: ')}).")
    if first["type"] == "model_type" and not place:
        return Refused(f"The request is a JSON {type(given).__name__}: send an object.")
    if first["type"] == "extra_forbidden":
        known = kind.model_fields if len(place) == 1 else Message.model_fields
        remedy = nearest(place[-1], known, "leave it out.")
        return Refused(f"{_shown(param, '')} is not a field of a request: {remedy}", param=param)
    if first["type"] in ("missing", "too_short"):
        nothing = f"The request has no {param}: there is nothing to answer."
        return Refused(nothing if len(place) == 1 else f"{param} is missing: give it.", param=param)
    if first["type"] == "value_error":
        said = message.removeprefix("Value error, ")
        named = said if param is None or said.startswith(str(place[-1])) else f"{param}: {said}"
        return Refused(named, param=param or said.split("=")[0].split(" ")[0])
    return Refused(f"{param}={_shown(given)}: {message[0].lower()}{message[1:]}.", param=param)


def _limits(info: ValidationInfo) -> Limits:
    return info.context or Limits()


def _at_most(value: Any, limit: int, name: str) -> Any:
    if value is not None and value > limit:
        raise ValueError(f"{name}={_shown(value)} is over this server's limit of {limit}.")
    return value


def _few(messages: list[Message], limit: int) -> list[Message]:
    if len(messages) > limit:
        raise ValueError(f"there are {len(messages)} messages, over this server's limit of {limit}")
    return messages


def _is_same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _shown(value: Any, form: str = "r") -> str:
    text = repr(value) if form else str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
