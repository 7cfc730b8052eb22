"""Importing loads nothing optional, registers the classes and changes nothing."""

import subprocess
import sys

import pytest
from helpers.fresh import run_fresh


def test_importing_the_package_loads_no_optional_package(tmp_path):
    """PyAV is not on every machine that runs a model, and the rest are extras."""
    program = """
import sys
import cacovid_hf
print(sorted({"av", "matplotlib", "datasets", "peft", "typer", "fastapi", "pandas", "scipy"} & set(sys.modules)))
"""
    assert run_fresh(program, tmp_path).stdout.strip() == "[]"


def test_the_command_line_imports_no_torch():
    program = "import sys; import cacovid_cli.main; print(sorted({'torch', 'transformers', 'cacovid_hf', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SNAPSHOT = """
import inspect
def snapshot():
    import transformers
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoVideoProcessor, GenerationMixin, PreTrainedModel
    from transformers import LlavaOnevisionForConditionalGeneration as L, Qwen2_5_VLForConditionalGeneration as Q
    from transformers import LlavaOnevisionProcessor, Qwen2_5_VLProcessor
    import transformers.models.llava_onevision.modeling_llava_onevision as ml, transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as mq
    import transformers.video_utils, transformers.video_processing_utils, transformers.processing_utils, transformers.generation.utils
    things = [AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoVideoProcessor, GenerationMixin, PreTrainedModel, L, Q, ml, mq,
        LlavaOnevisionProcessor, Qwen2_5_VLProcessor, transformers.video_utils, transformers.video_processing_utils,
        transformers.processing_utils, transformers.generation.utils]
    return {(str(t), k): id(v) for t in things for k, v in vars(t).items()}
"""


@pytest.mark.parametrize("late", [False, True])
def test_nothing_is_patched(late, tmp_path):
    """The same attributes on the same objects, whether this package is imported before the Auto classes or after."""
    program = SNAPSHOT + (
        """
before = snapshot()
import cacovid_hf
from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration, with_video_reader
after = snapshot()
print({k for k in before.keys() | after.keys() if before.get(k) != after.get(k)})
"""
        if late
        else """
import sys
import cacovid_hf
from transformers import AutoModelForImageTextToText, AutoVideoProcessor, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as models
from transformers.models.auto.configuration_auto import CONFIG_MAPPING as configs
assert configs["cacovid"] is cacovid_hf.CaCoVidConfig
assert models[cacovid_hf.CaCoVidConfig] is cacovid_hf.CaCoVidForConditionalGeneration
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
assert models[LlavaOnevisionConfig] is LlavaOnevisionForConditionalGeneration
print(set())
"""
    )
    assert run_fresh(program, tmp_path).stdout.strip() == "set()"


def test_public_names():
    import cacovid_hf

    for name in cacovid_hf.__all__:
        assert getattr(cacovid_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cacovid_hf.nothing  # noqa: B018
