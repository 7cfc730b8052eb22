"""The notebook runs from a clean kernel and prints what it shows. Needs the extra `test-demo`; skipped without."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat", reason="the extra test-demo is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra test-demo is not installed")
pytest.importorskip("ipykernel", reason="the extra test-demo is not installed")

PAGE = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


def shown(cell):
    """What a code cell printed, and the sizes of its pictures."""
    outputs = cell.get("outputs", [])
    words = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return words, [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]


def test_the_notebook_shows_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored = nbformat.read(PAGE, as_version=4)
    nbformat.validate(stored)
    fresh = nbformat.read(PAGE, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    before, now = ([shown(cell) for cell in notebook.cells if cell.cell_type == "code"] for notebook in (stored, fresh))
    assert [words for words, _ in now] == [words for words, _ in before]
    assert any("purple" in words for words, _ in now)
    assert [len(pictures) for _, pictures in now] == [len(pictures) for _, pictures in before]
    assert sum(len(pictures) for _, pictures in now) == 1
    assert "error" not in str([output.get("output_type") for cell in fresh.cells for output in cell.get("outputs", [])])
