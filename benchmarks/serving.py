"""Requests a second, time to first token and tokens a second of servers: stock vLLM, vLLM with this package's plugin, `cacovid serve`. One JSON.

    python benchmarks/serving.py                                                   # the embedded model on a CPU
    python benchmarks/serving.py --arch llava-onevision-7b --device cuda --dtype bfloat16 --servers stock plugin --budget-seconds 400

Run it in an environment that has vLLM (`scripts/vllm_env.sh` makes one for CPUs). Each server gets the same requests, over HTTP, from clients that wait for
an answer before they ask again. Every group of questions has a video of its own, which no server has seen before.
"""

import argparse
import contextlib
import json
import os
import shutil
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
from architectures import ARCHITECTURES, Architecture
from load import cpu_seconds, figures, run_clients
from record import RESULTS, ROOT, GrowingResult, command, environment, summarise

EMBEDDED = "embedded"
SHAPES = [EMBEDDED, *(name for name, shape in ARCHITECTURES.items() if shape.model_type == "llava_onevision")]
NOTES = [
    "Clients wait for an answer before they ask again; all servers get the same requests, from the same process.",
    "stock: vLLM on the backbone alone. plugin: vLLM with this package's plugin, a ratio per request. serve: cacovid serve.",
    "Published shapes have random weights: their answers mean nothing, and all have the full number of new tokens.",
    "Videos are 96 x 96 pixels at one frame a second, scaled up by the processor: decoding costs little, the vision tower what it always does.",
    "cpu_seconds_per_request: of all processes of the server. Where others share the cores, it says more than the requests a second.",
    "Every group of questions has a video of its own. With several questions per video, the later ones may find it in a cache.",
]


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


def checkpoint(arch: str, options: argparse.Namespace, folder: Path, with_weights: bool) -> Path:
    """A self-contained checkpoint with its processor; without weights, vLLM makes random ones."""
    from transformers import AutoProcessor

    from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, with_video_reader
    from cacovid_hf.tiny import model_path

    if arch == EMBEDDED:
        shutil.copytree(model_path(), folder)
        stock_processor(AutoProcessor.from_pretrained(folder)).save_pretrained(folder / "backbone")
        rename_tower(folder / "backbone" / "model.safetensors")
        return folder
    shape: Architecture = ARCHITECTURES[arch]
    processor = AutoProcessor.from_pretrained(model_path())
    tokens = {"image_token_index": processor.image_token_id, "video_token_index": processor.video_token_id}
    side = shape.side
    config = shape.config(options.layers)
    if options.tower_layers is not None:
        config.vision_config.num_hidden_layers = options.tower_layers
    config.update({**tokens, "image_grid_pinpoints": [[side, side]]})
    config.architectures = ["LlavaOnevisionForConditionalGeneration"]
    if with_weights:
        from transformers import AutoModelForImageTextToText

        torch.manual_seed(0)
        backbone = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, options.dtype))
        backbone.generation_config.eos_token_id = None
        model = CaCoVidForConditionalGeneration.from_backbone(backbone, policy_type=options.policy)
        model.save_pretrained(folder, include_backbone=True)
    else:
        whole = CaCoVidConfig(backbone_config=config, includes_backbone=True, policy_type=options.policy)
        whole.save_pretrained(folder)
        config.save_pretrained(folder / "backbone")
    size = {"height": side, "width": side}
    processor.image_processor.size, processor.image_processor.image_grid_pinpoints = size, [[side, side]]
    processor.video_processor.size = size
    processor.num_image_tokens = (side // shape.vision["patch_size"]) ** 2
    with_video_reader(processor).save_pretrained(folder)
    stock_processor(processor).save_pretrained(folder / "backbone")
    for place in (folder, folder / "backbone"):
        name_every_token(place / "tokenizer.json", config.text_config.vocab_size)
    return folder


def name_every_token(file: Path, count: int) -> None:
    """Give a tokenizer of words one for each id, so that a random answer is text, and its first piece can be waited for."""
    described = json.loads(file.read_text())
    words = described["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), count)}
    file.write_text(json.dumps(described))


def stock_processor(processor: Any) -> Any:
    """The classes that vLLM knows without this package, with the same settings."""
    from transformers import LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    settings = processor.video_processor.to_dict()
    names = ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "size", "resample")
    return LlavaOnevisionProcessor(
        image_processor=processor.image_processor,
        video_processor=LlavaOnevisionVideoProcessor(**{name: settings[name] for name in names}),
        tokenizer=processor.tokenizer,
        num_image_tokens=processor.num_image_tokens,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
    )


def rename_tower(weights: Path) -> None:
    """Give the vision tower's weights the names that stock vLLM 0.32 knows."""
    from safetensors.torch import load_file, save_file

    new, old = "vision_tower.", "vision_tower.vision_model."
    tensors = {name if old in name else name.replace(new, old): tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def tokens_of(arch: str, frames: int) -> int:
    """Tokens of a whole video."""
    side, patch = (84, 7) if arch == EMBEDDED else (ARCHITECTURES[arch].side, ARCHITECTURES[arch].vision["patch_size"])
    return frames * (-(-(side // patch) // 2)) ** 2 + 1


def write_videos(folder: Path, seed: int, count: int, seconds: int, side: int = 96) -> list[Path]:
    """Short mp4 files, each of its own content, at one frame a second."""
    from cacovid_hf.tiny.mp4 import write_mp4

    folder.mkdir()
    paths = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        coarse = rng.integers(0, 255, (seconds, 6, 6, 3), dtype=np.uint8)
        frames = coarse.repeat(side // 6, axis=1).repeat(side // 6, axis=2)
        paths.append(folder / f"video{number}.mp4")
        write_mp4(paths[-1], frames, fps=1, hold=1)
    return paths


@contextlib.contextmanager
def serving(
    kind: str, folder: Path, media: Path, options: argparse.Namespace, random_weights: bool
) -> Iterator[tuple[int, int, float]]:
    """Start a server in a session of its own, and stop it in the end; its port, its session's id and the seconds that it took to start."""
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
        program += ["--max-model-len", str(options.max_model_len), "--max-num-seqs", str(max(options.clients))]
        program += ["--max-num-batched-tokens", str(options.batched_tokens), *options.vllm_arguments]
        program += ["--load-format", "dummy"] if random_weights else []
        program += ["--enforce-eager"] if options.eager else []
        if kind == "plugin":
            program += ["--trust-request-mm-kwargs"]
        else:  # the same frames as the plugin's own loader samples
            program += ["--media-io-kwargs", json.dumps({"video": {"num_frames": options.frames, "fps": 1}})]
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
        wait_until_up(port, process, log, options.start_seconds)
        yield port, process.pid, time.monotonic() - started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_up(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    """Return when the server answers `/health`.

    Raises:
        RuntimeError: it ended, or is not up in time.
    """
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return
        time.sleep(0.2)
    raise RuntimeError(f"The server is not up (status {process.poll()}): {log.read_text()[-2000:]}")


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
    parser.add_argument("--arch", choices=SHAPES, default=EMBEDDED)
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
    seconds = 8 if options.arch == EMBEDDED else options.frames
    options.max_model_len = options.max_model_len or tokens_of(options.arch, seconds) + 512
    options.batched_tokens = options.batched_tokens or max(2048, options.max_model_len)
    config = {name: value for name, value in vars(options).items() if name not in ("output", "commit")}
    record: dict[str, Any] = {"benchmark": "serving", "command": command(), "config": config}
    record |= environment(options.commit, torch.device(options.device))
    record["versions"]["vllm"] = vllm_version()
    record |= {"notes": NOTES, "starts": {}, "cells": [], "not_measured": []}
    layers = "" if options.layers is None else f"_{options.layers}layers"
    layers += "" if options.tower_layers is None else f"_{options.tower_layers}tower"
    shape = EMBEDDED if options.arch == EMBEDDED else f"{options.arch}{layers}_{options.frames}frames"
    result = GrowingResult(options.output, f"serving_{shape}_{options.dtype}_{options.device}", record)
    servers = servers_of(options)
    random_weights = options.arch != EMBEDDED

    def left() -> float:
        return options.budget_seconds - (time.monotonic() - began)

    with tempfile.TemporaryDirectory() as work:
        media = Path(work)
        folder = checkpoint(options.arch, options, media / "checkpoint", random_weights and "serve" in options.servers)
        per_server = sum(requests // questions for requests in options.requests for questions in options.questions)
        waiting = [(s.name, c, q) for s in servers for c in options.clients for q in options.questions]
        for kind in dict.fromkeys(server.kind for server in servers):
            of_kind = [server for server in servers if server.kind == kind]
            if left() < 30:
                break
            with serving(kind, folder, media, options, random_weights and kind != "serve") as (port, session, took):
                record["starts"][kind] = round(took, 1)
                for number, server in enumerate(of_kind):
                    # Of each server's own, so that what another ratio left in a cache is of other videos.
                    own = write_videos(media / f"{kind}{number}", servers.index(server), per_server + 1, seconds)
                    if left() < 10:
                        break
                    run_clients(port, bodies_of(server, own[:1], 1, options), 1, left())
                    unseen = iter(own[1:])
                    for clients, requests in zip(options.clients, options.requests, strict=True):
                        for questions in options.questions:
                            if left() < 10:
                                continue
                            group = [next(unseen) for _ in range(requests // questions)]
                            bodies = bodies_of(server, group, questions, options)
                            before = cpu_seconds(session)
                            answers, spent = run_clients(port, bodies, clients, left())
                            used = cpu_seconds(session) - before
                            if left() <= 0:  # which has ended some of them
                                continue
                            cell = {"server": server.name, "clients": clients, "questions": questions}
                            cell["cpu_seconds_per_request"] = used / requests
                            record["cells"].append({**cell, **figures(answers, spent, summarise)})
                            waiting.remove((server.name, clients, questions))
                            record["not_measured"] = [list(cell) for cell in waiting]
                            result.save()
                            report(line(record["cells"][-1]))
    record["not_measured"] = [list(cell) for cell in waiting]
    record["seconds"] = round(time.monotonic() - began, 1)
    path = result.save()
    report(f"not measured: {', '.join(map(str, waiting)) or 'nothing'}")
    report(str(path))
    return path


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
        f"| {cell['server']} | {cell['clients']} | {cell['questions']} | {cell['requests_per_second']:.2f} | "
        f"{'-' if first is None else format(first['median'], '.0f')} | {cell['tokens_per_second']:.1f} | {cell['prompt_tokens']} | {cell['failed']} |"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers end with it
    main()
