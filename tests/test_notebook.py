"""The Colab notebook runs from its first cell to its last, small and without Jupyter's server."""

import base64
import os
from pathlib import Path

import pytest

from tests import xla

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "moco_colab.ipynb"


def test_cells_are_cleared():
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_it_runs_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("MOCO_NOTEBOOK", "small")
    monkeypatch.setenv("XLA_FLAGS", xla.flags(1, many_steps=True))
    notebook = nbformat.read(NOTEBOOK, 4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    text = "".join(
        o.get("text", "") for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )
    assert "training with --config=digits" in text
    assert "features (4, 128) float32" in text
    assert "backbone.pth is written" in text or "PyTorch is not here" in text
    pictures = [
        base64.b64decode(o["data"]["image/png"])
        for c in notebook.cells
        if c.cell_type == "code"
        for o in c.outputs
        if "image/png" in o.get("data", {})
    ]
    assert len(pictures) >= 5
    for run in ("demo", "mine"):
        assert (tmp_path / "runs" / run / "neighbours.png").read_bytes() in pictures
    saved = os.environ.get("MOCO_JAX_KEEP_NOTEBOOK")
    if saved:
        nbformat.write(notebook, saved)
