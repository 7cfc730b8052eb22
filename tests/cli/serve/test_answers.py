"""A server asked over HTTP with videos: ratios and methods of a request and of the server, streams, OpenAI's own client, the command itself."""

import gc
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import torch
from helpers.models import wrapped
from helpers.processors import tiny_processor
from helpers.serving import (
    CLIP,
    QUESTION,
    asking,
    content,
    free_port,
    metric,
    post,
    running,
    streamed,
    tiny_model,
    wait_for,
    with_part,
)

from cacovid_hf.compressors import Uniform
from cacovid_hf.tiny import model_path

ROOT = Path(__file__).resolve().parents[3]
VIDEO_TOKENS, PROMPT = 288, 296


@pytest.fixture(scope="module")
def address():
    with running(media_folders=(str(CLIP.path.parent),)) as found:
        yield found


@pytest.fixture
def widths():
    """How many positions the language model is first given in each request."""
    with widths_of(tiny_model()[0]) as found:
        yield found


@contextmanager
def widths_of(model):
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
        ({"retention_ratio": 0.25, "compressor": "divprune", "max_tokens": 4}, 72),
        (
            {"retention_ratio": 0.25, "num_beams": 2, "stream": True},
            71,
        ),  # beams share a prefill of all but the last token
        ({"retention_ratio": 1.0}, 288),
    ],
)
def test_the_ratio_of_a_request(address, widths, more, kept):
    status, text = post(address, asking(**more))
    assert status == 200, text
    assert content(text).split()[0] == QUESTION.answer
    assert widths == [PROMPT - VIDEO_TOKENS + kept]


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
def test_names_of_a_video(address, widths, part):
    """None is answered without the video."""
    status, text = post(address, with_part(part))
    assert status == 200, text
    assert content(text).split()[0] == QUESTION.answer
    assert widths == [PROMPT]


def test_settings_beside_a_video(address, widths):
    """Two frames of 36 tokens, where the whole clip has eight."""
    assert post(address, with_part({"type": "video_url", "video_url": {"url": str(CLIP.path)}, "nframes": 2}))[0] == 200
    assert widths == [PROMPT - VIDEO_TOKENS + 72]


@pytest.mark.parametrize("stream", [False, True])
def test_stop(address, stream):
    """The answer ends where the text would begin, which is no part of it."""

    def answer(**more):
        status, text = post(address, asking(stream=stream, **more))
        assert status == 200, text
        return content(text)

    whole = answer(max_tokens=8)
    assert whole.startswith("purple")
    assert answer(max_tokens=8, stop="rpl") == "pu"
    assert answer(max_tokens=8, stop=["ple", "urp"]) == "p"
    assert answer(max_tokens=8, stop=["never"]) == whole


def test_a_stop_text_in_pieces():
    """`ab` and `c` are two pieces: `bc` lies in both; what may begin a stop text waits for what follows."""
    from cacovid_cli.serve.stop_texts import UntilStop

    def read(pieces, stop):
        until = UntilStop(stop)
        found = [until.feed(piece) for piece in pieces]
        return [piece for piece in [*found, until.rest()] if piece]

    assert read(["ab", "c", "d"], ["bc"]) == ["a"]
    assert read(["ab", "d"], ["bc"]) == ["a", "bd"]
    assert read(["ab"], ["bc"]) == ["a", "b"]
    assert read(["x", "y"], ["xyz", "y"]) == ["x"]
    assert read(["x", "y"], []) == ["x", "y"]


def test_the_ratio_of_the_server(address, widths, monkeypatch):
    monkeypatch.setattr(tiny_model()[0].config, "retention_ratio", 0.25)
    assert post(address, asking())[0] == 200
    assert post(address, asking(retention_ratio=0.5))[0] == 200
    assert widths[1] - widths[0] == 72


def test_the_method_of_the_server():
    """Of requests that say none."""
    asked = []

    class Noted(Uniform):
        def select(self, prompt, span, scores, budget):
            asked.append(budget)
            return super().select(prompt, span, scores, budget)

    with running(compressor=Noted(), media_folders=(str(CLIP.path.parent),)) as address:
        for more in ({}, {"compressor": "divprune"}, {"retention_ratio": 0.5}):
            assert post(address, asking(**{"retention_ratio": 0.25, **more}))[0] == 200
    assert asked == [72, 144]


@pytest.mark.parametrize("stream", [False, True])
def test_responses(address, widths, stream):
    """The other way to ask of OpenAI's API."""
    body = asking(retention_ratio=0.25, stream=stream)
    body["input"] = body.pop("messages")
    status, text = post(address, body, "/v1/responses")
    assert status == 200, text
    whole = streamed(text)[-1]["response"] if stream else json.loads(text)
    assert whole["output"][0]["content"][0]["text"] == QUESTION.answer
    assert whole["status"] == "completed"
    assert widths == [80]
    if stream:
        assert [part["sequence_number"] for part in streamed(text)] == list(range(len(streamed(text))))
        deltas = [part["delta"] for part in streamed(text) if part["type"] == "response.output_text.delta"]
        assert "".join(deltas) == QUESTION.answer


def test_openais_client(address):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    messages = asking()["messages"]
    extra = {"extra_body": {"retention_ratio": 0.25}}
    answer = client.chat.completions.create(model="tiny", messages=messages, seed=1, n=1, stop=None, **extra)
    assert answer.choices[0].message.content == QUESTION.answer
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT, 2)
    again = [*messages, answer.choices[0].message.model_dump(), {"role": "user", "content": "What color?"}]
    assert (
        client.chat.completions.create(model="tiny", messages=again, max_tokens=1).choices[0].finish_reason == "length"
    )
    stream = client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, **extra
    )
    *parts, usage = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == QUESTION.answer
    assert usage.usage.total_tokens == PROMPT + 2
    given = [{"role": "user", "content": [{"type": "input_video", "video_url": str(CLIP.path)}, {"type": "input_text", "text": QUESTION.text}]}]  # fmt: skip
    assert client.responses.create(model="tiny", input=given, **extra).output_text == QUESTION.answer
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.BadRequestError, match="n=2 is not offered") as caught:
        client.chat.completions.create(model="tiny", messages=messages, n=2)
    assert caught.value.param == "n"


def test_draws_are_the_requests_own(address):
    """One seed gives one text, whoever else is asking; others differ."""
    import threading

    def ask(seed, found):
        found.append((seed, content(post(address, asking(temperature=2.0, seed=seed, min_tokens=8, max_tokens=8))[1])))

    found: list = []
    threads = [threading.Thread(target=ask, args=(seed, found)) for seed in (1, 2, 3) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = {seed: {text for one, text in found if one == seed} for seed in (1, 2, 3)}
    assert all(len(same) == 1 for same in texts.values()), texts
    assert len(set.union(*texts.values())) == 3
    greedy = {content(post(address, asking(temperature=0, seed=seed))[1]) for seed in (1, 2)}
    assert greedy == {QUESTION.answer}
    before = metric(address, "cacovid_generation_tokens_total")
    unseeded = {content(post(address, asking(temperature=2.0, min_tokens=8, max_tokens=8))[1]) for _ in range(3)}
    assert len(unseeded) == 3
    assert metric(address, "cacovid_generation_tokens_total") == before + 24


def test_texts_cannot_end_an_event(address):
    """A stop text, which comes back in no event, and quotes and line breaks of a conversation, which its answer may repeat."""
    from cacovid_cli.serve.answers import event

    text = 'x"}]}\r\n\r\ndata: {"choices": [{"delta": {"content": "injected"}}]}\n\n\u2028'
    lines = event({"text": text}).decode().split("\n")
    assert lines[1:] == ["", ""]
    assert json.loads(lines[0].removeprefix("data: ")) == {"text": text}
    status, answer = post(address, asking(stream=True, retention_ratio=text))
    assert status == 400
    assert "data: " not in answer.splitlines()


def test_more_videos_and_pictures(address):
    body = asking()
    body["messages"][0]["content"][:0] = [{"type": "video_url", "video_url": {"url": str(CLIP.path)}}] * 3
    status, text = post(address, {**body, "retention_ratio": [0.1, 0.1, 0.1, 0.1]})
    assert status == 200, text


@pytest.mark.parametrize("compressor", [None, "fastv"])
def test_another_family(compressor):
    """Random weights: the text is that of `generate`, from the same frames and part of the clip."""
    from cacovid_hf import with_video_reader
    from cacovid_hf.utils.chat import chat_inputs

    torch.manual_seed(0)
    (_, model), processor = wrapped("qwen2_5_vl"), with_video_reader(tiny_processor("qwen2_5_vl"))
    body = with_part({"type": "video_url", "video_url": {"url": str(CLIP.path)}, "nframes": 4, "max_pixels": 1600})
    inputs = chat_inputs(processor, body["messages"])
    arguments = {} if compressor is None else {"compressor": compressor}
    ids = model.generate(**inputs, retention_ratio=0.8, max_new_tokens=6, **arguments)
    expected = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    with running((model, processor), media_folders=(str(CLIP.path.parent),)) as address:
        for stream in (False, True):
            status, text = post(
                address, {**body, **arguments, "retention_ratio": 0.8, "max_tokens": 6, "stream": stream}
            )
            assert status == 200, text
            assert content(text).split() == expected.split()


@pytest.mark.slow
def test_the_command(tmp_path):
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["CACOVID_API_KEY"] = "secret"
    options = ["--port", str(port), "--retention-ratio", "0.25", "--allowed-local-media-path", str(CLIP.path.parent)]
    command = ["-m", "cacovid_hf", "serve", str(model_path()), *options]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address)
        key = {"Authorization": "Bearer secret"}
        assert post(address, asking(max_tokens=4))[0] == 401
        status, text = post(address, asking(max_tokens=4), headers=key)
        assert status == 200, text
        assert content(text).split()[0] == QUESTION.answer
        models = json.loads(urllib.request.urlopen(urllib.request.Request(f"{address}/v1/models", headers=key)).read())
        assert [model["id"] for model in models["data"]] == [model_path().name]
        assert str(model_path()) not in json.dumps(models)
    finally:
        process.terminate()
        process.wait(30)


def test_what_stays_is_not_looked_at_for_garbage(monkeypatch):
    """A full collection stops every thread: with all objects of the libraries, `/health` waited for a second and more."""
    import uvicorn

    from cacovid_cli.serve.limits import Limits
    from cacovid_cli.serve.server import serve

    left = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda server: left.append((gc.get_freeze_count(), len(gc.get_objects())))
    )
    try:
        serve("tiny", *tiny_model(), Limits(), "127.0.0.1", free_port())
    finally:
        gc.unfreeze()
    frozen, looked_at = left[0]
    assert looked_at < 0.01 * frozen
