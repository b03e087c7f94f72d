"""The derivation notebook keeps its word: every displayed equation is followed by a cell that checks it."""

import ast
import re
from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_derivation.ipynb"
CELLS = nbformat.read(NOTEBOOK, as_version=4).cells
DISPLAYED = re.compile(r"\$\$.+?\$\$", re.DOTALL)


def test_every_displayed_equation_is_followed_by_a_check():
    found = 0
    for cell, following in zip(CELLS, [*CELLS[1:], None], strict=True):
        if cell.cell_type != "markdown" or not DISPLAYED.search(cell.source):
            continue
        found += 1
        assert len(DISPLAYED.findall(cell.source)) == 1, f"two equations share a check:\n{cell.source}"
        assert following is not None and following.cell_type == "code", f"no cell follows:\n{cell.source}"
        checks = [node for node in ast.walk(ast.parse(following.source)) if isinstance(node, ast.Assert)]
        assert checks, f"the cell after this equation asserts nothing:\n{cell.source}"
    assert found >= 15


def test_equations_are_numbered_in_order_and_references_exist():
    text = "\n".join(cell.source for cell in CELLS)
    tags = re.findall(r"\\tag\{(2\.\d+)\}", text)
    assert tags == [f"2.{n}" for n in range(1, len(tags) + 1)]
    assert set(re.findall(r"\((2\.\d+)\)", text)) <= set(tags)


def test_the_questions_are_answered():
    headings = [line for cell in CELLS for line in cell.source.splitlines() if line.startswith("#")]
    for question in (
        "Does (5) with J⁻¹ correspond to (6) with J?",
        'Does "Newton" need second derivatives?',
        '"e depends on the task"',
        "Is the linear form expressive enough?",
        "What it costs",
    ):
        assert any(question in heading for heading in headings), question


def test_links_to_other_notebooks_lead_somewhere():
    for target in re.findall(r"\]\((\w+\.ipynb)\)", "\n".join(cell.source for cell in CELLS)):
        assert (NOTEBOOK.parent / target).is_file(), target
