"""docs/reference/backbones.md and the README name the families that there are, and what the page says each has is what its tiny model does."""

import re
from pathlib import Path

import pytest
from helpers.models import BY_NAME, FAMILIES, ONE_VIDEO, prompt_inputs, refused_methods, wrapped
from helpers.processors import tiny_processor

from cacovid_hf import with_video_reader
from cacovid_hf.backbones import BACKBONES
from cacovid_hf.video.messages import ONE_SIZE
from cacovid_hf.video_processing import OwnSamplingMixin
from cacovid_hf.vllm.config import ServedConfig

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "reference" / "backbones.md").read_text(encoding="utf-8")
WORKS = {True: "yes", False: "refused"}


def rows_of(heading):
    """Cells of the table's rows below a heading, without its head."""
    lines = PAGE.split(heading)[1].split("\n## ")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| `(?!model_type)", line)
    ]


def works(call):
    """Whether it is not refused with a `ValueError`."""
    try:
        call()
    except ValueError:
        return False
    return True


def found(family):
    """The row of a family: what its tiny model and its processor do."""
    stock, model = wrapped(family)
    inputs = prompt_inputs(stock, ONE_VIDEO)
    how = dict(retention_ratio=0.9, max_new_tokens=1)
    methods = {
        name: works(lambda name=name: model.generate(**inputs, **how, compressor=name))
        for name in ("fastv", "framefusion", "attention")
    }
    assert tuple(name for name in methods if not methods[name]) == refused_methods(family)
    compressed = model.compress(**inputs, retention_ratio=0.5)
    reader = with_video_reader(tiny_processor(family)).video_processor
    pixels = "of a frame" if reader.bounds_refused is None else "refused"
    (span,) = model.family.layout(model.backbone.config, inputs["input_ids"], inputs["attention_mask"], inputs).videos
    ids = inputs["input_ids"][0]
    differ = {tuple(ids[span.word_places[span.word_frames == t]].tolist()) for t in range(1, span.num_frames)}
    numbers = "numbers" if len(differ) > 1 else "marks alone"
    words = "times" if model.family.words_have_times else numbers
    return [
        f"`{family}`",
        "masking, cutting" if BY_NAME[family].attends else "cutting",
        WORKS[methods["fastv"] and methods["framefusion"]],
        "any layer" if BY_NAME[family].attends else "a layer that attends",
        WORKS[works(compressed.model_inputs)],
        WORKS[works(lambda: model.session(**inputs, retention_ratio=0.5, keep_selection=True))],
        words if model.family.words_around_frames else "none",
        "the family's rule" if isinstance(reader, OwnSamplingMixin) else "at most 32",
        "one size" if reader.bounds_refused == ONE_SIZE else pixels,
        WORKS[works(lambda: model.stream(tiny_processor(family)))],
        WORKS[
            works(lambda: ServedConfig.from_dict(model.config.to_dict()))
        ],  # what vLLM reads of a checkpoint, first of all
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_page_says_of_a_family(family):
    row = found(family)
    assert row in rows_of("## What each family has"), f"| {' | '.join(row)} |"


def test_the_page_and_the_readme_name_every_family():
    named = [re.findall(r"`(\w+)`", row[0]) for row in rows_of("# Backbones")]
    assert sorted(name for row in named for name in row) == sorted(BACKBONES) == sorted(FAMILIES)
    assert [row[0].strip("`") for row in rows_of("## What each family has")] == list(FAMILIES)


def test_the_readmes_table_is_that_of_the_page_with_like_families_in_one_row():
    """Families of one row of the first table, which have a name for users, and columns as in the second table."""
    titles = {}
    for names, title, *_ in rows_of("# Backbones"):
        titles |= dict.fromkeys(re.findall(r"`(\w+)`", names), re.split(r", wh|, with ", title)[0])
    alike = {}
    for family, reference, inside, *_, kept, words, frames, _, stream, vllm in rows_of("## What each family has"):
        shown = alike.setdefault((reference, inside, kept, words, frames, stream, vllm), [])
        if (title := titles[family.strip("`")]) not in shown:
            shown.append(title)
    assert sum(map(len, alike.values())) == len(set(titles.values())), "models of one title have the same"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, *shown = re.findall(r"^\| (.*) \|$", readme.split("## Families")[1].split("\n## ")[0], re.M)
    page = re.search(r"^\| `model_type` \| (reference .*) \|$", PAGE, re.M)[1].split(" | ")
    columns = [page[place].replace("`VideoStream`", "streams") for place in (1, 4, 5, 6, 8, 9)]
    assert head.split(" | ")[2:] == columns
    assert shown == [" | ".join([", ".join(titles), *cells]) for cells, titles in alike.items()]
