"""What the command says of classes whose premises are known by hand."""

from pathlib import Path

from helpers.models import stock_model

from scripts.backbone_premises import premises

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
        "no layer has a window",
        "generate takes inputs_embeds",
    ],
}


def test_what_fails():
    for family, expected in FAILS.items():
        found = premises(stock_model(family))
        assert [premise for premise, holds, _ in found if not holds] == expected, family
        if family == "qwen3_vl":
            assert "it takes deepstack_visual_embeds, visual_pos_masks too" in found[1][2]


def test_contributing_has_every_premise():
    text = (Path(__file__).parent.parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for premise, _, _ in premises(stock_model("qwen2_vl")):
        assert f"| {premise}" in text, premise
