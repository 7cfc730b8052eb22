"""The entry point by which lmms-eval finds `--model cacovid`; its group is `lmms_eval.models`.

The classes are elsewhere, since they can only be imported where lmms-eval is installed.
"""

from typing import Any


def manifest() -> Any:
    """Return what lmms-eval's registry takes: the model's name, and a class for each of its two interfaces."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = "cacovid_hf.evaluation.lmms_eval_models"
    return ModelManifest(
        model_id="cacovid", simple_class_path=f"{module}.CaCoVidSimple", chat_class_path=f"{module}.CaCoVidChat"
    )
