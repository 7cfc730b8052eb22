"""`cacovid serve` under good and bad requests at once: answers compared with those of one at a time, memory, `/health`. One JSON.

python -m benchmarks.serving_faults

The embedded model is served by a process of its own, with the limits that a server has by default and the folder of the example clips allowed.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, ROOT, command, environment, write_result
from cacovid_hf.auto import load_model, load_processor
from cacovid_hf.tiny import clips, model_path
from cacovid_hf.utils.chat import chat_inputs, user_message

RATIOS: tuple[Any, ...] = (1.0, 0.25, 0.1, 0.02, "auto")
METHODS = ("cacovid", "divprune", "uniform")
PATHS = ("/v1/chat/completions", "/v1/responses")
NOTES = [
    "good: the answer is compared with that of `model.generate` for the same clip, question, ratio and method, one at a time in another process.",
    "bad: a 4xx whose body is OpenAI's error of one line under 300 characters counts as refused.",
    "left: the client closes its connection after a moment; nothing is expected of these.",
    "health: asked every 50 ms from the first request to the last. memory: resident size of the server's process.",
    "in_use: bytes that the C library has handed out and not got back, small blocks that its threads keep for themselves included; null where it does not tell.",
    "python_blocks: blocks of memory that the interpreter has handed out. Both are of the moment behind a round.",
]


def picture_bomb() -> str:
    """A header of 16,385 x 8,192 pixels, as a `data:` address."""
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II5B", 16_385, 8_192, 8, 2, 0, 0, 0)
    return "data:image/png;base64," + base64.b64encode(header + bytes(16)).decode()


def film_bomb() -> str:
    """A GIF of 940 bytes with 40 pictures on 5760 x 5760 pixels."""
    drawn = b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02\x44\x01\x00"
    screen = b"GIF89a" + struct.pack("<HH", 5760, 5760) + b"\x80\x00\x00\x00\x00\x00\xff\xff\xff"
    return "data:image/gif;base64," + base64.b64encode(screen + drawn * 40 + b";").decode()


def parts(video: str, question: str, **beside: Any) -> list[dict[str, Any]]:
    """The content of a message."""
    return [{"type": "video_url", "video_url": {"url": video}, **beside}, {"type": "text", "text": question}]


def chat(content: Any, **more: Any) -> dict[str, Any]:
    """A request."""
    return {"messages": [{"role": "user", "content": content}], **more}


def bad_requests(clip: str, question: str) -> list[Any]:
    """Each is wrong in one way; bytes are sent as they are."""
    right = parts(clip, question)
    fields = [
        {"n": 5}, {"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"temperature": float("nan")},
        {"temperature": "1"}, {"top_p": 2}, {"max_tokens": 10**9}, {"max_tokens": True}, {"num_beams": 2000}, {"stop": [1]},
        {"retention_ratio": 0}, {"retention_ratio": [0.5, 0.5]}, {"compressor": "none"}, {"generation_config": "{}"},
        {"chat_template": "{{ x }}"}, {"chat_template_kwargs": {"num_frames": 4096}}, {"model": "another"}, {"unknown": 1},
    ]  # fmt: skip
    videos = [
        "/etc/passwd", "http://127.0.0.1:1/clip.mp4", "http://169.254.169.254/latest", "http://2130706433/", "file:///proc/self/environ",
        f"{clip}/../../../../pyproject.toml", "data:video/mp4;base64,bm8gdmlkZW8=", film_bomb(), "data:video/mp4;base64," + "A" * (4 << 20),
    ]  # fmt: skip
    return [
        *[chat(right, **field) for field in fields],
        *[
            chat(parts(video, question), nframes=32) if video == "" else chat(parts(video, question))
            for video in videos
        ],
        chat(parts(film_bomb(), question, nframes=32)),
        chat([{"type": "image_url", "image_url": {"url": picture_bomb()}}]),
        chat([right[0]] * 5),
        chat("what " * 5000),
        chat([{"type": "vidoe", "video": clip}]),
        {"messages": []},
        b"{",
        b"[" * 100_000,
    ]


def send(address: tuple[str, int], path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and text of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(*address, timeout=300)
    try:
        connection.request("POST", path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def leave(address: tuple[str, int], body: Any) -> None:
    """Send a request and close the connection before its answer."""
    data = json.dumps(body).encode()
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(address, 60) as connection:
        connection.sendall(head.encode() + data)
        time.sleep(0.05)


def content(text: str) -> str:
    """What an answer of any form says."""
    if text.startswith("{"):
        answer = json.loads(text)
        return (
            answer["choices"][0]["message"]["content"]
            if "choices" in answer
            else answer["output"][0]["content"][0]["text"]
        )
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])


def is_refused(status: int, text: str) -> bool:
    """Whether an answer is a 4xx in OpenAI's form with one short line."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        message = json.loads(text)["error"]["message"]
        return 400 <= status < 500 and len(message) < 300 and "\n" not in message
    return False


@contextlib.contextmanager
def served(port: int, folder: str) -> Iterator[subprocess.Popen]:
    """The server's process, ready to answer."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    options = ["--port", str(port), "--allowed-local-media-path", folder]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving_probe", *options],
        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                seconds_to_health(("127.0.0.1", port))
                break
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        process.wait()


def seconds_to_health(address: tuple[str, int]) -> float:
    """How long `/health` takes."""
    started = time.monotonic()
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request("GET", "/health")
        if connection.getresponse().status != 200:
            raise OSError("not healthy")
    finally:
        connection.close()
    return time.monotonic() - started


def size_of(process: subprocess.Popen) -> dict[str, Any]:
    """Resident memory in MB, its peak, open descriptors, and what `serving_probe` tells."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident, peak = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    asked, told = process.stdin, process.stdout
    asked.write("\n")  # type: ignore[union-attr]
    asked.flush()  # type: ignore[union-attr]
    return {
        **json.loads(told.readline()),  # type: ignore[union-attr]
        "memory_mb": resident // 1024,
        "peak_mb": peak // 1024,
        "descriptors": len(os.listdir(f"/proc/{process.pid}/fd")),
    }


def plan(count: int, seed: int) -> list[tuple[str, Any, Any]]:
    """A mix of requests: kind, what is sent, and for a good one the key of its right answer."""
    chosen = random.Random(seed)
    films = clips()
    bad = bad_requests(str(films[0].path), films[0].questions[0].text)
    requests: list[tuple[str, Any, Any]] = []
    for number in range(count):
        film = chosen.choice(films)
        question = chosen.choice(film.questions)
        key = (film.path.name, question.text, chosen.choice(RATIOS), chosen.choice(METHODS))
        if key[2] == "auto":
            key = (*key[:3], "cacovid")
        body = chat(parts(str(film.path), question.text), retention_ratio=key[2], compressor=key[3], max_tokens=8)
        kind = chosen.choices(("good", "bad", "left"), (65, 30, 5))[0]
        if kind == "bad":
            requests.append((kind, bad[number % len(bad)], None))
        elif kind == "left":
            requests.append(
                (kind, {**body, "min_tokens": 500, "max_tokens": 500, "stream": chosen.random() < 0.5}, None)
            )
        else:
            form = chosen.choice(("whole", "streamed", "responses", "inside"))
            if form == "inside":
                body["messages"][0]["content"][0]["video_url"]["url"] = "data:video/mp4;base64," + base64.b64encode(film.path.read_bytes()).decode()  # fmt: skip
            if form == "responses":
                body = {("input" if name == "messages" else "max_output_tokens" if name == "max_tokens" else name): value for name, value in body.items()}  # fmt: skip
            requests.append((kind, body | ({"stream": True} if form == "streamed" else {}), key))
    return requests


def right_answers(keys: set[Any]) -> dict[Any, str]:
    """The answers of the model in this process."""
    model, processor = load_model(model_path()), load_processor(model_path())
    paths = {film.path.name: film.path for film in clips()}
    found = {}
    for name, question, ratio, method in sorted(keys, key=str):
        inputs = chat_inputs(processor, [user_message(question, str(paths[name]))])
        ids = model.generate(**inputs, retention_ratio=ratio, compressor=method, max_new_tokens=8)
        found[name, question, ratio, method] = processor.decode(
            ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return found


def run(
    requests: list[tuple[str, Any, Any]], clients: int, address: tuple[str, int], answers: dict[Any, str]
) -> dict[str, Any]:
    """Send all requests from so many clients; what came back."""
    counts: Counter[str] = Counter()
    seconds: dict[str, list[float]] = {"good": [], "bad": []}
    wrong: list[str] = []
    healthy: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            healthy.append(seconds_to_health(address))

    def ask(one: tuple[str, Any, Any]) -> None:
        kind, body, key = one
        counts[kind] += 1
        if kind == "left":
            leave(address, body)
            return
        started = time.monotonic()
        path = PATHS[isinstance(body, dict) and "input" in body]
        status, text = send(address, path, body)
        seconds[kind].append(time.monotonic() - started)
        is_right = is_refused(status, text) if kind == "bad" else status == 200 and content(text) == answers[key]
        counts[f"{kind}_as_expected"] += is_right
        if not is_right:
            wrong.append(f"{status} {text[:200]} to {str(body)[:200]}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, requests))
    wall = time.monotonic() - started
    ended.set()
    watcher.join()
    return {
        "requests": dict(sorted(counts.items())),
        "wrong": wrong,
        "wall_seconds": round(wall, 2),
        "seconds": {kind: quantiles(values) for kind, values in seconds.items()},
        "health_seconds": quantiles(healthy),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile, largest."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 3),
        "p95": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "max": round(ordered[-1], 3),
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="in a round")
    parser.add_argument("--rounds", type=int, default=3, help="one after another, to the same process")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", help="where the code has no git history")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving")
    options = parser.parse_args()
    torch.set_num_threads(1)
    mixes = [plan(options.requests, options.seed + number) for number in range(options.rounds)]
    answers = right_answers({key for mix in mixes for *_, key in mix if key})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    rounds = []
    with served(address[1], str(clips()[0].path.parent)) as process:
        before = size_of(process)
        for mix in mixes:
            rounds.append({**run(mix, options.clients, address, answers), **size_of(process)})
            print(json.dumps(rounds[-1], indent=1), flush=True)
        is_alive = process.poll() is None
    record = {
        **environment(options.commit, torch.device("cpu")),
        "command": command(),
        "clients": options.clients,
        "distinct_answers": len(answers),
        "before": before,
        "rounds": rounds,
        "alive_at_the_end": is_alive,
        "notes": NOTES,
    }
    print(write_result(options.output, "serving_faults_tiny", record))


if __name__ == "__main__":
    main()
