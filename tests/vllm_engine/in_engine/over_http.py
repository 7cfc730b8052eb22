"""The embedded model behind vLLM's own server, asked over HTTP about real files: `python -m in_engine.over_http`. Its last line is JSON."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.configuration import CaCoVidConfig
from cacovid_hf.tiny import clips, model_path

ALL = (1.0, None, 0.1)  # None: the server's own, 0.25
BAD = (0, 2, -0.5, "auto", "x" * 5000, [0.1, 0.2], {"a": 1}, True, 10**400, float("nan"), [])
BAD_SETTINGS: tuple[Any, ...] = (
    {"retention_rato": 0.1},
    {"compressor": ["divprune"]},
    {"compressor": "no such"},
    {"compressor": "fastv"},
    {"videos_kwargs": {"retention_ratio": 0.1}},
    {"videos_kwargs": {"cacovid": "x"}, "retention_ratio": 1.0},
    {"videos_kwargs": "x"},
    {"cacovid_orders": 1},
    {"retention_ratio": 0.25, "size": {"height": 42, "width": 42}},
    {"do_resize": False},
    {"videos_kwargs": {"num_frames": 2}},
    "x",
)
BAD_READING: tuple[Any, ...] = (
    {"num_frames": 33},
    {"num_frames": -1},
    {"num_frames": 10**400},
    {"num_frames": "8"},
    {"fps": 10**400},
    {"fps": 2},
    {"fps": float("nan")},
    {"num_frames": 1, "video_backend": "opencv"},
)
TOOL = {
    "name": "scene",
    "description": "Which scene is shown",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
}
# Writes tools, their calls and their answers, of which the embedded model's own template knows nothing.
TOOL_TEMPLATE = """{{- bos_token -}}
{%- for tool in tools or [] -%}{{- tool['function']['name'] + ' ' + tool['function']['parameters'] | tojson + ' ' -}}{%- endfor -%}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}{{- '<ans>' -}}{%- endif -%}
    {%- for call in message['tool_calls'] or [] -%}{{- call['function']['name'] + ' ' + call['function']['arguments'] | tojson + ' ' -}}{%- endfor -%}
    {%- if message['content'] is string -%}{{- message['content'] + ' ' -}}{%- else -%}
        {%- for part in message['content'] or [] -%}{{- '<video>' if part['type'] == 'video' else part['text'] + ' ' -}}{%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<ans>' -}}{%- endif -%}"""


@contextlib.contextmanager
def serving(*more: str) -> Iterator[str]:
    """A server of the embedded model in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = {"image": 0, "video": 2}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path())]
    command += ["--served-model-name", "tiny", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += [
        "--max-model-len",
        "768",
        "--max-num-seqs",
        "8",
        "--max-num-batched-tokens",
        "768",
        "--block-size",
        "32",
    ]
    command += ["--limit-mm-per-prompt", json.dumps(limits), "--allowed-local-media-path", str(clips()[0].path.parent)]
    command += ["--mm-processor-kwargs", '{"retention_ratio": 0.25}', "--trust-request-mm-kwargs"]
    command += ["--trust-request-chat-template", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", *more]
    small = dict(VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    environment = {**os.environ, **small, "VLLM_LOGGING_LEVEL": "WARNING"}
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def _wait_for(address: str, server: subprocess.Popen[bytes], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        time.sleep(0.5)
    raise RuntimeError(f"The server is not up (status {server.poll()}).")


def ask(address: str, content: list[dict[str, Any]], **more: Any) -> tuple[int, Any]:
    """Status, and the answer with the length of the prompt, or the error's message."""
    return send(address, [{"role": "user", "content": content}], **more)


def send(address: str, messages: list[dict[str, Any]], **more: Any) -> tuple[int, Any]:
    """As `ask`, with several messages."""
    body = {"model": "tiny", "temperature": 0, "max_tokens": 8, "messages": messages}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps({**body, **more}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            found = json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
    return 200, (found["choices"][0]["message"]["content"].strip(), found["usage"]["prompt_tokens"])


def about(clip: Any, question: str) -> list[dict[str, Any]]:
    """What a message holds."""
    return [
        {"type": "video_url", "video_url": {"url": clip.path.as_uri()}},
        {"type": "text", "text": question},
    ]


def with_ratio(ratio: Any) -> dict[str, Any]:
    """The fields of a request."""
    return {} if ratio is None else {"mm_processor_kwargs": {"retention_ratio": ratio}}


def after_a_tool(video: dict[str, Any], clip: Any, arguments: Any) -> list[dict[str, Any]]:
    """A question, the call of a tool, what it says, and another question."""
    call = {"id": "one", "type": "function", "function": {"name": TOOL["name"], "arguments": arguments}}
    return [
        {"role": "user", "content": [video, {"type": "text", "text": "Which scene is shown first?"}]},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "one", "content": "maroon"},
        {"role": "user", "content": [{"type": "text", "text": clip.questions[0].text}]},
    ]


def with_tools(address: str, model: Any, processor: Any) -> dict[str, Any]:
    """Prompts with tools: what vLLM and transformers answer, and lengths of prompts."""
    clip, tools, how = clips()[0], [{"type": "function", "function": TOOL}], {"chat_template": TOOL_TEMPLATE}
    here = after_a_tool({"type": "video", "path": str(clip.path)}, clip, {"number": 1})
    there = after_a_tool(about(clip, "")[0], clip, '{"number": 1}')
    inputs = processor.apply_chat_template(
        here, tools=tools, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **how
    )
    expected, got = [], []
    for ratio in ALL:
        asked = ratio or 0.25
        ids = model.generate(**inputs, retention_ratio=asked, max_new_tokens=8, do_sample=False)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        expected.append([200, [text, *model.kept_lengths(**inputs, retention_ratio=asked)]])
        status, answer = send(address, there, tools=tools, tool_choice="auto", **how, **with_ratio(ratio))
        got.append([status, list(answer)])
    return {"got": got, "expected": expected}


def main() -> dict[str, Any]:
    """Ask everything."""
    config = CaCoVidConfig.from_pretrained(model_path())
    model, processor = load_model(model_path(), config), load_processor(model_path(), config)
    work = [(clip, question, ratio) for clip in clips() for question in clip.questions for ratio in ALL]
    lengths: dict[Any, int] = {}
    for clip, question, _ in work[:: len(ALL)]:
        message = [
            {
                "role": "user",
                "content": [{"type": "video", "video": str(clip.path)}, {"type": "text", "text": question.text}],
            }
        ]
        inputs = processor.apply_chat_template(
            message, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        for ratio in ALL:
            (lengths[clip.path, question.text, ratio],) = model.kept_lengths(**inputs, retention_ratio=ratio or 0.25)
    first = clips()[0]
    with serving() as address:
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda w: ask(address, about(w[0], w[1].text), **with_ratio(w[2])), work))
        seconds = time.monotonic() - started
        bad = [ask(address, about(first, first.questions[0].text), **with_ratio(ratio)) for ratio in BAD]
        bad += [
            ask(address, about(first, first.questions[0].text), mm_processor_kwargs=given) for given in BAD_SETTINGS
        ]
        reading = {
            name: [
                ask(address, about(first, first.questions[0].text), media_io_kwargs={"video": given}) for given in asked
            ]
            for name, asked in (("bad", BAD_READING), ("fewer", ({"num_frames": 4}, {"num_frames": 32, "fps": 0.5})))
        }
        tools = with_tools(address, model, processor)
        methods = [
            ask(address, about(first, first.questions[0].text), mm_processor_kwargs={"compressor": method})
            for method in ("divprune", "uniform")
        ]
        two = ask(
            address,
            [*about(first, "")[:1], *about(clips()[1], first.questions[0].text)],
            **with_ratio([1.0, 0.1]),
        )
        text = ask(address, [{"type": "text", "text": first.questions[0].text}])
        unreadable = ask(address, [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}])
    right = {
        str(ratio or 0.25): [
            sum(
                status == 200 and found[0] == w[1].answer
                for w, (status, found) in zip(work, answers, strict=True)
                if w[2] == ratio
            ),
            sum(w[2] == ratio for w in work),
        ]
        for ratio in ALL
    }
    same = sum(
        status == 200 and found[1] == lengths[w[0].path, w[1].text, w[2]]
        for w, (status, found) in zip(work, answers, strict=True)
    )
    return {
        "right": right,
        "asked": len(work),
        "lengths_as_transformers": same,
        "seconds": round(seconds, 1),
        "bad": bad,
        "reading": reading,
        "tools": tools,
        "methods": methods,
        "two_videos": two,
        "text": text,
        "unreadable": unreadable,
        "wrong": [
            str((w[0].path.name, w[1], w[2], a))
            for w, a in zip(work, answers, strict=True)
            if a[0] != 200 or a[1][0] != w[1].answer
        ],
    }


if __name__ == "__main__":
    print(json.dumps(main()))
