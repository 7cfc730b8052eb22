"""The study of streams in small."""

from argparse import Namespace

import pytest
from transformers import AutoProcessor

from cacovid_hf import CaCoVidForConditionalGeneration
from cacovid_hf.tiny import model_path
from studies.stream_study import METHODS, UNBOUNDED, accuracy, fitting, measured, times


def test_methods_of_the_study():
    assert fitting(76_800, 180) == 1
    assert fitting(307_200, 180) == 6
    assert accuracy([(1, True), (2, False)]) == {"accuracy": 0.5, "standard_error": 0.3536, "questions": 2}
    assert {"sliding window", "uniform", "marc", "streamingtom", "ours"} <= set(METHODS)


@pytest.mark.parametrize("name", ["sliding window", "streamingtom", "ours", "everything"])
def test_a_cell(name):
    model = CaCoVidForConditionalGeneration.from_pretrained(model_path())
    options = Namespace(num_streams=1, num_frames=30, num_questions=4)
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
    options = Namespace(num_streams=1, num_frames=30, num_questions=2)
    found = times(model, AutoProcessor.from_pretrained(model_path()), options)["times"]
    assert set(found) == set(METHODS)
    assert all(row["feed_cpu_ms"] > 0 and row["ask_cpu_ms"] > 0 for row in found.values())
