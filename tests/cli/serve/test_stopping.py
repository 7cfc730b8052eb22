"""Work that nobody waits for ends: clients that leave, a server that is told to end."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from helpers.serving import asking, content, free_port, metric, post, refusal, running, tiny_model, wait_for

from cacovid_cli.serve.interrupts import Threads

ROOT = Path(__file__).resolve().parents[3]
TOKENS = 3000
LONG = {"messages": [{"role": "user", "content": "what color"}], "min_tokens": TOKENS, "max_tokens": TOKENS}


@pytest.fixture
def forwards():
    """Times at which the language model ran."""
    times = []
    handle = tiny_model()[0].backbone.get_decoder().register_forward_pre_hook(lambda *_: times.append(time.monotonic()))
    yield times
    handle.remove()


def send(address, body):
    """A connection on which a request was sent."""
    host, port = address.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), 60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


def until(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_clients_that_leave(forwards, stream, beams):
    """The one that is answered stops at the next token, those that wait never begin."""
    with running(new_tokens=TOKENS) as address:
        clients = [send(address, {**LONG, "stream": stream, "num_beams": beams}) for _ in range(5)]
        until(lambda: len(forwards) > 3)
        assert metric(address, "cacovid_requests_active") == 5
        for client in clients:
            client.close()
        until(lambda: metric(address, "cacovid_requests_active") == 0, seconds=5)
        count = len(forwards)
        assert content(post(address, asking_short())[1])
        assert len(forwards) - count <= 5
        assert len(forwards) < TOKENS
        assert metric(address, "cacovid_requests_left_total") == 5


def asking_short():
    return {**LONG, "min_tokens": 0, "max_tokens": 2}


def test_clients_that_say_more_and_leave(forwards):
    """What follows a request is read behind its answer, and does not hide that the client leaves."""
    with running(new_tokens=TOKENS) as address:
        for more in (b"\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 9):
            forwards.clear()
            client = send(address, LONG)
            until(lambda: len(forwards) > 3)
            client.sendall(more)
            time.sleep(0.1)
            client.close()
            until(lambda: metric(address, "cacovid_requests_active") == 0)
            assert len(forwards) < TOKENS
        client = send(address, LONG)
        until(lambda: metric(address, "cacovid_requests_active") == 1)
        with contextlib.suppress(OSError):  # too much, and it is closed
            client.sendall(b"x" * (1 << 20))
        until(lambda: metric(address, "cacovid_requests_active") == 0)
        # In order, each as if asked by itself.
        short = {**LONG, "min_tokens": 1, "max_tokens": 1}
        client = send(address, short)
        client.sendall(
            b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        answers = b""
        while block := client.recv(65536):
            answers += block
        client.close()
        places = [answers.index(part) for part in (b"chat.completion", b'"ok"', b"max_model_len")]
        assert places == sorted(places)
        assert answers.count(b"HTTP/1.1 200") == 3


def test_a_client_that_leaves_a_download():
    """The address sends a byte now and then, for as long as one listens."""
    listened = []

    def drip(server):
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                connection.sendall(b"x")
                listened.append(time.monotonic())
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as server, running(private_addresses=True) as address:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        client = send(address, asking(f"http://127.0.0.1:{server.getsockname()[1]}/clip.mp4"))
        until(lambda: len(listened) > 3)
        client.close()
        thread.join(5)
        assert not thread.is_alive()
        assert metric(address, "cacovid_requests_active") == 0


def test_a_server_that_ends(forwards):
    """What runs is answered; then nobody listens any more."""
    answers = []
    with running(new_tokens=TOKENS, shutdown_seconds=60) as address:
        asked = {**LONG, "min_tokens": 200, "max_tokens": 200}
        thread = threading.Thread(target=lambda: answers.append(post(address, asked)))
        thread.start()
        until(lambda: len(forwards) > 3)
    thread.join()
    assert answers[0][0] == 200
    with pytest.raises(OSError, match="refused"):
        post(address, asking_short())


def test_a_server_that_ends_in_time(forwards):
    """What takes longer than stated is stopped."""
    with running(new_tokens=TOKENS, shutdown_seconds=1) as address:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(post(address, LONG)))
        thread.start()
        until(lambda: len(forwards) > 3)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert len(forwards) < TOKENS
    thread.join()
    assert answers[0][0] == 503
    assert "ends before this answer" in refusal(answers[0][1])["message"]


@pytest.mark.slow
def test_the_process(tmp_path):
    """SIGTERM in the middle of two long answers: it ends within the time stated, and everybody is warned of a server without a key."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = ["--host", "0.0.0.0", "--port", str(port), "--shutdown-timeout", "2", "--max-new-tokens", str(TOKENS)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cacovid_hf", "serve", *options], env=environment, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address)
        clients = [send(address, {**LONG, "stream": stream}) for stream in (False, True)]
        until(lambda: metric(address, "cacovid_requests_active") == 2)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert time.monotonic() - started < 8
        for client in clients:
            client.close()
        log = (tmp_path / "log").read_text()
        assert f"Everybody who reaches 0.0.0.0:{port} may ask this server: set --api-key" in log
        assert "Traceback" not in log, log
    finally:
        process.kill()
        process.wait()


def test_seconds_of_an_answer_are_counted():
    with running() as address:
        for stream in (False, True):
            assert post(address, {**asking_short(), "stream": stream})[0] == 200
        assert post(address, {"messages": []})[0] == 400
        assert metric(address, "cacovid_request_seconds_count") == 2
        assert metric(address, "cacovid_time_to_first_token_seconds_count") == 2
        assert metric(address, "cacovid_generation_tokens_total") == 4
        assert metric(address, "cacovid_requests_left_total") == 0
        assert metric(address, 'cacovid_requests_total{path="/v1/chat/completions",status="200"}') == 2
        assert metric(address, 'cacovid_requests_total{path="/v1/chat/completions",status="400"}') == 1


def test_no_error_of_a_thread_is_lost():
    """A future does not take `StopIteration`."""

    async def ask(threads):
        return await asyncio.wait_for(threads.run(next, iter(())), 20)

    threads = Threads(1)
    threads.start()
    try:
        with pytest.raises(RuntimeError, match="StopIteration"):
            asyncio.run(ask(threads))
    finally:
        threads.close()
