"""Requests that mean harm: each is refused, and the server answers others all the while."""

import asyncio
import base64
import concurrent.futures
import contextlib
import http.server
import io
import json
import socket
import struct
import threading
import time
import urllib.request
import zlib

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from helpers.media import write_video
from helpers.serving import (
    CLIP,
    QUESTION,
    asking,
    content,
    fetched,
    free_port,
    metric,
    post,
    refusal,
    running,
    seconds_to_health,
    with_part,
)
from PIL import Image

MIB = 1 << 20


@pytest.fixture(scope="module")
def address():
    """With the limits that a server has by default."""
    with running() as found:
        yield found


def picture(url):
    return with_part({"type": "image_url", "image_url": {"url": url}})


def inside(data, kind="video/mp4"):
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096


@contextlib.contextmanager
def watched(address, most=2.0):
    """Within the block `/health` is asked all the while, and always answers; within two seconds, since other tests share the cores."""
    found, ended = [], threading.Event()

    def watch():
        while not ended.is_set():
            found.append(seconds_to_health(address))
            ended.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert max(found) < most


# ---------------------------------------------------------------- who may ask


def test_keys():
    with running(api_keys=("one", "two")) as address:
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "one"},
            {"Authorization": "Basic one"},
        ):
            status, text = post(address, asking(), headers=headers)
            assert status == 401
            assert refusal(text)["type"] == "authentication_error"
        for key in ("one", "two"):
            status, text = post(address, {"messages": []}, headers={"Authorization": f"Bearer {key}"})
            assert status == 400
        assert fetched(urllib.request.Request(f"{address}/v1/models"))[0] == 401
        assert fetched(urllib.request.Request(f"{address}/health"))[0] == 200


@pytest.mark.parametrize("key", ["", " ", "two words", "schl\u00fcssel", "a\n"])
def test_keys_that_protect_nothing(key):
    """Of a variable that is not set, say: everybody would bring it, or nobody could."""
    from cacovid_cli.serve.limits import Limits

    with pytest.raises(ValueError, match="An API key is empty, or has spaces or characters other than visible ASCII"):
        Limits(api_keys=("right", key))


@pytest.mark.parametrize("key", ["", " ", "two words"])
def test_a_key_of_the_environment_that_protects_nothing(key, monkeypatch, capsys):
    """Which typer drops, or takes for two."""
    from cacovid_cli.main import main

    monkeypatch.setenv("CACOVID_API_KEY", key)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--port", str(free_port())])
    assert stopped.value.code == 2
    assert "An API key is empty, or has spaces" in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/json; charset=utf-16"]
)  # fmt: skip
def test_pages_of_a_browser_cannot_ask(address, kind):
    """A page of any site may post these types of content without being allowed to; JSON it may not."""
    headers = {"Content-Type": kind, "Origin": "https://evil.example"}
    status, text = post(address, asking(inside(CLIP.path.read_bytes())), headers=headers)
    assert status == 415
    refusal(text)
    preflight = urllib.request.Request(f"{address}/v1/chat/completions", headers=headers, method="OPTIONS")
    assert fetched(preflight)[0] == 405


def test_hosts():
    """A page whose own name resolves to this machine (DNS rebinding) is told by the name."""
    with running(hosts=("localhost", "127.0.0.1", "::1")) as address:
        port = address.rpartition(":")[2]
        for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
            assert fetched(urllib.request.Request(f"{address}/health", headers={"Host": host}))[0] == 200
        for host in ("evil.example", f"localhost.evil.example:{port}", "127.0.0.1.evil.example"):
            status, text = fetched(urllib.request.Request(f"{address}/health", headers={"Host": host}))
            assert status == 403
            refusal(text)


def test_hosts_of_the_command():
    from cacovid_cli.serve.command import _hosts
    from cacovid_cli.terminal import is_loopback

    assert "evil.example" not in _hosts("127.0.0.1", None)
    assert _hosts("0.0.0.0", None) is None
    assert _hosts("0.0.0.0", ["Films.example"]) == ("films.example",)
    assert _hosts("127.0.0.1", ["*"]) is None
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "films")] == [True] * 3 + [False] * 4  # fmt: skip


def test_options_of_the_command(tmp_path):
    from cacovid_cli.serve.command import _folders, _media_counts

    assert _media_counts('{"video": 2}') == {"videos": 2}
    assert _media_counts('{"image": 0, "video": 1}') == {"images": 0, "videos": 1}
    for wrong in ("2", "{", '{"audio": 1}', '{"video": true}', '{"video": -1}', "video=2"):
        with pytest.raises(ValueError, match="is not a JSON object of whole numbers"):
            _media_counts(wrong)
    (tmp_path / "film.mp4").touch()
    for wrong in (tmp_path / "none", tmp_path / "film.mp4"):
        with pytest.raises(ValueError, match="is not a folder: give one that is there"):
            _folders([tmp_path, wrong])


# ---------------------------------------------------------------- addresses


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """`/clip` is a video; `/to?X` redirects to X; `/endless` does not end; `/drip` gives a byte now and then, `/headers` its headers so. Paths are noted."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/headers":
            with contextlib.suppress(OSError):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        self.send_response(302 if self.path.startswith("/to?") else 200)
        if self.path.startswith("/to?"):
            self.send_header("Location", self.path[4:])
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/clip":
                self.wfile.write(CLIP.path.read_bytes())
            while self.path == "/endless":
                self.wfile.write(bytes(MIB))
            while self.path == "/drip":
                self.wfile.write(b"x")
                time.sleep(0.05)


@pytest.fixture(scope="module")
def elsewhere():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def outside(elsewhere, monkeypatch):
    """Its address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    elsewhere.asked.clear()
    return f"http://127.0.0.1:{elsewhere.server_port}"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "017700000001", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "10.0.0.1", "224.0.0.1", "[fe80::1]", "[fec0::1]", "[::127.0.0.1]", "[64:ff9b:1::7f00:1]", "192.0.0.192", "%31%32%37.0.0.1", "①②⑦.0.0.1", "user@127.0.0.1"],
)  # fmt: skip
def test_private_addresses(address, elsewhere, outside, host):
    """None is asked, for videos and for pictures, and the answer does not say what is there."""
    for path in ("clip", "internal-admin?delete=1"):
        for body in (
            asking(f"http://{host}:{elsewhere.server_port}/{path}"),
            picture(f"http://{host}:{elsewhere.server_port}/{path}"),
        ):
            status, text = post(address, body)
            assert status == 400
            assert (
                "is not on the public internet" in refusal(text)["message"]
                or "cannot be fetched" in refusal(text)["message"]
            )
    assert elsewhere.asked == []


def test_the_server_itself(address, outside):
    status, text = post(address, asking(f"{address}/health"))
    assert status == 400
    assert "is not on the public internet" in refusal(text)["message"]


def test_redirects(address, elsewhere, outside, monkeypatch):
    """To a private address from one that passes as public."""
    from cacovid_hf.video import addresses

    monkeypatch.setattr(addresses, "is_public", lambda number: number == "127.0.0.1")
    assert post(address, asking(f"{outside}/to?{outside}/clip"))[0] == 200
    for target in (
        f"http://127.0.0.2:{elsewhere.server_port}/clip",
        "http://169.254.169.254/latest",
        "file:///etc/passwd",
    ):
        status, text = post(address, asking(f"{outside}/to?{target}"))
        assert status == 400
        refusal(text)
    assert [path for path in elsewhere.asked if not path.startswith("/to?")] == ["/clip"]


def test_a_name_that_changes_its_address(address, elsewhere, outside, monkeypatch):
    """Public when it is checked, this machine when it is looked up again (DNS rebinding)."""
    real, asked = socket.getaddrinfo, []

    def rebinding(host, *args, **kwargs):
        if host != "films.example":
            return real(host, *args, **kwargs)
        asked.append(host)
        return real("192.0.2.1" if len(asked) == 1 else "127.0.0.1", *args, **kwargs)

    from cacovid_hf.video import addresses

    monkeypatch.setattr(addresses, "is_public", lambda number: number == "192.0.2.1")
    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with running(reading_seconds=0.5) as patient:
        status, text = post(patient, asking(f"http://films.example:{elsewhere.server_port}/clip"))
    assert status == 400
    refusal(text)
    assert asked == ["films.example"]
    assert elsewhere.asked == []


def test_what_the_operator_allows(elsewhere, outside):
    with running(private_addresses=True) as address:
        assert content(post(address, asking(f"{outside}/clip"))[1]) == QUESTION.answer
    with running(private_addresses=True, media_hosts=("films.example",)) as address:
        status, text = post(address, asking(f"{outside}/clip"))
        assert status == 400
        assert "is not an allowed host" in refusal(text)["message"]


def test_downloads_end(elsewhere, outside):
    """Without end, and a byte now and then: neither stops the others."""
    with running(private_addresses=True, download=4 * MIB, reading_seconds=1.0) as address, watched(address):
        before = resident()
        status, text = post(address, asking(f"{outside}/endless"))
        assert status == 400
        assert "bytes, the limit" in refusal(text)["message"]
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda path: post(address, asking(outside + path)), ("/drip", "/headers") * 2))
        assert time.monotonic() - started < 5
        for status, text in answers:
            assert status == 400
            assert "takes longer than 1 s" in refusal(text)["message"]
        assert resident() - before < 64 * MIB


# ---------------------------------------------------------------- files


def test_files_of_the_server(address, tmp_path):
    """None by default, and whether one is there is not told."""
    there = [
        str(CLIP.path),
        f"file://{CLIP.path}",
        "/etc/passwd",
        "/proc/self/environ",
        "/dev/zero",
        str(tmp_path),
        "~",
    ]
    missing = ["/nowhere.mp4", "file:///nowhere.mp4", "nowhere"]
    said = set()
    for path in (
        *there,
        *missing,
        f"{CLIP.path}\0.mp4",
        "",
        "concat:/etc/passwd",
        "subfile,,start,0,end,9,,:/etc/passwd",
    ):
        for body in (asking(path), picture(path)):
            status, text = post(address, body)
            assert status == 400
            said.add(refusal(text)["message"].replace(path, "PATH") if path else "")
    assert {message for message in said if "may not be read" in message} == {
        "PATH may not be read: no folder is allowed (`cacovid serve --allowed-local-media-path DIR`). "
        "Give an http(s) address, or data:video/mp4;base64,..."
    }
    assert not any("exist" in message for message in said)


def test_files_outside_the_folder(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "clip.mp4").write_bytes(CLIP.path.read_bytes())
    (tmp_path / "other.mp4").write_bytes(CLIP.path.read_bytes())
    (films / "link.mp4").symlink_to(tmp_path / "other.mp4")
    with running(media_folders=(str(films),)) as address:
        assert content(post(address, asking(films / "clip.mp4"))[1]) == QUESTION.answer
        for path in (tmp_path / "other.mp4", films / ".." / "other.mp4", films / "link.mp4", f"file://{films}/%2e%2e/other.mp4", tmp_path / "none.mp4"):  # fmt: skip
            status, text = post(address, asking(path))
            assert status == 400
            assert "may not be read: it is not in a folder that is allowed" in refusal(text)["message"]


# ---------------------------------------------------------------- memory


def gif_bomb(side=5760):
    size = struct.pack("<HH", side, side)
    drawn = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + size + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff" + drawn * 40 + b";"


def png_bomb(side=13_000):
    """Black, of 21 kB."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">II5B", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_limits_are_answered_and_one_more_is_not(elsewhere, outside):
    """Bytes of a body and of a download, messages, parts, videos, new tokens: each exactly as many as allowed, and one more."""
    clip = f"{outside}/clip"
    video = {"type": "video_url", "video_url": {"url": clip}}
    text = {"type": "text", "text": "what"}
    body = json.dumps(asking(clip, max_tokens=3)).encode()
    limits = dict(body=2000, messages=3, videos=2, new_tokens=3, download=2 * CLIP.path.stat().st_size)
    with running(private_addresses=True, **limits) as address:
        for within, beyond, status in (
            (body.ljust(2000), body.ljust(2001), 413),
            (asking(clip), {**asking(clip), "max_tokens": 4}, 400),
            ({"messages": [{"role": "user", "content": "what"}] * 3}, {"messages": [{"role": "user", "content": "what"}] * 4}, 400),
            ({"messages": [{"role": "user", "content": [text] * 3}]}, {"messages": [{"role": "user", "content": [text] * 4}]}, 400),
            ({"messages": [{"role": "user", "content": [video] * 2}]}, {"messages": [{"role": "user", "content": [video] * 3}]}, 400),
        ):  # fmt: skip
            assert post(address, within)[0] == 200, within
            found, said = post(address, beyond)
            assert found == status, beyond
            refusal(said)
    with running(private_addresses=True, download=CLIP.path.stat().st_size - 1) as address:
        assert "bytes, the limit" in refusal(post(address, asking(clip))[1])["message"]


def nested_text(count):
    return json.dumps({"messages": [{"role": "user", "content": "x"}], "metadata": {"a": [[]] * count}}).encode()


def test_a_gif_of_940_bytes(address):
    before = resident()
    with watched(address):
        part = {"type": "video_url", "video_url": {"url": inside(gif_bomb(), "image/gif")}, "nframes": 32}
        status, text = post(address, with_part(part))
        assert status == 400
        assert "32 sampled frames of 5760x5760 pixels are over the limit" in refusal(text)["message"]
    assert resident() - before < 64 * MIB


def test_pictures_of_a_few_bytes(address):
    """One, and four that are each within the limit of one."""
    large, within = png_bomb(), io.BytesIO()
    assert len(large) < 30_000
    Image.new("1", (5_000, 5_000)).save(within, "PNG")
    before = resident()
    with watched(address):
        status, text = post(address, picture(inside(large, "image/png")))
        assert status == 400
        assert "13000x13000 pixels, over the limit" in refusal(text)["message"]
        body = picture(inside(within.getvalue(), "image/png"))
        body["messages"][0]["content"] *= 4
        status, text = post(address, body)
    assert status == 400
    assert "have more than 67108864 pixels" in refusal(text)["message"]
    assert resident() - before < 400 * MIB


def test_frames_are_counted_before_they_are_decoded(tmp_path):
    """A small file whose frames are large, once and twice."""
    path = write_video(tmp_path / "black.mp4", [np.zeros((240, 320, 3), np.uint8)] * 9, fps=1, b_frames=0)
    body = asking(inside(path.read_bytes()))
    with running(held_pixels=9 * 240 * 320) as address, watched(address):
        assert post(address, body)[0] == 200
        body["messages"][0]["content"] *= 2
        status, text = post(address, body)
        assert status == 400
        assert "have more than 691200 pixels, the limit" in refusal(text)["message"]
    with running(held_pixels=9 * 240 * 320 - 1) as address:
        status, text = post(address, asking(inside(path.read_bytes())))
        assert status == 400
        assert "9 sampled frames of 320x240 pixels are over the limit" in refusal(text)["message"]


def test_bodies(address):
    """Too large by its own word or without one, brackets, a field in the place of a video: nothing is held, `/health` answers."""
    with running(body=8 * MIB, bodies=20 * MIB) as small, watched(small):
        before = resident()
        status, text = raw(small, b"Content-Length: 100000000000000\r\n\r\n")
        assert status == 413
        assert "more than 8388608 bytes" in refusal(text)["message"]
        status, text = raw(small, b"Transfer-Encoding: chunked\r\n\r\n", *[b"100000\r\n" + bytes(MIB) + b"\r\n"] * 100)
        assert status == 413
        assert resident() - before < 64 * MIB
        assert post(small, b"[]," * (2 * MIB))[0] == 400
        assert post(small, nested_text(90_000))[0] == 400
        status, text = post(small, asking("data:video/mp4;base64," + "A" * (7 * MIB)))
        assert status == 400
        assert resident() - before < 128 * MIB


def raw(address, *parts):
    """Status and body of an answer to a POST that is written piece by piece, as long as the server takes it."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
            for part in parts:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(OSError):
            while block := connection.recv(65536):
                answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def test_slow_connections():
    """Half a request: closed after its time, and many of them do not keep others out."""
    with running(header_seconds=0.5, body_seconds=0.5, connections=20) as address:
        host, port = address.removeprefix("http://").split(":")
        slow = []
        for _ in range(5):
            for _ in range(20):
                slow.append(socket.create_connection((host, int(port)), 10))
                slow[-1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a")
            assert seconds_to_health(address) < 1
        time.sleep(0.6)
        closed = 0
        for connection in slow:
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
            closed += 1
            connection.close()
        assert closed == 100
        status, text = raw(address, b"Content-Length: 100\r\n\r\n", b"{")
        assert status == 408
        assert "takes longer than 0.5 s" in refusal(text)["message"]


def test_a_header_without_end(address):
    host, port = address.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), 10) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        for _ in range(1000):
            sent += connection.send(b"x" * 65536)
    assert sent < 8 * MIB


def test_full():
    """With as many requests as it takes the server refuses more, and answers `/health`."""
    with running(requests=2, new_tokens=2048) as address:
        long = {"messages": [{"role": "user", "content": "what color"}], "min_tokens": 80, "max_tokens": 80}
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            waiting = [clients.submit(post, address, long) for _ in range(2)]
            while metric(address, "cacovid_requests_active") < 2:
                time.sleep(0.01)
            with watched(address):
                status, text = post(address, long)
            assert status == 503
            assert refusal(text)["type"] == "overloaded_error"
            assert [one.result()[0] for one in waiting] == [200, 200]
        assert post(address, {**long, "max_tokens": 1, "min_tokens": 0})[0] == 200


def test_the_next_request_of_a_connection_may_begin_before_the_last_one_ends():
    """Else the end of the first starts the timer of waiting connections while the second is answered."""
    from cacovid_cli.serve.connections import Connections
    from cacovid_cli.serve.limits import Limits

    class Transport:
        aborted = False

        def get_extra_info(self, name):
            return ("127.0.0.1", 5000)

        def is_closing(self):
            return False

        def abort(self):
            self.aborted = True

    async def ask():
        transport, connections = Transport(), Connections(Limits(header_seconds=0.05))
        connections.opened(transport)
        first, second = (connections.answering(("127.0.0.1", 5000)) for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        await asyncio.sleep(0.2)
        during = transport.aborted
        second.__exit__(None, None, None)
        await asyncio.sleep(0.2)
        connections.lost(transport)
        return during, transport.aborted, connections.waiting, connections.busy

    assert asyncio.run(ask()) == (False, True, {}, {})
