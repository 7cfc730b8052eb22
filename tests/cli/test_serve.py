"""A server asked over HTTP with videos: the ratio of a request, of a generation config, of the server; errors; the command itself."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.tiny import clips, model_path

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("openai")

ROOT = Path(__file__).resolve().parents[2]
VIDEO_TOKENS = 288
CLIP = clips()[0]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def served():
    """The embedded model behind a real server in a thread of this process: the model, and the address."""
    import uvicorn

    from cacovid_cli.serve import make_app

    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    processor = with_video_reader(AutoProcessor.from_pretrained(model_path()))
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_app("tiny", model, processor), host="127.0.0.1", port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    wait_for(address)
    yield model, address
    server.should_exit = True
    thread.join()


def wait_for(address, seconds=120):
    for _ in range(10 * seconds):
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=5).read()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(address)


def post(address, body, path="/v1/chat/completions"):
    """Status and text of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def asking(video=CLIP.path, **more):
    content = [
        {"type": "video_url", "video_url": {"url": str(video)}},
        {"type": "text", "text": CLIP.questions[0].text},
    ]
    return {"messages": [{"role": "user", "content": content}], **more}


def with_part(part):
    """A request with one part besides the question."""
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": CLIP.questions[0].text}]}]}


@contextmanager
def widths(model):
    """How many positions the language model is first given in each request."""
    found = []

    def note(module, arguments, settings):
        if settings["inputs_embeds"].shape[1] > 1:
            found.append(settings["inputs_embeds"].shape[1])

    handle = model.backbone.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, 288),
        ({"model": "tiny"}, 288),
        ({"retention_ratio": 0.25}, 72),
        ({"retention_ratio": [0.1]}, 28),
        ({"retention_ratio": 0.25, "stream": True}, 72),
        ({"generation_config": json.dumps({"retention_ratio": 0.5, "max_new_tokens": 4})}, 144),
        ({"generation_config": json.dumps({"retention_ratio": 0.5}), "retention_ratio": 0.25, "max_tokens": 4}, 72),
        ({"retention_ratio": 1.0}, 288),
    ],
)
def test_the_ratio_of_a_request(served, more, kept):
    model, address = served
    with widths(model) as found:
        status, text = post(address, asking(**more))
    assert status == 200, text
    if more.get("stream"):
        parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        answer = "".join(choice["delta"].get("content", "") for part in parts for choice in part["choices"])
    else:
        answer = json.loads(text)["choices"][0]["message"]["content"]
    assert answer.split()[0] == CLIP.questions[0].answer
    prompt = 296
    assert found == [prompt - VIDEO_TOKENS + kept]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": str(CLIP.path)},
        {"type": "video", "path": str(CLIP.path)},
        {"type": "video", "video_url": {"url": str(CLIP.path)}},
        {"type": "input_video", "video_url": str(CLIP.path)},
        {"type": "video_url", "video_url": f"file://{CLIP.path}"},
    ],
)
def test_names_of_a_video(served, part):
    """None is answered without the video."""
    model, address = served
    with widths(model) as found:
        status, text = post(address, with_part(part))
    assert status == 200, text
    assert json.loads(text)["choices"][0]["message"]["content"].split()[0] == CLIP.questions[0].answer
    assert found == [296]


def test_settings_beside_a_video(served):
    """Two frames of 36 tokens, where the whole clip has eight."""
    model, address = served
    with widths(model) as found:
        assert (
            post(address, with_part({"type": "video_url", "video_url": {"url": str(CLIP.path)}, "nframes": 2}))[0]
            == 200
        )
    assert found == [296 - 288 + 72]


@pytest.mark.parametrize("stream", [False, True])
def test_stop(served, stream):
    """The answer ends where the text would begin, which is no part of it."""
    _, address = served

    def content(**more):
        status, text = post(address, asking(stream=stream, **more))
        assert status == 200, text
        if not stream:
            return json.loads(text)["choices"][0]["message"]["content"]
        parts = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        return "".join(choice["delta"].get("content") or "" for part in parts for choice in part["choices"])

    whole = content(max_tokens=8)
    assert whole.startswith("purple")
    assert content(max_tokens=8, stop="rpl") == "pu"
    assert content(max_tokens=8, stop=["ple", "urp"]) == "p"
    assert content(max_tokens=8, stop=["never"]) == whole


def test_a_stop_text_in_pieces():
    """`ab` and `c` are two parts: `bc` lies in both; what may begin a stop text waits for what follows."""
    import asyncio

    from cacovid_cli.stop_texts import UntilStop

    def read(parts, stop):
        async def run():
            queue = asyncio.Queue()
            for part in (*parts, None):
                queue.put_nowait(part)
            until, found = UntilStop(queue, stop), []
            while (part := await until.get()) is not None:
                found.append(part)
            return found

        return asyncio.run(run())

    assert read(["ab", "c", "d"], ["bc"]) == ["a"]
    assert read(["ab", "d"], ["bc"]) == ["a", "bd"]
    assert read(["ab"], ["bc"]) == ["a", "b"]
    assert read(["x", "y"], ["xyz", "y"]) == ["x"]


def test_the_ratio_of_the_server(served, monkeypatch):
    model, address = served
    monkeypatch.setattr(model.config, "retention_ratio", 0.25)
    with widths(model) as found:
        assert post(address, asking())[0] == 200
        assert post(address, asking(retention_ratio=0.5))[0] == 200
    assert found[1] - found[0] == 72


def test_responses(served):
    """The other way to ask of OpenAI's API."""
    model, address = served
    body = asking(retention_ratio=0.25, stream=False)  # these are streamed unless told otherwise
    body["input"] = body.pop("messages")
    with widths(model) as found:
        status, text = post(address, body, "/v1/responses")
    assert status == 200, text
    assert json.loads(text)["output"][0]["content"][0]["text"].split()[0] == CLIP.questions[0].answer
    assert found == [80]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (asking(retention_ratio=2), 400, "retention_ratio=2.0 is outside"),
        (asking(retention_ratio=[0.5, 0.5]), 400, "retention_ratio has 2 values and the prompt 1 video"),
        (asking(video="/nowhere.mp4"), 400, "nowhere.mp4"),
        (asking(video=__file__), 400, "test_serve.py"),
        (asking(chat_template_kwargs={"retention_ratio": 0.25}), 400, "retention_ratio is an argument of generate"),
        (asking(model="another"), 400, "pinned to 'tiny'"),
        (asking(retention=0.25), 400, "Unexpected fields in the request: {'retention'}"),
        (asking(retention_ratio=2, stream=True), 400, "retention_ratio=2.0 is outside"),
        (
            asking(generation_config=json.dumps({"retention_ratio": 0}), stream=True),
            400,
            "retention_ratio=0.0 is outside",
        ),
        (asking(generation_config={"retention_ratio": 0.5}), 400, "A setting of the request: not as OpenAI's API"),
        ({}, 400, "no messages"),
        ({"messages": []}, 400, "no messages"),
        ({"messages": "What?"}, 400, "The request's messages: not as OpenAI's API has it"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, 400, "no address"),
        (with_part({"type": "video"}), 400, "A part of type 'video' has no address"),
        (with_part({"type": "vidoe", "video": "a.mp4"}), 400, "'vidoe' is not followed: did you mean video"),
        (with_part({"type": "video_file", "video_file": {"url": "a.mp4"}}), 400, "'video_file' is not followed"),
        (with_part({"type": "input_audio", "input_audio": {"data": ""}}), 400, "which these models cannot hear"),
        (with_part({"type": "video", "video": "a.mp4", "fsp": 2}), 400, "did you mean fps"),
        (
            {"messages": [{"role": "user", "content": "What?", "videos": ["a.mp4"]}]},
            400,
            "'videos' beside a message's content",
        ),
        (asking(stop=""), 400, "stop='': give a text or a list of texts"),
        (asking(stop=[1]), 400, "stop=[1]: give a text"),
        (
            asking(video="http://127.0.0.1:1/my clip.mp4"),
            400,
            "cannot be fetched (URL can't contain control characters",
        ),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "send an object"),
    ],
)
def test_what_a_user_can_put_right(served, body, status, message):
    model, address = served
    with widths(model) as found:
        answer = post(address, body)
    assert answer[0] == status, answer
    assert message in answer[1]
    assert not found
    assert post(address, asking(max_tokens=1))[0] == 200, "the server goes on"


@pytest.mark.slow
def test_the_command(tmp_path):
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = ["-m", "cacovid_hf", "serve", str(model_path()), "--port", str(port), "--retention-ratio", "0.25"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}")
        status, text = post(f"http://127.0.0.1:{port}", asking(max_tokens=4))
        assert status == 200, text
        assert json.loads(text)["choices"][0]["message"]["content"].split()[0] == CLIP.questions[0].answer
        models = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").read())
        assert [model["id"] for model in models["data"]] == [str(model_path())]
    finally:
        process.terminate()
        process.wait()
