"""The two derivation notebooks keep their word: every displayed equation is followed by a cell that checks it."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PARTS = {name: nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells for name in ("02a_derivation", "02b_newton")}
CELLS = [cell for cells in PARTS.values() for cell in cells]
DISPLAYED = re.compile(r"\$\$.+?\$\$", re.DOTALL)


@pytest.mark.parametrize(("part", "least"), [("02a_derivation", 10), ("02b_newton", 8)])
def test_every_displayed_equation_is_followed_by_a_check(part, least):
    found, cells = 0, PARTS[part]
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type != "markdown" or not DISPLAYED.search(cell.source):
            continue
        found += 1
        assert len(DISPLAYED.findall(cell.source)) == 1, f"two equations share a check:\n{cell.source}"
        assert following is not None and following.cell_type == "code", f"no cell follows:\n{cell.source}"
        checks = [node for node in ast.walk(ast.parse(following.source)) if isinstance(node, ast.Assert)]
        assert checks, f"the cell after this equation asserts nothing:\n{cell.source}"
    assert found >= least


def test_equations_are_numbered_in_order_and_references_exist():
    text = "\n".join(cell.source for cell in CELLS)
    tags = re.findall(r"\\tag\{(2\.\d+)\}", text)
    assert tags == [f"2.{n}" for n in range(1, len(tags) + 1)]
    assert set(re.findall(r"\((2\.\d+)\)", text)) <= set(tags)


def test_the_first_part_comes_to_algorithm_1_and_the_second_begins_at_newton():
    first, second = ("\n".join(cell.source for cell in cells) for cells in PARTS.values())
    assert "algorithm.algorithm_1" in first and "J^{-1}" not in first
    assert "second derivatives?" in second and "η" not in second, "η is DDIM's; the forcing term is ω"


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
    for target in re.findall(r"\]\((\w+\.(?:ipynb|md))\)", "\n".join(cell.source for cell in CELLS)):
        assert (NOTEBOOKS / target).is_file(), target
