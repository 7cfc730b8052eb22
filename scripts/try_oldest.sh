#!/usr/bin/env bash
# The suite on the oldest supported versions, those of tests/oldest-versions.txt:
#   scripts/try_oldest.sh [FOLDER] [-- PYTEST ARGUMENTS]
# FOLDER keeps the environment (default: a temporary one). PYTHON is the interpreter: 3.10 to 3.12, for which those versions have wheels.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
read_arguments "$@"
[ -z "$transformers" ] || { echo "--transformers belongs to try_newest.sh; change tests/oldest-versions.txt instead" >&2; exit 2; }

pins=$root/tests/oldest-versions.txt
make_environment --constraint "$pins" "$root[test]"
"$folder/bin/python" - "$pins" <<'CHECK'
import sys
from importlib.metadata import version
from pathlib import Path

pins = dict(line.split("==") for line in Path(sys.argv[1]).read_text().splitlines() if "==" in line)
others = {name: found for name, pin in pins.items() if (found := version(name).split("+")[0]) != pin}
assert not others, f"not as pinned: {others}"
CHECK
run_suite
