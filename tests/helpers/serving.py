"""A server of this package in a thread of the test, and clients of it."""

import contextlib
import functools
import json
import socket
import threading
import time
import urllib.error
import urllib.request

from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.tiny import clips, model_path

CLIP = clips()[0]
QUESTION = CLIP.questions[0]
JSON = {"Content-Type": "application/json"}


@functools.cache
def tiny_model():
    """The embedded model and its processor."""
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    return model, with_video_reader(AutoProcessor.from_pretrained(model_path()))


@contextlib.contextmanager
def running(model=None, compressor=None, **limits):
    """A model and its processor (None: the embedded one) behind a real server, within these `Limits`; gives its address."""
    import uvicorn

    from cacovid_cli.serve.limits import Limits
    from cacovid_cli.serve.server import uvicorn_config

    port = free_port()
    config = uvicorn_config("tiny", *(model or tiny_model()), Limits(**limits), "127.0.0.1", port, "error", compressor)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address)
        yield address
    finally:
        server.should_exit = True
        thread.join()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(address, seconds=120):
    """Until a server answers."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=5).read()
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(address)


def post(address, body, path="/v1/chat/completions", headers=None, timeout=120):
    """Status and text of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {**JSON, **(headers or {})})
    return fetched(request, timeout)


def fetched(request, timeout=120):
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asking(video=CLIP.path, **more):
    """A request about a video."""
    return with_part({"type": "video_url", "video_url": {"url": str(video)}}, **more)


def with_part(part, **more):
    """A request with one part besides the question."""
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": QUESTION.text}]}], **more}


def streamed(text):
    """The objects in the events of an answer."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def content(text):
    """What an answer says, whole or streamed."""
    if text.startswith("{"):
        return json.loads(text)["choices"][0]["message"]["content"]
    return "".join(choice["delta"].get("content") or "" for part in streamed(text) for choice in part["choices"])


def refusal(text):
    """The error in an answer, which has OpenAI's form and one short line."""
    body = json.loads(text)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) < 300
    assert "\n" not in body["error"]["message"]
    return body["error"]


def metric(address, name):
    """One number of `/metrics`."""
    for line in urllib.request.urlopen(f"{address}/metrics").read().decode().splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[-1])
    raise KeyError(name)


def seconds_to_health(address):
    """How long `/health` takes."""
    started = time.monotonic()
    assert urllib.request.urlopen(f"{address}/health", timeout=30).status == 200
    return time.monotonic() - started
