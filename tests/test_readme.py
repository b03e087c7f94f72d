"""The README's links lead somewhere, and its table of the reviewers' questions to cells that measure."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUESTIONS = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", README, re.MULTILINE)


def sections(notebook: Path) -> dict[str, int]:
    """Heading -> how many code cells are under it."""
    counts, heading = {}, ""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "code":
            counts[heading] = counts.get(heading, 0) + 1
            continue
        for line in cell.source.splitlines():
            if line.startswith("#"):
                heading = re.sub(r"^#+ (\d+ )?", "", line)
    return counts


def test_there_are_nineteen_questions():
    assert len(QUESTIONS) == len(dict(QUESTIONS)) == 19


@pytest.mark.parametrize(("question", "answer"), QUESTIONS, ids=lambda text: text[:40])
def test_a_question_is_answered_by_a_cell_or_is_open(question, answer):
    found = re.match(r"\[\w+\]\((notebooks/\w+\.ipynb)\), \*(.+?)\*(?=$|;)", answer)
    assert found or answer.startswith("**open**")
    if found:
        assert sections(ROOT / found[1]).get(found[2]), f"no cell under {found[2]!r} in {found[1]}"


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", README)
    assert len(targets) > 30 and not [target for target in targets if not (ROOT / target).exists()]
