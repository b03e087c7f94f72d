"""Notebook 01 in a real JupyterLab in headless Chromium, driven as a reader would."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
# Kept for a person to look at; git ignores them.
SCREENSHOTS = Path(__file__).parent / "screenshots"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the browser tests need one (CI has it)"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    cells = [nbformat.v4.new_code_cell(source) for source in ("from fcs_lab.widgets import JacobianLab", "JacobianLab()")]
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "notebooks" / "jacobian_lab.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    command += ["--IdentityProvider.token=test", f"--ServerApp.root_dir={folder / 'notebooks'}", "--LabApp.news_url=None"]
    home = {
        "JUPYTER_CONFIG_DIR": folder / "config",
        "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
        "IPYTHONDIR": folder / "ip",
    }
    home |= {"JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces", "JUPYTER_DATA_DIR": folder / "data"}
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, env=environment | {k: str(v) for k, v in home.items()}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=test", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture
def page(lab):
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1500, "height": 1500})
        page.set_default_timeout(120_000)  # a machine of one busy core takes its time
        yield page
        shot(page, "last_seen")  # after a failure, what there was to see
        browser.close()


def shot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def upload(lab, name, sources):
    """Give JupyterLab a notebook of these code cells."""
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    request = urllib.request.Request(
        f"{lab}/api/contents/{name}.ipynb?token=test",
        json.dumps({"type": "notebook", "content": nbformat.v4.new_notebook(cells=cells, metadata=kernel)}).encode(),
        method="PUT",
    )
    urllib.request.urlopen(request, timeout=30).read()


def run_cells(page, lab, name, count):
    """Open a notebook and run its first code cells, as a reader would step through them."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=test&reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for()
    page.locator(".jp-CodeCell").nth(0).click()
    for execution in range(1, count + 1):
        page.keyboard.press("Shift+Enter")
        page.locator(".jp-InputPrompt", has_text=f"[{execution}]:").wait_for()


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
