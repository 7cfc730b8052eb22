"""Saving and loading: the policy alone, self-contained, through the Auto classes, and everything that can be wrong with a checkpoint."""

import json
import os
import pickle
import shutil

import pytest
import torch
from helpers.fresh import run_fresh
from helpers.models import FAMILIES, PROMPTS, prompt_inputs, stock_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaOnevisionForConditionalGeneration

from cacovid_cli.main import main
from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, ContributionPolicy
from cacovid_hf.tiny import clips

OPTIONS = dict(
    policy_attention="bidirectional", contribution_share=0.7, frame_cap=2.0, scope="video", retention_ratio=0.5
)


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A stock model in a folder, and the wrapper around it as loaded from there."""
    stock = stock_model(request.param)
    stock.save_pretrained(tmp_path / "stock")
    backbone = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock")
    model = CaCoVidForConditionalGeneration.from_backbone(backbone, **OPTIONS)
    return model, tmp_path


def keys(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def assert_same(model, other, ratio=0.25):
    inputs = prompt_inputs(model.backbone, PROMPTS["two videos"])
    settings = dict(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True)
    for r in (ratio, None, 1.0):
        ours, theirs = (m.generate(**inputs, retention_ratio=r, **settings) for m in (model, other))
        assert torch.equal(ours.sequences, theirs.sequences)
        for a, b in zip(ours.logits, theirs.logits, strict=True):
            # Weights mapped from a file lie at other addresses, and kernels round by alignment.
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    for name in OPTIONS:
        assert getattr(model.config, name) == getattr(other.config, name)


def test_policy_only(saved, caplog):
    model, folder = saved
    model.save_pretrained(folder / "policy")
    assert sorted(os.listdir(folder / "policy")) == ["README.md", "cacovid_auto.py", "config.json", "model.safetensors"]
    assert keys(folder / "policy" / "model.safetensors") == {f"policy.{name}" for name in model.policy.state_dict()}
    assert "local folder" in caplog.text
    config = json.loads((folder / "policy" / "config.json").read_text())
    assert config["model_type"] == "cacovid"
    assert config["base_model_name_or_path"] == str(folder / "stock")
    assert config["backbone_config"]["model_type"] == model.backbone.config.model_type
    loaded = CaCoVidForConditionalGeneration.from_pretrained(folder / "policy")
    assert not loaded.training
    assert not loaded.policy.training
    assert not loaded.backbone.training
    assert_same(model, loaded)


def test_self_contained(saved):
    model, folder = saved
    model.save_pretrained(folder / "whole", include_backbone=True)
    shutil.rmtree(folder / "stock")
    loaded = CaCoVidForConditionalGeneration.from_pretrained(folder / "whole")
    assert_same(model, loaded)
    # Its inner folder is a stock checkpoint.
    stock = AutoModelForImageTextToText.from_pretrained(folder / "whole" / "backbone")
    assert type(stock) is type(model.backbone)
    moved = shutil.move(folder / "whole", folder / "elsewhere")
    assert_same(model, CaCoVidForConditionalGeneration.from_pretrained(moved))


def test_no_local_path_is_written_unasked(saved):
    model, folder = saved
    model.config.base_model_name_or_path = None
    model.save_pretrained(folder / "whole", include_backbone=True)
    for file in ("config.json", "backbone/config.json"):
        assert str(folder) not in (folder / "whole" / file).read_text()


def test_policy_only_over_self_contained_says_what_it_holds(saved):
    model, folder = saved
    model.save_pretrained(folder / "x", include_backbone=True)
    model.save_pretrained(folder / "x")
    assert CaCoVidForConditionalGeneration.from_pretrained(folder / "x").config.base_model_name_or_path == str(
        folder / "stock"
    )
    assert not CaCoVidConfig.from_pretrained(folder / "x").includes_backbone


def test_sharded_backbone(saved):
    model, folder = saved
    model.save_pretrained(folder / "whole", include_backbone=True, max_shard_size="100KB")
    shards = [name for name in os.listdir(folder / "whole" / "backbone") if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert_same(model, CaCoVidForConditionalGeneration.from_pretrained(folder / "whole"))
    os.remove(folder / "whole" / "backbone" / sorted(shards)[0])
    with pytest.raises((OSError, ValueError), match=sorted(shards)[0]):
        CaCoVidForConditionalGeneration.from_pretrained(folder / "whole")


def test_state_dict_of_a_trainer(saved):
    model, folder = saved
    changed = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder / "p", state_dict=changed)
    weights = load_file(folder / "p" / "model.safetensors")
    assert all(torch.equal(weights[f"policy.{name}"], tensor + 1) for name, tensor in model.policy.state_dict().items())
    model.save_pretrained(folder / "w", state_dict=changed, include_backbone=True)
    loaded = CaCoVidForConditionalGeneration.from_pretrained(folder / "w")
    assert torch.equal(loaded.backbone.lm_head.weight, model.backbone.lm_head.weight + 1)
    with pytest.raises(ValueError, match=r"state_dict lacks policy\."):
        model.save_pretrained(folder / "n", state_dict={"something": torch.zeros(1)})
    assert not (folder / "n").exists()


def test_another_backbone(saved):
    model, folder = saved
    model.save_pretrained(folder / "policy")
    shutil.move(folder / "stock", folder / "moved")
    with pytest.raises(OSError, match="stock"):
        CaCoVidForConditionalGeneration.from_pretrained(folder / "policy")
    for backbone in (folder / "moved", str(folder / "moved"), model.backbone):
        loaded = CaCoVidForConditionalGeneration.from_pretrained(folder / "policy", backbone=backbone)
        assert_same(model, loaded)
    assert loaded.backbone is model.backbone
    around = CaCoVidForConditionalGeneration.from_backbone(model.backbone, policy=folder / "policy")
    assert_same(model, around)
    around = CaCoVidForConditionalGeneration.from_backbone(model.backbone, policy=model.policy, **{**OPTIONS})
    assert_same(model, around)


def test_loading_settings_reach_the_backbone(saved):
    model, folder = saved
    model.save_pretrained(folder / "policy")
    load = CaCoVidForConditionalGeneration.from_pretrained
    low = load(folder / "policy", dtype=torch.bfloat16, attn_implementation="eager")
    assert low.dtype == low.backbone.dtype == low.policy.dtype == torch.bfloat16
    assert low.backbone.config._attn_implementation == "eager"
    assert load(folder / "policy", dtype="auto").dtype == torch.float32
    mapped = load(folder / "policy", device_map="cpu", revision=None, trust_remote_code=False)
    assert_same(model, mapped)
    overridden = load(folder / "policy", retention_ratio=0.1, scope="frame")
    assert (overridden.config.retention_ratio, overridden.config.scope) == (0.1, "frame")
    with pytest.raises(ValueError, match=r"retention_ratio=7\.0 is outside"):
        load(folder / "policy", retention_ratio=7)


@pytest.mark.parametrize("include_backbone", [False, True])
def test_auto_classes(saved, include_backbone):
    model, folder = saved
    model.save_pretrained(folder / "m", include_backbone=include_backbone)
    assert isinstance(AutoConfig.from_pretrained(folder / "m"), CaCoVidConfig)
    loaded = AutoModelForImageTextToText.from_pretrained(folder / "m", attn_implementation="eager", dtype=torch.float32)
    assert isinstance(loaded, CaCoVidForConditionalGeneration)
    assert loaded.backbone.config._attn_implementation == "eager"
    again = AutoModelForImageTextToText.from_pretrained(folder / "m", retention_ratio=0.3)
    assert again.config.retention_ratio == 0.3
    assert again.backbone.config._attn_implementation == "sdpa"
    built = AutoModelForImageTextToText.from_config(model.config)
    assert isinstance(built, CaCoVidForConditionalGeneration)


def test_in_a_fresh_process(saved):
    model, folder = saved
    model.save_pretrained(folder / "m", include_backbone=True)
    program = (
        "import cacovid_hf\n"
        "from transformers import AutoModelForImageTextToText\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(folder / 'm')!r})\n"
        "print(type(model).__name__, type(model.backbone).__name__)\n"
    )
    result = run_fresh(program, folder, with_transformers=True)
    assert result.stdout.split() == ["CaCoVidForConditionalGeneration", type(model.backbone).__name__]


def test_tied_embeddings_survive(tmp_path):
    stock = stock_model("llava_onevision", tie_word_embeddings=True)
    model = CaCoVidForConditionalGeneration.from_backbone(stock)
    model.save_pretrained(tmp_path / "m", include_backbone=True, state_dict=model.state_dict())
    loaded = CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "m")
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


# ------------------------------------------------------------------ what can be wrong


@pytest.fixture
def checkpoint(tmp_path):
    stock = stock_model("llava_onevision")
    stock.save_pretrained(tmp_path / "stock")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path=str(tmp_path / "stock"))
    model.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def rewrite(path, change):
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors")


def edit_config(path, **values):
    config = json.loads((path / "config.json").read_text())
    config.update(values)
    (path / "config.json").write_text(json.dumps(config))


def pickle_as_safetensors(path):
    (path / "model.safetensors").write_bytes(pickle.dumps({"policy.norm.weight": 1}))


def only_a_pickle(path):
    (path / "model.safetensors").unlink()
    torch.save({}, path / "pytorch_model.bin")


def truncated(path):
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


def missing_shard(path):
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(weights, "model-00001-of-00002.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_outside(path):
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"policy.norm.weight": "../stock/model.safetensors"}})
    )


def remove_config(path):
    (path / "config.json").unlink()


BROKEN = {
    "no config": (remove_config, OSError, "has no config.json"),
    "format no number": (
        lambda p: edit_config(p, format_version="2"),
        ValueError,
        "format_version='2' is not a whole number",
    ),
    "share no number": (
        lambda p: edit_config(p, contribution_share=None),
        ValueError,
        "contribution_share=None is outside",
    ),
    "unsupported family": (
        lambda p: edit_config(p, backbone_config={"model_type": "qwen2"}),
        ValueError,
        "family 'qwen2' is not supported",
    ),
    "newer format": (
        lambda p: edit_config(p, format_version=99),
        ValueError,
        "format_version=99, this cacovid-hf reads up to 1: upgrade",
    ),
    "pickle in disguise": (pickle_as_safetensors, ValueError, "not a safetensors file .* never opened"),
    "only a pickle": (only_a_pickle, ValueError, "only pickled weights .* never opened"),
    "truncated weights": (truncated, ValueError, "not a safetensors file"),
    "no weights": (lambda p: (p / "model.safetensors").unlink(), OSError, "has no model.safetensors"),
    "missing shard": (missing_shard, OSError, "lacks the shard model-00001-of-00002.safetensors"),
    "shard outside": (shard_outside, ValueError, "names a file outside its folder"),
    "missing tensor": (lambda p: rewrite(p, lambda w: w.pop("policy.norm.weight")), ValueError, "missing: norm.weight"),
    "extra tensor": (
        lambda p: rewrite(p, lambda w: w.update({"policy.x": torch.zeros(1)})),
        ValueError,
        "unexpected: x",
    ),
    "misshapen tensor": (
        lambda p: rewrite(p, lambda w: w.update({"policy.norm.weight": torch.zeros(3)})),
        ValueError,
        r"norm.weight is \(3,\), not \(64,\)",
    ),
    "no backbone named": (
        lambda p: edit_config(p, base_model_name_or_path=None),
        ValueError,
        "which backbone it was made for",
    ),
    "missing backbone": (
        lambda p: edit_config(p, base_model_name_or_path="/nowhere/at/all"),
        OSError,
        r"/nowhere/at/all .* \(there is no such folder here\): write its id or folder as base_model_name_or_path into config.json of .*, or in Python give backbone=",
    ),
    "unknown attention": (
        lambda p: edit_config(p, policy_attention="all"),
        ValueError,
        "policy_attention='all' is unknown",
    ),
    "bad share": (lambda p: edit_config(p, contribution_share=2.0), ValueError, "contribution_share=2.0 is outside"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_checkpoints(checkpoint, broken):
    damage, error, message = BROKEN[broken]
    damage(checkpoint)
    with pytest.raises(error, match=message):
        CaCoVidForConditionalGeneration.from_pretrained(checkpoint)


def test_a_backbone_that_moved(checkpoint, capsys):
    """From the command line the config is edited; the processor, looked for beside the backbone, says so too."""
    edit_config(checkpoint, base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(SystemExit) as exit:
        main(["ask", str(clips()[0].path), "What color is the cross?", "--model", str(checkpoint)])
    assert exit.value.code == 2
    assert (
        f"write its id or folder as base_model_name_or_path into config.json of {checkpoint}" in capsys.readouterr().err
    )


def test_not_a_checkpoint(tmp_path):
    stock_model("llava_onevision").save_pretrained(tmp_path / "stock")
    with pytest.raises(
        ValueError, match=r"no CaCoVid config \(model_type 'llava_onevision'\): wrap a stock model with from_backbone"
    ):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "stock")
    with pytest.raises(OSError, match="nothing-here"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path / "nothing-here")


def test_policy_of_another_size(checkpoint):
    other = stock_model("llava_onevision", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    with pytest.raises(ValueError, match="made for hidden_size=64, the backbone has 32"):
        CaCoVidForConditionalGeneration.from_pretrained(checkpoint, backbone=other)
    policy = ContributionPolicy(stock_model("llava_onevision").config.get_text_config())
    with pytest.raises(ValueError, match="made for hidden_size=64, the backbone has 32"):
        CaCoVidForConditionalGeneration.from_backbone(other, policy=policy)
    with pytest.raises(ValueError, match="policy_attention='causal' is asked for"):
        CaCoVidForConditionalGeneration.from_backbone(
            stock_model("llava_onevision"), policy=policy, policy_attention="causal"
        )


def test_a_backbone_without_id_cannot_be_saved_alone(tmp_path):
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("llava_onevision"))
    with pytest.raises(ValueError, match="has no id"):
        model.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="give base_model_name_or_path"):
        model.save_pretrained(tmp_path / "m", push_to_hub=True)


@pytest.mark.parametrize("include_backbone", [False, True])
def test_unwritable_target(tmp_path, include_backbone):
    model = CaCoVidForConditionalGeneration.from_backbone(
        stock_model("llava_onevision"), base_model_name_or_path="some/id"
    )
    (tmp_path / "file").write_text("kept")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot be written to"):
            model.save_pretrained(target, include_backbone=include_backbone)
    assert (tmp_path / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), SafetensorError("Error while serializing: No space left on device")]
)
def test_an_interrupted_save_leaves_the_old_checkpoint(checkpoint, monkeypatch, error):
    """With either error of the writers (a disk that is really full: test_killed_saves.py)."""
    before = {name: (checkpoint / name).read_bytes() for name in os.listdir(checkpoint)}
    model = CaCoVidForConditionalGeneration.from_pretrained(checkpoint)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("cacovid_hf.checkpoints.saving.save_file", full)
    with pytest.raises(OSError, match=r"cannot be written to .*No space left on device.*free disk space"):
        model.save_pretrained(checkpoint)
    monkeypatch.setattr(LlavaOnevisionForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(OSError, match=r"cannot be written to .*No space left on device.*free disk space"):
        model.save_pretrained(checkpoint, include_backbone=True)
    assert {name: (checkpoint / name).read_bytes() for name in os.listdir(checkpoint)} == before


def cut_file(path):
    path.write_bytes(path.read_bytes()[:1000])


def swap_for_pickle(path):
    path.write_bytes(pickle.dumps({}))


def drop_tensor(path):
    weights = load_file(path)
    del weights[next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(weights, path, metadata={"format": "pt"})


def bend_tensor(path):
    weights = load_file(path)
    weights[next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))] = torch.zeros(3, 3)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [cut_file, swap_for_pickle, drop_tensor, bend_tensor])
@pytest.mark.parametrize("include_backbone", [False, True])
def test_damaged_backbone_weights(checkpoint, damage, include_backbone):
    """Stock loading fills what is missing with random numbers; here that is an error."""
    folder = checkpoint.parent / "stock"
    if include_backbone:
        CaCoVidForConditionalGeneration.from_pretrained(checkpoint).save_pretrained(checkpoint, include_backbone=True)
        folder = checkpoint / "backbone"
    damage(folder / "model.safetensors")
    message = r"The weights of .* (are damaged or do not fit|lack .*up_proj)|is not a safetensors file"
    with pytest.raises(ValueError, match=message):
        CaCoVidForConditionalGeneration.from_pretrained(checkpoint)


def test_only_the_main_process_writes(checkpoint):
    model = CaCoVidForConditionalGeneration.from_pretrained(checkpoint)
    model.save_pretrained(checkpoint.parent / "n", is_main_process=False, state_dict={})
    assert not (checkpoint.parent / "n").exists()


def test_a_given_policy_is_not_called_trained():
    stock = stock_model("llava_onevision")
    policy = CaCoVidForConditionalGeneration.from_backbone(stock).policy
    assert not CaCoVidForConditionalGeneration.from_backbone(stock, policy=policy).config.policy_trained
    assert CaCoVidForConditionalGeneration.from_backbone(
        stock, policy=policy, policy_trained=True
    ).config.policy_trained


def test_vocabulary_can_grow():
    model = CaCoVidForConditionalGeneration.from_backbone(stock_model("llava_onevision"))
    model.resize_token_embeddings(130)
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == 130


TYPOS = {
    "from_backbone with a folder": lambda model, folder: CaCoVidForConditionalGeneration.from_backbone(
        model.backbone, policy=folder, retention_ration=0.2
    ),
    "from_backbone with a policy": lambda model, folder: CaCoVidForConditionalGeneration.from_backbone(
        model.backbone, policy=model.policy, retention_ration=0.2
    ),
    "from_pretrained with a model": lambda model, folder: CaCoVidForConditionalGeneration.from_pretrained(
        folder, backbone=model.backbone, retention_ration=0.2
    ),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder, include_backbon=True),
    "forward": lambda model, folder: model(**prompt_inputs(model.backbone, PROMPTS["one video"]), retention_ration=0.3),
    "forward, compressed": lambda model, folder: model(
        **prompt_inputs(model.backbone, PROMPTS["one video"]), retention_ratio=0.3, compresor="uniform"
    ),
}


@pytest.mark.parametrize("typo", TYPOS)
def test_a_mistyped_name_is_told(tmp_path, typo):
    model = CaCoVidForConditionalGeneration.from_backbone(
        stock_model("llava_onevision"), base_model_name_or_path="some/id"
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean (retention_ratio|include_backbone|compressor)\?"):
        TYPOS[typo](model, tmp_path)


@pytest.mark.parametrize(
    "setting", [{"dtype": torch.bfloat16}, {"device_map": "auto"}, {"attn_implementation": "eager"}]
)
def test_loading_settings_for_a_loaded_backbone(tmp_path, setting):
    stock = stock_model("llava_onevision")
    CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="some/id").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{next(iter(setting))} would do nothing, because backbone is a model"):
        CaCoVidForConditionalGeneration.from_pretrained(tmp_path, backbone=stock, **setting)


def test_a_policy_setting_that_is_changed_too_late(tmp_path):
    model = CaCoVidForConditionalGeneration.from_backbone(
        stock_model("llava_onevision"), base_model_name_or_path="some/id"
    )
    inputs = prompt_inputs(model.backbone, PROMPTS["one video"])
    model.config.policy_attention = "causal"
    for call in (lambda: model.compress(**inputs, retention_ratio=0.3), lambda: model.save_pretrained(tmp_path / "m")):
        with pytest.raises(ValueError, match="policy_attention was changed to 'causal' after the model was made with"):
            call()
    assert not (tmp_path / "m").exists()
    model.reset_policy("causal")
    model.compress(**inputs, retention_ratio=0.3)


def test_a_tuned_backbone_that_is_left_out_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("cacovid_hf.checkpoints.saving.logger.warning_once", told.append)
    stock = stock_model("llava_onevision")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="some/id")
    model.save_pretrained(tmp_path)  # loaded as ever: parameters require gradients, and nobody has asked for any
    stock.requires_grad_(False).train()
    model.save_pretrained(tmp_path)  # a frozen one
    assert not told
    stock.lm_head.weight.requires_grad_(True)
    model.save_pretrained(tmp_path, include_backbone=True)
    assert not told
    model.save_pretrained(tmp_path)
    stock.eval()
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    model(**inputs, labels=inputs["input_ids"], retention_ratio=0.3).loss.backward()
    model.save_pretrained(tmp_path)
    assert len(told) == 2
    assert all("pass include_backbone=True, or save model.backbone or its PEFT adapter" in text for text in told)
