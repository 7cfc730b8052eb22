"""Push this Space, with the package beside its app, so that it needs no release of it.

python examples/space/push.py you/which-tokens

Log in with `hf auth login` first. Pushed again, it is brought up to date in one commit.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

SPACE = Path(__file__).resolve().parent
SOURCES = SPACE.parents[1] / "src"
PACKAGES = ("cacovid_cli", "cacovid_hf")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def collect(folder: Path) -> None:
    """Fill a folder with what the Space holds."""
    for name in ("README.md", "app.py", "requirements.txt"):
        shutil.copy(SPACE / name, folder)
    for package in PACKAGES:
        shutil.copytree(SOURCES / package, folder / package, ignore=IGNORED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repo_id", help="you/name of the Space, made if it is new")
    parser.add_argument("--private", action="store_true", help="make a new Space private")
    options = parser.parse_args()
    api = HfApi()
    repo_id = api.create_repo(
        options.repo_id, repo_type="space", space_sdk="gradio", private=options.private, exist_ok=True
    ).repo_id
    with tempfile.TemporaryDirectory() as folder:
        collect(Path(folder))
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="space",
            folder_path=folder,
            commit_message="Upload the page",
            delete_patterns=[f"{package}/**" for package in PACKAGES],
        )
    print(f"pushed: {repo_id}, commit {commit.oid[:12]}")


if __name__ == "__main__":
    main()
