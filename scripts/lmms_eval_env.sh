#!/usr/bin/env bash
# An environment of its own for lmms-eval, whose pins (av<16 among them) are not this package's:
#   scripts/lmms_eval_env.sh FOLDER [PYTHON]
# Then: FOLDER/bin/lmms-eval --model cacovid --model_args pretrained=...,retention_ratio=0.25 --tasks ...
set -euo pipefail
folder=${1:?"usage: scripts/lmms_eval_env.sh FOLDER [PYTHON]"}
python=${2:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
"$python" -m venv "$folder"
# One call, so that both sets of bounds hold.
"$folder/bin/pip" install --quiet "lmms-eval==0.7.3" "$root"
"$folder/bin/python" - <<'CHECK'
from importlib.metadata import version

from lmms_eval.models import get_model

print(f"lmms-eval {version('lmms-eval')}, cacovid-hf {version('cacovid-hf')}, av {version('av')}: --model cacovid is {get_model('cacovid').__name__}")
CHECK
