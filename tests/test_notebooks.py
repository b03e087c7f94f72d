"""Every notebook is committed without outputs and runs top to bottom without a display."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook's own backend, as for a reader
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in printed if output.output_type == "error"]
    if path.stem == "00_quickstart":
        assert sum("image/png" in output.get("data", {}) for output in printed) >= 7, "figures show as pictures"
    if path.stem == "01_inpainting":
        assert any("done (newton: 220 evaluations)" in str(output) for output in printed)
        assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in printed)


def test_there_are_notebooks():
    numbers = [path.stem.split("_")[0] for path in NOTEBOOKS]
    assert numbers == ["00", "01", "02a", "02b", *(f"{number:02}" for number in range(3, 11))]
    assert os.access(NOTEBOOKS[0], os.R_OK)
