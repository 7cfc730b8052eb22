"""What the command says of classes whose premises are known by hand."""

import json
from pathlib import Path

import pytest
import torch
from helpers.models import stock_model
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from scripts.backbone_premises import has_own_placeholder, keeps_positions, main, premises

FAILS = {
    "qwen2_vl": [],
    "llava_next_video": [],
    "qwen3_vl": ["the language model receives embeddings, mask and positions alone"],
    "qwen3_5": ["every layer keeps keys and values"],
    "glm4v": ["videos have a placeholder of their own"],
    "video_llama_3": ["forward takes logits_to_keep"],
    "internvl": ["videos have a placeholder of their own"],
    "gemma4": [
        "the language model receives embeddings, mask and positions alone",
        "tokens see those before them alone",
        "no layer has a window",
        "generate takes inputs_embeds",
    ],
    "perception_lm": ["all of its code is of transformers"],
}


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", FAILS)
def test_what_fails(family):
    found = premises(stock_model(family))
    assert [premise for premise, holds, _ in found if not holds] == FAILS[family]
    if family == "qwen3_vl":
        assert "it takes deepstack_visual_embeds, visual_pos_masks too" in found[1][2]
    if family == "perception_lm":
        assert found[2][2].startswith("timm makes a part of it")


def test_a_class_without_a_default_config(tmp_path, capsys):
    """Of which a checkpoint's config makes a model."""
    default = {"model_type": "aya_vision"}
    (tmp_path / "config.json").write_text(json.dumps(default))
    with pytest.raises(
        SystemExit, match=r"aya_vision cannot be made .* divisible .* Give the path of a checkpoint's config\.json"
    ):
        main("aya_vision")
    with pytest.raises(SystemExit, match="aya_vision cannot be made from this config"):
        main(str(tmp_path / "config.json"))
    vision = {"model_type": "siglip_vision_model", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps({**default, "vision_config": vision, "text_config": text}))
    main(str(tmp_path / "config.json"))
    assert "aya_vision: AyaVisionForConditionalGeneration, language model LlamaModel" in capsys.readouterr().out


def test_a_language_model_that_the_policy_does_not_imitate():
    text = {"model_type": "granite", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(text_config=text))
    (failed,) = [(premise, remedy) for premise, holds, remedy in premises(model) if not holds]
    assert failed[0] == "the full policy imitates a layer of the language model"
    assert "'granite' language model is not known" in failed[1]
    assert failed[1].endswith('See "Add a kind of language model"')


@pytest.mark.parametrize(
    ("model", "first_words"),
    [("step3p7", "Class validation error for validator"), ("ernie4_5_vl_moe", "Unrecognized configuration class")],
)
def test_stock_code_that_makes_no_short_language_model(model, first_words, capsys):
    """One line says so, whatever stock code raises and however long that is."""
    main(model)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "the full policy imitates" in line)
    assert f"fails  the full policy imitates a layer of the language model: {first_words}" in line
    assert len(line) < 500


def test_a_placeholder_that_checkpoints_name():
    """The default config has the name and no id, and the stock code says no places without features."""
    config = AutoConfig.for_model("minicpmv4_6")
    assert config.video_token_id is None
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    assert has_own_placeholder(model)
    model.config.video_token_id = 7
    assert has_own_placeholder(model)


def test_generation_that_counts_positions_anew(monkeypatch):
    model = stock_model("llava_onevision")
    prepare = type(model).prepare_inputs_for_generation

    def without_positions(self, input_ids, **kwargs):
        return {**prepare(self, input_ids, **kwargs), "position_ids": None}

    assert keeps_positions(model)
    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", without_positions)
    assert not keeps_positions(model)


def test_contributing_has_every_premise():
    text = (Path(__file__).parent.parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for premise, _, _ in premises(stock_model("qwen2_vl")):
        assert f"| {premise}" in text, premise
