#!/usr/bin/env python3
"""How long the sentences of the README and of the pages are, as a table.

    python scripts/measure_prose.py [--root FOLDER] [--longest N]

Code blocks, headings and pictures are left out, and code within a line is one word. Each list item and each table cell is
a text of its own. Cells of fewer than eight words, such as names and figures, are not sentences and are not counted.
`--root` measures another checkout. `--longest` prints the longest sentences, to be mended first.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG = 35  # words from which on a sentence is too long, exclusive
WORDS_PER_SENTENCE = 17.0
LONG_SHARE = 0.03
CELL_WORDS = 8
NOT_AN_END = re.compile(r"\b(?:e\.g|i\.e|vs|cf|etc|et al|Fig|No)\.$")


@dataclass(frozen=True)
class Page:
    """What was counted on a page: its sentences as lists of words, and its semicolons outside code."""

    name: str
    sentences: tuple[tuple[str, ...], ...]
    semicolons: int

    @property
    def words_per_sentence(self) -> float:
        """Mean number of words of a sentence. A page without sentences has 0."""
        return sum(map(len, self.sentences)) / max(1, len(self.sentences))

    @property
    def long_share(self) -> float:
        """Share of sentences with more than 35 words, in [0, 1]."""
        return sum(len(words) > LONG for words in self.sentences) / max(1, len(self.sentences))


def user_pages(root: Path) -> list[Path]:
    """Return the README and all pages of the documentation, which the limits hold for."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]


def plain(text: str) -> str:
    """Return a page's text without code blocks, comments, pictures and marks; code within a line is the word `code`."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.S | re.M)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"(`+).+?\1", "code", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}", "", text)


def blocks(text: str) -> list[str]:
    """Return paragraphs, list items and longer table cells, each as one line."""
    found: list[str] = []
    inside = False  # a paragraph or item that the next line may go on
    for line in plain(text).splitlines():
        line = line.strip().removeprefix(">").strip()
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found += [cell for cell in cells if len(words(cell)) >= CELL_WORDS]
            inside = False
        elif not line or line.startswith(("#", "---", "???", "!!!", ":::")):
            inside = False
        elif inside and not re.match(r"[-*+] |\d+\. ", line):
            found[-1] += " " + line
        else:
            found.append(re.sub(r"^([-*+]|\d+\.) ", "", line))
            inside = True
    return found


def words(sentence: str) -> tuple[str, ...]:
    """Return what stands between spaces and holds a letter or a digit."""
    return tuple(word for word in sentence.split() if re.search(r"\w", word))


def sentences(block: str) -> list[str]:
    """Split a block where a stop is followed by a capital, a digit or an opening mark."""
    parts: list[str] = []
    for part in re.split(r"(?<=[.!?])[\"')]*\s+(?=[\"'(\[]*(?:[A-Z0-9]|code\b))", block):
        if parts and NOT_AN_END.search(parts[-1]):
            parts[-1] += " " + part
        else:
            parts.append(part)
    return parts


def measure(path: Path, root: Path = ROOT) -> Page:
    """Count the sentences and semicolons of one page."""
    text = path.read_text(encoding="utf-8")
    found = [words(sentence) for block in blocks(text) for sentence in sentences(block)]
    return Page(path.relative_to(root).as_posix(), tuple(filter(None, found)), plain(text).count(";"))


def together(name: str, pages: list[Page]) -> Page:
    """Return several pages as one."""
    return Page(
        name, tuple(sentence for page in pages for sentence in page.sentences), sum(p.semicolons for p in pages)
    )


def main() -> None:
    """Print the table, then the longest sentences if asked."""
    parser = argparse.ArgumentParser(description="Measure the sentences of the README and the pages.")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument(
        "--longest", type=int, default=0, metavar="N", help="print the N longest sentences of each page"
    )
    options = parser.parse_args()
    pages = [measure(path, options.root) for path in user_pages(options.root)]
    print("| page | sentences | words per sentence | over 35 words | semicolons |\n|---|---|---|---|---|")
    for page in [*pages, together("all", pages)]:
        counts = f"{len(page.sentences)} | {page.words_per_sentence:.1f} | {page.long_share:.1%} | {page.semicolons}"
        print(f"| {page.name} | {counts} |")
    for page in pages if options.longest else ():
        for sentence in sorted(page.sentences, key=len, reverse=True)[: options.longest]:
            print(f"{page.name}: {len(sentence)}: {' '.join(sentence)}")


if __name__ == "__main__":
    main()
