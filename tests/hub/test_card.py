"""The model card: what the Hub reads of it, where its figures come from, what users wrote into it, and its snippet, run as it stands."""

import json
import re
from pathlib import Path

import pytest
from helpers.fresh import run_fresh
from helpers.models import stock_model
from huggingface_hub import ModelCard

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.hub.card import CardFacts
from cacovid_hf.hub.figures import read_runs
from cacovid_hf.tiny import model_path

ROOT = Path(__file__).resolve().parents[2]
TINY_RUN = ROOT / "benchmarks" / "results" / "evaluation" / "tiny.json"


@pytest.fixture
def model():
    return CaCoVidForConditionalGeneration.from_backbone(
        stock_model("llava_onevision"),
        base_model_name_or_path="owner/stock",
        base_model_revision="0" * 40,
        policy_trained=True,
    )


def card_of(folder):
    card = ModelCard.load(folder / "README.md")
    assert ModelCard(card.content).data.to_dict() == card.data.to_dict()
    return card


def test_what_the_hub_reads(model, tmp_path):
    facts = CardFacts(
        license="apache-2.0",
        datasets=["owner/questions"],
        training={"learning_rate": 1e-3, "hardware": "2 CPU cores"},
        evaluations=[TINY_RUN],
        tags=["mine"],
        notes=["Made for a test."],
    )
    model.save_pretrained(tmp_path / "m", card=facts)
    card = card_of(tmp_path / "m")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "video-text-to-text"
    assert (data["base_model"], data["base_model_relation"]) == ("owner/stock", "adapter")
    assert (data["license"], data["datasets"]) == ("apache-2.0", ["owner/questions"])
    assert {"cacovid", "mine"} < set(data["tags"])
    run = json.loads(TINY_RUN.read_text())
    measured = {c["retention_ratio"]: c["score"] for c in run["cells"] if c["method"]["label"] == "cacovid"}
    assert len(measured) >= 5
    assert {r.metric_args["retention_ratio"]: r.metric_value for r in card.data.eval_results} == {
        ratio: round(score["value"], 4) for ratio, score in measured.items()
    }
    for ratio, score in measured.items():
        assert f"{100 * score['value']:.1f} ± {100 * score['standard_error']:.1f}" in card.text, ratio
    assert (tmp_path / "m" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    for words in (
        "learning_rate",
        "2 CPU cores",
        "Made for a test.",
        TINY_RUN.name,
        run["cells"][0]["environment"]["hardware"]["cpu"],
        "2602.01649",
    ):
        assert words in card.text


def test_no_figure_without_a_run(model, tmp_path):
    model.save_pretrained(tmp_path / "m")
    card = card_of(tmp_path / "m")
    assert card.data.eval_results is None
    assert "## Results" not in card.text
    assert "No accuracy of this policy was given" in card.text
    assert "license" not in card.data.to_dict()
    assert "The license of these weights is not stated" in card.text


def test_edits_survive(model, tmp_path):
    """Text and metadata of users stay through saves, with results added, and what was not touched is brought up to date."""
    folder = tmp_path / "m"
    model.save_pretrained(folder, card=CardFacts(license="mit", tags=["mine"]))
    text = (folder / "README.md").read_text()
    text = text.replace("license: mit", "license: cc-by-4.0\nlanguage: en").replace("- vision-language\n", "- theirs\n")
    text = text.replace("## Limits\n", "## Limits\n\nNot for cats.\n").replace(
        "# m\n", "# A better name\n\nMy words.\n"
    )
    text = re.sub(r"<!-- section citation .*?<!-- end of citation -->", "", text, flags=re.DOTALL)
    (folder / "README.md").write_text(text)
    model.config.retention_ratio = 0.125
    model.save_pretrained(folder, card=CardFacts(license="apache-2.0", evaluations=[TINY_RUN]))
    card = card_of(folder)
    assert (card.data.license, card.data.language) == ("cc-by-4.0", "en")
    assert "theirs" in card.data.tags
    assert "vision-language" not in card.data.tags
    for words in ("# A better name\n\nMy words.", "Not for cats.", "| retention_ratio | `0.125` |", "## Results"):
        assert words in card.text
    assert "## Citation" not in card.text
    results = card.data.to_dict()["model-index"]
    model.save_pretrained(folder)  # without evaluations: what was measured stays
    assert card_of(folder).data.to_dict()["model-index"] == results
    assert "## Results" in card_of(folder).text
    before = (folder / "README.md").read_text()
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == before


def test_a_card_of_somebody_else_is_kept(model, tmp_path):
    (tmp_path / "README.md").write_text("---\nlibrary_name: mine\n---\n# Theirs\n\nWords.\n")
    model.save_pretrained(tmp_path)
    card = card_of(tmp_path)
    assert card.data.library_name == "mine"
    assert card.text.strip().startswith("# Theirs\n\nWords.")
    assert "## Use" in card.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not an evaluation that a card can quote"),
        ('{"benchmark": "prefill"}', "is not an evaluation that a card can quote"),
        (
            '{"benchmark": "evaluation", "cells": [{"score": {"value": 0.5}, "model": {"policy_trained": false}}]}',
            "untrained policy",
        ),
    ],
)
def test_runs_that_cannot_be_quoted(model, tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "m", card=CardFacts(evaluations=[tmp_path / "run.json"]))
    assert not (tmp_path / "m").exists()


def test_metadata_of_users_in_other_forms(model, tmp_path):
    """One dataset as a text, a byte order mark, and a comment that looks like the record of what was generated."""
    words = "---\ndatasets: you/data\nlicense: mit\n---\n# Mine\n\n<!-- generated {by hand} -->\n"
    (tmp_path / "README.md").write_bytes(b"\xef\xbb\xbf" + words.encode())
    model.save_pretrained(tmp_path, card=CardFacts(datasets=["you/more"]))
    card = card_of(tmp_path)
    assert card.data.datasets == ["you/more", "you/data"]
    assert card.data.license == "mit"
    assert "generated {by hand}" in card.text
    before = (tmp_path / "README.md").read_text()
    model.save_pretrained(tmp_path, card=CardFacts(datasets=["you/more"]))
    assert (tmp_path / "README.md").read_text() == before


def test_a_card_that_is_not_utf_8(model, tmp_path):
    (tmp_path / "README.md").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"README\.md is not UTF-8 .*: save it as UTF-8, or remove it"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_metadata_that_is_no_yaml(model, tmp_path):
    (tmp_path / "README.md").write_text("---\n: [\n---\n")
    with pytest.raises(ValueError, match="correct the YAML"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_runs_of_an_evaluation(tmp_path):
    """Every cell with a score, of `cacovid evaluate`."""
    cell = {
        "dataset": {"name": "tiny"},
        "model": {"policy_trained": True},
        "method": {"label": "cacovid"},
        "retention_ratio": 0.25,
        "score": {"value": 0.9, "standard_error": 0.01},
        "answered": 100,
        "kept_tokens": 72.0,
        "environment": {"hardware": {"gpu": "A GPU"}, "versions": {"torch": "2", "transformers": "5"}},
    }
    withheld = {**cell, "score": {"value": None, "standard_error": None}}
    (tmp_path / "run.json").write_text(json.dumps({"benchmark": "evaluation", "cells": [cell, withheld]}))
    runs = read_runs([tmp_path / "run.json"])
    (result,) = runs.results
    assert (result.dataset, result.accuracy, result.questions, result.kept_tokens) == ("tiny", 0.9, 100, 72.0)
    assert runs.hardware == ("A GPU; torch 2, transformers 5",)


def test_the_snippet_runs_as_it_stands(tmp_path):
    from transformers import AutoProcessor

    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    AutoProcessor.from_pretrained(model_path()).save_pretrained(tmp_path / "mine")
    model.save_pretrained(tmp_path / "mine", include_backbone=True)
    (program,) = re.findall(r"```python\n(.*?)```", (tmp_path / "mine" / "README.md").read_text(), re.DOTALL)
    assert run_fresh(program, tmp_path, with_transformers=True).stdout.split() == ["purple"]
