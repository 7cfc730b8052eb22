"""Clients that ask a server of OpenAI's API at the same time, each waiting for its answer before it asks again; needs the standard library alone."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answered:
    """One request.

    Attributes:
        status: of HTTP; 0: the connection failed.
        first_token: seconds until the first piece of text; None if there was none.
        seconds: until the end.
        tokens: that were generated, by the server's own count.
        prompt: tokens of the prompt, likewise.
        text: the answer, or the error.
    """

    status: int
    first_token: float | None
    seconds: float
    tokens: int
    prompt: int
    text: str


@contextlib.contextmanager
def shut_after(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Shut a connection down when its time is over, whoever is reading from it."""

    def shut() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    watch = threading.Timer(seconds, shut)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def ask(port: int, body: dict[str, Any], timeout: float) -> Answered:
    """Send one chat request to this machine, and read its stream.

    Args:
        port: of the server.
        body: of the request.
        timeout: seconds until the end of the answer; what is not whole then has failed.
    """
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    first: float | None = None
    pieces: list[str] = []
    usage = {"completion_tokens": 0, "prompt_tokens": 0}
    try:
        connection.connect()
        left = max(0.0, timeout - (time.perf_counter() - started))
        with shut_after(connection.sock, left):
            whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
            connection.request(
                "POST", "/v1/chat/completions", json.dumps(whole).encode(), {"Content-Type": "application/json"}
            )
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(1000).decode(errors="replace")
                return Answered(response.status, None, time.perf_counter() - started, 0, 0, text)
            for line in response:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    if piece := choice.get("delta", {}).get("content"):
                        first = time.perf_counter() - started if first is None else first
                        pieces.append(piece)
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        return Answered(0, first, time.perf_counter() - started, 0, 0, f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    seconds = time.perf_counter() - started
    if seconds >= timeout:  # shut down in the middle, which may look like an end
        return Answered(0, first, seconds, 0, 0, f"TimeoutError: no whole answer in {timeout:.1f} s")
    return Answered(200, first, seconds, usage["completion_tokens"], usage["prompt_tokens"], "".join(pieces))


def run_clients(
    port: int, bodies: Sequence[dict[str, Any]], clients: int, timeout: float
) -> tuple[list[Answered], float]:
    """Ask everything with so many clients.

    Args:
        port: of the server, on this machine.
        bodies: requests.
        clients: at the same time.
        timeout: seconds for all together; what is not answered then has failed.

    Returns:
        The answers in the order of `bodies`, and the seconds from the first request to the last answer.
    """
    ready = threading.Barrier(min(clients, len(bodies)) + 1)
    waiting = iter(enumerate(bodies))
    lock = threading.Lock()
    found: dict[int, Answered] = {}
    ends = time.perf_counter() + timeout

    def client() -> None:
        ready.wait()
        while True:
            with lock:
                number, body = next(waiting, (-1, {}))
            if number < 0:
                return
            found[number] = ask(port, body, max(1e-3, ends - time.perf_counter()))

    with ThreadPoolExecutor(ready.parties - 1) as pool:
        running = [pool.submit(client) for _ in range(ready.parties - 1)]
        started = time.perf_counter()
        ready.wait()
        for one in running:
            one.result()
        seconds = time.perf_counter() - started
    return [found[number] for number in range(len(bodies))], seconds


def cpu_seconds(session: int) -> float:
    """CPU time so far of all processes of a session, by its id (Linux). Other work on the machine takes none of it."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            values = stat.read_text().rpartition(")")[2].split()
            ticks += (int(values[3]) == session) * (int(values[11]) + int(values[12]))
    return ticks / os.sysconf("SC_CLK_TCK")


def figures(answers: Sequence[Answered], seconds: float, summarise: Callable[[Sequence[float]], Any]) -> dict[str, Any]:
    """What is told of one run."""
    good = [answer for answer in answers if answer.status == 200]
    firsts = [1000 * answer.first_token for answer in good if answer.first_token is not None]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(good),
        "errors": sorted({answer.text[:300] for answer in answers if answer.status != 200})[:3],
        "seconds": round(seconds, 3),
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": sum(answer.tokens for answer in good) / seconds,
        "prompt_tokens": sorted({answer.prompt for answer in good}),
        "first_token_ms": summarise(firsts) if firsts else None,
        "answer_ms": summarise([1000 * answer.seconds for answer in good]) if good else None,
    }
