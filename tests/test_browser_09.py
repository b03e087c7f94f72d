"""Notebook 09's menu of pipelines, and a pipeline of one's own, in a real JupyterLab in headless Chromium."""

import re

import nbformat
from browser import IN_A_BROWSER, ROOT, run_cells, shot, upload

pytestmark = IN_A_BROWSER

BEGINNINGS = (
    "MODEL",
    "import torch\n",
    "import time\n",
    "from fcs_lab.widgets",
    "from fcs_lab.forecast",
    "from fcs_lab.pipelines",
)


def test_choose_a_family_and_run_a_pipeline(lab, page):
    notebook = nbformat.read(ROOT / "notebooks" / "09_stable_diffusion.ipynb", as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith(BEGINNINGS)]
    assert len(sources) == 7, "the model, the imports, the picture, its pipeline, the menu, yours, and its run"
    sources.insert(5, "plain = model.pipeline")  # which a longer cell of the notebook sets
    upload(lab, "pipelines", sources)
    run_cells(page, lab, "pipelines", 5)
    page.locator("select").filter(has_text="Qwen-Image").select_option(label="Lumina 2")
    page.get_by_text("looks at no _interrupt").wait_for()
    assert page.get_by_text("Alpha-VLLM/Lumina-Image-2.0").is_visible()
    page.locator(".jp-CodeCell").nth(4).scroll_into_view_if_needed()
    shot(page, "09_menu")
    page.locator(".jp-CodeCell").nth(5).click()
    for execution in (6, 7, 8):
        page.keyboard.press("Shift+Enter")
        page.locator(".jp-InputPrompt", has_text=f"[{execution}]:").wait_for()
    page.get_by_text(re.compile(r"100 evaluations, one call of the network each: about")).wait_for()
    page.get_by_text(re.compile(r"^it took")).wait_for()
    shot(page, "09_yours")
