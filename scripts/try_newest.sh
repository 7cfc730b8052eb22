#!/usr/bin/env bash
# The suite on the newest release of everything, the bound on transformers lifted; or on one version of transformers:
#   scripts/try_newest.sh [--transformers VERSION] [FOLDER] [-- PYTEST ARGUMENTS]
# FOLDER keeps the environment (default: a temporary one). Example: scripts/try_newest.sh --transformers 5.23 -- tests/test_ratio.py
set -euo pipefail
source "$(dirname "$0")/environment.sh"
read_arguments "$@"

# The wheel's metadata has the bound, so that it is built from a copy without one.
mkdir "$work/source"
cp -R "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/src" "$work/source"
sed -E 's/"(transformers(\[[a-z]+\])?>=[0-9.]+),<[0-9.]+"/"\1"/' "$root/pyproject.toml" > "$work/source/pyproject.toml"

make_environment "$work/source[test]" ${transformers:+"transformers==${transformers}.*"}
"$folder/bin/python" - "$transformers" <<'CHECK'
import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement

wanted_here = (r for r in map(Requirement, requires("cacovid-hf")) if r.marker is None or r.marker.evaluate({"extra": "test"}))
bounds = [r.specifier for r in wanted_here if r.name == "transformers"]
assert bounds and all(bound.contains("999") for bound in bounds), bounds
wanted = sys.argv[1]
assert not wanted or (version("transformers") + ".").startswith(wanted + "."), version("transformers")
CHECK
run_suite
