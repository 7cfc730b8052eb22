"""The plugin for lmms-eval, in an environment of its own: a real run on a local task, sample by sample equal to ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fresh import run_fresh

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = 24
TASK = """task: cacovid_tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.score
generation_kwargs:
  max_new_tokens: 1
  temperature: 0
  do_sample: false
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
UTILS = """
def visual(doc):
    return [doc["video"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def score(doc, results):
    return {"acc": float(results[0].strip().lower() == doc["answer"])}
"""
# Writes the clips of our own benchmark as files, for lmms-eval to read.
WRITE_TASK = """
import json, sys
from pathlib import Path
from cacovid_hf.evaluation.datasets import load_benchmark
from cacovid_hf.tiny.mp4 import write_mp4
folder, count = Path(sys.argv[1]), int(sys.argv[2])
benchmark, rows = load_benchmark("tiny", count, seed=11), []
for index in range(count):
    sample = benchmark[index]
    write_mp4(folder / f"{index}.mp4", sample.video)
    rows.append({"video": str(folder / f"{index}.mp4"), "question": sample.prompt, "answer": sample.answer})
(folder / "data.json").write_text(json.dumps(rows))
"""
# Prompts of lmms-eval's own tasks and of our loaders, for the same documents.
PROMPTS = """
import json, sys, types
from pathlib import Path
for name in ("decord", "cv2"):  # imported by the task files, not called here
    sys.modules.setdefault(name, types.SimpleNamespace(VideoReader=None, cpu=None))
sys.path.insert(0, sys.argv[1])
from helpers import benchmark_copies as copies
import pyarrow.parquet as parquet
from lmms_eval.tasks.egoschema import utils as egoschema
from lmms_eval.tasks.longvideobench import utils as longvideobench
from lmms_eval.tasks.mlvu import utils as mlvu
from lmms_eval.tasks.mvbench import utils as mvbench
from lmms_eval.tasks.videomme import utils as videomme
from cacovid_hf.evaluation.datasets import load_benchmark
root, LETTER = Path(sys.argv[2]), "Answer with the option's letter from the given choices directly."

def rows(path):
    return parquet.read_table(path).to_pylist() if path.suffix == ".parquet" else json.loads(path.read_text())

def theirs(name, path, ask):
    return [ask(row) for row in rows(root / name / path)]

copies.videomme(root / "videomme"), copies.mlvu_dev_parquet(root / "mlvu_dev"), copies.mvbench(root / "mvbench")
copies.longvideobench_parquet(root / "longvideobench"), copies.egoschema_parquet(root / "egoschema")
prompts = {
    "videomme": theirs("videomme", "videomme/test-00000-of-00001.parquet", lambda d: videomme.videomme_doc_to_text(d, {"post_prompt": "\\n" + LETTER})),
    "mlvu_dev": theirs("mlvu_dev", "data/test-00000-of-00001.parquet", lambda d: mlvu.mlvu_doc_to_text(d, {"post_prompt": "\\nOnly give the best option.\\nBest option: ("})),
    "longvideobench": theirs("longvideobench", "validation-00000-of-00001.parquet", lambda d: longvideobench.longvideobench_doc_to_text(d, {"pre_prompt": "", "post_prompt": LETTER + "\\n"})),
    "egoschema": theirs("egoschema", "Subset/test-00000-of-00001.parquet", egoschema.egoschema_doc_to_text),
    "mvbench": [mvbench.mvbench_doc_to_text(d, {"post_prompt": "Only give the best option.\\n"}) for p in sorted((root / "mvbench/json").iterdir()) for d in rows(p)],
}
ours = {name: [s.prompt for s in load_benchmark(f"{name}={root / name}").samples] for name in prompts}
answers = ["A", "(B)", "B.", "The answer is C.", "C) a ring", "Best option: (D)"]
letters = [[videomme.extract_characters_regex(a) for a in answers]]
from cacovid_hf.utils.option_letters import extract_choice
letters.append([extract_choice(a, ["w", "x", "y", "z"]) for a in answers])
print(json.dumps({"theirs": prompts, "ours": ours, "letters": letters}))
"""

CREATE = """
import sys
from lmms_eval.models import get_model
for arguments in sys.argv[1:]:
    try:
        get_model("cacovid").create_from_arg_string(arguments)
        print("accepted")
    except ValueError as error:
        print(" ".join(str(error).split()))
"""


def test_the_entry_point_and_the_bounds_that_do_not_leak(tmp_path):
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(
        r'\[project\.entry-points\."lmms_eval\.models"\]\ncacovid = "cacovid_hf\.evaluation\.lmms_eval:manifest"',
        project,
    )
    core = project.split("dependencies = [")[1].split("]")[0]
    assert "lmms" not in core
    assert re.search(r'"av>=13"', core)
    program = (
        "import sys, cacovid_hf.evaluation.lmms_eval, cacovid_hf.evaluation.sweep; print('lmms_eval' in sys.modules)"
    )
    assert run_fresh(program, tmp_path, with_transformers=True).stdout == "False\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with lmms-eval, made by the script; or a folder of one that is there, in LMMS_EVAL_ENV (then with this code on its path)."""
    given = os.environ.get("LMMS_EVAL_ENV")
    folder = Path(given or tmp_path_factory.mktemp("lmms") / "env")
    if not given:
        subprocess.run([str(ROOT / "scripts" / "lmms_eval_env.sh"), str(folder), sys.executable], check=True)
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if given:
        offline["PYTHONPATH"] = str(ROOT / "src")
    home = tmp_path_factory.mktemp("home")

    def run(*command):
        variables = {**inherited, **offline, "HF_HOME": str(home)}
        done = subprocess.run(
            [str(folder / "bin" / command[0]), *map(str, command[1:])],
            env=variables,
            cwd=home,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="module")
def task(environment, tmp_path_factory):
    """A local task of lmms-eval on the clips of the tiny benchmark."""
    folder = tmp_path_factory.mktemp("task")
    environment("python", "-c", WRITE_TASK, folder, QUESTIONS)
    (folder / "cacovid_tiny.yaml").write_text(TASK.format(data=folder / "data.json"))
    (folder / "utils.py").write_text(UTILS)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "ratio", "options"),
    [
        ("cacovid", 0.1, []),
        ("cacovid", 0.1, ["--force_simple"]),
        ("uniform", 0.25, ["--batch_size", 5]),
        (None, 1.0, []),
    ],
)
def test_a_real_run_has_our_scores(environment, task, tmp_path, method, ratio, options):
    arguments = f"pretrained=tiny,retention_ratio={ratio}" + (f",compressor={method}" if method else "")
    out = environment(
        *("lmms-eval", "eval", "--model", "cacovid", "--model_args", arguments, "--tasks", "cacovid_tiny"),
        *("--include_path", task, "--output_path", tmp_path, "--log_samples", *options),
    )
    assert "cacovid_tiny" in out
    (logged,) = tmp_path.rglob("*_samples_cacovid_tiny.jsonl")
    theirs = sorted((json.loads(line) for line in logged.read_text().splitlines()), key=lambda row: row["doc_id"])
    chosen = [
        "--method",
        method or "uniform",
        "--ratio",
        ratio,
        "--dataset",
        "tiny_mp4",
        "--limit",
        QUESTIONS,
        "--seed",
        11,
    ]
    environment("cacovid", "evaluate", *chosen, "--output", tmp_path / "ours.json")
    (cell,) = json.loads((tmp_path / "ours.json").read_text())["cells"]
    ours = [json.loads(line) for line in (tmp_path / "ours" / cell["log"]).read_text().splitlines()]
    assert len(theirs) == QUESTIONS
    assert [row["filtered_resps"] for row in theirs] == [row["response"] for row in ours]
    assert [bool(row["acc"]) for row in theirs] == [row["correct"] for row in ours]
    (results,) = tmp_path.rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["cacovid_tiny"]["acc,none"] == pytest.approx(
        cell["score"]["value"]
    )


@pytest.mark.slow
def test_prompts_are_those_of_lmms_eval(environment, tmp_path):
    printed = json.loads(environment("python", "-c", PROMPTS, ROOT / "tests", tmp_path).splitlines()[-1])
    assert printed["ours"] == printed["theirs"]
    assert printed["letters"][0] == printed["letters"][1]


@pytest.mark.slow
def test_wrong_arguments(environment):
    """As lmms-eval hands them over (its command logs whatever goes wrong, and exits with 0)."""
    messages = {
        "retention_ratio=2": "outside (0, 1]",
        "ratio=0.5": "ratio is not a model argument",
        "compressor=x": "'x' is unknown",
        "batch_size=auto": "batch_size=auto",
    }
    printed = environment("python", "-c", CREATE, *messages).splitlines()[-len(messages) :]
    for line, message in zip(printed, messages.values(), strict=True):
        assert message in line
