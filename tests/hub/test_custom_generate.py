"""One line for stock models: the code that a checkpoint carries, run where this package cannot be imported."""

import ast
import json
import re
import textwrap
from pathlib import Path

import pytest
import torch
from helpers.fresh import run_fresh
from helpers.hub_server import LoopbackHub, use
from helpers.models import FAMILIES, PROMPTS, prompt_inputs, stock_model
from helpers.processors import tiny_processor
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration, with_video_reader
from cacovid_hf.hub import custom_generate
from cacovid_hf.hub.custom_generate import generated_files, package_commit, stamp_of, stamped

ROOT = Path(__file__).resolve().parents[2]
# The package cannot be imported, whoever installed it where.
WITHOUT_PACKAGE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cacovid_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForImageTextToText
"""


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A stock model, a checkpoint beside it, its inputs, and the wrapper's tokens."""
    stock = stock_model(request.param)
    stock.save_pretrained(tmp_path / "stock")
    model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path=str(tmp_path / "stock"))
    model.save_pretrained(tmp_path / "cacovid-tiny", custom_generate=True)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "suppressed.json").write_text(json.dumps(stock.generation_config.suppress_tokens))
    expected = {
        f"{compressor} {ratio}": model.generate(
            **inputs, retention_ratio=ratio, compressor=compressor, max_new_tokens=5, do_sample=False
        ).tolist()
        for compressor, ratio in (("cacovid", 0.25), ("uniform", 0.25), ("cacovid", 1.0))
    }
    assert len(set(map(str, expected.values()))) == 3
    return tmp_path, expected


def run(folder, program, **environment):
    environment = {"HF_HOME": str(folder / "home"), **environment}
    return json.loads(
        run_fresh(WITHOUT_PACKAGE + textwrap.dedent(program), folder, environment).stdout.strip().splitlines()[-1]
    )


def test_stock_model_without_the_package(saved):
    """The wrapper's tokens from a stock model, a local repository and nothing of ours installed; the policy is read once, the model stays stock."""
    folder, expected = saved
    result = run(
        folder,
        """
        import json
        model = AutoModelForImageTextToText.from_pretrained("stock").eval()
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
        model.generation_config.suppress_tokens = json.load(open("suppressed.json"))
        inputs, found = torch.load("inputs.pt"), {}
        state, opened = set(vars(model)), []
        import safetensors
        for compressor, ratio in (("cacovid", 0.25), ("uniform", 0.25), ("cacovid", 1.0)):
            ids = model.generate(**inputs, custom_generate="cacovid-tiny", trust_remote_code=True, retention_ratio=ratio,
                compressor=compressor, max_new_tokens=5, do_sample=False)
            found[f"{compressor} {ratio}"] = ids.tolist()
        code = next(module for name, module in sys.modules.items() if name.endswith("custom_generate.generate"))
        assert len(code._policies) == 1, "cached"
        assert set(vars(model)) == state, "nothing of ours on the model"
        # The same code inside the stock model's own folder: whoever trusts it on loading has it as `generate`.
        import shutil
        shutil.copytree("cacovid-tiny/custom_generate", "stock/custom_generate")
        own = AutoModelForImageTextToText.from_pretrained("stock", trust_remote_code=True).eval()
        own.generation_config = model.generation_config
        for ratio in (0.25, 1.0):
            ids = own.generate(**inputs, retention_ratio=ratio, max_new_tokens=5, do_sample=False)
            assert ids.tolist() == found[f"cacovid {ratio}"]
        assert not [name for name in sys.modules if name.startswith("cacovid_hf")]
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        assert "cacovid" not in CONFIG_MAPPING, "nothing registered"
        print(json.dumps(found))
        """,
    )
    assert result == expected


@pytest.mark.parametrize("attention", ["none", "question"])
def test_a_residual_policy_without_the_package(attention, tmp_path):
    """What is new in a token since the frame before is found by the generated code too."""
    stock = stock_model("llava_onevision")
    stock.save_pretrained(tmp_path / "stock")
    settings = dict(policy_type="residual", policy_attention=attention, base_model_name_or_path=str(tmp_path / "stock"))
    model = CaCoVidForConditionalGeneration.from_backbone(stock, **settings)
    model.save_pretrained(tmp_path / "cacovid-tiny", custom_generate=True)
    inputs = prompt_inputs(stock, PROMPTS["ragged batch"])
    torch.save(inputs, tmp_path / "inputs.pt")
    (tmp_path / "suppressed.json").write_text(json.dumps(stock.generation_config.suppress_tokens))
    expected, blind = (
        model.generate(**inputs, retention_ratio=0.25, compressor=name, max_new_tokens=5, do_sample=False).tolist()
        for name in ("cacovid", "uniform")
    )
    assert expected != blind
    result = run(
        tmp_path,
        """
        import json
        model = AutoModelForImageTextToText.from_pretrained("stock").eval()
        model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
        model.generation_config.suppress_tokens = json.load(open("suppressed.json"))
        ids = model.generate(**torch.load("inputs.pt"), custom_generate="cacovid-tiny", trust_remote_code=True,
            retention_ratio=0.25, max_new_tokens=5, do_sample=False)
        print(json.dumps(ids.tolist()))
        """,
    )
    assert result == expected


def test_from_the_hub(tmp_path, monkeypatch):
    """The same from a Hub: the stamped commit is what is loaded, main may move on, and `policy=` overrides it."""
    with LoopbackHub().running() as hub:
        use(hub, tmp_path / "cache", monkeypatch)
        stock = stock_model("llava_onevision")
        stock.save_pretrained(tmp_path / "stock")
        hub.create("owner/stock")
        model = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="owner/stock")
        model.push_to_hub("owner/cacovid-tiny", processor=False)
        inputs = prompt_inputs(stock, PROMPTS["one video"])
        torch.save(inputs, tmp_path / "inputs.pt")
        (tmp_path / "suppressed.json").write_text(json.dumps(stock.generation_config.suppress_tokens))
        settings = dict(retention_ratio=0.25, max_new_tokens=5, do_sample=False)
        first = model.generate(**inputs, **settings).tolist()
        torch.manual_seed(5)
        other = CaCoVidForConditionalGeneration.from_backbone(stock, base_model_name_or_path="owner/stock")
        other.save_pretrained(tmp_path / "other")
        second = other.generate(**inputs, **settings).tolist()
        hub.edit("owner/cacovid-tiny", "model.safetensors", (tmp_path / "other" / "model.safetensors").read_bytes())
        result = run(
            tmp_path,
            """
            import json
            model = AutoModelForImageTextToText.from_pretrained("stock").eval()
            model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
            model.generation_config.suppress_tokens = json.load(open("suppressed.json"))
            inputs = torch.load("inputs.pt")
            how = dict(custom_generate="owner/cacovid-tiny", trust_remote_code=True, retention_ratio=0.25, max_new_tokens=5,
                do_sample=False)
            found = [model.generate(**inputs, **how, **more).tolist()
                for more in ({}, dict(policy="other"), dict(policy="owner/cacovid-tiny", policy_revision="main"))]
            print(json.dumps(found))
            """,
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
        )
    assert result == [first, second, second]
    assert first != second


def test_errors(saved, tmp_path):
    """Without trust nothing runs; a policy that is not there, or of another size, is one clear error."""
    folder, _ = saved
    stock = stock_model("llava_onevision")
    inputs = prompt_inputs(stock, PROMPTS["one video"])
    with pytest.raises(ValueError, match="trust_remote_code"):
        stock.generate(
            **inputs, custom_generate=str(folder / "cacovid-tiny"), trust_remote_code=False, retention_ratio=0.25
        )
    from cacovid_hf.hub.remote import generate

    with pytest.raises(ValueError, match="does not say which policy it belongs to: give policy="):
        generate(stock, **inputs, retention_ratio=0.25)
    with pytest.raises(ValueError, match=r"nowhere cannot be reached .* give policy="):
        generate(stock, **inputs, retention_ratio=0.25, policy=str(folder / "nowhere"))
    other = stock_model("llava_onevision", hidden_size=32, num_attention_heads=2, num_key_value_heads=1)
    with pytest.raises(ValueError, match="do not fit its config"):
        generate(
            other,
            **prompt_inputs(other, PROMPTS["one video"]),
            policy=str(folder / "cacovid-tiny"),
            retention_ratio=0.25,
        )


def test_generated_files_are_the_packages_own():
    """Flat, self-contained, each saying where it is from, and line for line the package's sources but for relative imports."""
    files = generated_files("owner/name", "0" * 40)
    commit = package_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    for name, text in files.items():
        if name == "requirements.txt":
            continue
        assert "/" not in name
        origin = re.match(
            r"# Generated from (\S+) of cacovid-hf [\d.]+(, commit [0-9a-f]{40}(-dirty)?)?; Apache-2.0. Do not edit.\n",
            text,
        )
        assert origin, name
        original = (ROOT / "src" / origin[1]).read_text().splitlines()
        changed = [line for line in text.splitlines()[1:] if line not in original]
        assert all(re.match(r"\s*from \.\w+ import|(REPOSITORY|REVISION): ", line) for line in changed), changed
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert f"{node.module}.py" in files
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                roots = {getattr(node, "module", None) or alias.name for alias in node.names}
                assert not {root.split(".")[0] for root in roots} & {"cacovid_hf", "av", "typer", "matplotlib"}
    assert stamp_of(files["generate.py"]) == ("owner/name", "0" * 40)
    assert stamp_of(stamped(files["generate.py"], None, None)) == (None, None)


def test_requirements_are_the_packages_own():
    project = (ROOT / "pyproject.toml").read_text()
    for line in generated_files()["requirements.txt"].split():
        assert re.search(rf'^    "{re.escape(line)}[",]', project, re.MULTILINE), line


def test_imports_that_the_flat_layout_does_not_have(tmp_path, monkeypatch):
    package = tmp_path / "cacovid_hf"
    package.mkdir()
    (package / "odd.py").write_text("from . import prompt\n")
    monkeypatch.setattr(custom_generate, "_PACKAGE", package)
    with pytest.raises(ValueError, match=r"odd\.py, line 1: a module that goes into custom_generate"):
        custom_generate.flattened("odd")


def test_auto_classes_find_the_installed_package(saved):
    """`trust_remote_code=True` where the package is installed and not imported; without it, nothing of a repository runs."""

    folder, expected = saved
    family = json.loads((folder / "stock" / "config.json").read_text())["model_type"]
    with_video_reader(tiny_processor(family)).save_pretrained(folder / "cacovid-tiny")
    program = """
import json, os, sys, torch
torch.set_num_threads(1)
from transformers import AutoModelForImageTextToText, AutoProcessor
for auto in (AutoModelForImageTextToText, AutoProcessor):
    try:
        auto.from_pretrained("cacovid-tiny", trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error) or "cacovid" in str(error), error
    else:
        raise AssertionError(auto)
assert "cacovid_hf" not in sys.modules
processor = AutoProcessor.from_pretrained("cacovid-tiny", trust_remote_code=True)
assert type(processor.video_processor).__module__ == "cacovid_hf.video_processing"
processor.save_pretrained("again")
assert [name for name in os.listdir("again") if name.endswith(".py")] == ["cacovid_auto.py"], "no copies of the package"
model = AutoModelForImageTextToText.from_pretrained("cacovid-tiny", trust_remote_code=True)
backbone = model.backbone
backbone.generation_config.pad_token_id, backbone.generation_config.eos_token_id = 0, None
backbone.generation_config.suppress_tokens = json.load(open("suppressed.json"))
inputs = torch.load("inputs.pt")
ids = model.generate(**inputs, retention_ratio=0.25, max_new_tokens=5, do_sample=False)
print(json.dumps([type(model).__module__, ids.tolist()]))
"""
    done = run_fresh(program, folder, {"HF_HOME": str(folder / "home")})
    assert json.loads(done.stdout.strip().splitlines()[-1]) == ["cacovid_hf.modeling", expected["cacovid 0.25"]]
    assert type(AutoProcessor.from_pretrained(folder / "again").video_processor).__name__.startswith("CaCoVid")
