"""Notebook 10's two methods side by side, in a real JupyterLab in headless Chromium."""

import nbformat
from browser import IN_A_BROWSER, ROOT, run_cells, shot, upload

pytestmark = IN_A_BROWSER


def test_put_two_methods_side_by_side(lab, page):
    notebook = nbformat.read(ROOT / "notebooks" / "10_peers.ipynb", as_version=4)
    upload(lab, "side_by_side", [cell.source for cell in notebook.cells if cell.cell_type == "code"][:2])
    run_cells(page, lab, "side_by_side", 2)
    panes = page.locator(".jp-OutputArea pre").filter(has_text="def method")
    panes.nth(1).wait_for()
    assert "pinv" in panes.nth(0).inner_text() and "step_size * watch.error(x0)" in panes.nth(1).inner_text()
    shot(page, "10_side_by_side")
    page.locator("select").filter(has_text="lanpaint").nth(1).select_option("repaint")
    page.locator(".jp-OutputArea pre").filter(has_text="for again in range(resamplings)").wait_for()
    shot(page, "10_another")
