"""What the README shows is what happens: its snippet prints what stands below it; and the links of all pages lead somewhere."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from helpers.fresh import run_fresh
from helpers.media import write_video
from helpers.models import PROMPTS, masked_inputs, prompt_inputs, stock_model, wrapped
from helpers.processors import tiny_processor
from helpers.small_training import trainer

from cacovid_hf import CaCoVidForConditionalGeneration, __version__
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.compressors import COMPRESSORS
from studies.laboratory.table import BEST, FOLDER, answers, mean_and_error, pooled, told

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippet_prints_what_the_readme_says(tmp_path):
    snippet, printed = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.S).groups()
    result = run_fresh(snippet, tmp_path, with_transformers=True)
    assert result.stdout.strip() == printed.strip()
    assert README[: README.index(printed)].count("\n") < 45
    quickstart = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert snippet.strip() in quickstart


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(ROOT.glob("studies/*.md")),
    ROOT / "SECURITY.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]


def anchors(page):
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        if (ROOT / "studies") in there.resolve().parents and not (ROOT / "studies").exists():
            continue  # the source distribution has no studies
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), (target, anchor)


@pytest.mark.skipif(not (ROOT / "mkdocs.yml").exists(), reason="the source distribution has no site")
def test_the_index_names_every_page():
    """And so does the site's navigation, which a strict build asks for."""
    docs = ROOT / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    pages = {path.relative_to(docs).as_posix() for path in docs.glob("**/*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([\w/]+\.md)\)", index))
    assert pages <= set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))


def test_one_version_is_said():
    """In the package, its metadata and the citation."""
    said = [
        re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.M)[1]
        for file, pattern in (("pyproject.toml", r'^version = "(.*)"$'), ("CITATION.cff", r"^version: (.*)$"))
    ]
    assert said == [__version__] * 2


def test_the_two_commands_set_everything_up():
    for mark in ("<!-- first command -->", "<!-- test command -->"):
        command = README[README.index(mark) :].split("```")[1]
        assert command.startswith("bash\n")
        assert "python3 -m venv .venv" in command
        assert "pip install" in command


def test_accuracies_are_those_of_the_evidence():
    """The sentence of the README, and the rows of the page."""
    background = ROOT / "docs" / "background"
    tables = (background / "evidence_tables.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in (background / "evidence.md").read_text(encoding="utf-8").splitlines() if "± " in line]
    rows = [row for row in rows if row.startswith("| ")]
    assert len(rows) >= 8
    for row in rows:
        assert row.replace("**", "") in tables, row
    at_two_percent = {}
    for row in tables:
        cells = [cell.strip() for cell in row.strip("| ").split(" | ")]
        at_two_percent.setdefault(cells[0], cells[-1])  # of the first table, of frames as rendered
    results = README.split("## Results")[1].split("SmolLM2-135M")[0]
    shown = [at_two_percent[method] for method in ("contributions", "imitation", "all tokens")]
    assert re.findall(r"(\d+\.\d ± \d\.\d) %", results) == shown


def test_accuracies_of_the_laboratory_are_those_of_its_cells():
    results = README.split("## Results")[1].split("SmolLM2-135M")[1]
    shown = []
    for strength in (80, 90):
        found = answers(FOLDER, strength)
        shown += [mean_and_error([*found[name]["5"].values()]) for name in (BEST, "imitation of the last token")]
        whole = [json.loads((FOLDER / f"headroom__{seed}__{strength}.json").read_text())["all"] for seed in (0, 1, 2)]
        shown.append(pooled(whole))
    assert re.findall(r"(\d+\.\d ± \d\.\d) %", results) == [told(one) for one in shown]


def test_the_program_for_a_real_model_runs(tmp_path):
    """With a small random model of the family in the place of the published one, and a clip in that of the video."""
    program = README.split("## A real model today")[1].split("```python\n")[1].split("```")[0]
    stock_model("qwen2_5_vl").save_pretrained(tmp_path / "model")
    tiny_processor("qwen2_5_vl").save_pretrained(tmp_path / "model")
    write_video(tmp_path / "holiday.mp4", 30, fps=10)
    assert program.count('"Qwen/Qwen2.5-VL-7B-Instruct"') == 1
    result = run_fresh(program.replace("Qwen/Qwen2.5-VL-7B-Instruct", "model"), tmp_path, with_transformers=True)
    assert result.stdout.split()


def test_the_methods_of_the_readme():
    """Every method once, with what the reference says of it."""
    reference = (ROOT / "docs" / "reference" / "compressors.md").read_text(encoding="utf-8").splitlines()
    says = {row[0]: row[2:4] for row in map(cells, reference) if row and len(row) == 5}
    rows = [cells(line) for line in README.split("## Methods")[1].split("\n## ")[0].splitlines()]
    named: list[str] = []
    for first, needs, sees, merges in (row for row in rows if row and len(row) == 4 and "`" in row[0]):
        names = [name for name in re.findall(r"`(\w+)`", first) if name in COMPRESSORS]
        named += names
        for name in names:
            (told,) = (value for key, value in says.items() if f"`{name}`" in key)
            assert told == [sees, merges], name
            assert (needs == "no") == (name not in ("cacovid", "marc", "frame_prior"))
            assert (needs == "yes") == COMPRESSORS[name]().uses_policy or name == "frame_prior"
    assert sorted(named) == sorted(COMPRESSORS)


def cells(line):
    """The cells of a row of a table, or none."""
    return [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []


def test_the_backbone_of_contributing_works(monkeypatch):
    """The family that CONTRIBUTING shows, run as it stands on a model whose prompts are laid out so."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text[text.index("## Add a backbone") :].split("```python\n")[1].split("```")[0]
    names: dict = {"__name__": "cacovid_hf.backbones.my_model", "__package__": "cacovid_hf.backbones"}
    exec(block, names)
    stock, model = wrapped("qwen2_5_vl")
    monkeypatch.setitem(BACKBONES, "qwen2_5_vl", names["MyBackbone"]())
    assert type(model.family) is names["MyBackbone"]
    how = dict(do_sample=False, max_new_tokens=4)
    for prompt in ("image beside video", "two videos"):
        inputs = prompt_inputs(stock, PROMPTS[prompt])
        del inputs["second_per_grid_ts"]  # which this family does not have
        encoded = model.encode_videos(**inputs, frames_per_chunk=3)
        pixels = model.family.video_inputs
        text = {name: value for name, value in inputs.items() if name not in (*pixels, *model.family.video_settings)}
        # Videos are counted by their grids, not by rows of pixels, which here are patches.
        unsettled = type("Unsettled", (names["MyBackbone"],), {"video_settings": ()})()
        assert len(unsettled.grids_if_given(stock.config, inputs)) == len(encoded)
        assert model.family.take(inputs, [0], []).get("pixel_values") is None
        for ratio in (0.25, [0.25] * len(encoded)):
            compressed = model.compress(**inputs, retention_ratio=ratio)
            assert len(compressed.videos) == len(encoded)
            expected = stock.generate(**masked_inputs(stock, inputs, compressed.kept_indices), **how)
            assert torch.equal(model.generate(**inputs, retention_ratio=ratio, **how), expected)
            assert torch.equal(model.generate(**text, encoded_videos=encoded, retention_ratio=ratio, **how), expected)


def test_the_method_of_contributing_works():
    """The compressor that CONTRIBUTING shows, run as it stands."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text[text.index("## Add a compressor") :].split("```python\n")[1].split("```")[0]
    names: dict = {"__name__": "cacovid_hf.compressors.loudest"}
    exec(block, names)
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    for video in model.compress(**inputs, retention_ratio=0.25, compressor=names["Loudest"](power=1.0)).videos:
        assert video.keep.sum() == 4


def test_the_reward_of_contributing_trains(tmp_path, monkeypatch):
    """The reward that CONTRIBUTING shows, for answers that a prefill scores, as it stands and named as it says."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Add a reward") :]
    block = section.split("```python\n")[1].split("```")[0]
    (tmp_path / "my_rewards.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (name,) = re.findall(r"^`reward: (\S+)`", section, re.M)
    greedy = {}
    for reward in ("probability", name):
        torch.manual_seed(0)
        engine = trainer(tmp_path, reward=reward, steps=2, samples=[0, 2, 4], per_device_train_batch_size=1)[2]
        engine.train()
        # The same subsets of the same sample, as the policy has not moved yet.
        greedy[reward] = engine.state.log_history[0]["greedy_reward"]
    assert 1e-4 < greedy["probability"] < 1
    assert greedy[name] == pytest.approx(1 + math.log10(greedy["probability"]) / 4, rel=1e-5)
