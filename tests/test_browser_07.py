"""Notebook 07's widget in a real JupyterLab in headless Chromium, driven as a reader would."""

import re

from browser import IN_A_BROWSER, run_cells, shot

pytestmark = IN_A_BROWSER


def test_scribble_press_run_recompose(lab, page):
    run_cells(page, lab, "07_layer_inference", 2)
    page.locator(".jp-CodeCell", has_text="LayersLab(model)").locator(".cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    canvas = page.locator("canvas.fcs-mask-painter")
    canvas.wait_for()
    page.get_by_text("ready", exact=True).wait_for()
    canvas.scroll_into_view_if_needed()
    shot(page, "07_opened")

    # A scribble of layer 1 over the top row of pixels, then one of layer 0 across the middle.
    def scribble(layer, height):
        button = page.locator("button.widget-button", has_text=f"layer {layer}")
        button.click()
        button.locator("i.fa-paint-brush").wait_for()  # the kernel has taken the colour, and says so
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * height)
        page.mouse.down()
        for i in range(1, 9):
            page.mouse.move(box["x"] + box["width"] * (0.3 + 0.05 * i), box["y"] + box["height"] * height)
        page.mouse.up()

    scribble(1, 0.05)
    scribble(0, 0.5)
    shot(page, "07_scribbled")
    run, stop = (page.locator("button.widget-button", has_text=name) for name in ("Run", "Stop"))
    run.click()
    page.get_by_text(re.compile(r"^done \(80 evaluations a layer\)")).wait_for()
    pictures = page.locator(".jp-OutputArea img.widget-image")
    visible = [p for p in pictures.all() if p.is_visible() and p.evaluate("image => image.naturalWidth") > 0]
    assert len(visible) >= 3, "masks and layers, truth, put together anew"
    shot(page, "07_result")

    # What was scribbled is what was used.
    page.locator(".jp-CodeCell", has_text="lab.wait()").locator(".cm-content").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.type("print([int((lab.painter.scribbles == k).sum() > 0) for k in (0, 1, 2)], 'scribbled')")
    page.keyboard.press("Control+Enter")
    page.get_by_text("[1, 1, 0] scribbled").wait_for()

    # Back through the timesteps.
    page.locator(".widget-slider", has_text="at step").locator(".noUi-handle").click()
    page.keyboard.press("Home")
    page.get_by_text("t = 900, 1 evaluations a layer").wait_for()
    shot(page, "07_scrubbed")

    # Leave a layer out, move the other.
    recomposed = pictures.last
    before = recomposed.get_attribute("src")
    page.locator(".widget-slider", has_text="dx").first.locator(".noUi-handle").click()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.locator("input[type=checkbox]").nth(1).click()
    page.wait_for_function(
        "old => [...document.querySelectorAll('.jp-OutputArea img.widget-image')].at(-1).src !== old", arg=before
    )
    shot(page, "07_recomposed")

    # Stop leaves a partial result, of a run that is long enough to be stopped.
    page.locator(".widget-slider", has_text="timesteps").locator(".noUi-handle").click()
    page.keyboard.press("End")
    run.click()
    page.get_by_text(re.compile(r"^t = 9\d0, ")).wait_for()
    stop.click()
    page.get_by_text(re.compile(r"^stopped, partial result")).wait_for()
    shot(page, "07_stopped")
