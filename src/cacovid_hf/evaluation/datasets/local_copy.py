"""Files of a benchmark's local copy, found where people put them: in other folders, with other suffixes, in other capitals."""

import fnmatch
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".flv",
    ".wmv",
    ".mpg",
    ".mpeg",
    ".ts",
    ".ogv",
    ".3gp",
    ".gif",
)
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.[^.]*)?")


class LocalCopy:
    """A folder that is searched as a whole only for what does not lie where it is published.

    Hidden files and folders, and what macOS puts into archives, are not looked at.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def tables(self, *patterns: str) -> list[Path]:
        """Return the files of one folder that fit the first pattern that any fits, sorted; in any capitals, if none fits as it is written.

        Args:
            patterns: as in `Path.glob`, with `**/` at the beginning only.

        Raises:
            ValueError: none fits any pattern, or of the parts of a table one is missing.
        """
        for pattern in patterns:
            found = [path for path in self.root.glob(pattern) if path.is_file() and not self._is_hidden(path)]
            if found:
                return _complete(_of_one_folder(found))
        files = [Path(*parents, name) for parents, _, names in self._folders for name in names]
        for pattern in patterns:
            lowered = pattern.lower()
            wanted = [lowered, lowered.removeprefix("**/")]
            if found := [self.root / file for file in files if any(_fits(file, one) for one in wanted)]:
                return _complete(_of_one_folder(found))
        raise ValueError(
            f"nothing in {self.root} is named {' or '.join(patterns)}: give the folder of a complete local copy."
        )

    def video(self, name: str, folders: Sequence[str], anywhere: bool = True) -> Path:
        """Return the file of a video, or its folder of pictures.

        Looked for, in this order: the name in `folders`; its stem with any suffix of a video in `folders`; then in the whole copy, in folders whose path has the
        parts of one of `folders` in order, at most one folder deeper; last, if `anywhere`, in every folder, where it must be the only one.
        Names are compared without capitals only if none fits with them.

        Args:
            name: with or without a suffix, maybe with folders before it; it never leads out of the copy.
            folders: from the root, the most likely first.
            anywhere: whether names are unique in the whole benchmark.

        Returns:
            Its path; where it should be, if it is not there.
        """
        given = PurePosixPath(name.strip().replace("\\", "/"))
        if given.is_absolute() or ".." in given.parts or not given.name:
            given = PurePosixPath(given.name or "unnamed")
        suffixed = given.suffix.lower() in VIDEO_SUFFIXES
        stem = given.with_suffix("") if suffixed else given
        others = [f"{stem}{suffix}" for suffix in VIDEO_SUFFIXES]
        for names in ([str(given)], [*others, str(stem)]) if suffixed else ([*others, str(given)],):
            for folder in folders:
                for one in names:
                    if os.path.exists(path := self.root / folder / one):
                        return path
        return self._searched(given, stem, folders, anywhere) or self.root / folders[0] / (
            given if suffixed else others[0]
        )

    def file(self, name: str, *folders: str) -> Path | None:
        """Return a file by its name: in `folders`, or the only one in the whole copy; None if there is none."""
        leaf = PurePosixPath(name.replace("\\", "/")).name
        for folder in folders:
            if leaf and os.path.isfile(path := self.root / folder / leaf):
                return path
        found = self._by_name.get(_folded(leaf), [])
        return self.root / found[0] if len(found) == 1 else None

    def _searched(
        self, given: PurePosixPath, stem: PurePosixPath, folders: Sequence[str], anywhere: bool
    ) -> Path | None:
        named = [path for path in self._by_name.get(_folded(given.name), []) if _is_video(path.name)]
        of_stem = [*self._by_stem.get(_folded(stem.name), []), *self._directories.get(_folded(stem.name), [])]
        tiers = (
            [path for path in named if path.name == given.name],
            [path for path in of_stem if _stem(path) == stem.name],
            named,
            of_stem,
        )
        found = next(filter(None, tiers), [])
        for folder in folders:
            parts = [_folded(part) for part in PurePosixPath(folder).parts]
            if parts and (near := [path for path in found if _lies_in(path, parts)]):
                return self.root / min(
                    near,
                    key=lambda path: (not path.is_relative_to(given.parent), len(path.parts), _rank(path), str(path)),
                )
        if not anywhere or len({path.with_suffix("") for path in found}) != 1:
            return None
        return self.root / min(found, key=_rank)

    @cached_property
    def _folders(self) -> list[tuple[tuple[str, ...], list[str], list[str]]]:
        return list(_walk(self.root))

    @cached_property
    def _by_name(self) -> dict[str, list[PurePosixPath]]:
        return self._indexed(lambda name: name, files=True)

    @cached_property
    def _by_stem(self) -> dict[str, list[PurePosixPath]]:
        return self._indexed(lambda name: os.path.splitext(name)[0] if _is_video(name) else "", files=True)

    @cached_property
    def _directories(self) -> dict[str, list[PurePosixPath]]:
        return self._indexed(lambda name: name, files=False)

    def _indexed(self, key, *, files: bool) -> dict[str, list[PurePosixPath]]:
        index: dict[str, list[PurePosixPath]] = defaultdict(list)
        for parents, folders, names in self._folders:
            for name in names if files else folders:
                if folded := _folded(key(name)):
                    index[folded].append(PurePosixPath(*parents, name))
        return index

    def _is_hidden(self, path: Path) -> bool:
        return any(map(_hides, path.relative_to(self.root).parts))


def _walk(root: Path) -> Iterator[tuple[tuple[str, ...], list[str], list[str]]]:
    """Parts of each folder's path below the root, and its folders and files; links to folders are followed, each folder once."""
    seen = set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(folder for folder in folders if not _hides(folder))
        parents = Path(place).relative_to(root).parts
        yield parents, list(folders), sorted(file for file in files if not _hides(file))


def _hides(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _stem(path: PurePosixPath) -> str:
    return path.stem if _is_video(path.name) else path.name


def _rank(path: PurePosixPath) -> int:
    return VIDEO_SUFFIXES.index(path.suffix.lower()) if _is_video(path.name) else len(VIDEO_SUFFIXES)


def _lies_in(path: PurePosixPath, parts: list[str]) -> bool:
    """Whether the folders of a path have these parts in order, the last of them its own or that above."""
    parents = [_folded(part) for part in path.parent.parts]
    if parts[-1] not in parents[-2:]:
        return False
    remaining = iter(parents)
    return all(part in remaining for part in parts)


def _fits(file: Path, pattern: str) -> bool:
    """Whether a path fits a pattern; `**/` stands for any folders."""
    deep, pattern = pattern.startswith("**/"), pattern.removeprefix("**/")
    wanted, parts = pattern.split("/"), file.as_posix().lower().split("/")
    if len(parts) < len(wanted) or (not deep and len(parts) > len(wanted)):
        return False
    return all(fnmatch.fnmatchcase(part, one) for part, one in zip(parts[-len(wanted) :], wanted, strict=True))


def _of_one_folder(files: list[Path]) -> list[Path]:
    """Return the files in the folder that is least deep: another one holds another copy."""
    folder = min((file.parent for file in files), key=lambda folder: (len(folder.parts), folder))
    return sorted(file for file in files if file.parent == folder)


def _complete(files: list[Path]) -> list[Path]:
    """Return the files, of which tables in parts (`test-00000-of-00002`) have all their parts.

    Raises:
        ValueError: a part is missing.
    """
    names = {file.name.lower() for file in files}
    for file in files:
        if not (match := _SHARD.fullmatch(file.name)):
            continue
        beginning, number, count, end = match[1], match[2], int(match[3]), match[4] or ""
        for part in range(count):
            name = f"{beginning}-{part:0{len(number)}}-of-{match[3]}{end}"
            if name.lower() not in names:
                raise ValueError(f"{file.with_name(name)} is missing, one of {count} parts: copy or download it.")
    return files
