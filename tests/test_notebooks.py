"""Every notebook is committed without outputs, has the same frame, runs top to bottom without a display, and its prose says
no number that its cells, or a file that it links, do not say too."""

import ast
import importlib.util
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from prose import unsupported

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FOLDED = {"jupyter": {"source_hidden": True, "outputs_hidden": True}, "tags": ["solution"]}
LINES = 20
"""That a cell prints at most."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_with_what_one_will_be_able_to_do_and_closes_with_exercises(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith(f"# {path.stem.partition('_')[0]} · ")
    for part in ("**Afterwards you can**", "**Before this**: ", "**Time**: about "):
        assert part in cells[0].source
    (exercises,) = (cell.source for cell in cells if cell.source.startswith("## Exercises"))
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    numbers = re.findall(r"^(\d+)\. ", exercises, re.MULTILINE)
    assert numbers and numbers == [str(i + 1) for i in range(len(solutions))]
    for number, cell in zip(numbers, solutions, strict=True):
        assert cell.metadata == FOLDED and cell.source.startswith(f"# Solution {number}")


def test_minutes_are_those_of_a_reader():
    """120 words or 20 lines of code a minute, half a minute an equation, five for a laboratory, and the cells."""
    told = {}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        reading, running = re.search(
            r"about (\d+) minutes without the exercises; its cells run in about (\w+)", cells[0].source
        ).groups()
        minutes = {"a": 1, "one": 1, "two": 2, "three": 3}[running]
        for cell in cells[: next(i for i, cell in enumerate(cells) if cell.source.startswith("## Exercises"))]:
            if cell.cell_type == "markdown":
                text, equations = re.subn(r"\$\$.*?\$\$", "", cell.source, flags=re.DOTALL)
                minutes += len(text.split()) / 120 + equations / 2
            else:
                laboratories = re.findall(r"\b[A-Z]\w*(?:Lab|Map|Table)\(|widgets\.interact", cell.source)
                minutes += sum(bool(line.strip()) for line in cell.source.splitlines()) / 20 + 5 * len(laboratories)
        told[path.stem.partition("_")[0]] = int(reading)
        assert abs(int(reading) - minutes) < 5, f"{path.stem}: {minutes:.0f} minutes"
    course = sum(told[number] for number in ("00", "01", "02a", "02b", "03", "04", "05"))
    assert f"about {course} minutes" in nbformat.read(NOTEBOOKS[0], as_version=4).cells[0].source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_imports_what_there_is(path):
    """Found in a second, before a notebook runs for minutes."""
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                names = [name.name for name in node.names]
                missing = [n for n in names if not hasattr(module, n) and not importlib.util.find_spec(f"{node.module}.{n}")]
                assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook's own backend, as for a reader
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    printed = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in printed if output.output_type == "error"]
    if path.stem == "00_quickstart":
        assert sum("image/png" in output.get("data", {}) for output in printed) >= 7, "figures show as pictures"
    if path.stem == "01_inpainting":
        assert any("done (newton: 220 evaluations)" in str(output) for output in printed)
        assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in printed)
    for cell in notebook.cells:
        lines = "".join(_text(output) for output in cell.get("outputs", [])).splitlines()
        assert len(lines) <= LINES, f"{len(lines)} lines are printed by\n{cell.source}"
    said = [_text(output) for output in printed]
    missing = {cell.source: unsupported(cell.source, said) for cell in notebook.cells if cell.cell_type == "markdown"}
    assert not {text: numbers for text, numbers in missing.items() if numbers}


def _text(output) -> str:
    """What an output shows as text: what was printed, a value, an HTML table; a progress bar's last state at most."""
    if output.output_type == "stream":
        return "" if output.name == "stderr" else output.text
    data = output.get("data", {})
    if "image/png" in data or "application/vnd.jupyter.widget-view+json" in data:
        return ""
    return "".join(data.get("text/markdown", data.get("text/html", data.get("text/plain", "")))) + "\n"


def test_there_are_notebooks():
    numbers = ["00", "01", "02a", "02b", *(f"{number:02}" for number in range(3, 13))]
    assert [path.stem.partition("_")[0] for path in NOTEBOOKS] == numbers
    assert os.access(NOTEBOOKS[0], os.R_OK)
