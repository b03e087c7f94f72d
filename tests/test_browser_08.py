"""The laboratory of every other task in a real JupyterLab in headless Chromium: keyboard, undo, a dropped picture, a run."""

import base64
import io
import re

from browser import IN_A_BROWSER, run_cells, shot, upload
from PIL import Image

pytestmark = IN_A_BROWSER
DROP = """([content, name]) => {
  const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/png" }));
  const canvas = document.querySelector("canvas.fcs-mask-painter");
  canvas.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""


def test_join_two_images_by_keyboard_and_mouse(lab, page, tmp_path):
    cells = ["from fcs_lab.widgets import TaskLab", "lab = TaskLab()\nlab.num_inference_steps.value = 4\nlab"]
    cells.append("int(lab.painter.mask.sum())")
    upload(lab, "tasks", cells)
    run_cells(page, lab, "tasks", 2)
    canvas, other = page.locator("canvas.fcs-mask-painter").nth(0), page.locator("canvas.fcs-mask-painter").nth(1)
    other.wait_for()
    assert "arrow keys to move, Space to paint" in canvas.get_attribute("aria-label")

    def painted(execution):
        """How many pixels of the first image are kept, by the last cell."""
        page.locator(".jp-CodeCell").nth(2).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        page.locator(".jp-InputPrompt", has_text=f"[{execution}]:").wait_for()
        return int(page.locator(".jp-CodeCell").nth(2).locator(".jp-OutputArea-output").inner_text())

    assert painted(3) == 12 * 32
    canvas.focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Space")  # beyond what was kept
    more = painted(4)
    assert more > 12 * 32
    canvas.focus()
    page.keyboard.press("Delete")
    assert 12 * 32 <= painted(5) < more
    canvas.focus()
    page.keyboard.press("Control+z")
    assert painted(6) == more
    page.locator("button.widget-button", has_text="Undo").click()
    assert painted(7) == 12 * 32

    buffer = io.BytesIO()
    Image.new("L", (48, 48), 128).save(buffer, "PNG")
    page.evaluate(DROP, [base64.b64encode(buffer.getvalue()).decode(), "grey.png"])
    page.get_by_text("The picture's middle was resized from 48×48 to 32×32 pixels.").wait_for()
    page.locator(".widget-inline-hbox", has_text="bundled image").locator("input").fill("3")
    page.locator(".widget-inline-hbox", has_text="bundled image").locator("input").press("Enter")

    page.locator("select").filter(has_text="DPS").last.select_option(label="DDNM")
    page.locator("button.widget-button", has_text="Run").click()
    page.get_by_text(re.compile(r"^done \(newton: 36 evaluations, ddnm: 4 evaluations\)$")).wait_for()
    page.get_by_text(re.compile(r"Python 3.* \| Idle")).wait_for()
    file = page.locator(".widget-text", has_text="file").locator("input")
    file.fill(str(tmp_path / "joined.png"))
    file.press("Enter")
    page.locator("button.widget-button", has_text="Save").click()
    page.get_by_text("and beside it its inputs and joined.py").wait_for()
    assert {path.name for path in tmp_path.iterdir()} == {"joined.png", "joined_image.png", "joined_mask.png", "joined.py"}
    shot(page, "08_joined")
    page.locator("select").filter(has_text="silhouette").first.select_option(label="silhouette")
    page.get_by_text("Paint where there is to be an object.").wait_for()
    shot(page, "08_silhouette")
