"""A real JupyterLab in headless Chromium: one server for a process of tests, a page for each test."""

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

IN_A_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the browser tests need one (CI has it)"),
]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """The address of a JupyterLab that serves a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
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
    for session in json.loads(asked(lab, "sessions")):  # its kernel, which would go on holding a model
        asked(lab, f"sessions/{session['id']}", method="DELETE")


def asked(lab, what, method="GET", content=None):
    """What the server's REST API answers."""
    request = urllib.request.Request(f"{lab}/api/{what}?token=test", content, method=method)
    return urllib.request.urlopen(request, timeout=30).read()


def shot(page, name):
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def upload(lab, name, sources):
    """Give JupyterLab a notebook of these code cells."""
    kernel = {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}}
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = {"type": "notebook", "content": nbformat.v4.new_notebook(cells=cells, metadata=kernel)}
    asked(lab, f"contents/{name}.ipynb", "PUT", json.dumps(notebook).encode())


def run_cells(page, lab, name, count):
    """Open a notebook and run its first code cells, as a reader would step through them."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=test&reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for()
    page.locator(".jp-CodeCell").nth(0).click()
    for execution in range(1, count + 1):
        page.keyboard.press("Shift+Enter")
        page.locator(".jp-InputPrompt", has_text=f"[{execution}]:").wait_for()
