"""Wrong requests: each a 4xx in OpenAI's form, one short line that names what is wrong, before anything is computed."""

import json
import math

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from helpers.processors import tiny_processor
from helpers.serving import CLIP, asking, fetched, post, refusal, running, tiny_model, with_part

from cacovid_hf import with_video_reader


@pytest.fixture(scope="module")
def address():
    with running(media_folders=(str(CLIP.path.parent),), private_addresses=True) as found:
        yield found


@pytest.fixture
def computed():
    """Forwards of the language model."""
    calls = []
    handle = tiny_model()[0].backbone.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def message(**more):
    return {"messages": [{"role": "user", "content": "What?", **more}]}


# Fields of OpenAI's API, of vLLM's, and none; the value; what is said.
FIELDS = [
    ("n", 5, "n=5 is not offered: one answer"),
    ("n", True, "n=True is not offered"),
    ("n", "1", "n='1' is not offered"),
    ("tools", [{"type": "function"}], "is not offered: these models call no tools"),
    ("tool_choice", "required", "tool_choice='required' is not offered"),
    ("functions", [{}], "is not offered"),
    ("response_format", {"type": "json_object"}, "response_format={'type': 'json_object'} is not offered: answers are texts"),
    ("logprobs", True, "logprobs=True is not offered"),
    ("top_logprobs", 3, "is not offered"),
    ("frequency_penalty", 0.5, "is not offered: use repetition_penalty"),
    ("presence_penalty", -2, "is not offered"),
    ("logit_bias", {"2": -100}, "is not offered"),
    ("modalities", ["audio"], "is not offered"),
    ("reasoning_effort", "high", "is not offered"),
    ("store", True, "is not offered: nothing is stored"),
    ("generation_config", '{"cache_implementation": "static"}', "is not offered: give its settings as fields"),
    ("generation_config", {"num_beams": 2000}, "is not offered"),
    ("chat_template", "{% for i in range(10**9) %}{% endfor %}", "is not offered: the template is the model's"),
    ("chat_template_kwargs", {"chat_template": "x"}, "is not offered"),
    ("chat_template_kwargs", {"num_frames": 4096}, "is not offered: the template is the model's, and settings of a video"),
    ("mm_processor_kwargs", {"num_frames": 9}, "is not offered"),
    ("temperature", math.nan, "temperature=nan: input should be a finite number"),
    ("temperature", math.inf, "temperature=inf: input should be a finite number"),
    ("temperature", -1, "greater than or equal to 0"),
    ("temperature", 1e-40, "temperature=1e-40 is too small to divide by: give 0, or at least 0.01"),
    ("temperature", 2.5, "less than or equal to 2"),
    ("temperature", "1", "temperature='1': input should be a valid number"),
    ("temperature", True, "temperature=True"),
    ("temperature", [1.0], "temperature=[1.0]"),
    ("top_p", 0, "top_p=0"),
    ("top_p", 2, "top_p=2"),
    ("top_p", -1, "top_p=-1"),
    ("top_k", 0, "top_k=0"),
    ("top_k", 1.5, "top_k=1.5"),
    ("repetition_penalty", 0, "repetition_penalty=0"),
    ("repetition_penalty", 1e-40, "repetition_penalty=1e-40: input should be greater than or equal to 0.01"),
    ("repetition_penalty", math.nan, "repetition_penalty=nan"),
    ("seed", 1 << 64, "seed=18446744073709551616"),
    ("seed", 1.5, "seed=1.5"),
    ("max_tokens", 0, "max_tokens=0"),
    ("max_tokens", 1025, "max_tokens=1025 is over this server's limit of 1024"),
    ("max_tokens", 10**30, "is over this server's limit of 1024"),
    ("max_tokens", 10**5000, "not JSON"),
    ("max_tokens", True, "max_tokens=True"),
    ("max_tokens", math.inf, "max_tokens=inf"),
    ("max_tokens", "many", "max_tokens='many'"),
    ("max_completion_tokens", 10**9, "max_completion_tokens=1000000000 is over"),
    ("min_tokens", 10**9, "min_tokens=1000000000 is over"),
    ("num_beams", 2000, "num_beams=2000 is over this server's limit of 4"),
    ("num_beams", 0, "num_beams=0"),
    ("num_return_sequences", 500, "num_return_sequences is not a field of a request"),
    ("cache_implementation", "quantized", "cache_implementation is not a field"),
    ("stop", "", "stop='': give a text or a list of texts"),
    ("stop", [1], "stop=[1]: give a text"),
    ("stop", {"a": 1}, "stop={'a': 1}"),
    ("stop", ["a"] * 17, "at most 16 texts"),
    ("stop", "a" * 257, "at most 16 texts of at most 256 characters"),
    ("stream", "yes", "stream='yes'"),
    ("stream_options", {"include_usage": 1}, "stream_options.include_usage=1"),
    ("stream_options", {"other": True}, "stream_options.other is not a field"),
    ("retention_ratio", 2, "retention_ratio=2.0 is outside"),
    ("retention_ratio", 0, "retention_ratio=0.0 is outside"),
    ("retention_ratio", math.nan, "retention_ratio=nan is outside"),
    ("retention_ratio", True, "retention_ratio=True is not a number"),
    ("retention_ratio", 10**400, "is not a number"),
    ("retention_ratio", "0.25", "retention_ratio='0.25' is not a number"),
    ("retention_ratio", [0.5] * 100, "retention_ratio has 100 values"),
    ("retention_ratio", [0.5, {}], "retention_ratio[1]={}"),
    ("retention_ratio", {"a": 0.5}, "retention_ratio={'a': 0.5}"),
    ("compressor", "divprun", "compressor='divprun' is unknown: did you mean divprune?"),
    ("compressor", ["divprune"], "compressor=['divprune']"),
    ("model", "another", "model='another' is not served here: ask for 'tiny'"),
    ("model", 5, "model=5"),
    ("retention", 0.25, "retention is not a field of a request: did you mean retention_ratio?"),
    ("x" * 1000, 1, "is not a field of a request"),
    ("a\nb", 1, "is not a field of a request"),
    ("messages", [], "The request has no messages"),
    ("messages", None, "The request has no messages"),
    ("messages", "What?", "messages='What?'"),
    ("messages", [{"role": "user", "content": "a"}] * 257, "there are 257 messages, over this server's limit of 256"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "said"), FIELDS, ids=[f"{name[:20]!r}-{i}" for i, (name, *_) in enumerate(FIELDS)]
)
def test_fields(address, computed, name, value, said):
    for stream in (False, True):
        body = asking(**{"stream": stream, "seed": 1, name: value})
        status, text = post(
            address, body if value != 10**5000 else json.dumps(body | {name: 7}).replace("7", "1" * 5001).encode()
        )
        error = refusal(text)
        assert status == 400, text
        assert said in error["message"], error
        if said != "not JSON":
            assert error["param"] is not None
            assert error["param"].split(".")[0] in (name, "min_tokens", " ".join(name.split())), error
    assert not computed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "The request has no messages"),
        (b"{", "not JSON"),
        (b"[]", "is a JSON list: send an object"),
        (b"", "not JSON"),
        (b"null", "is a JSON NoneType: send an object"),
        (b"\xff\xfe", "not JSON"),
        (b'\xef\xbb\xbf{}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"messages": ' + b"[" * 100_000, "not JSON"),
        (b"[],".join([b"[", *[b""] * 100_000, b"]"]), "brackets, commas and colons"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
        (message(role="tool"), "messages.0.role='tool': input should be 'system', 'developer', 'user' or 'assistant'"),
        (message(content=None), "messages.0.content is missing"),
        (message(content=5), "messages.0.content=5"),
        (message(content=[5]), "messages.0.content.0=5"),
        (message(content=[{"type": "text"}] * 257), "over this server's limit of 256"),
        (message(contents="x"), "messages.0.contents is not a field of a request: did you mean content?"),
        (message(videos=["a.mp4"]), "messages.0.videos is not a field"),
        (message(tool_calls=[{"id": "1"}]), "tool_calls of a message is not offered"),
        (message(name="me"), "name of a message is not offered"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "has no address: give it under"),
        (with_part({"type": "video"}), "The address of a part of type 'video' is nothing: give a text"),
        (with_part({"type": "video", "video": [[[1]]]}), "A video of type list is not followed"),
        (with_part({"type": "video", "video": ["a.png", "b.png"]}), "is a JSON list: give a text"),
        (with_part({"type": "video_url", "video_url": {"url": 5}}), "A video of type int is not followed"),
        (with_part({"type": "image_url", "image_url": {"url": 5}}), "is a JSON int: give a text"),
        (with_part({"type": "vidoe", "video": "a.mp4"}), "'vidoe' is not followed: did you mean video"),
        (with_part({"type": "video_file", "video_file": {"url": "a.mp4"}}), "'video_file' is not followed"),
        (with_part({"type": "input_audio", "input_audio": {"data": ""}}), "which these models cannot hear"),
        (with_part({"type": "video", "video": "a.mp4", "fsp": 2}), "did you mean fps"),
        (with_part({"type": "video", "video": str(CLIP.path), "nframes": 65}), "65 frames of a video are over this server's limit of 64"),
        (with_part({"type": "video", "video": str(CLIP.path), "nframes": 10**30}), "are over this server's limit of 64"),
        (with_part({"type": "video", "video": str(CLIP.path), "fps": -1}), "fps=-1 beside a video"),
        (with_part({"type": "video", "video": str(CLIP.path), "fps": math.nan}), "fps=nan beside a video"),
        (with_part({"type": "video", "video": str(CLIP.path), "video_start": 1e9}), "give a video_start within it"),
        (asking(video=str(CLIP.path.with_name("nowhere.mp4"))), "nowhere.mp4 does not exist"),
        (asking(video="http://127.0.0.1:1/my clip.mp4"), "cannot be fetched (URL can't contain control characters"),
        (asking(video="data:video/mp4;base64," + "é" * 60_000), "cannot be read"),
        (asking(video="data:video/mp4;base64,bm8gdmlkZW8="), "is not a readable video"),
        (with_part({"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8gcGljdHVyZQ=="}}), "is not a readable picture"),
        (with_part({"type": "image_url", "image_url": {"url": "data:image/png;base64," + "bm8g" * 54}}), "is not a readable picture (UnidentifiedImageError): check it"),
        (with_part({"type": "image_url", "image_url": {"url": "a.mp4"}}), "is a video in a part for a picture"),
        (asking(retention_ratio=[0.5, 0.5]), "retention_ratio has 2 values and the prompt 1 video"),
        (asking(retention_ratio=[0.5, 0.5], stream=True), "retention_ratio has 2 values and the prompt 1 video"),
        (asking(min_tokens=9, max_tokens=8), "min_tokens=9 is over the 8 tokens of the answer"),
        (message(content="<video> What?"), "A text holds '<video>', which stands for what is shown"),
        (message(content="What? " * 4096), "tokens and the model 4096 positions"),
        (message(content="W" * 200_000), "The prompt has 200000 characters, and the model 4096 positions"),
        (message(content="What? " * 3500) | {"max_tokens": 600}, "An answer of 600 tokens does not fit behind the prompt"),
        (with_part({"type": "video_url", "video_url": str(CLIP.path)}, messages=[{"role": "user", "content": [{"type": "video_url", "video_url": str(CLIP.path)}] * 5}]), "The request has 5 videos, over this server's limit of 4"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}] * 9}]}, "The request has 9 images, over this server's limit of 8"),
    ],
)  # fmt: skip
def test_bodies(address, computed, body, said):
    status, text = post(address, body)
    assert status == 400, text
    assert said in refusal(text)["message"], text
    assert not computed


def test_a_prompt_that_is_longer_than_the_model(address):
    """Both numbers are said: `<bos>`, 4,096 words and the mark of an answer."""
    status, text = post(address, message(content="what " * 4096))
    assert status == 400
    assert "has 4098 tokens and the model 4096 positions" in refusal(text)["message"]
    with running(positions=40) as narrow:
        assert post(narrow, message(content="what " * 20))[0] == 200
        assert (
            "has 42 tokens and the model 40 positions"
            in refusal(post(narrow, message(content="what " * 40))[1])["message"]
        )


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.01, "repetition_penalty": 0.01, "top_p": 1e-320},
        {"temperature": 2, "repetition_penalty": 10, "top_k": 1_000_000},
        {"temperature": 0.01, "num_beams": 4, "seed": -(1 << 63)},
        {"stop": ["z" * 256] * 16, "min_tokens": 8, "seed": (1 << 63) - 1},
        {"retention_ratio": 5e-324, "user": "u" * 512},
    ],
)
def test_values_at_their_bounds_are_answered(address, more):
    """No score becomes infinite, which draws do not survive: on a GPU, not even those of later requests."""
    status, text = post(address, asking(max_tokens=8, **more))
    assert status == 200, text


def test_what_asks_for_nothing_is_no_error(address):
    """As clients send them: neutral values and null."""
    neutral = dict(
        n=1, tools=[], tool_choice="none", logprobs=False, frequency_penalty=0, presence_penalty=0.0, logit_bias={}, stop=None,
        response_format={"type": "text"}, parallel_tool_calls=True, store=False, user="me", metadata=None, temperature=0,
        max_tokens=None, functions=None, model=None, stream=None, stream_options=None, seed=None, service_tier="auto",
    )  # fmt: skip
    status, text = post(address, asking(**neutral))
    assert status == 200, text


@pytest.mark.parametrize(
    ("name", "value", "most"), [("min_pixels", 1 << 21, 1 << 20), ("max_pixels", 1 << 26, 1 << 25)]
)
def test_sizes_of_frames(name, value, most):
    """Of a family that follows them; small frames are enlarged to `min_pixels`."""
    from cacovid_cli.serve.errors import Refused
    from cacovid_cli.serve.interrupts import Interrupt
    from cacovid_cli.serve.limits import Limits
    from cacovid_cli.serve.reading import Reader

    reader = Reader(with_video_reader(tiny_processor("qwen2_5_vl")), 4096, Limits())
    message = [{"role": "user", "content": [{"type": "video", "video": "a.mp4", name: value}]}]
    with pytest.raises(Refused, match=f"{name}={value} beside a video is over this server's limit of {most}"):
        reader.read(message, Interrupt())


def test_other_paths_and_methods(address):
    import urllib.request

    for path, status in (
        ("/v1/nothing", 404),
        ("/v1/models/", 404),
        ("/docs", 404),
        ("/openapi.json", 404),
        ("/v1/chat/completions", 405),
    ):
        found, text = fetched(urllib.request.Request(address + path))
        assert found == status
        refusal(text)


def test_an_error_of_the_server_tells_nothing(address, monkeypatch):
    """Its log has the reason."""

    def broken(*args, **kwargs):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(tiny_model()[0], "generate", broken)
    for stream in (False, True):
        status, text = post(address, asking(stream=stream))
        assert status == 500
        assert "secret" not in refusal(text)["message"]
    monkeypatch.undo()
    assert post(address, asking())[0] == 200
