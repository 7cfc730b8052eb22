"""What the site of the documentation needs beside docs/: pages that stand elsewhere, and links that lead there.

MkDocs runs these functions (`hooks` in mkdocs.yml). Links are written for readers of the repository, so they may leave docs/. A link to
another page or picture leads to its place on the site. A link to any other file leads to the repository, if `repo_url` is set, and is
plain words if not.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Pages outside docs/, by their place in the repository, with their place on the site.
PAGES = {
    "README.md": "project/readme.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "background/benchmarks.md",
    "studies/LOG.md": "background/studies.md",
    "studies/budget_rules.md": "background/budget_rules.md",
}
PICTURES = (".png", ".svg")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
BLOCK = re.compile(r"^```.*?^```", re.S | re.M)


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that stand outside docs/, and the pictures that pages show from there."""
    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for path in (file.abs_src_path for file in files.documentation_pages()):
        origin = Path(path).relative_to(ROOT).as_posix()
        for match in LINK.finditer(Path(path).read_text(encoding="utf-8")):
            target = in_repository(origin, match[3])
            place = place_of(target)
            if match[1] and place and not files.get_file_from_path(place):
                files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page, written for the repository, into those of the site."""
    origin = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match) -> str:
        mark, words, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = in_repository(origin, target)
        place = place_of(path)
        if place and files.get_file_from_path(place):
            return f"{mark}[{words}]({posixpath.relpath(place, here or '.')}{anchor})"
        if not (ROOT / path).exists():
            return match[0]  # MkDocs says that it leads nowhere
        return f"[{words}]({config.repo_url.rstrip('/')}/blob/main/{path}{anchor})" if config.repo_url else words

    # Between blocks of code, which are left as they are.
    pieces, end = [], 0
    for block in BLOCK.finditer(markdown):
        pieces += [LINK.sub(turned, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join(pieces) + LINK.sub(turned, markdown[end:])


def in_repository(origin: str, target: str) -> str:
    """Return the path in the repository that a link in the file `origin` leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def place_of(path: str) -> str | None:
    """Return the place on the site of a path in the repository; None for files that are not on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith(PICTURES):
        return f"images/{path.replace('/', '_')}"
    return PAGES.get(path)
