"""Logs of a run: damaged ones, and what is no run."""

import functools
import json
import random
import shutil

import pytest
from helpers.sweeps import BASE, answers

from cacovid_hf.evaluation import sweep
from cacovid_hf.evaluation.logs import CellLog, check_row
from cacovid_hf.evaluation.sweep import evaluate


@pytest.mark.parametrize(
    "text", ["no json", "[]", "[" * 20_000, '{"benchmark": "prefill"}', '{"benchmark": "evaluation", "format": 99}', '{"benchmark": "evaluation", "format": 1}',
     '{"benchmark": "evaluation", "format": 1, "config": {"methods": [], "ratios": [], "models": [], "datasets": []}, "cells": [{}]}'],
    ids=lambda text: text[:50],
)  # fmt: skip
def test_what_is_no_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json (cannot be read|is not a run|has format 99|is damaged \()"):
        evaluate(BASE, tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text() == text


def test_a_log_survives_half_a_line(tmp_path):
    log = CellLog(tmp_path, "cell")
    log.append([{"index": 0}, {"index": 1}], part=0)
    log.append([{"index": 2}], part=1)
    path = tmp_path / "cell.part0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"index": 3, "res')
    assert sorted(log.read()) == [0, 1, 2]
    log.append([{"index": 4}], part=0)
    assert sorted(log.read()) == [0, 1, 2, 4]
    log.merge()
    assert [json.loads(line)["index"] for line in log.path.read_text().splitlines()] == [0, 1, 2, 4]
    assert log.parts() == []


def damages(line: bytes) -> list[bytes]:
    """A line of a log in every form that is not a row of it."""
    row = json.loads(line)
    changes = [
        {"index": "0"}, {"index": True}, {"index": -1}, {"index": 18}, {"index": None}, {"id": 3}, {"groups": None}, {"groups": {"kind": 1}},
        {"correct": not row["correct"]}, {"correct": None}, {"answer": 1}, {"extracted": None}, {"kept": "1"}, {"kept": float("nan")}, {"total": 1.5},
        {"times_ms": {}}, {"times_ms": {**row["times_ms"], "decode": float("inf")}}, {"peak_memory_bytes": "x"}, {"error": 3}, {"refused": None},
    ]  # fmt: skip
    lines = [json.dumps({**row, **change}).encode() for change in changes]
    lines += [
        json.dumps({key: value for key, value in row.items() if key != name}).encode()
        for name in row
        if name != "response"
    ]
    return [
        *lines,
        line[:-30],
        line[5:],
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe",
        b"\x00" * 40,
        b"[" * 20_000,
        b'{"index": ' + b"9" * 6_000 + b"}",
    ]


def test_damaged_lines_are_asked_again(whole, tmp_path, caplog):
    """Each damage in place of its own line of the first cell's log."""
    shutil.copytree(whole[0], tmp_path / "copy")
    output = tmp_path / "copy" / "run.json"
    (log,) = (tmp_path / "copy" / "run").glob("*cacovid_0.25_*.jsonl")
    check = functools.partial(check_row, num_samples=18, stages=sweep.STAGES)
    lines = log.read_bytes().splitlines()
    for damage in damages(lines[4]):
        log.write_bytes(b"\n".join([*lines[:4], damage, *lines[5:], b""]))
        caplog.clear()
        cell = CellLog(log.parent, log.stem, check)
        assert sorted(cell.read()) == [n for n in range(18) if n != 4], damage
        assert sorted(cell.read()) == [n for n in range(18) if n != 4]
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert f"{log}, line 5 is damaged (" in caplog.text
        assert "it is dropped, and its question is asked again." in caplog.text
        assert len(caplog.text) < 600
    output.unlink()  # the cells are made again from their logs, and the one with a damaged line is asked for that batch
    again = evaluate(BASE, output)
    assert answers(again, output.with_suffix("")) == answers(whole[1], whole[0] / "run")
    assert "damaged" not in "".join(path.read_text() for path in log.parent.iterdir())


def fuzz_log(whole, folder, count):
    """Damages one place of a log `count` times; rows that are lost, in all."""
    (log,) = (whole[0] / "run").glob("*cacovid_0.25_*.jsonl")
    content, draw, lost = log.read_bytes(), random.Random(0), 0
    check = functools.partial(check_row, num_samples=18, stages=sweep.STAGES)
    rows = CellLog(log.parent, log.stem, check).read()
    for _ in range(count):
        place = draw.randrange(len(content))
        junk = draw.choice([b"", bytes([draw.randrange(256)]), b"\n", b"[" * 5000, b"NaN", b"9" * 6000, b"\x00" * 9])
        (folder / "cell.jsonl").write_bytes(content[:place] + junk + content[place + draw.randrange(30) :])
        found = CellLog(folder, "cell", check).read()
        assert found.keys() <= rows.keys()
        assert sum(found[index].keys() != rows[index].keys() for index in found) <= 1
        assert len(rows) - len(found) <= 2
        lost += len(rows) - len(found)
    return lost


def test_fuzzed_logs_lose_the_damaged_line_alone(whole, tmp_path):
    assert fuzz_log(whole, tmp_path, 100) > 30


@pytest.mark.slow
def test_many_fuzzed_logs_lose_the_damaged_line_alone(whole, tmp_path):
    lost = fuzz_log(whole, tmp_path, 2000)
    print(f"{lost} rows lost")
    assert lost > 600
