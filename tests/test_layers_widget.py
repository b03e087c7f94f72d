"""The layer laboratory without a browser; tests/test_browser_07.py drives the real thing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_widgets import upload

import fcs_lab
import fcs_lab.composites
import fcs_lab.widgets.layers
from fcs_lab.composites import example_composites
from fcs_lab.metrics import mask_iou
from fcs_lab.plots import LAYER_COLOURS, colour_masks
from fcs_lab.widgets import LayersLab, ScribblePainter


@pytest.fixture
def lab(mnist):
    lab = LayersLab(mnist)
    lab.num_inference_steps.value, lab.inner_steps.value, lab.free.value = 4, 1, 0
    yield lab
    lab.stop()
    lab.wait()


@pytest.fixture
def asked(monkeypatch):
    """What the laboratory asks of infer_layers, which is called all the same."""
    asked = {}

    def infer_layers(model, composite, **arguments):
        asked.update(arguments, model=model, composite=composite)
        return fcs_lab.infer_layers(model, composite, **arguments)

    monkeypatch.setattr(fcs_lab.widgets.layers, "infer_layers", infer_layers)
    return asked


def size(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


def test_run_shows_masks_and_layers_as_they_form(lab):
    lab.run()
    lab.wait()
    assert lab.status.value == "done (12 evaluations a layer)"
    assert lab.progress.value == lab.progress.max == 4
    assert not lab.run_button.disabled and lab.stop_button.disabled
    assert lab.scrubber.max == 3 and len({picture for _, picture in lab._frames}) == 4
    lab.scrubber.value = 0
    assert lab.frame_caption.value == "t = 750, 3 evaluations a layer"
    assert lab.frame_picture.value == lab._frames[0][1]
    # Masks and two layers of 32 pixels, each with a frame of 1, gaps of 2; as the truth below, and 6 times enlarged.
    assert size(lab.frame_picture.value) == size(lab.truth_picture.value) == (6 * (3 * 34 + 2 * 2), 6 * 34)
    assert lab.truth.layout.display == lab.recompose.layout.display == ""
    known = lab._known[lab.composite.value]
    assert f"mask IoU {mask_iou(lab.result.masks[None], known.masks, known.layers).item():.2f}" in lab.scores.value


def test_settings_reach_infer_layers(lab, asked):
    lab.num_layers.value, lab.direction.value, lab.seed.value, lab.free.value = 3, "gradient", 7, 50
    lab.painter.scribbles = torch.full((32, 32), -1).index_fill(0, torch.tensor([4]), 2)
    lab.run()
    lab.wait()
    expected = {"num_layers": 3, "direction": "gradient", "num_inference_steps": 4, "inner_steps": [0, 0, 1, 1]}
    assert {name: asked[name] for name in expected} == expected
    assert asked["generator"].initial_seed() == 7 and asked["composite"] is lab.image
    assert torch.equal(asked["scribbles"], lab.painter.scribbles) and asked["scribbles"][4].eq(2).all()
    assert len(lab.result.layers) == 3 and lab.result.n_backward > 0
    assert [mover.layout.display for mover in lab.movers] == ["", "", "", "none"]
    assert "backward" in lab.status.value


def test_without_scribbles_none_are_given(lab, asked):
    lab.run()
    lab.wait()
    assert asked["scribbles"] is None


def test_scribbled_pixels_belong_to_their_layer(lab):
    lab.painter.scribbles = torch.full((32, 32), -1).index_fill(0, torch.arange(12, 20), 1)
    lab.run()
    lab.wait()
    assert (lab.result.masks[1, 12:20] > 0.99).all()


def test_stop_leaves_the_partial_result(lab):
    lab.num_inference_steps.value = 100
    lab.run()
    while not lab._frames:
        assert lab._thread.is_alive()
    lab.run()  # a second press while it runs is ignored
    lab.stop()
    lab.wait()
    assert lab.status.value.startswith("stopped, partial result")
    assert not lab.result.completed and len(lab._frames) < 100
    assert lab.recompose.layout.display == ""


def test_the_layers_are_put_together_anew(lab):
    lab.run()
    lab.wait()
    assert torch.equal(lab.recomposed[0], lab.result.compose()), "at first as they were found"
    whole, picture = lab.recomposed, lab.recomposed_picture.value
    lab.dx[1].value, lab.dy[1].value = 5, -3
    moved = lab.recomposed
    assert not torch.equal(moved, whole) and lab.recomposed_picture.value != picture
    lab.shown[1].value = False
    without = lab.recomposed
    lab.dx[1].value = -7
    assert torch.equal(lab.recomposed, without), "a layer that is not shown does not matter"
    lab.shown[0].value = False
    assert (lab.recomposed == -1).all(), "nothing is left"
    lab.run()
    lab.wait()
    assert all(box.value for box in lab.shown) and lab.dx[1].value == 0, "a new run starts anew"


def test_the_layers_are_exported_as_transparent_pictures(lab, tmp_path):
    assert lab.export() == [], "there is nothing yet"
    lab.starts.value = 2
    lab.run()
    lab.wait()
    assert lab.result.costs.shape == (1, 2) and "of 2 starts" in lab._frames[0][0]
    lab.folder.value = str(tmp_path / "found")
    lab.export_button.click()
    assert str(tmp_path / "found") in lab.exported.value
    for k in (0, 1):
        picture = Image.open(tmp_path / "found" / f"layer-{k}.png")
        assert picture.mode == "RGBA" and picture.size == (32, 32)
        alpha = torch.from_numpy(np.asarray(picture.getchannel("A")).copy()).float() / 255
        assert (alpha - lab.result.masks[k]).abs().max() < 0.51 / 255
        grey = fcs_lab.to_tensor(picture.convert("RGB").convert("L"))
        assert (grey[0] - lab.result.layers[k]).abs().max() < 1.1 / 127.5
    (tmp_path / "taken").write_text("a file")
    lab.folder.value = str(tmp_path / "taken")
    assert lab.export() == [] and "folder is" in lab.message.value


def test_the_colours_follow_the_number_of_layers(lab):
    lab.num_layers.value = 4
    lab.colour_buttons[3].click()
    assert lab.painter.label == 4
    lab.painter.scribbles = torch.tensor([[0, 1, 2, 3] * 8] * 32)
    lab.num_layers.value = 2
    assert lab.painter.label == 2, "the last of those that are left"
    assert lab.painter.scribbles[0, :4].tolist() == [0, 1, -1, -1]
    assert [widget.layout.display for widget in lab.colour_buttons] == ["", "", "none", "none"]
    lab.clear_button.click()
    assert (lab.painter.scribbles == -1).all()


def test_known_composites_and_ones_own(lab, digits):
    three = next(name for name in lab.composite.options if name.count(" over ") == 2)
    lab.composite.value = three
    assert lab.num_layers.value == 3
    known = lab._known[three]
    assert torch.equal((known.masks[:, :, None] * known.layers).sum(1), lab.image)
    lab.painter.scribbles = torch.zeros(32, 32, dtype=torch.int64)
    lab.upload_image.value = upload(np.full((32, 32), 200, np.uint8))
    assert lab.composite.value == "your image" and lab.image.unique().numel() == 1
    assert (lab.painter.scribbles == -1).all(), "another image's scribbles are gone"
    lab.run()
    lab.wait()
    assert lab.status.value.startswith("done") and lab.truth.layout.display == "none"
    own = LayersLab(lab.model, digits[:1])
    assert own.composite.options == ("your image",) and torch.equal(own.image, digits[:1])
    with pytest.raises(ValueError, match=r"composite has shape \(1, 1, 8, 8\); expected one image, \(1, 1, 32, 32\)"):
        LayersLab(lab.model, torch.zeros(1, 1, 8, 8))


def test_what_is_wrong_is_said_in_the_widget(lab, monkeypatch):
    def infer_layers(*_, **__):
        raise ValueError("scribbles is <odd>")

    monkeypatch.setattr(fcs_lab.widgets.layers, "infer_layers", infer_layers)
    lab.run()
    lab.wait()
    assert lab.status.value == "failed" and "scribbles is &lt;odd&gt;" in lab.message.value
    assert not lab.run_button.disabled and lab.result is None


def test_the_painter_tells_layers_apart():
    painter = ScribblePainter(torch.zeros(1, 3, 4, 6))
    assert painter.scribbles.shape == (4, 6) and (painter.scribbles == -1).all()
    painted = np.zeros((4, 6), np.uint8)
    painted[1, 2:], painted[3] = 1, 3
    painter.set_state({"mask_bytes": memoryview(painted.tobytes())})  # as the browser sends it
    assert torch.equal(painter.scribbles, torch.from_numpy(painted.astype(np.int64)) - 1)
    assert painter.colours[0] == [round(255 * part) for part in LAYER_COLOURS[0]]


def test_masks_in_colour():
    masks = torch.tensor([0.0, 1.0, 0.25]).reshape(1, 1, 3)
    coloured = colour_masks(torch.cat([masks, 1 - masks]))
    first, second = (torch.tensor(colour) * 2 - 1 for colour in LAYER_COLOURS[:2])
    torch.testing.assert_close(coloured[:, 0, 0], second)
    torch.testing.assert_close(coloured[:, 0, 1], first)
    torch.testing.assert_close(coloured[:, 0, 2], 0.25 * first + 0.75 * second)


def test_example_composites(mnist, monkeypatch):
    composites, names = example_composites(mnist, 2, 3)
    assert composites.layers.shape == (2, 3, 1, 32, 32)
    assert names == [[str(label) for label in row] for row in composites.labels.tolist()]
    photographs = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(fcs_lab.composites, "example_images", lambda model: photographs)
    rgb = fcs_lab.IdealDenoiser(photographs)
    for K in (1, 2, 4):
        composites, names = example_composites(rgb, 2, K)
        assert len(names[0]) == K and torch.equal(composites.layers[1, 0], photographs[1])
        assert composites.masks.sum(1).eq(1).all() and composites.masks.flatten(2).sum(2).gt(20).all()
        assert torch.equal(composites.images, (composites.masks[:, :, None] * composites.layers).sum(1))
    with pytest.raises(ValueError, match="num_layers is 5; there are 4 photographs"):
        example_composites(rgb, 1, 5)
    with pytest.raises(ValueError, match=r"the model's images are \(1, 8, 8\)"):
        example_composites(fcs_lab.IdealDenoiser(torch.zeros(1, 1, 8, 8)), 1, 2)
