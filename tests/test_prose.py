"""The check of numbers in prose can fail; and the numbers of README and pages are in the files that their sections link."""

import re
from pathlib import Path

import pytest
from prose import unsupported

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "notebooks/RESULTS.md", "notebooks/PIPELINES.md")}
SECTIONS = {
    f"{name}, {section.split(chr(10))[0]}": section
    for name, text in PAGES.items()
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE)
}


@pytest.mark.parametrize(
    ("text", "printed", "missing"),
    [
        ("the error is 0.17", "e 0.1749", []),
        ("the error is 0.17", "e 0.1751", ["0.17"]),
        ("the error is 0.165 ± 0.013", "0.177", []),
        ("the error is 0.165 ± 0.013", "0.18", ["0.165 ± 0.013"]),
        ("84 % are named", "named 84%", []),
        ("84 % are named", '"named": 0.842', []),
        ("84 % are named", "named 86%", ["84 %"]),
        ("4e-5 is no decimal, 4.1e-5 is", "", ["4.1e-5"]),
        ("`h = 0.005`, $\\lambda = 0.5$, (2.9) and arXiv 2410.18804 are none", "", []),
        ("Stable Diffusion 1.5 takes [0.5](at_0.7.md) of it", "", ["0.5"]),
    ],
)
def test_a_number_is_printed_or_missing(text, printed, missing):
    assert unsupported(text, [printed]) == missing


def test_a_linked_file_bears_it_out():
    link = "[table](../figures/output/tab01_half_image.md)"
    assert unsupported(f"0.165 ± 0.013 ({link})") == [] and unsupported("0.165 ± 0.013") and unsupported(f"0.765 ({link})")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_readme_and_its_pages(section):
    assert unsupported(SECTIONS[section]) == []
