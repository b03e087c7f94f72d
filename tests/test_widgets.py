"""The widgets without a browser: what their controls do is all in Python. tests/test_browser.py drives the real thing."""

import datetime
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fcs_lab import baselines
from fcs_lab.widgets import InpaintingLab, MaskPainter


@pytest.fixture
def lab():
    lab = InpaintingLab("mnist")
    lab.num_inference_steps.value, lab.inner_steps.value = 4, 1
    yield lab
    lab.stop()
    lab.wait()


def upload(pixels) -> tuple:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return file("picture.png", buffer.getvalue())


def file(name: str, content: bytes) -> tuple:
    """What ipywidgets' FileUpload holds after an upload."""
    now = datetime.datetime.now(datetime.UTC)
    return ({"name": name, "type": "", "size": len(content), "content": memoryview(content), "last_modified": now},)


def test_run_shows_the_result(lab):
    lab.run()
    lab.wait()
    assert lab.status.value == "done (newton: 12 evaluations)"
    assert lab.result.completed and lab.result.images.shape == (1, 1, 32, 32)
    assert lab.progress.value == lab.progress.max == 4
    assert not lab.run_button.disabled and lab.stop_button.disabled
    assert lab.scrubber.max == 3
    lab.scrubber.value = 0
    assert "t = 750, 3 evaluations" in lab.frame_caption.value
    picture = Image.open(io.BytesIO(lab.input_picture.value))
    assert picture.size == (192, 192)
    assert picture.getpixel((191, 0)) != picture.getpixel((0, 0)), "what is hidden is coloured"


def test_settings_reach_the_sampler(lab):
    lab.direction.value, lab.inner_steps.value, lab.seed.value = "gradient", 2, 5
    lab.run()
    lab.wait()
    assert (lab.result.nfe, lab.result.n_backward) == (12, 8)
    first = lab.result.images
    lab.seed.value = 6
    lab.run()
    lab.wait()
    assert not torch.equal(lab.result.images, first)


@pytest.mark.parametrize("method", ["fast", "ddnm", "lanpaint", "dps", "biharmonic", "tuned"])
def test_any_method_of_the_menu_runs(lab, method):
    """With what of the controls it has; the others are hidden."""
    lab.direction.value = method
    shown = [control.layout.display != "none" for control in (lab.inner_steps, lab.fd_step, lab.num_inference_steps)]
    assert shown == [False, method == "fast", method != "biharmonic"]
    lab.run()
    lab.wait()
    evaluations = {"fast": 7, "lanpaint": 24, "biharmonic": 0}.get(method, 4)
    assert lab.status.value.startswith(f"done ({method}: {evaluations} evaluations"), (lab.status.value, lab.message.value)
    assert lab.curve.layout.display == ("none" if method == "biharmonic" else "")


def test_the_menu_has_what_the_model_can_do(lab):
    methods = {name for _, name in lab.direction.options}
    assert {"newton", "fast", "tuned", "deep_image_prior", *baselines.PEERS} - methods == {"psld"}
    latent = {name for _, name in InpaintingLab("fashion").direction.options}
    assert "psld" in latent and "tuned" not in latent


def test_stop_leaves_the_partial_result(lab):
    lab.num_inference_steps.value = 100
    lab.run()
    while not lab._frames:
        assert lab._thread.is_alive()
    lab.run()  # a second press while it runs is ignored
    lab.stop()
    lab.wait()
    assert lab.status.value.startswith("stopped, partial result")
    assert not lab.result.completed and lab.result_picture.value


def test_compare_runs_every_direction_from_one_seed(lab):
    lab.compare()
    lab.wait()
    assert list(lab.results) == ["identity", "gradient", "newton"]
    assert lab.comparison.value and lab.comparison.layout.display == ""


def test_what_is_wrong_is_said_in_the_widget(lab):
    lab.preset.value = "nothing (paint)"
    lab.run()
    assert "mask is empty" in lab.message.value and lab._thread is None
    lab.painter.mask = torch.ones(32, 32, dtype=torch.bool)
    lab.run()
    assert "mask is full" in lab.message.value
    lab.preset.value = "middle"
    lab.model.shape = (1, 16, 16)  # a failure in the thread
    try:
        lab.run()
        lab.wait()
    finally:
        lab.model.shape = (1, 32, 32)
    assert lab.status.value == "failed" and "the model takes 16×16" in lab.message.value
    assert not lab.run_button.disabled


def test_uploads(lab):
    lab.upload_image.value = upload(np.full((64, 48, 3), 200, np.uint8))
    assert "resized from 48×64 to 32×32" in lab.message.value
    assert lab.image.shape == (1, 1, 32, 32) and abs(lab.image.mean() - (200 / 127.5 - 1)) < 0.01
    grey = np.zeros((32, 32), np.uint8)
    grey[:, 8:16], grey[:, 16:] = 100, 200
    lab.upload_mask.value = upload(grey)
    assert "768 grey pixels" in lab.message.value
    expected = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    expected[..., 16:] = True
    assert torch.equal(lab.painter.mask, expected)
    lab.upload_image.value = file("notes.txt", b"abc")
    assert "notes.txt is not an image" in lab.message.value


def test_the_painter_takes_what_the_browser_sends():
    painter = MaskPainter(torch.zeros(1, 3, 4, 6))
    assert painter.mask.shape == (1, 1, 4, 6) and not painter.mask.any()
    values = np.zeros((4, 6), np.uint8)
    values[1, 2:] = 1
    painter.set_state({"mask_bytes": memoryview(values.tobytes())})
    assert torch.equal(painter.mask[0, 0], torch.from_numpy(values > 0))
    painter.set_image(torch.zeros(1, 1, 8, 8))
    assert painter.mask.shape == (1, 1, 8, 8) and not painter.mask.any()
