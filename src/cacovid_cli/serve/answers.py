"""Answers in OpenAI's forms, whole and as events; every event is JSON in one line, so that no text can end it."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from .errors import Refused, error_body
from .finished import Finished
from .requests import AnswerRequest, ChatRequest


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    named = "" if name is None else f"event: {name}\n"
    return f"{named}data: {json.dumps(data)}\n\n".encode()


class ChatAnswer:
    """Of `/v1/chat/completions`.

    Args:
        model: its name.
        request: see there.
    """

    def __init__(self, model: str, request: AnswerRequest):
        self.has_usage = isinstance(request, ChatRequest) and request.stream_options.include_usage
        self.common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Finished) -> dict[str, Any]:
        """Return the answer as one object."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": answer.reason, "logprobs": None}
        return {**self.common, "object": "chat.completion", "choices": [choice], "usage": _usage(answer)}

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the first piece."""
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> Iterator[bytes]:
        """Yield the events of a piece of text."""
        yield self._chunk({"content": text})

    def end(self, answer: Finished) -> Iterator[bytes]:
        """Yield the events behind the last piece."""
        yield self._chunk({}, answer.reason)
        if self.has_usage:
            yield event({**self._head(), "choices": [], "usage": _usage(answer)})
        yield b"data: [DONE]\n\n"

    def failed(self, error: Refused) -> Iterator[bytes]:
        """Yield the events of an error after the first piece."""
        yield event(error_body(error))

    def _head(self) -> dict[str, Any]:
        return {**self.common, "object": "chat.completion.chunk"}

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**self._head(), "choices": [choice], **({"usage": None} if self.has_usage else {})})


class ResponsesAnswer:
    """Of `/v1/responses`."""

    def __init__(self, model: str, request: AnswerRequest):
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self.common = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
        }
        self.number = 0
        self.text = ""

    def whole(self, answer: Finished) -> dict[str, Any]:
        """Return the answer as one object."""
        status = "completed" if answer.reason == "stop" else "incomplete"
        usage = _usage(answer)
        return {
            **self.common,
            "status": status,
            "error": None,
            "incomplete_details": None if status == "completed" else {"reason": "max_output_tokens"},
            "output": [self._item(answer.text, status)],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the first piece."""
        started = {**self.common, "status": "in_progress", "error": None, "incomplete_details": None, "output": []}
        yield self._event("response.created", response=started)
        yield self._event("response.in_progress", response=started)
        item = {**self._item("", "in_progress"), "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=_part(""))

    def piece(self, text: str) -> Iterator[bytes]:
        """Yield the events of a piece of text."""
        self.text += text
        yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def end(self, answer: Finished) -> Iterator[bytes]:
        """Yield the events behind the last piece."""
        whole = self.whole(answer)
        status = whole["status"]
        yield self._event("response.output_text.done", **self._place(), text=self.text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_part(self.text))
        yield self._event("response.output_item.done", output_index=0, item=self._item(self.text, status))
        yield self._event(f"response.{status}", response=whole)

    def failed(self, error: Refused) -> Iterator[bytes]:
        """Yield the events of an error after the first piece."""
        body = error_body(error)["error"]
        yield self._event("error", message=body["message"], code=str(body["code"]), param=body["param"])

    def _item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }

    def _place(self) -> dict[str, Any]:
        return {"item_id": self.item_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **data: Any) -> bytes:
        self.number += 1
        return event({"type": kind, "sequence_number": self.number - 1, **data}, kind)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _usage(answer: Finished) -> dict[str, int]:
    prompt, new = answer.prompt_tokens, answer.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
