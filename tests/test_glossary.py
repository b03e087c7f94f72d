"""The glossary names notebooks that exist and say what it sends a reader there for, and its letters mean one thing."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LINES = (NOTEBOOKS / "GLOSSARY.md").read_text().splitlines()
ROWS = [re.split(r"(?<!\\)\|", line)[1:-1] for line in LINES if line.startswith("| ") and "[" in line]
ROWS = [[cell.strip() for cell in row] for row in ROWS]


def text_of(path):
    return " ".join(" ".join(cell.source for cell in nbformat.read(path, as_version=4).cells).split())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_term_is_in_the_notebook_that_introduces_it(row):
    term, meaning, where = row
    ((name, target),) = re.findall(r"\[(\w+)\]\(([\w.]+)\)", where)
    assert target.startswith(f"{name}_") and meaning
    said = text_of(NOTEBOOKS / target)
    assert re.search(rf"(?<!\w){re.escape(term)}(?![a-z])", said, re.IGNORECASE), f"{target} does not contain {term}"


def test_every_term_has_one_line():
    terms = [row[0].lower() for row in ROWS]
    assert len(terms) > 50 and len(set(terms)) == len(terms)
    assert {"ω", "η", "ρ", "x̂_0", "forcing term", "effective rank"} <= set(terms)


@pytest.mark.parametrize(
    ("letter", "macro", "company"),
    [("ω", r"\\omega", "forcing term"), ("ρ", r"\\rho", "regularis"), ("η", r"\\eta", "ddim|ddpm|ancestral|determin|fresh")],
)
def test_a_letter_keeps_to_its_meaning(letter, macro, company):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        said = text_of(path)
        if re.search(rf"{letter}|{macro}(?![a-z])", said):
            assert re.search(company, said, re.IGNORECASE), f"{path.name} has {letter} and does not say {company}"
