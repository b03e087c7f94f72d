"""Notebook 01, and the laboratory of 03, in a real JupyterLab in headless Chromium, driven as a reader would."""

import re

from browser import IN_A_BROWSER, run_cells, shot, upload

pytestmark = IN_A_BROWSER


def test_paint_a_mask_press_run_see_the_result(lab, page):
    run_cells(page, lab, "01_inpainting", 2)
    canvas = page.locator("canvas.fcs-mask-painter")
    canvas.wait_for()
    page.get_by_text("ready", exact=True).wait_for()
    shot(page, "01_opened")

    # A mask of one's own: first none, then a stroke across the middle.
    page.locator("select").filter(has_text="nothing (paint)").select_option(label="nothing (paint)")
    run, stop = (page.locator("button.widget-button", has_text=name) for name in ("Run", "Stop"))
    run.click()
    page.get_by_text("mask is empty").wait_for()  # a message, no traceback
    shot(page, "01_message")

    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.6)
    page.mouse.down()
    for i in range(1, 9):
        page.mouse.move(box["x"] + box["width"] * (0.2 + 0.08 * i), box["y"] + box["height"] * (0.6 - 0.01 * i))
    page.mouse.up()
    shot(page, "01_painted")
    run.click()
    page.get_by_text(re.compile(r"^done \(newton: 220 evaluations\)")).wait_for()
    assert page.get_by_text("mask is empty").count() == 0
    pictures = page.locator(".jp-OutputArea img.widget-image")
    visible = [p for p in pictures.all() if p.is_visible() and p.evaluate("image => image.naturalWidth") > 0]
    assert len(visible) >= 5, "input, result, truth, x̂_0, error curve"
    shot(page, "01_result")

    # Back through the timesteps.
    handle = page.locator(".widget-slider", has_text="at step").locator(".noUi-handle")
    handle.click()
    page.keyboard.press("Home")
    page.get_by_text("newton, t = 950, 11 evaluations").wait_for()
    shot(page, "01_scrubbed")

    # A long run leaves the kernel responsive, and Stop leaves a partial result.
    seed = page.locator(".widget-text", has_text="seed").locator("input")
    seed.fill("7")
    seed.press("Enter")
    timesteps = page.locator(".widget-slider", has_text="timesteps").locator(".noUi-handle")
    timesteps.first.click()
    page.keyboard.press("End")
    run.click()
    page.get_by_text(re.compile(r"newton, t = 9\d0, ")).wait_for()
    last = page.locator(".jp-CodeCell", has=page.locator(".cm-content")).last  # the solutions are folded away
    last.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("print('alive', lab.stop_button.disabled)")
    page.keyboard.press("Control+Enter")
    page.get_by_text("alive False").wait_for()
    stop.click()
    page.get_by_text(re.compile(r"^stopped, partial result")).wait_for()
    shot(page, "01_stopped")

    # And again, with another seed and all directions.
    timesteps.first.click()
    page.keyboard.press("Home")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    seed.fill("8")
    seed.press("Enter")
    page.locator("button.widget-button", has_text="Compare").click()
    page.get_by_text(re.compile(r"^done \(identity: 30 evaluations, gradient: 30 evaluations \+ 25 backward")).wait_for()
    shot(page, "01_compared")


def test_pick_a_pixel_see_its_directions(lab, page):
    """The laboratory of notebook 03: a click, an arrow key and a slider each give another picture."""
    upload(lab, "jacobian_lab", ["from fcs_lab.widgets import JacobianLab", "JacobianLab()"])
    run_cells(page, lab, "jacobian_lab", 2)
    canvas = page.locator("canvas.fcs-pixel-picker")
    canvas.wait_for()
    picture = page.locator(".jp-OutputArea img.widget-image")
    picture.wait_for()
    seen = [picture.get_attribute("src")]

    def another_picture():
        page.wait_for_function("old => document.querySelector('.jp-OutputArea img.widget-image').src !== old", arg=seen[-1])
        seen.append(picture.get_attribute("src"))

    box = canvas.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 9.5 / 32, box["y"] + box["height"] * 9.5 / 32)
    another_picture()
    shot(page, "03_picked")
    page.keyboard.press("ArrowDown")
    another_picture()
    page.locator("select").filter(has_text="the left half").select_option(label="the left half")
    another_picture()
    shot(page, "03_left_half")
