"""The published checkpoint's format, filled with the golden policy: numbers, sharding, everything that can be wrong with it, and the question."""

import json

import pytest
import torch
from helpers.golden import golden, policy_cases, policy_layout
from helpers.hub_server import LoopbackHub, use
from helpers.models import stock_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cacovid_cli.main import app
from cacovid_hf import CaCoVidForConditionalGeneration, select_tokens
from cacovid_hf.checkpoints.import_published import PREFIX, find, import_published
from cacovid_hf.compressors.tools.selection import contribution_budget

INDEX, TENSORS = golden("policy")
ATTENTIONS = {"causal": "causal", "noncausal": "bidirectional"}
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6})


def published_tensors():
    (entry,) = INDEX["policies"]
    return {PREFIX + key: TENSORS[entry["state_dict_prefix"] + key].clone() for key in entry["keys"]}


@pytest.fixture
def base(tmp_path):
    """A backbone of the golden policy's size."""
    (entry,) = INDEX["policies"]
    sizes = ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size", "rms_norm_eps")
    stock = stock_model("llava_onevision", **{name: entry[name] for name in sizes}, **ROPE)
    stock.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def source(tmp_path):
    """A folder as the published code leaves one: the policy among the tensors of a language model."""
    folder = tmp_path / "published"
    folder.mkdir()
    tensors = published_tensors() | {"model.layers.0.self_attn.q_proj.weight": torch.zeros(4, 4, dtype=torch.int8)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_qwen", "hidden_size": 64}))
    return folder


def shard(folder):
    """Split the weights over files; the language model's own shard is damaged, for it is not to be read."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(name for name in tensors if name.startswith(PREFIX))
    parts = {"model-00002-of-00003.safetensors": names[::2], "model-00003-of-00003.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"not to be opened")
    weight_map = {key: file for file, keys in parts.items() for key in keys}
    weight_map["model.layers.0.self_attn.q_proj.weight"] = "model-00001-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
def test_golden_policy(source, base, tmp_path, sharded):
    """Logits within 1e-5 under both attentions and for every case, and the golden selections."""
    if sharded:
        shard(source)
    config = import_published(source, tmp_path / "ours", base=base)
    assert (config.policy_attention, config.contribution_share, config.frame_cap) == ("causal", 0.5, 1.5)
    with safe_open(tmp_path / "ours" / "model.safetensors", framework="pt") as file:
        assert len(file.keys()) == sum(not name.startswith(f"{PREFIX}mode_") for name in published_tensors())
    cases = {case["name"]: case for case in INDEX["cases"]}
    compared = 0
    for name, attention, grid in policy_cases(TENSORS):
        model = CaCoVidForConditionalGeneration.from_pretrained(
            tmp_path / "ours", policy_attention=ATTENTIONS[attention]
        )
        layout = policy_layout(TENSORS, name, grid)
        with torch.no_grad():
            (output,) = model.policy(TENSORS[f"{name}.inputs_embeds"], TENSORS[f"{name}.position_ids"], layout)
        for ours, kind in ((output.token_logits.flatten(0, 1), "token"), (output.frame_logits, "frame")):
            torch.testing.assert_close(ours, TENSORS[f"{name}.{attention}.{kind}_compress_logits"], atol=1e-5, rtol=0)
        if name not in cases:
            continue
        rows = next(entry["rows"] for entry in cases[name]["selection"] if entry["attention"] == attention)
        for number, row in enumerate(rows):
            if contribution_budget(layout.videos[0].num_tokens, row["topk"], row["imp_ratio"]) < grid[0]:
                continue
            keep = select_tokens(
                output.token_scores,
                output.frame_scores,
                row["topk"],
                contribution_share=row["imp_ratio"],
                frame_cap=row["max_sample_ratio_for_each_frame"] / row["topk"],
            )
            assert torch.equal(keep.flatten(), TENSORS[f"{name}.{attention}.selection"][number] > 0), row
            compared += 1
    assert compared >= 20


def test_from_the_hub(source, base, tmp_path, monkeypatch):
    """Of a Hub id nothing but the shards with the policy is fetched, and the backbone is pinned at the commit that was looked at."""
    shard(source)
    import_published(source, tmp_path / "local", base=base)
    with LoopbackHub().running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        for repo, folder in (("them/published", source), ("owner/base", base)):
            hub.create(repo)
            for path in sorted(folder.iterdir()):
                commit = hub.edit(repo, path.name, path.read_bytes())
        config = import_published("them/published", tmp_path / "ours", base="owner/base")
        assert not [request for request in hub.requests if "model-00001" in request]
        assert not [request for request in hub.requests if "owner/base" in request and ".safetensors" in request]
    assert (config.base_model_name_or_path, config.base_model_revision) == ("owner/base", commit)
    policies = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("local", "ours")]
    assert policies[0] == policies[1]


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


BROKEN = {
    "missing": (
        lambda t: t.pop(f"{PREFIX}token_compress.4.bias"),
        r"missing: compression_policy\.token_compress\.4\.bias",
    ),
    "extra": (
        lambda t: t.update({f"{PREFIX}layers.1.mlp.up_proj.weight": torch.zeros(2)}),
        r"unexpected: compression_policy\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "misshapen": (
        lambda t: t.update({f"{PREFIX}frame_compress.8.weight": torch.zeros(3, 4)}),
        r"compression_policy\.frame_compress\.8\.weight is \(3, 4\), not \(2, 4\)",
    ),
    "no floats": (
        lambda t: t.update({f"{PREFIX}layernorm.weight": torch.zeros(64, dtype=torch.int32)}),
        r"compression_policy\.layernorm\.weight is of type I32",
    ),
    "not finite": (
        lambda t: t[f"{PREFIX}layernorm.weight"].fill_(float("nan")),
        r"compression_policy\.layernorm\.weight .* NaN",
    ),
    "no policy": (
        lambda t: [t.pop(k) for k in list(t) if k.startswith(PREFIX)],
        r"no tensor named compression_policy\.\*",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_sources(source, base, tmp_path, broken):
    change, message = BROKEN[broken]
    rewrite(source, change)
    with pytest.raises(ValueError, match=message):
        import_published(source, tmp_path / "ours", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "published"]


def test_backbones(source, base, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be told from its sizes .*\(64, 128\)\): give base"):
        import_published(source, tmp_path / "ours")
    other = stock_model("llava_onevision", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    with pytest.raises(ValueError, match=r"frame_compress\.0\.weight is \(32, 64\), not \(16, 32\)"):
        import_published(source, tmp_path / "ours", base=other.config)
    with pytest.raises(ValueError, match=r"published exists already"):
        import_published(source, source, base=base)
    # A source whose own config is of a supported family needs no other.
    (source / "config.json").write_text((base / "config.json").read_text())
    config = import_published(source, tmp_path / "ours")
    assert config.base_model_name_or_path is None
    stock = stock_model("llava_onevision", intermediate_size=128, **ROPE)
    assert CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "ours", backbone=stock).config.policy_trained


def test_the_license_question(source, base, tmp_path):
    """Asked before anything is written; without an answer nothing happens; a license that the source names is told."""
    runner = CliRunner()
    command = ["import-published", str(source), "--to", str(tmp_path / "ours"), "--base", str(base)]
    refused = runner.invoke(app, command, input="n\n")
    assert refused.exit_code != 0
    assert "publishes no license for its weights" in refused.output
    assert not (tmp_path / "ours").exists()
    assert runner.invoke(app, command).exit_code != 0  # nobody there to answer
    assert not (tmp_path / "ours").exists()
    done = runner.invoke(app, [*command, "--accept-license"])
    assert done.exit_code == 0, done.output
    assert "publishes no license" in done.output
    assert "policy    33 tensors" in done.output
    assert "dropped   10 tensors (mode_selection.*)" in done.output
    assert "the source states none" in (tmp_path / "ours" / "README.md").read_text()
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    assert find(source, base=base, to=tmp_path / "x").license == "mit"
