"""The notebook runs from its first cell to its last, on CPU, with few steps and a small model."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_quickstart(tmp_path, monkeypatch):
    monkeypatch.setenv("LMJAX_REPOSITORY", str(ROOT))
    monkeypatch.setenv("LMJAX_STEPS", "20")
    monkeypatch.setenv("LMJAX_CHANGES", "--model.layers=1 --model.width=64 --model.heads=2")
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    install, train, plot, write = (cell for cell in notebook.cells if cell.cell_type == "code")
    text = lambda cell: "".join(o.get("text", "") for o in cell.outputs)
    assert "installed for CPU" in text(install)
    assert "step 1/20  loss" in text(train)
    assert "bits per byte: this model" in text(train)
    assert any("image/png" in o.get("data", {}) for o in plot.outputs)
    assert text(write).startswith("def main(")
    assert (tmp_path / "lmjax" / "runs" / "small" / "metrics.jsonl").exists()
