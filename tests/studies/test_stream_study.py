"""The study of streams in small."""

from argparse import Namespace
from pathlib import Path

import pytest
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import model_path
from studies import stream_table
from studies.stream_study import METHODS, UNBOUNDED, accuracy, fitting, measured, times


def test_methods_of_the_study():
    assert fitting(76_800, 180) == 1
    assert fitting(307_200, 180) == 6
    assert accuracy([(1, True), (2, False)]) == {"accuracy": 0.5, "standard_error": 0.3536, "questions": 2}
    assert {"sliding window", "uniform", "marc", "streamingtom", "ours"} <= set(METHODS)


@pytest.mark.parametrize("name", ["sliding window", "streamingtom", "ours", "everything"])
def test_a_cell(name):
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    options = Namespace(num_streams=1, first_stream=3, num_frames=30, num_questions=4)
    method = (METHODS | UNBOUNDED)[name]
    cell = measured(
        model, AutoProcessor.from_pretrained(model_path()), method, 50_000 if name in METHODS else 2**30, options
    )
    assert cell["accuracy"]["questions"] == len(cell["rows"]) == 4
    assert cell["memory_bytes"] <= cell["max_memory"]
    assert sum(part["questions"] for part in cell["by_age"].values()) == 4


@pytest.mark.slow
def test_times():
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    options = Namespace(num_streams=1, first_stream=0, num_frames=30, num_questions=2)
    found = times(model, AutoProcessor.from_pretrained(model_path()), options)["times"]
    assert set(found) == set(METHODS)
    assert all(row["feed_cpu_ms"] > 0 and row["ask_cpu_ms"] > 0 for row in found.values())


def test_further_streams_are_pooled():
    alone = stream_table.cells()["ours/76800"]
    one = stream_table.pooled("ours", 76_800)
    assert len(one.streams) == 60 > alone["num_streams"]
    mean, error = one.accuracy()
    rows = [row for stream in one.streams for row in stream]
    assert mean == pytest.approx(sum(right for _, right in rows) / len(rows))
    assert 0 < error < 0.02
    assert rows[: len(alone["rows"])] == [tuple(row) for row in alone["rows"]]
    assert stream_table.pooled("none", 76_800) is None


def test_the_page_has_the_figures_of_the_cells():
    page = (Path(__file__).parents[2] / "docs" / "how_to" / "streams.md").read_text(encoding="utf-8").splitlines()
    rows = [*stream_table.lines(), *stream_table.lines_by_age(), *stream_table.lines_of_parts()]
    assert len(rows) >= 20
    assert set(rows) <= set(page)
    assert any(stream_table.lead() in line for line in page)
