"""An OpenAI-compatible server for one CaCoVid model: the request handlers of `transformers serve`, around a model that it cannot load itself.

`transformers serve` finds its classes inside transformers alone, and asks for the sound of every video, which these models cannot hear. Its
handlers are good as they are: what is added is the model, and `retention_ratio` as a field of a request.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.import_utils import is_serve_available

from cacovid_hf.utils.extras import pip_install

if not is_serve_available():
    raise ImportError(f"Serving needs more packages: {pip_install('serve')}")

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import Modality

from cacovid_cli.stop_texts import StopState, checked_stop
from cacovid_hf.ratio import check_asked
from cacovid_hf.video.messages import follow_messages

RATIO = "retention_ratio"


class _Served:
    """What the handlers ask of a model manager: here there is one model, loaded already."""

    def __init__(self, name: str, model: PreTrainedModel, processor: ProcessorMixin):
        self.force_model, self.model, self.processor = name, model, processor

    def process_model_name(self, name: str) -> str:
        """As an answer names it."""
        return name

    def load_model_and_processor(self, name: str, **how: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
        """There they are."""
        return self.model, self.processor

    def get_model_modality(self, model: PreTrainedModel, processor: ProcessorMixin | None = None) -> Modality:
        """Text, images and videos; not what transformers calls multimodal, which is with sound."""
        return Modality.VLM


@contextmanager
def _well_formed(what: str) -> Iterator[None]:
    """The handlers take what they are given as OpenAI's API has it, and stumble where it is not."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{what} not as OpenAI's API has it ({type(error).__name__}: {error}).") from error


class _WithRatio:
    """Lets a request say `retention_ratio`, which overrides the one in its `generation_config` and the server's own."""

    prompt: str

    def _validate_request(self, body: dict[str, Any]) -> None:
        try:
            super()._validate_request({name: value for name, value in body.items() if name != RATIO})  # type: ignore[misc]
        except HTTPException as error:
            raise ValueError(f"{error.detail}. Check for typos, or leave them out.") from error
        if not body.get(self.prompt):
            raise ValueError(f"The request has no {self.prompt}: there is nothing to answer.")

    def get_processor_inputs_from_messages(self, messages: Any, modality: Modality) -> list[dict[str, Any]]:
        """As transformers', which knows one name of a video and passes over the others: parts are followed or refused here."""
        with _well_formed(f"The request's {self.prompt}:"):
            followed = follow_messages(messages)
            bare = [{**message, "content": None} for message in followed]
            parsed = super().get_processor_inputs_from_messages(bare, modality)  # type: ignore[misc]
        for message, one in zip(followed, parsed, strict=True):
            content = message.get("content") or []
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if empty := [part["type"] for part in parts if len(part) == 1]:
                raise ValueError(f"A part of type {empty[0]!r} has no address: give {empty[0]}_url.")
            if not message.get("tool_calls"):
                one["content"] = parts
        return parsed

    def _build_generation_config(self, body: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with _well_formed("A setting of the request:"):
            settings = super()._build_generation_config(body, *args, **kwargs)  # type: ignore[misc]
        if body.get("stop") is not None:
            settings.stop_strings = checked_stop(body["stop"])
        if body.get(RATIO) is not None:
            settings.retention_ratio = body[RATIO]
        if (ratio := getattr(settings, RATIO, None)) is not None:
            check_asked(ratio)  # a stream would have begun before `generate` refuses it
        return settings


class _Chat(_WithRatio, ChatCompletionHandler):
    """Of `/v1/chat/completions`."""

    prompt = "messages"


class _Responses(_WithRatio, ResponseHandler):
    """Of `/v1/responses`."""

    prompt = "input"

    def _normalize_input(self, body: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        with _well_formed("The request's input:"):
            return ResponseHandler._normalize_input(body)


def make_app(name: str, model: PreTrainedModel, processor: ProcessorMixin) -> FastAPI:
    """The server's application: `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health`.

    A request may hold videos (see `cacovid_hf.video.messages.follow_messages`), `stop` and `retention_ratio` (a fraction, `"auto"`, or a list with
    one for each video). Requests are answered one after another. What the user can put right is answered with status 400 and `{"error": {"message": ...}}`; what is found out when a stream has
    begun, in an event of it.

    Args:
        name: of the model; what a request may say as its `model`.
        model: a `CaCoVidForConditionalGeneration`, whose config has the ratio of requests that say nothing.
        processor: its processor, reading video files.
    """
    app, state = FastAPI(), StopState()
    served: Any = _Served(name, model, processor)
    handlers: dict[str, Any] = {
        "/v1/chat/completions": _Chat(served, state),
        "/v1/responses": _Responses(served, state),
    }

    async def answer(request: Request) -> Any:
        try:
            body = await request.json()
        except json.JSONDecodeError as error:
            raise ValueError(f"The request is not JSON ({error}).") from error
        if not isinstance(body, dict):
            raise ValueError(f"The request is a JSON {type(body).__name__}: send an object.")
        return await handlers[request.url.path].handle_request(
            body, request.headers.get("x-request-id") or str(uuid.uuid4())
        )

    for path in handlers:
        app.add_api_route(path, answer, methods=["POST"], response_model=None)

    @app.exception_handler(ValueError)
    @app.exception_handler(FileNotFoundError)
    @app.exception_handler(TemplateError)
    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status_code=400)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": ""}]}

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def serve(name: str, model: PreTrainedModel, processor: ProcessorMixin, host: str, port: int) -> None:
    """Serve a model (see `make_app`) until the process is interrupted."""
    uvicorn.run(make_app(name, model, processor), host=host, port=port, log_level="info")
