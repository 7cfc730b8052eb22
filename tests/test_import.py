"""Importing costs nothing and changes nothing."""

import json
import subprocess
import sys

import pytest
from helpers.fresh import run_fresh


def test_import_is_quick_and_loads_nothing(tmp_path):
    program = """
import time, sys, json
import torch, transformers
before, start = set(sys.modules), time.process_time()
import cacovid_hf
seconds, loaded = time.process_time() - start, set(sys.modules) - before
print(json.dumps([seconds, [name for name in loaded if not name.startswith("cacovid_hf")]]))
"""
    seconds, loaded = min(json.loads(run_fresh(program, tmp_path).stdout) for _ in range(2))
    assert seconds < 0.3
    assert not [name for name in loaded if name.startswith(("transformers.", "torch", "av", "matplotlib"))]


def test_import_is_quick_where_the_auto_classes_are_there(tmp_path):
    program = """
import time, json
from transformers import AutoModelForImageTextToText, AutoProcessor
start = time.process_time()
import cacovid_hf
seconds = time.process_time() - start
from transformers import LlavaOnevisionForConditionalGeneration
config = cacovid_hf.CaCoVidConfig()
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as models
print(json.dumps([seconds, models[type(config)].__name__]))
"""
    runs = [json.loads(run_fresh(program, tmp_path).stdout) for _ in range(2)]
    assert min(seconds for seconds, _ in runs) < 0.3
    assert runs[0][1] == "CaCoVidForConditionalGeneration"


def test_the_command_line_and_the_package_import_no_torch():
    program = "import sys; import cacovid_hf, cacovid_hf.cli.main; print(sorted({'torch', 'transformers', 'av', 'matplotlib'} & set(sys.modules)))"
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
assert not [f for f in sys.meta_path if type(f).__module__.startswith("cacovid_hf")], "the finder has gone"
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
