"""The laboratory of every other task without a browser, what a laboratory saves, and what a painter takes back."""

import io
import re

import pytest
import torch
from conftest import pictures
from PIL import Image

import fcs_lab
from fcs_lab.features import class_guidance
from fcs_lab.widgets import InpaintingLab, MaskPainter, SuperResolutionLab, TaskLab


def made(kind, model="mnist"):
    lab = kind(model)
    lab.num_inference_steps.value, lab.inner_steps.value = 2, 1
    return lab


def ran(lab):
    lab.run()
    lab.wait()
    assert lab.status.value.startswith("done"), (lab.status.value, lab.message.value)
    return lab


def again(lab, folder):
    """What the saved call makes, run where it was saved."""
    lab.path.value = str(folder / "mine.png")
    lab.save()
    assert "saved" in lab.message.value and (folder / "mine.py").read_text() == lab.call.value
    names = {}
    exec((folder / "mine.py").read_text(), names)
    return names["result"]


@pytest.mark.parametrize("task", ["two joined", "deblurring", "silhouette", "style", "class"])
def test_a_task_runs_and_its_call_makes_the_same(task, tmp_path):
    lab = made(TaskLab)
    lab.chosen.value = task
    ran(lab)
    (result,) = lab.results.values()
    assert torch.equal(again(lab, tmp_path).images, result.images)
    assert lab.scrubber.max == 1 and "t = " in lab.frame_caption.value


def test_colour_and_a_prompt(tmp_path):
    lab = made(TaskLab, "emoji")
    assert "colourisation" in lab.chosen.options and "colourisation" not in made(TaskLab).chosen.options
    lab.chosen.value, lab.prompt.value = "colourisation", "red apple, noto"
    ran(lab)
    assert "with_prompt('red apple, noto', guidance_scale=2.5)" in lab.call.value
    # Bundled emoji are laid on white at full precision; a picture has 8 bits.
    assert (again(lab, tmp_path).images - lab.results["newton"].images).abs().max() < 0.01


def test_the_controls_describe_the_task():
    lab = made(TaskLab)
    left, right = torch.zeros(2, 32, 32, dtype=torch.bool)
    left[:, :8], right[:, 6:20] = True, True
    lab.painter.mask, lab.other_painter.mask = left, right
    task = lab.task
    assert torch.equal(task.mask[0, 0], ~(left | right)), "what is kept of neither is made up"
    assert torch.equal(task.y[0, 0][left], lab.image[0, 0][left]), "where both are kept, the left one is"
    only_right = right & ~left
    assert torch.equal(task.y[0, 0][only_right], lab.other[0, 0][only_right])
    lab.chosen.value = "deblurring"
    lab.moved.value = 5
    assert torch.allclose(lab.task.y[..., 4:-4], lab.image.unfold(-1, 5, 1).mean(-1)[..., 2:-2], atol=1e-6), "means of five"
    lab.chosen.value, lab.label.value = "class", 3
    x = fcs_lab.load_digits(2)[0]
    wanted = class_guidance(fcs_lab.classifier.load_classifier("digits"), 3)
    assert torch.allclose(lab.task.cost(x), wanted.cost(x))


def test_a_second_method_beside():
    lab = made(TaskLab)
    lab.beside.value = "ddnm"
    ran(lab)
    assert list(lab.results) == ["newton", "ddnm"] and "newton: 6 evaluations, ddnm: 2 evaluations" in lab.status.value
    assert lab.result_picture.value != lab.beside_picture.value
    lab.chosen.value = "class"
    lab.run()
    lab.wait()
    assert lab.status.value == "failed" and "has no A, no A⁺" in lab.message.value, "said, not thrown"


def test_what_cannot_be_is_said():
    lab = made(TaskLab)
    lab.painter.clear()
    lab.other_painter.clear()
    lab.run()
    assert "mask is full" in lab.message.value
    lab.chosen.value = "silhouette"
    lab.painter.clear()
    lab.run()
    assert "nothing is painted" in lab.message.value
    lab.save()
    assert "there is no result to save" in lab.message.value
    lab.painter.mask = torch.eye(32) > 0
    ran(lab)
    for name, said in {"mine.jpg": "expected the name of a .png", "nowhere/mine.png": "in a folder that is there"}.items():
        lab.path.value = name
        lab.save()
        assert said in lab.message.value


@pytest.mark.parametrize("kind", [InpaintingLab, SuperResolutionLab])
def test_the_other_laboratories_save_as_well(kind, tmp_path):
    lab = made(kind)
    if kind is SuperResolutionLab:
        lab.noise_std.value = 0.1
    else:
        lab.direction.value = "ddnm"
    ran(lab)
    assert torch.equal(again(lab, tmp_path).images, lab.result.images)


def test_a_comparison_that_is_stopped_saves_what_it_came_to(tmp_path):
    lab = made(InpaintingLab)
    taken = lab._add_frame
    lab._add_frame = lambda *frame: lab.stop() or taken(*frame)  # after its first timestep
    lab.compare()
    lab.wait()
    lab.seed.value = 5  # another seed than that of the run
    assert list(lab.results) == ["identity"] and "direction='identity'" in lab.call.value
    assert "manual_seed(0)" in lab.call.value
    result = again(lab, tmp_path)
    assert result.completed and not lab.result.completed and result.images.shape == lab.result.images.shape


@pytest.mark.parametrize("method", ["fast", "tuned", "biharmonic", "deep_image_prior"])
def test_the_call_of_any_method(method):
    lab = made(InpaintingLab)
    lab.direction.value = method
    names = {"fast": "fcs_lab.sample(model, task, preset='fast'", "tuned": "tuned(fcs_lab.load('mnist-inpainting'), task"}
    if method != "deep_image_prior":  # takes long
        ran(lab)
        assert names.get(method, f"fcs_lab.baselines.{method}(model, task") in lab.call.value
    else:
        assert "generator" in lab._settings_of(method)


def test_strokes_are_taken_back():
    painter = MaskPainter(pictures(1))
    first, second = torch.zeros(2, 8, 8, dtype=torch.bool)
    first[0], second[1] = True, True
    painter.mask = first
    painter.mask = second
    painter.undo()
    assert torch.equal(painter.mask[0, 0], first)
    painter.undo()
    assert not painter.mask.any()
    painter.undo()
    assert not painter.mask.any(), "there is nothing more to take back"
    painter.mask = first
    painter.set_image(pictures(1, size=6))
    painter.undo()
    assert painter.mask.shape[-1] == 6 and not painter.mask.any(), "nothing of another size comes back"


def test_a_picture_is_dropped():
    lab = made(TaskLab)
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 255).save(buffer, "PNG")
    for _ in range(2):  # the same again is no other
        lab.painter.dropped = buffer.getvalue()
        assert re.search("resized from 64×64 to 32×32", lab.message.value) and lab.image.min() == 1
        lab.example.value = 1 - lab.example.value
        assert lab.image.min() == -1
    lab.painter.dropped = b"no picture"
    assert "the dropped picture" in lab.message.value
