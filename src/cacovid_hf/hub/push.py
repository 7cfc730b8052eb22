"""Pushing a checkpoint: one commit with everything, and one more with the code for stock models, which names the first.

huggingface_hub does the talking. What is decided here: which files, that nobody's changes in between are lost (every commit names its parent, and
starts over if there is a new one), and that whatever dies half-way leaves the repository as it was, or with a whole commit more.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import ProcessorMixin
from transformers.utils import logging

from .._compat import TransportError
from ..configuration import CaCoVidConfig
from ..utils.files import replaced
from .card import CARD, PLOT, CardFacts, write_card
from .custom_generate import FOLDER, generated_files, stamp_of
from .source import PROCESSOR_FILES, WEIGHTS

Operations = Callable[[str], list[CommitOperationAdd | CommitOperationDelete]]
logger = logging.get_logger(__name__)

ATTEMPTS = 4
OURS = ("backbone", FOLDER)  # folders whose files belong to one save, and leave with it


@dataclass(frozen=True)
class PushOptions:
    """What a push may be told beside the repository; see `CaCoVidForConditionalGeneration.push_to_hub`.

    Attributes:
        processor: pushed along. None is a model whose processor was not found, which is warned about; false pushes none on purpose.
        card: what the card says beside the config.
        commit_message: `"Upload model"` if None.
        commit_description: of the commit.
        private: of a repository that is made now.
        token: None or true is the one that huggingface_hub knows.
        revision: branch, made if missing.
        create_pr: open a pull request instead.
        tags: more tags for the card.
    """

    processor: ProcessorMixin | bool | None = None
    card: CardFacts | None = None
    commit_message: str | None = None
    commit_description: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    revision: str | None = None
    create_pr: bool = False
    tags: Sequence[str] | None = None


# What `save_pretrained(push_to_hub=True)` takes for the push; its `card` is its own.
PUSH_ARGUMENTS = ("repo_id", *(part.name for part in fields(PushOptions) if part.name != "card"))


def on_hub(name: str | None) -> bool:
    """Whether a backbone's name can be a repository on the Hub, and is no folder here."""
    try:
        validate_repo_id(name or "")
    except HFValidationError:
        return False
    return not os.path.isdir(str(name))


def check_pushable(config: CaCoVidConfig, include_backbone: bool) -> None:
    """Raise a `ValueError` if nobody else could load what would be pushed."""
    base = config.base_model_name_or_path
    if not include_backbone and not on_hub(base):
        raise ValueError(
            f"The backbone {base!r} is not a repository on the Hub, so nobody could load a policy-only push: give base_model_name_or_path "
            "to from_backbone, or push with include_backbone=True."
        )


def push(
    model: Any, repo_id: str, options: PushOptions, *, include_backbone: bool = False, **saving: Any
) -> CommitInfo:
    """Save a model to a temporary folder and push it; see `CaCoVidForConditionalGeneration.push_to_hub`."""
    check_pushable(model.config, include_backbone)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo_id.rsplit("/", 1)[-1]
        model.save_pretrained(folder, include_backbone=include_backbone, card=False, **saving)
        return upload(folder, repo_id, options)


def upload(folder: Path, repo_id: str, options: PushOptions, before: Mapping[Path, int] | None = None) -> CommitInfo:
    """Push a saved checkpoint; the folder gets the processor and the card that the repository gets.

    What else lies in the folder stays here: of the files in `before` (see `modified`), only those that were written since are pushed. So does the
    name of a backbone that is a folder of this machine.
    """
    config = CaCoVidConfig.from_pretrained(folder)
    if config.base_model_name_or_path is not None and not on_hub(config.base_model_name_or_path):
        config.base_model_name_or_path = config.base_model_revision = None
        with replaced(folder / "config.json") as temporary:
            config.to_json_file(temporary)
    if isinstance(options.processor, ProcessorMixin):
        options.processor.save_pretrained(folder)
    elif options.processor is None:
        logger.warning("No processor was found for this model, so none is pushed: give processor=.")
    api = HfApi(token=options.token)
    card, revision, create_pr = options.card, options.revision, options.create_pr
    if not (create_pr and api.repo_exists(repo_id)):
        repo_id = api.create_repo(repo_id, private=options.private, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    facts = CardFacts(**{**vars(card or CardFacts()), "tags": [*(card.tags if card else ()), *(options.tags or ())]})
    card_files = [folder / CARD, folder / PLOT]
    branch = _Branch(api, repo_id, revision or "main")
    message = options.commit_message or "Upload model"

    def weights(head: str) -> list[CommitOperationAdd | CommitOperationDelete]:
        with_processor = any((folder / file).is_file() or branch.blob(file, head) for file in PROCESSOR_FILES)
        write_card(folder, config, repo_id, facts, branch.read(CARD, head), with_processor)
        there = modified(folder)
        new = [path for path in sorted(there) if there[path] != (before or {}).get(path) or path in card_files]
        files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in new}
        files = {name: path for name, path in files.items() if not name.startswith(f"{FOLDER}/")}  # stamped for here
        return branch.replacing(files, head, keep=FOLDER)

    commit = branch.commit(
        weights, commit_message=message, commit_description=options.commit_description, create_pr=create_pr
    )
    assert commit is not None  # there is always a config
    if create_pr:
        branch = _Branch(api, repo_id, str(commit.pr_revision))
    try:
        _push_code(branch, commit.oid, message)
    except HfHubHTTPError as error:
        if not create_pr:
            raise
        logger.warning(f"{commit.pr_url} is open, but {FOLDER} could not be added to it ({error}).")
    return commit


def modified(folder: Path) -> dict[Path, int]:
    """When each file of a folder, which may not exist, was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _push_code(branch: "_Branch", oid: str, message: str) -> None:
    """Push the code for stock models, stamped with the commit that holds its policy, unless it is there already."""
    policy = branch.blob(WEIGHTS, oid), branch.blob("config.json", oid)

    def code(head: str) -> list[CommitOperationAdd | CommitOperationDelete]:
        if (branch.blob(WEIGHTS, head), branch.blob("config.json", head)) != policy:
            logger.warning(f"Another push to {branch.repo_id} replaced this one; {FOLDER} is left to it.")
            return []
        there = branch.read(f"{FOLDER}/generate.py", head)
        repository, stamp = stamp_of(there) if there else (None, None)
        # Code that names an earlier commit of the same policy is as good, and pushing twice changes nothing.
        same = (
            repository == branch.repo_id
            and stamp
            and (branch.blob(WEIGHTS, stamp), branch.blob("config.json", stamp)) == policy
        )
        files = generated_files(branch.repo_id, stamp if same else oid)
        return branch.replacing(
            {f"{FOLDER}/{name}": text.encode() for name, text in files.items()}, head, within=FOLDER
        )

    branch.commit(code, commit_message=f"{message}: code for stock models")


class _Branch:
    """A branch of a repository: reading it at a commit, and committing to it without losing what others commit."""

    def __init__(self, api: HfApi, repo_id: str, name: str):
        self.api, self.repo_id, self.name = api, repo_id, name

    def head(self) -> str:
        """Return the commit that the branch is at."""
        return str(self.api.model_info(self.repo_id, revision=self.name).sha)

    def blob(self, path: str, commit: str) -> str | None:
        """Hash of a file's content; None if there is no such file, or no such commit."""
        try:
            files = self.api.get_paths_info(self.repo_id, [path], revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code == 404:
                return None
            raise
        return getattr(files[0], "blob_id", None) if files else None

    def read(self, path: str, commit: str) -> str | None:
        """Text of a file; None if there is none."""
        try:
            local = hf_hub_download(
                self.repo_id, path, revision=commit, token=self.api.token, endpoint=self.api.endpoint
            )
        except EntryNotFoundError:
            return None
        try:
            return Path(local).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} of {self.repo_id} is not UTF-8: save it as UTF-8, or remove it.") from error

    def replacing(
        self, files: dict[str, Path | bytes], head: str, within: str | None = None, keep: str | None = None
    ) -> list[CommitOperationAdd | CommitOperationDelete]:
        """Operations that put `files`, and remove what an earlier push left in our folders."""
        there = self.api.list_repo_files(self.repo_id, revision=head)
        folders = [within] if within else [folder for folder in OURS if folder != keep]
        stale = [path for path in there if path.split("/", 1)[0] in folders and "/" in path and path not in files]
        return [
            *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()),
            *(CommitOperationDelete(path_in_repo=path) for path in stale),
        ]

    def commit(self, operations_at: Operations, **how: Any) -> CommitInfo | None:
        """Commit what `operations_at(head)` returns on top of `head`, again if somebody else was faster or the connection died.

        A commit whose answer was lost is found again: its files are there, and nothing is left to commit. Not so for a pull request, which is
        therefore never asked for twice.
        """
        for attempt in range(1, ATTEMPTS + 1):
            head = self.head()
            operations = operations_at(head)
            if not operations:
                return None
            try:
                return self.api.create_commit(
                    self.repo_id,
                    operations,
                    revision=None if how.get("create_pr") and self.name == "main" else self.name,
                    parent_commit=head,
                    **how,
                )
            except (HfHubHTTPError, TransportError, RuntimeError) as error:
                status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
                if attempt == ATTEMPTS or how.get("create_pr") or not (status in (None, 409, 412) or status >= 500):
                    raise
                logger.warning(f"Committing to {self.repo_id} failed ({error}); trying again.")
        raise AssertionError("not reached")
