"""Two checkouts that take turns: what is compared, by hand, and one run of this checkout against itself."""

import json

import pytest
from helpers.provenance import check_provenance

from benchmarks.record import ROOT
from studies.before_after import compared, main, paired, times_of

PREFILL = {
    "vision_ms": {"samples": [7.0]},
    "variants": [
        {"name": "stock", "times_ms": {"prefill": {"samples": [4.0, 2.0]}, "decode_step": {"samples": [1.0]}}}
    ],
}
OPTIMISATIONS = {"cases": [{"name": "norm", "times_ms": {"after": {"samples": [3.0]}}}]}


def test_times_of_both_benchmarks():
    assert times_of(PREFILL) == {"stock: prefill": [4.0, 2.0], "stock: decode_step": [1.0], "vision": [7.0]}
    assert times_of(OPTIMISATIONS) == {"norm: after": [3.0]}


def test_least_and_median_of_what_both_have():
    (row,) = compared({"a": [2.0, 4.0, 9.0], "b": [1.0]}, {"a": [3.0, 2.0, 8.0], "c": [1.0]})
    assert row["name"] == "a"
    assert row["ratio"] == {"min": 1.0, "median": 0.75}


def test_calls_that_followed_each_other_are_compared():
    (row,) = paired({"a": [1.0, 10.0, 2.0]}, {"a": [2.0, 10.0, 3.0]})
    assert row["ratio"] == {"min": 2.0, "median": 1.5, "paired": 1.5}


@pytest.mark.slow
def test_a_checkout_against_itself(tmp_path):
    words = [
        "optimisations",
        "--arch",
        "tiny-llava-onevision",
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "--repeats",
        "2",
        "--only",
        "norm",
    ]
    path = main([str(ROOT), str(ROOT), "--rounds", "2", "--calls", "2", "--output", str(tmp_path), "--", *words])
    record = json.loads(path.read_text())
    check_provenance(record)
    calls, rows = record["results"].values()
    assert len(calls) == 12
    assert all(len(row["before"]["samples"]) == len(row["after"]["samples"]) == 2 for row in calls)
    assert record["commits"]["before"] == record["commits"]["after"] == record["commit"]
    assert {row["name"].split(": ")[-1] for row in rows} == {"before", "after"}
    assert all(len(row["before"]["samples"]) == len(row["after"]["samples"]) == 4 for row in rows)
