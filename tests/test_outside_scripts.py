"""Scripts of users stand outside this repository: they put `src` and `tests` on their path and know a few names there."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.models import BY_NAME, FIRST

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    "benchmark_copies": ("mlvu_dev", "mvbench"),
    "media": ("numbered_picture", "number_of", "write_video"),
    "models": ("FAMILIES", "ONE_VIDEO", "RAGGED", "prompt_inputs", "stock_model"),
    "processors": ("tiny_processor",),
    "test_processing": ("CHAT", "ask", "num_frames", "stock_processor"),
    "cacovid_hf.asking": ("sample_video",),
}
# As such scripts are written: helpers in a module beside the script, which puts the two folders on the path.
COMMON = """
import os, sys
from pathlib import Path
REPO = Path(os.environ.get("REPO", "."))
sys.path[:0] = [str(REPO / "src"), str(REPO / "tests")]
WORK = Path(os.environ["WORK"])
"""
SCRIPTS = {
    "reads.py": """
from common import *
from media import number_of, write_video
from test_processing import stock_processor, CHAT, ask, num_frames
from cacovid_hf import with_video_reader
from cacovid_hf.asking import sample_video
path = write_video(WORK / "clip.mp4", 40, fps=10)
processor = with_video_reader(stock_processor("qwen2_5_vl"))
print([number_of(frame) for frame in sample_video(processor, path, 4).frames])
print(num_frames(processor, processor.apply_chat_template(ask(path), **CHAT)))
""",
    "answers.py": """
from common import *
import benchmark_copies as copies
from models import *
from processors import tiny_processor
from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.evaluation.datasets import load_benchmark
model = CaCoVidForConditionalGeneration.from_backbone(stock_model(FAMILIES[0]))
tokens = model.generate(**prompt_inputs(model.backbone, ONE_VIDEO), retention_ratio=0.5, max_new_tokens=2, do_sample=False)
print(tokens.ndim, tiny_processor(FAMILIES[0]).video_token)
print(load_benchmark(f"mlvu_dev={copies.mlvu_dev(WORK / 'mlvu')}")[0].answer)
""",
}


@pytest.mark.parametrize("module", NAMES)
def test_names_that_outside_scripts_import(module):
    assert [name for name in NAMES[module] if name not in vars(importlib.import_module(module))] == []


def test_families_of_outside_scripts_are_served_by_every_method():
    families = importlib.import_module("models").FAMILIES
    assert set(FIRST) <= set(families) < set(BY_NAME)
    assert all(BY_NAME[family].cuts_inside and BY_NAME[family].attends for family in families)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"), [("reads.py", ["0", "13", "26", "39"]), ("answers.py", ["2", "<video>", "B"])]
)
def test_a_script_from_outside(tmp_path, name, printed):
    """Frames 0, 13, 26 and 39 are four of 40, evenly; one frame a second of four seconds gives four again; the copy's first answer is B."""
    (tmp_path / "common.py").write_text(COMMON)
    (tmp_path / name).write_text(SCRIPTS[name])
    path = os.pathsep.join([str(tmp_path), "src"])
    environment = {**os.environ, "PYTHONPATH": path, "REPO": str(ROOT), "WORK": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(tmp_path / name)], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert said == (printed if name == "answers.py" else [*printed, "4"])
