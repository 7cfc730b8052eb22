"""Connections within bounds: how many are open, and how long each may take to say what it wants."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_MOST_EARLY = 64 << 10  # bytes that a client may send before its request is answered


class Connections:
    """The open connections of a server, by the address of their client.

    Args:
        limits: `connections` and `header_seconds` are looked at.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.waiting: dict[Any, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}  # the longest first
        self.busy: dict[Any, tuple[asyncio.Transport, object]] = {}  # and which of its requests is answered

    def opened(self, transport: asyncio.Transport) -> None:
        """Note a new connection; if there are too many, close the one that has waited longest without a request."""
        if len(self.waiting) + len(self.busy) >= self.limits.connections:
            oldest = next(iter(self.waiting), None)
            if oldest is None:
                transport.abort()
                return
            self.waiting.pop(oldest)[0].abort()
        self._wait(_client(transport), transport)

    def lost(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        client = _client(transport)
        for known in (self.waiting.get(client), self.busy.get(client)):
            if known is not None and known[0] is transport:
                self._forget(client)

    @contextlib.contextmanager
    def answering(self, client: Any) -> Iterator[None]:
        """Within the block, a request of the connection is answered, and it may take its time.

        The next request of a connection may enter its own block before this one is left. Then this one's end changes nothing.
        """
        client, request = tuple(client or ()), object()
        transport = self._forget(client)
        if transport is not None:
            self.busy[client] = transport, request
        try:
            yield
        finally:
            if transport is not None and self.busy.get(client, (None, None))[1] is request:
                del self.busy[client]
                if not transport.is_closing():
                    self._wait(client, transport)

    def reading_body(self, client: Any) -> None:
        """Begin the body's own time; the connection may still be closed for a newer one."""
        client = tuple(client or ())
        if client in self.waiting:
            transport, timer = self.waiting[client]
            timer.cancel()
            self.waiting[client] = transport, self._timer(transport, 2 * self.limits.body_seconds)

    def _wait(self, client: Any, transport: asyncio.Transport) -> None:
        self.waiting[client] = transport, self._timer(transport, self.limits.header_seconds)

    def _timer(self, transport: asyncio.Transport, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, transport.abort)

    def _forget(self, client: Any) -> asyncio.Transport | None:
        transport, timer = self.waiting.pop(client, (None, None))
        if timer is not None:
            timer.cancel()
        return transport or self.busy.pop(client, (None, None))[0]


def _client(transport: asyncio.Transport) -> Any:
    return tuple((transport.get_extra_info("peername") or ())[:2])


def bounded_protocol(connections: Connections) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP protocol (the one in Python, which bounds headers) with its connections noted.

    What a client sends before its request is answered waits here. Uvicorn would stop reading, and not notice that the client leaves.
    """

    class BoundedProtocol(H11Protocol):
        early = b""

        def data_received(self, data: bytes) -> None:
            if self.cycle is None or self.cycle.more_body or self.cycle.response_complete:
                super().data_received(data)
            elif len(self.early) + len(data) > _MOST_EARLY:
                self.transport.abort()
            else:
                self.early += data

        def on_response_complete(self) -> None:
            super().on_response_complete()
            data, self.early = self.early, b""
            if data and not self.transport.is_closing():
                self.data_received(data)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.opened(transport)

        def connection_lost(self, error: Exception | None) -> None:
            connections.lost(self.transport)
            super().connection_lost(error)

    return BoundedProtocol
