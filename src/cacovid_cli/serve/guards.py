"""What stands before the application: who may ask, in which form and how much; and a client that leaves ends its work."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .connections import Connections
from .errors import Refused, error_response
from .limits import Limits
from .metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Left(Exception):
    """The client has closed its connection."""


class Guards:
    """An ASGI application around another one.

    Args:
        app: gets what is let through, with the whole body at once.
        limits: see there.
        metrics: counts what was answered.
        connections: told when a request is answered, if they are bounded.
        paths: of the application, for the metrics.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, metrics: Metrics, connections: Connections | None, paths: frozenset[str]
    ):
        self.app, self.limits, self.metrics, self.paths = app, limits, metrics, paths
        self.connections = connections or Connections(limits)
        self.bytes_held = 0  # of all bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent: list[int] = []
        body = bytearray()
        size: int | None = None  # of the whole body
        is_answered = asyncio.Event()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])
            elif not message.get("more_body"):
                is_answered.set()
            await asyncio.wait_for(send(message), self.limits.body_seconds)

        try:
            try:
                self._check(scope)
                await self._read(scope, receive, body)
                size = len(body)
                with self.connections.answering(scope.get("client")):
                    await self._run(scope, body, receive, noting, is_answered)
            except Refused as error:
                response = error_response(error)
                if size is None:  # the rest of the body is not read
                    response.headers["Connection"] = "close"
                await response(scope, receive, noting)  # type: ignore[arg-type]
        except (_Left, OSError, TimeoutError, asyncio.TimeoutError):
            self.metrics.left.inc()
        except asyncio.CancelledError:  # by the server, whose time to end is over
            if not sent:
                ending = Refused("The server ends before this answer: ask again later.", status=503)
                await error_response(ending)(scope, receive, noting)  # type: ignore[arg-type]
        finally:
            self.bytes_held -= len(body) if size is None else size
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(sent[0]) if sent else "none").inc()

    def _check(self, scope: Scope) -> None:
        """Look at the headers.

        Raises:
            Refused: another host, no key, another type of content.
        """
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        limits = self.limits
        if limits.hosts is not None and _hostname(headers.get("host", "")) not in limits.hosts:
            raise Refused("The request's Host is not one that this server answers: see --allowed-hosts.", status=403)
        if scope["path"].startswith("/v1/") and limits.api_keys:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode() if scheme.lower() == "bearer" else b""
            if not any(secrets.compare_digest(given, one.encode()) for one in limits.api_keys):
                raise Refused("The request has no valid key: send Authorization: Bearer KEY.", status=401)
        if scope["method"] == "POST":
            kind, _, parameters = headers.get("content-type", "").partition(";")
            charset = parameters.lower().replace('"', "").replace(" ", "")
            if kind.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
                raise Refused("The request's Content-Type is not application/json: send JSON in UTF-8.", status=415)
            if headers.get("content-encoding", "identity").lower() != "identity":
                raise Refused("The request's body is compressed: send it as it is.", status=415)
            length = headers.get("content-length", "")
            if length.isdigit() and int(length) > limits.body:
                raise self._too_large()

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Fill `body`.

        Raises:
            Refused: too large, too slow, or more than the server holds.
            _Left: the client has gone.
        """
        self.connections.reading_body(scope.get("client"))
        ends = time.monotonic() + self.limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
            except asyncio.TimeoutError:
                raise Refused(
                    f"The body takes longer than {self.limits.body_seconds:g} s: send a smaller one.", status=408
                ) from None
            if message["type"] == "http.disconnect":
                raise _Left
            part = message.get("body", b"")
            if len(body) + len(part) > self.limits.body:
                raise self._too_large()
            if self.bytes_held + len(part) > self.limits.bodies:
                raise Refused("The server holds too many large requests: ask again later.", status=503)
            body += part
            self.bytes_held += len(part)
            if not message.get("more_body"):
                return

    def _too_large(self) -> Refused:
        return Refused(f"The request has more than {self.limits.body} bytes: send a smaller one.", status=413)

    async def _run(
        self, scope: Scope, body: bytearray, receive: Receive, send: Send, is_answered: asyncio.Event
    ) -> None:
        """Run the application until it is done or the client leaves. It gets the body, which is then let go here."""
        given = False

        async def once() -> Message:
            nonlocal given
            if given:
                await asyncio.Future()  # who leaves is noticed here
            given = True
            whole = bytes(body)
            body.clear()
            return {"type": "http.request", "body": whole, "more_body": False}

        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work, left = asyncio.ensure_future(self.app(scope, once, send)), asyncio.ensure_future(leaving())
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not is_answered.is_set():
                raise _Left
            await work  # a little remains behind the last part of an answer
        finally:
            left.cancel()
            work.cancel()
            await asyncio.gather(work, left, return_exceptions=True)


def _hostname(host: str) -> str:
    """Return the name in a `Host` header."""
    if host.startswith("["):
        return host.partition("]")[0][1:].lower()
    return host.partition(":")[0].lower()
