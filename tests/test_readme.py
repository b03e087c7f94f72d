"""Every page's links lead somewhere, and the table of the reviewers' questions to cells that measure."""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("notebooks/*.md"), *ROOT.glob("fcs_lab/**/*.md")]
QUESTIONS = re.findall(r"^\| ([^|]+\?) \| (.+) \|$", (ROOT / "notebooks" / "QUESTIONS.md").read_text(), re.MULTILINE)


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
    found = re.match(r"\[\w+\]\((\w+\.ipynb)\), \*(.+?)\*(?=$|;)", answer)
    assert found or answer.startswith("**open**")
    if found:
        assert sections(ROOT / "notebooks" / found[1]).get(found[2]), f"no cell under {found[2]!r} in {found[1]}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), f"{target}#{anchor}"
