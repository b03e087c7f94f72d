"""Notebook 12's choice of study, task and metric in a real JupyterLab in headless Chromium."""

import re

import nbformat
import pandas as pd
from browser import IN_A_BROWSER, ROOT, run_cells, shot, upload

pytestmark = IN_A_BROWSER


def test_choose_a_study_a_task_and_a_metric(lab, page):
    notebook = nbformat.read(ROOT / "notebooks" / "12_choosing.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.source.startswith(("import json", "StudyTable"))]
    assert len(sources) == 2, "the imports, and the widget"
    sources[0] = sources[0].replace("../figures/output", str(ROOT / "figures" / "output"))
    table = pd.read_csv(ROOT / "figures" / "output" / "tab12_choosing.csv")
    upload(lab, "choosing", sources)
    run_cells(page, lab, "choosing", 2)
    picture = page.locator(".jp-OutputArea img.widget-image")
    picture.wait_for()
    study, task, metric = (page.get_by_label(name, exact=True) for name in ("study", "task", "metric"))

    def drawn(seen):
        """The picture, once it is another."""
        page.wait_for_function("seen => document.querySelector('.jp-OutputArea img.widget-image')?.src !== seen", arg=seen)
        picture.wait_for()
        return picture.get_attribute("src")

    first = picture.get_attribute("src")
    metric.select_option(label="ssim")
    second = drawn(first)
    task.select_option(label="sr4")
    third = drawn(second)
    study.select_option(label="fashion")
    drawn(third)
    there = table[(table.study == "fashion") & table["diff"].notna()]
    assert {one.inner_text() for one in task.locator("option").all()} == set(there.task)
    assert not page.get_by_text("Traceback").count()
    page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for()
    shot(page, "12_chosen")
