"""Links of the pages on the site: those that leave docs/ lead to the page's place there, or to the repository."""

from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs")

from scripts import site_pages

PAGE = SimpleNamespace(
    file=SimpleNamespace(abs_src_path=str(site_pages.ROOT / "docs/how_to/train.md"), src_uri="how_to/train.md")
)
ON_THE_SITE = {
    "reference/words.md",
    "project/contributing.md",
    "background/benchmarks.md",
    "images/studies_results_sampler_study_plot.png",
}


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("[words](../reference/words.md#a)", "[words](../reference/words.md#a)"),
        ("[add](../../CONTRIBUTING.md#add-a-reward)", "[add](../project/contributing.md#add-a-reward)"),
        (
            "![plot](../../studies/results/sampler_study/plot.png)",
            "![plot](../images/studies_results_sampler_study_plot.png)",
        ),
        ("[`a.yaml`](../../examples/configs/tiny.yaml)", "[`a.yaml`](HOST/blob/main/examples/configs/tiny.yaml)"),
        ("[gone](../../gone.md)", "[gone](../../gone.md)"),
        ("[paper](https://arxiv.org/abs/1)", "[paper](https://arxiv.org/abs/1)"),
        ("```text\n[x](../../CONTRIBUTING.md)\n```", "```text\n[x](../../CONTRIBUTING.md)\n```"),
    ],
)
def test_where_links_lead(written, shown):
    files = SimpleNamespace(get_file_from_path=lambda path: path if path in ON_THE_SITE else None)
    config = SimpleNamespace(repo_url="HOST/")
    assert site_pages.on_page_markdown(written, page=PAGE, config=config, files=files) == shown


def test_without_a_repository_a_file_is_plain_words():
    files = SimpleNamespace(get_file_from_path=lambda path: None)
    written = "[`a.yaml`](../../examples/configs/tiny.yaml)"
    turned = site_pages.on_page_markdown(written, page=PAGE, config=SimpleNamespace(repo_url=None), files=files)
    assert turned == "`a.yaml`"
