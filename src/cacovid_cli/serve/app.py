"""The application: `/v1/chat/completions`, `/v1/responses`, `/v1/models`, `/health`, `/metrics`."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from transformers import PreTrainedModel, ProcessorMixin

from cacovid_hf.compressors import Compressor

from .answers import ChatAnswer, ResponsesAnswer
from .connections import Connections
from .errors import Refused, error_response
from .finished import Finished
from .generation import Job, Worker, settings_of_request
from .guards import ASGIApp, Guards
from .interrupts import Interrupt, Threads, call_in
from .limits import Limits
from .metrics import Metrics
from .reading import Reader, positions_of
from .requests import AnswerRequest, ChatRequest, ResponsesRequest, parse

Answer = ChatAnswer | ResponsesAnswer
_LARGE = 1 << 20  # bytes


class Service:
    """What the routes share.

    Args:
        name: of the model, as requests say it.
        model: a `CaCoVidForConditionalGeneration`, whose config has the ratio of requests that say nothing.
        processor: its processor, reading video files.
        limits: see there.
        compressor: of requests that say nothing; None: the policy.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        limits: Limits,
        compressor: Compressor | None = None,
    ):
        self.name, self.limits = name, limits
        self.positions = positions_of(model, limits)
        self.reader = Reader(processor, self.positions, limits)
        self.worker = Worker(model, processor, compressor)
        self.metrics = Metrics()
        self.active = 0
        self.threads = Threads(limits.requests + 1)
        self.parsing = threading.Lock()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """One of the places of a full server, within the block.

        Raises:
            Refused: none is free.
        """
        if self.active >= self.limits.requests:
            raise Refused(f"The server has {self.active} requests to answer already: ask again later.", status=503)
        self.active += 1
        self.metrics.active.inc()
        try:
            yield
        finally:
            self.active -= 1
            self.metrics.active.dec()

    def parsed(self, kind: type[AnswerRequest], body: bytes) -> AnswerRequest:
        """See `parse`; large ones one after another, because the parser does not give other threads their turn."""
        with self.parsing if len(body) > _LARGE else contextlib.nullcontext():
            return parse(kind, body, self.limits)

    async def events(self, kind: type[AnswerRequest], http: Request) -> AsyncGenerator[Any, None]:
        """Yield what a request asks for, then pieces of text, then a `Finished`; closing it ends the work."""
        started, interrupt = time.monotonic(), Interrupt()
        try:
            with self.place():
                # Not `http.body()`, which would keep it.
                body = b"".join([part async for part in http.stream()])
                request = await self.threads.run(self.parsed, kind, body)
                del body
                if request.model is not None and request.model != self.name:
                    raise Refused(
                        f"model={request.model[:100]!r} is not served here: ask for {self.name!r}.", param="model"
                    )
                yield request
                inputs = await self.threads.run(self.reader.read, request.take_chat(), interrupt)
                room = self.positions - inputs["input_ids"].shape[1]
                settings = settings_of_request(request, room, self.limits.new_tokens)
                loop, told = asyncio.get_running_loop(), asyncio.Queue[Any]()
                self.worker.submit(Job(inputs, settings, interrupt, lambda item: call_in(loop, told.put_nowait, item)))
                del inputs
                while True:
                    item = await _told_next(told)
                    if isinstance(item, Finished):
                        self.metrics.finished(item, time.monotonic() - started)
                    yield item
                    if isinstance(item, Finished):
                        return
        finally:
            interrupt.set()

    async def answer(self, kind: type[AnswerRequest], form: type[Answer], http: Request) -> Response:
        """Return the response to a request; errors before the first piece of a stream are those of the whole response."""
        events, is_passed_on = self.events(kind, http), False
        try:
            request = await anext(events)
            answer = form(self.name, request)
            first = await anext(events)
            if request.stream:
                streamed = _streamed(answer, first, events)
                headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                is_passed_on = True  # and closed by the stream
                return StreamingResponse(streamed, media_type="text/event-stream", headers=headers)
            while not isinstance(first, Finished):
                first = await anext(events)
            return JSONResponse(answer.whole(first))
        finally:
            if not is_passed_on:
                await events.aclose()


async def _told_next(told: asyncio.Queue[Any]) -> Any:
    """Return what a job tells; raise it if it is an error."""
    item = await told.get()
    if not isinstance(item, BaseException):
        return item
    try:
        raise item
    finally:
        del item  # the error holds this frame


async def _streamed(answer: Answer, first: Any, events: Any) -> AsyncIterator[bytes]:
    """Return the events of an answer whose first item is there already."""
    item, has_text = first, False
    try:
        for part in answer.begin():
            yield part
        try:
            while not isinstance(item, Finished):
                has_text = True
                for part in answer.piece(item):
                    yield part
                item = await anext(events)
            if item.text and not has_text:  # beams tell nothing before their end
                for part in answer.piece(item.text):
                    yield part
            for part in answer.end(item):
                yield part
        except asyncio.CancelledError:
            raise
        except Exception as error:
            for part in answer.failed(_refusal(error)):
                yield part
    finally:
        await events.aclose()


def _refusal(error: Exception) -> Refused:
    return error if isinstance(error, Refused) else Refused("The server has failed: its log says why.", status=500)


def make_app(
    name: str,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    limits: Limits | None = None,
    connections: Connections | None = None,
    compressor: Compressor | None = None,
) -> ASGIApp:
    """Return the server's ASGI application.

    Requests are answered one after another, each from its own `retention_ratio` and `compressor` (see `requests`). Every refusal has OpenAI's
    form, `{"error": {"message", "type", "param", "code"}}`; what is found out when a stream has begun is an event of it.

    Args:
        name: of the model; what a request may say as its `model`.
        model: a `CaCoVidForConditionalGeneration`, whose config has the ratio of requests that say nothing.
        processor: its processor, reading video files.
        limits: the operator's; None: the defaults, by which no file of this machine is read.
        connections: of the server, if they are bounded.
        compressor: of requests that say nothing; None: the policy.
    """
    limits = limits or Limits()
    service = Service(name, model, processor, limits, compressor)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        service.threads.start()
        yield
        await service.threads.run(service.worker.close, limits.shutdown_seconds)
        service.threads.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, redirect_slashes=False)

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException):
            error = Refused(f"{error.detail}: see docs/how_to/serve.md for what is served.", status=error.status_code)
        return error_response(_refusal(error))

    for kind in (Refused, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.answer(ChatRequest, ChatAnswer, request)

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await service.answer(ResponsesRequest, ResponsesAnswer, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": 0, "owned_by": "cacovid", "max_model_len": service.positions}
        return {"object": "list", "data": [card]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    paths = frozenset({"/v1/chat/completions", "/v1/responses", "/v1/models", "/health", "/metrics"})
    return Guards(app, limits, service.metrics, connections, paths)
