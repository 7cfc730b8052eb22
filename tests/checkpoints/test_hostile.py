"""Hostile and broken repositories: each ends in one clear error, runs nothing, and leaves the disk as it was."""

import hashlib
import json
import pickle
import shutil
import struct

import pytest
import torch
from helpers.models import FAMILIES, stock_model
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLConfig

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.checkpoints.loading import least_parameters

CANARY = "a-pickle-was-opened"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """`policy`: policy-only, its backbone in `stock`; `whole`: self-contained."""
    folder = tmp_path_factory.mktemp("pristine")
    stock = stock_model("llava_onevision")
    stock.save_pretrained(folder / "stock")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="stock")
    model.save_pretrained(folder / "policy")
    model.save_pretrained(folder / "whole", include_backbone=True)
    return folder


@pytest.fixture
def here(pristine, tmp_path, monkeypatch):
    shutil.copytree(pristine, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def fingerprint(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def edit(path, **values):
    content = json.loads(path.read_text())
    for key, value in values.items():
        place = content
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(content))


def bomb(path, folder):
    path.write_bytes(pickle.dumps(Bomb(folder / CANARY)))


def only(folder, file, other):
    (folder / file).unlink()
    bomb(folder / other, folder.parent)


def index(folder, **weight_map):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def code(folder):
    (folder / "evil.py").write_text(f"open({str(folder.parent / CANARY)!r}, 'w')\nclass Evil: pass\n")


def huge_header(path):
    """A header that claims a tensor of a terabyte."""
    header = json.dumps(
        {"policy.norm.weight": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}
    ).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def reshape(path, name, shape):
    tensors = load_file(path)
    tensors[name] = torch.zeros(shape)
    save_file(tensors, path, metadata={"format": "pt"})


def strange_backbone(folder):
    edit(
        folder / "stock" / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"},
    )
    code(folder / "stock")


def adapter(folder):
    (folder / "whole" / "backbone" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "owner/other", "peft_type": "LORA"})
    )
    bomb(folder / "whole" / "backbone" / "adapter_model.bin", folder)


CASES = {
    "pickle under the name of safetensors": (
        "policy",
        lambda d: bomb(d / "policy/model.safetensors", d),
        "not a safetensors file .* never opened",
    ),
    "pickle alone": (
        "policy",
        lambda d: only(d / "policy", "model.safetensors", "pytorch_model.bin"),
        "only pickled weights .* never opened",
    ),
    "index of pickles": (
        "policy",
        lambda d: index(d / "policy", **{"policy.norm.weight": "pytorch_model.bin"}),
        "which is not a safetensors file and is never opened",
    ),
    "index that leads out": (
        "policy",
        lambda d: index(d / "policy", **{"policy.norm.weight": "../elsewhere.safetensors"}),
        "names a file outside its folder",
    ),
    "index with an absolute path": (
        "policy",
        lambda d: index(d / "policy", **{"policy.norm.weight": str(d / "elsewhere.safetensors")}),
        "names a file outside its folder",
    ),
    "index that leads out of another system's folder": (
        "policy",
        lambda d: index(d / "policy", **{"policy.norm.weight": "..\\elsewhere.safetensors"}),
        "names a file outside its folder",
    ),
    "index that is no map": (
        "policy",
        lambda d: [index(d / "policy"), (d / "policy/model.safetensors.index.json").write_text("[]")],
        "does not hold a JSON object",
    ),
    "index without a map": (
        "policy",
        lambda d: [index(d / "policy"), (d / "policy/model.safetensors.index.json").write_text("{}")],
        "has no weight_map",
    ),
    "index that never ends": (
        "policy",
        lambda d: [index(d / "policy"), (d / "policy/model.safetensors.index.json").write_text("[" * 200_000)],
        "not readable JSON",
    ),
    "header of a terabyte": ("policy", lambda d: huge_header(d / "policy/model.safetensors"), "not a safetensors file"),
    "header that never ends": (
        "policy",
        lambda d: (d / "policy/model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "not a safetensors file",
    ),
    "tensor of another shape": (
        "policy",
        lambda d: reshape(d / "policy/model.safetensors", "policy.norm.weight", (1 << 20,)),
        r"norm.weight is \(1048576,\), not \(64,\)",
    ),
    "absurd hidden size": (
        "policy",
        lambda d: edit(d / "policy/config.json", backbone_config__text_config__hidden_size=1 << 40),
        "text_config.hidden_size=1099511627776, which must be a whole number",
    ),
    "absurd number of layers": (
        "policy",
        lambda d: edit(d / "policy/config.json", backbone_config__text_config__num_hidden_layers=10**9),
        "num_hidden_layers=1000000000",
    ),
    "negative size": (
        "policy",
        lambda d: edit(d / "policy/config.json", backbone_config__text_config__intermediate_size=-1),
        "intermediate_size=-1",
    ),
    "size that is no number": (
        "policy",
        lambda d: edit(d / "policy/config.json", backbone_config__vision_config__hidden_size="64"),
        "hidden_size='64'",
    ),
    "config that is no JSON": ("policy", lambda d: (d / "policy/config.json").write_text("{"), "not readable JSON"),
    "config that is a list": (
        "policy",
        lambda d: (d / "policy/config.json").write_text("[1]"),
        "does not hold a JSON object",
    ),
    "kernel from elsewhere": (
        "policy",
        lambda d: edit(d / "policy/config.json", _attn_implementation="evil/kernel"),
        "attention kernel from elsewhere, _attn_implementation='evil/kernel'",
    ),
    "kernel from elsewhere, inside": (
        "policy",
        lambda d: edit(d / "policy/config.json", backbone_config__attn_implementation="evil/kernel"),
        "attention kernel from elsewhere",
    ),
    "backbone with a kernel from elsewhere": (
        "policy",
        lambda d: edit(d / "stock/config.json", text_config__attn_implementation="evil/kernel"),
        "attention kernel from elsewhere",
    ),
    "backbone with code of its own": ("policy", strange_backbone, "family 'evil' is not supported"),
    "backbone in pickles": (
        "policy",
        lambda d: only(d / "stock", "model.safetensors", "pytorch_model.bin"),
        "only pickled weights",
    ),
    "backbone of another size": (
        "policy",
        lambda d: edit(d / "stock/config.json", text_config__hidden_size=128),
        "made for hidden_size=64, the backbone has 128",
    ),
    "backbone far larger than its weights": (
        "policy",
        lambda d: edit(d / "stock/config.json", text_config__vocab_size=1 << 23),
        "describes at least .* parameters",
    ),
    "inner backbone that leads out": (
        "whole",
        lambda d: [
            (d / "whole/backbone/model.safetensors").rename(d / "x.safetensors"),
            (d / "whole/backbone/model.safetensors.index.json").write_text(
                json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../../x.safetensors"}})
            ),
        ],
        "names a file outside its folder",
    ),
    "inner backbone with a pickled adapter": ("whole", adapter, "adapter that is not a safetensors file"),
    "inner backbone in pickles": (
        "whole",
        lambda d: only(d / "whole/backbone", "model.safetensors", "pytorch_model.bin"),
        "only pickled weights",
    ),
    "backbone that is missing": ("whole", lambda d: shutil.rmtree(d / "whole/backbone"), "backbone"),
    "newer format": ("policy", lambda d: edit(d / "policy/config.json", format_version=99), "format_version=99"),
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_repositories(here, case):
    name, damage, message = CASES[case]
    damage(here)
    before = fingerprint(here)
    with pytest.raises((ValueError, OSError), match=message):
        CaCoVidForConditionalGeneration.from_pretrained(name, trust_remote_code=True)
    assert fingerprint(here) == before
    assert not (here / CANARY).exists()


def test_code_beside_a_sound_checkpoint_is_not_run(here, tmp_path):
    """Neither `auto_map` nor `custom_generate` of the checkpoint or of its backbone, whatever the caller trusts."""
    for folder in (here / "policy", here / "stock", here / "whole" / "backbone"):
        code(folder)
        edit(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"})
        (folder / "custom_generate").mkdir(exist_ok=True)
        shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    for name in ("policy", "whole"):
        CaCoVidForConditionalGeneration.from_pretrained(name, trust_remote_code=True)
    assert not list(here.rglob(CANARY))


def test_the_least_parameters_of_a_config():
    """120 x 64 of embeddings and 3 layers of three 64 x 96 matrices; this family's vision config has no `intermediate_size`."""
    text = dict(vocab_size=120, hidden_size=64, num_hidden_layers=3, intermediate_size=96)
    assert least_parameters(Qwen2VLConfig(text_config=text)) == 120 * 64 + 3 * 3 * 64 * 96


@pytest.mark.spread(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_model_has_less_than_the_least_parameters(family):
    stock = stock_model(family, tie_word_embeddings=True)
    assert 0 < least_parameters(stock.config) <= sum(weight.numel() for weight in stock.parameters())
