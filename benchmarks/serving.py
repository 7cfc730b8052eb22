"""Requests a second, time to first token and tokens a second of servers: stock vLLM, vLLM with this package's plugin, `cacovid serve`. One JSON.

    python benchmarks/serving.py                                                   # the embedded model on a CPU
    python benchmarks/serving.py --arch embedded llava-onevision-0.5b --tower-layers 1 --frames 2 --dtype bfloat16
    python benchmarks/serving.py --arch llava-onevision-7b --device cuda --dtype bfloat16 --servers stock plugin --budget-seconds 400

Run it in an environment that has vLLM (`scripts/vllm_env.sh` makes one for CPUs). Each server gets the same requests, over HTTP, from clients that wait for
an answer before they ask again. Every group of questions has a video of its own, which no server has seen before.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import cpu_seconds, figures, run_clients
from record import RESULTS, ROOT, GrowingResult, command, environment, summarise
from serving_models import EMBEDDED, SHAPES, checkpoint, frames_of, label, tokens_of, write_videos

NOTES = [
    "Clients wait for an answer before they ask again; all servers get the same requests, from the same process.",
    "stock: vLLM on the backbone alone. plugin: vLLM with this package's plugin, a ratio per request. serve: cacovid serve.",
    "Published shapes have random weights: their answers mean nothing, and all have the full number of new tokens.",
    "Videos are 96 x 96 pixels at one frame a second, scaled up by the processor: decoding costs little, the vision tower what it always does.",
    "cacovid serve computes in the type of the checkpoint's weights: float32 for the embedded model, --dtype for published shapes.",
    "cpu_seconds_per_request: of all processes of the server. Where others share the cores, it says more than the requests a second.",
    "Every group of questions has a video of its own. With several questions per video, the later ones may find it in a cache.",
]

STOP_SECONDS = 15
"""That a server is given to end by itself. They are of the time of the whole command."""
LEAST_SECONDS = 10
"""With less, nothing more is begun."""


@dataclass(frozen=True)
class Server:
    """What is measured.

    Attributes:
        name: in the record.
        kind: `"stock"`, `"plugin"` or `"serve"`.
        ratio: that requests ask for; None: all tokens.
        method: of compression; None: the policy.
    """

    name: str
    kind: str
    ratio: float | None
    method: str | None = None

    def fields(self) -> dict[str, Any]:
        """What a request to it says beside its messages."""
        asked = {"retention_ratio": self.ratio, "compressor": self.method}
        given = {name: value for name, value in asked.items() if value is not None}
        return {"mm_processor_kwargs": given} if self.kind == "plugin" and given else given


@contextlib.contextmanager
def serving(
    kind: str,
    folder: Path,
    media: Path,
    options: argparse.Namespace,
    positions: int,
    frames: int,
    random_weights: bool,
    seconds: float,
) -> Iterator[tuple[int, int, float]]:
    """Start a server in a session of its own, and stop it in the end; its port, its session's id and the seconds that it took to start.

    Args:
        kind: of `Server`.
        folder: of the checkpoint.
        media: folder that requests may name files of.
        options: of the command.
        positions: of a prompt and its answer.
        frames: of a video, at most.
        random_weights: whether vLLM makes the weights.
        seconds: to start in.

    Raises:
        TimeoutError: it is not up in time.
        RuntimeError: it ended.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = dict(OMP_NUM_THREADS=str(options.threads), HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1")
    settings |= dict(VLLM_LOGGING_LEVEL="WARNING", PYTHONPATH=str(ROOT / "src"))
    if options.device == "cpu":
        settings["VLLM_CPU_KVCACHE_SPACE"] = str(options.cache_gb)
    if kind == "stock":
        settings["VLLM_PLUGINS"] = ""
    local = ["--port", str(port), "--allowed-local-media-path", str(media)]
    limits = ["--limit-mm-per-prompt", json.dumps({"video": 1, "image": 0})]
    if kind == "serve":
        program = ["-m", "cacovid_hf", "serve", str(folder), *local, "--served-model-name", "served"]
    else:
        place = folder / "backbone" if kind == "stock" else folder
        program = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(place), *local, *limits]
        program += ["--served-model-name", "served", "--dtype", options.dtype, "--block-size", "32"]
        program += ["--max-model-len", str(positions), "--max-num-seqs", str(max(options.clients))]
        batched = options.batched_tokens or max(2048, positions)
        program += ["--max-num-batched-tokens", str(batched), *options.vllm_arguments]
        program += ["--load-format", "dummy"] if random_weights and kind != "serve" else []
        program += ["--enforce-eager"] if options.eager else []
        if kind == "plugin":
            program += ["--trust-request-mm-kwargs"]
        else:  # the same frames as the plugin's own loader samples
            program += ["--media-io-kwargs", json.dumps({"video": {"num_frames": frames, "fps": 1}})]
    started = time.monotonic()
    log = media / f"{kind}.log"
    with log.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, *program],
            env={**os.environ, **settings},
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        wait_until_up(port, process, log, seconds)
        yield port, process.pid, time.monotonic() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Return when the server answers `/health`.

    Raises:
        TimeoutError: it is not up in time.
        RuntimeError: it ended.
    """
    end = time.monotonic() + seconds
    while process.poll() is None:
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError(f"The server is not up after {seconds:.0f} s: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=min(2, left))
            return
        time.sleep(min(0.2, left))
    raise RuntimeError(f"The server ended with status {process.poll()}: {log.read_text()[-2000:]}")


def bodies_of(server: Server, videos: list[Path], questions: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests: so many questions about each video, the first questions of all videos first."""
    words = ["what", "color", "is", "the", "circle", "square", "moving", "left", "or", "right"]
    bodies = []
    for question in range(questions):
        for video in videos:
            rng = np.random.default_rng((question, options.question_words))
            text = " ".join(words[i] for i in rng.integers(0, len(words), options.question_words))
            content = [{"type": "video_url", "video_url": {"url": video.as_uri()}}, {"type": "text", "text": text}]
            body = {"model": "served", "messages": [{"role": "user", "content": content}], "temperature": 0}
            body["max_tokens"] = options.new_tokens
            full = {"min_tokens": options.new_tokens} if server.kind == "serve" else {"ignore_eos": True}
            bodies.append({**body, **full, **server.fields()})
    return bodies


def servers_of(options: argparse.Namespace) -> list[Server]:
    """What is to be measured, those of one process together."""
    found = [Server("stock vLLM", "stock", None)] if "stock" in options.servers else []
    for kind, what in (("plugin", "vLLM"), ("serve", "cacovid serve")):
        if kind in options.servers:
            found += [Server(f"{what}, {ratio:.0%}", kind, ratio) for ratio in options.ratios]
    if "plugin" in options.servers:
        found += [
            Server(f"vLLM, {method} {options.ratios[0]:.0%}", "plugin", options.ratios[0], method)
            for method in options.methods
        ]
    return sorted(found, key=lambda server: ("stock", "plugin", "serve").index(server.kind))


def main(arguments: list[str] | None = None, report: Callable[[str], None] = print) -> Path:
    """Run the benchmark and return the path of its JSON."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=SHAPES, default=[EMBEDDED], help="one after another")
    parser.add_argument("--layers", type=int, help="fewer language-model layers than published")
    parser.add_argument("--tower-layers", type=int, help="fewer layers of the vision tower than published")
    parser.add_argument(
        "--frames", type=int, default=32, help="of a video at one a second; the embedded model always has 8"
    )
    parser.add_argument(
        "--servers", nargs="+", choices=["stock", "plugin", "serve"], default=["stock", "plugin", "serve"]
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.1])
    parser.add_argument("--methods", nargs="*", default=[], help="training-free ones, measured at the first ratio")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8], help="per video")
    parser.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=[32],
        help="in each cell, or one number per number of clients; multiples of --questions",
    )
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--question-words", type=int, default=16)
    parser.add_argument("--policy", choices=["full", "light"], default="light", help="of a published shape")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache-gb", type=int, default=2, help="for keys and values, on a CPU")
    parser.add_argument("--max-model-len", type=int, help="default: a whole video and 512 tokens")
    parser.add_argument(
        "--batched-tokens", type=int, help="in one step of vLLM; default: one whole prompt, at least 2048"
    )
    parser.add_argument("--eager", action="store_true", help="no compiled model and no CUDA graphs")
    parser.add_argument("--start-seconds", type=float, default=300)
    parser.add_argument(
        "--budget-seconds", type=float, default=3600, help="of the whole command; what is left then is named"
    )
    parser.add_argument("--vllm-arguments", nargs=argparse.REMAINDER, default=[], help="the last option: more for vLLM")
    parser.add_argument("--commit", help="of the code, where git cannot tell")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    if len(options.requests) == 1:
        options.requests *= len(options.clients)
    if len(options.requests) != len(options.clients):
        parser.error(
            f"--requests has {len(options.requests)} numbers: give one, or one for each of {len(options.clients)} numbers of clients"
        )
    if wrong := [(r, q) for r in options.requests for q in options.questions if r % q]:
        parser.error(f"--requests {wrong[0][0]} is not a multiple of {wrong[0][1]} questions per video")
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "serving", "command": command(), "config": config}
    record |= environment(options.commit, torch.device(options.device))
    record["versions"]["vllm"] = vllm_version()
    cells = [
        [arch, server.name, clients, questions]
        for arch in options.arch
        for server in servers_of(options)
        for clients in options.clients
        for questions in options.questions
    ]
    record |= {"notes": NOTES, "starts": {}, "cells": [], "not_measured": cells}
    name = "_".join(label(arch, options) for arch in options.arch)
    result = GrowingResult(options.output, f"serving_{name}_{options.dtype}_{options.device}", record)
    ends = began + options.budget_seconds - STOP_SECONDS
    for arch in options.arch:
        with tempfile.TemporaryDirectory() as work:
            measure(arch, options, Path(work), result, lambda: ends - time.monotonic(), report)
    record["seconds"] = round(time.monotonic() - began, 1)
    path = result.save()
    report(f"not measured: {', '.join(map(str, record['not_measured'])) or 'nothing'}")
    report(str(path))
    return path


def measure(
    arch: str,
    options: argparse.Namespace,
    media: Path,
    result: GrowingResult,
    left: Callable[[], float],
    report: Callable[[str], None],
) -> None:
    """Start the servers of one model one after another, and add what they do to the record.

    Args:
        arch: the model.
        options: of the command.
        media: an empty folder, which servers may read.
        result: each cell is written as soon as it is measured, and is then no longer named as not measured.
        left: seconds until the last server has to be told to end. Nothing is waited for any longer.
        report: takes a line for each cell.
    """
    record, servers, frames = result.record, servers_of(options), frames_of(arch, options)
    positions = options.max_model_len or tokens_of(arch, frames) + 512
    has_weights = arch == EMBEDDED
    if left() < LEAST_SECONDS:
        return
    folder = checkpoint(arch, options, media / "checkpoint", not has_weights and "serve" in options.servers)
    per_server = sum(requests // questions for requests in options.requests for questions in options.questions)
    for kind in dict.fromkeys(server.kind for server in servers):
        of_kind = [server for server in servers if server.kind == kind]
        if left() < LEAST_SECONDS:
            return
        with contextlib.ExitStack() as running:
            seconds = min(options.start_seconds, left())
            server_of_kind = serving(kind, folder, media, options, positions, frames, not has_weights, seconds)
            try:
                port, session, took = running.enter_context(server_of_kind)
            except TimeoutError:
                if left() > 0:  # it had all the time that a start may take
                    raise
                return
            record["starts"][f"{arch}, {kind}"] = round(took, 1)
            for number, server in enumerate(of_kind):
                # Of each server's own, so that what another ratio left in a cache is of other videos.
                own = write_videos(media / f"{kind}{number}", servers.index(server), per_server + 1, frames)
                if left() < LEAST_SECONDS:
                    return
                run_clients(port, bodies_of(server, own[:1], 1, options), 1, left())
                unseen = iter(own[1:])
                for clients, requests in zip(options.clients, options.requests, strict=True):
                    for questions in options.questions:
                        if left() < LEAST_SECONDS:
                            return
                        group = [next(unseen) for _ in range(requests // questions)]
                        bodies = bodies_of(server, group, questions, options)
                        before = cpu_seconds(session)
                        answers, spent = run_clients(port, bodies, clients, left())
                        used = cpu_seconds(session) - before
                        if left() <= 0:  # which has ended some of them
                            return
                        cell = {"model": arch, "server": server.name, "clients": clients, "questions": questions}
                        record["not_measured"].remove(list(cell.values()))
                        cell["cpu_seconds_per_request"] = used / requests
                        record["cells"].append({**cell, **figures(answers, spent, summarise)})
                        result.save()
                        report(line(record["cells"][-1]))


def vllm_version() -> str | None:
    """The installed one, whichever distribution brings it; None if there is none."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def line(cell: dict[str, Any]) -> str:
    """One cell as a row of a table."""
    first = cell["first_token_ms"]
    return (
        f"| {cell['model']} | {cell['server']} | {cell['clients']} | {cell['questions']} | {cell['requests_per_second']:.2f} | "
        f"{'-' if first is None else format(first['median'], '.0f')} | {cell['tokens_per_second']:.1f} | {cell['prompt_tokens']} | {cell['failed']} |"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers end with it
    main()
