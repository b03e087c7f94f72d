"""Notebook 06 in a real JupyterLab in headless Chromium, driven as a reader would."""

import re

import nbformat
from browser import IN_A_BROWSER, ROOT, run_cells, shot, upload

pytestmark = IN_A_BROWSER


def cells_to_the_laboratory():
    """How many code cells of notebook 06 make the laboratory alone, and their sources."""
    notebook = nbformat.read(ROOT / "notebooks" / "06_super_resolution.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    needed = [
        source for source in sources if source.startswith(("MODEL", "import torch\n")) or "SuperResolutionLab" in source
    ]
    assert len(needed) == 3, "the model's name, the imports, the laboratory"
    return needed


def test_choose_a_factor_press_run_see_the_result(lab, page):
    upload(lab, "super_resolution_lab", cells_to_the_laboratory())
    run_cells(page, lab, "super_resolution_lab", 3)
    page.get_by_text("ready", exact=True).wait_for()
    page.get_by_text("8×8 pixels").wait_for()
    shot(page, "06_opened")

    page.locator("select").filter(has_text="×8").select_option(label="×8")
    page.get_by_text("4×4 pixels").wait_for()
    page.get_by_text("λ, last – first").wait_for()
    page.locator("select").filter(has_text="the dtype's").select_option(label="0.05")
    noise = page.locator(".widget-slider", has_text="noise σ_y").locator(".noUi-handle")
    noise.click()
    page.keyboard.press("ArrowRight")
    page.get_by_text("4×4 pixels, σ_y = 0.05").wait_for()
    shot(page, "06_noisy")
    timesteps = page.locator(".widget-slider", has_text="timesteps").locator(".noUi-handle")
    timesteps.click()
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    run, stop = (page.locator("button.widget-button", has_text=name) for name in ("Run", "Stop"))
    run.click()
    page.get_by_text(re.compile(r"^done \(newton: 105 evaluations\)")).wait_for()
    assert page.get_by_text(re.compile(r"^PSNR ")).count() == 2, "of the bicubic enlargement and of the result"
    pictures = page.locator(".jp-OutputArea img.widget-image")
    visible = [p for p in pictures.all() if p.is_visible() and p.evaluate("image => image.naturalWidth") > 0]
    assert len(visible) == 5, "given, bicubic, x̂_0, truth, error curve"
    shot(page, "06_result")

    # A long run can be stopped.
    timesteps.click()
    page.keyboard.press("End")
    run.click()
    page.get_by_text(re.compile(r"^t = 9\d0, ")).wait_for()
    stop.click()
    page.get_by_text(re.compile(r"^stopped, partial result")).wait_for()
    shot(page, "06_stopped")
