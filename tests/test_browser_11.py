"""The sensitivity laboratory in a real JupyterLab in headless Chromium, driven as a reader would."""

import re

from browser import IN_A_BROWSER, run_cells, shot, upload

pytestmark = IN_A_BROWSER


def laboratory(folder):
    """Cells that make one whose map is kept in a folder."""
    made = (
        f"lab = SensitivityLab('mnist', folder={str(folder)!r}, x=('step_size_first', [0.1, 0.5]),\n"
        "                     y=('inner_steps', [1, 2]), num_inference_steps=4)\nlab"
    )
    return ["from fcs_lab.widgets import SensitivityLab", made]


def test_fill_a_map_click_a_cell_stop_and_go_on(lab, page, tmp_path):
    upload(lab, "sensitivity_lab", laboratory(tmp_path / "maps"))
    run_cells(page, lab, "sensitivity_lab", 2)
    page.get_by_text("ready", exact=True).wait_for()
    shot(page, "11_opened")

    # A range that is reversed is a message, no traceback.
    values = page.locator(".widget-text", has_text="its values").locator("input")
    values.first.fill("0.5, 0.1")
    values.first.press("Enter")
    run, stop, save = (page.locator("button.widget-button", has_text=name) for name in ("Run", "Stop", "Save"))
    run.first.click()
    page.get_by_text("x has 0.5 before 0.1 of step_size_first; expected numbers that rise").wait_for()
    values.first.fill("0.1, 0.5")
    values.first.press("Enter")

    # Stopped after the first cell, it goes on.
    run.first.click()
    page.get_by_text(re.compile(r"^1 of 4 cells, about \d+ s left$")).wait_for()
    stop.click()
    stopped = page.get_by_text(re.compile(r"^stopped: [1-3] of 4 cells, about \d+ s left; Run goes on$"))
    stopped.wait_for()
    cells = page.locator(".fcs-heat-map button")
    assert cells.count() == 4 and 1 <= len([one for one in cells.all() if one.inner_text()]) <= 3
    shot(page, "11_stopped")
    there = {one.get_attribute("title") for one in cells.all() if one.inner_text()}
    run.first.click()
    page.get_by_text("done: 4 of 4 cells", exact=True).wait_for()
    titles = [one.get_attribute("title") for one in cells.all()]
    assert there < set(titles) and not any("not computed" in title for title in titles)

    # A click shows a cell, the arrow keys and Enter another.
    cells.nth(0).click()
    page.get_by_text("λ, first of a timestep: 0.1, inner steps K: 1").wait_for()
    page.get_by_text(re.compile("12 evaluations and")).first.wait_for()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.get_by_text("λ, first of a timestep: 0.5, inner steps K: 2").wait_for()
    page.get_by_text(re.compile("20 evaluations and")).first.wait_for()
    assert cells.nth(3).get_attribute("aria-pressed") == "true"
    pictures = page.locator(".jp-OutputArea img.widget-image")
    visible = [p for p in pictures.all() if p.is_visible() and p.evaluate("image => image.naturalWidth") > 0]
    assert len(visible) == 2, "the images and the costs"
    page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for()
    shot(page, "11_cell")

    # Saved, with the call beside it.
    page.locator(".widget-text", has_text="file").locator("input").fill(str(tmp_path / "map.png"))
    page.locator(".widget-text", has_text="file").locator("input").press("Enter")
    save.click()
    page.get_by_text("and beside it the table as .csv").wait_for()
    assert {path.name for path in tmp_path.iterdir()} == {"maps", "map.png", "map.csv", "map.json"}
    call = page.locator(".widget-textarea textarea").input_value()
    assert "SensitivityMap(\n    'mnist',\n    4," in call and call.strip() in (tmp_path / "map.csv").read_text().replace(
        "# ", ""
    )

    # Too many cells are asked for; two of these 302 are there.
    values.first.fill(", ".join(str(i / 1000) for i in range(1, 152)))
    values.first.press("Enter")
    run.first.click()
    page.get_by_text(re.compile(r"^300 cells, [\d,]+ evaluations: about .*\. Run all the same\?$")).wait_for()
    page.locator("button.widget-button", has_text="Run all the same").wait_for()
    shot(page, "11_asked")

    # Another session finds the map as it was left.
    upload(lab, "another_session", laboratory(tmp_path / "maps"))
    run_cells(page, lab, "another_session", 2)
    page.locator("button.widget-button", has_text="Run").first.click()
    page.get_by_text("done: 4 of 4 cells", exact=True).wait_for()
    assert [one.get_attribute("title") for one in cells.all()] == titles
