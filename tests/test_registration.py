"""Every module can be the first one that is imported; without transformers before it, that is `test_import.py`."""

import pytest
from helpers.fresh import run_fresh

MODULES = [
    "configuration",
    "modeling",
    "processing",
    "policies.light",
    "compressors",
    "checkpoints.saving",
    "utils.files",
    "auto",
]


@pytest.mark.parametrize("module", MODULES)
def test_first_import(module, tmp_path):
    program = (
        f"import cacovid_hf.{module}\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText, AutoVideoProcessor\n"
        "from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as models\n"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING as configs\n"
        "from cacovid_hf import CaCoVidConfig, CaCoVidForConditionalGeneration\n"
        "assert configs['cacovid'] is CaCoVidConfig and models[CaCoVidConfig] is CaCoVidForConditionalGeneration\n"
    )
    run_fresh(program, tmp_path, with_transformers=True)
