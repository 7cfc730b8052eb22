"""Names of transformers that differ between versions, under both spellings; private ones in one file alone."""

import ast
import re
import warnings
from pathlib import Path

import pytest
import torch
from helpers.models import BY_NAME, FAMILIES, ONE_VIDEO, prompt_inputs, stock_inputs, wrapped
from packaging.requirements import Requirement
from packaging.version import Version
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel, ProcessorMixin, Trainer

from cacovid_hf import _compat

SOURCES = Path(_compat.__file__).parent
STEP = dict(do_sample=False, max_new_tokens=3, return_dict_in_generate=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", _compat.CACHE_NAMES)
def test_a_cache_of_the_caller_is_filled_under_either_name(family, name):
    _, model = wrapped(family)
    inputs = prompt_inputs(model.backbone, ONE_VIDEO)
    # A cache without a config is refused where layers do not attend: the next test.
    cache = DynamicCache() if BY_NAME[family].attends else DynamicCache(config=model.config.get_text_config())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        outputs = model.generate(**inputs, retention_ratio=0.25, **{name: cache}, **STEP)
    kept = model.compress(**inputs, retention_ratio=0.25).input_ids.shape[1]
    assert _compat.cache_of(outputs) is cache
    assert cache.get_seq_length() == kept + 2


def test_a_cache_without_a_config_is_refused_where_layers_do_not_attend():
    _, model = wrapped("qwen3_5")
    inputs = prompt_inputs(model.backbone, ONE_VIDEO)
    with pytest.raises(
        ValueError, match=r"does not know which layers are linear attention: give DynamicCache\(config="
    ):
        model.generate(**inputs, retention_ratio=0.25, **{_compat.CACHE: DynamicCache()}, **STEP)


@pytest.mark.skipif(_compat.CACHE != "cache", reason="this version of transformers has the old name alone")
def test_the_old_name_is_deprecated_as_in_transformers():
    _, model = wrapped("llava_onevision")
    inputs = prompt_inputs(model.backbone, ONE_VIDEO)
    with pytest.warns(FutureWarning, match="past_key_values"):
        model.generate(**inputs, retention_ratio=0.25, past_key_values=DynamicCache(), **STEP)


def test_both_names_at_once_are_refused():
    _, model = wrapped("llava_onevision")
    inputs = prompt_inputs(model.backbone, ONE_VIDEO)
    for call in (model.generate, model):
        with pytest.raises(ValueError, match="The cache is given twice"):
            call(**inputs, retention_ratio=0.25, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ratio", [1.0, 0.25])
def test_the_output_holds_all_that_the_backbone_returned(family, ratio):
    """Both names of the cache can be read, and fields that a family adds are there."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(model.backbone, ONE_VIDEO)
    ours, theirs = (
        model(**inputs, retention_ratio=ratio, use_cache=True),
        stock(**stock_inputs(stock, inputs), use_cache=True),
    )
    assert isinstance(ours.cache, DynamicCache)
    assert ours.past_key_values is ours.cache
    assert ours.kept_indices.shape[1] == ours.cache.get_seq_length()
    if ratio == 1.0:
        assert set(theirs.keys()) <= set(ours.keys())
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(ours[name], value), name


def test_the_bound_of_the_package_is_the_newest_tested_version():
    major, minor = Version(_compat.NEWEST_TRANSFORMERS).release
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    # The extra for vLLM has a version of its own.
    (bound,) = map(Requirement, re.findall(r'"(transformers>=[^"]*)"', text))
    assert bound.specifier.contains(f"{major}.{minor}.9"), bound
    assert not bound.specifier.contains(f"{major}.{minor + 1}.0"), bound


@pytest.mark.parametrize(
    ("installed", "warns"), [("5.24.9", False), ("5.25.0", True), ("6.0.0", True), ("5.17.0", False)]
)
def test_a_newer_version_is_told_once(monkeypatch, installed, warns):
    monkeypatch.setattr(_compat, "NEWEST_TRANSFORMERS", "5.24")
    monkeypatch.setattr(_compat.importlib.metadata, "version", lambda name: installed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _compat.warn_of_newer_transformers()
    assert [str(w.message)[: len(installed) + 13] for w in caught] == ([f"transformers {installed}"] if warns else [])


# ---------------------------------------------------------------- private names


def private_names(kind: type) -> set[str]:
    """Of a stock class, without those of torch."""
    names = {name for name in dir(kind) if name.startswith("_") and not name.startswith("__")}
    return names - set(dir(torch.nn.Module))


STOCK = {
    kind.__name__: private_names(kind)
    for kind in (GenerationMixin, PreTrainedConfig, PreTrainedModel, ProcessorMixin, Trainer)
}
PRIVATE = {"_commit_hash", "_name_or_path", "_hf_hook", "_CACHED_NO_EXIST"}.union(*STOCK.values())
LIBRARIES = ("transformers", "huggingface_hub", "accelerate")


def private_uses(tree: ast.AST):
    """Private names of these libraries that a module reads of an object, overrides in a subclass or imports, with their lines."""
    own = set()  # attributes of `self` in a class, which may be private names of its own
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            inherited = set().union(*(STOCK.get(ast.unparse(base), set()) for base in node.bases))
            for part in ast.walk(node):
                if isinstance(part, ast.FunctionDef) and part.name in inherited:
                    yield part.lineno, part.name
                elif isinstance(part, ast.Attribute) and ast.unparse(part.value) in ("self", "cls", "super()"):
                    own.add(id(part))
                    if part.attr in inherited:
                        yield part.lineno, part.attr
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in own and node.attr in PRIVATE:
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in LIBRARIES:
            names = (*node.module.split("."), *(alias.name for alias in node.names))
            yield from ((node.lineno, name) for name in names if name.startswith("_"))


def test_private_names_stand_in_one_file():
    found = [
        f"{file.relative_to(SOURCES)}:{line} {name}"
        for file in sorted(SOURCES.rglob("*.py"))
        if file.name != "_compat.py"
        for line, name in private_uses(ast.parse(file.read_text()))
    ]
    assert found == []


def test_what_the_search_for_private_names_finds():
    program = """
from huggingface_hub import _CACHED_NO_EXIST
class Mine(Trainer):
    def _save(self): return self._prepare_inputs
class Other:
    def _save(self): return self._save
print(config._attn_implementation)
"""
    assert sorted(name for _, name in private_uses(ast.parse(program))) == [
        "_CACHED_NO_EXIST",
        "_attn_implementation",
        "_prepare_inputs",
        "_save",
    ]
