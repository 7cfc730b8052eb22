# Sourced by try_newest.sh and try_oldest.sh: an environment in a folder, and the suite in it.
# Where packages come from is the user's pip configuration.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=""
transformers=""
pytest_arguments=()

# Reads [--transformers VERSION] [FOLDER] [-- PYTEST ARGUMENTS]; without a folder, the environment is temporary.
read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --transformers) transformers=${2:?"--transformers needs a version, such as 5.23"}; shift 2 ;;
            --) shift; pytest_arguments=("$@"); break ;;
            -*) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
            *) folder=$1; shift ;;
        esac
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    folder=${folder:-$work/environment}
}

# Makes the environment: what pip installs is given.
make_environment() {
    "${PYTHON:-python3}" -m venv --clear "$folder"
    env -u PYTHONPATH "$folder/bin/python" -m pip install --quiet "$@"
    echo "versions: $("$folder/bin/python" -m pip freeze | grep -E '^(torch|transformers|huggingface_hub|numpy|av|accelerate|peft)==' | tr '\n' ' ')"
}

# Runs the suite on the package as it is installed; lists what failed before pytest's closing line, and has pytest's status.
run_suite() {
    cd "$root"
    env -u PYTHONPATH "$folder/bin/python" -m pytest -n "${WORKERS:-2}" -rf --tb=short -p no:cacheprovider "${pytest_arguments[@]}"
}
