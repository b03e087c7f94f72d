"""The super-resolution laboratory, its buttons pressed from code."""

import pytest
import torch
from conftest import tiny_denoiser

import fcs_lab
from fcs_lab.metrics import psnr
from fcs_lab.widgets import SuperResolutionLab


@pytest.fixture
def lab():
    model = tiny_denoiser(torch.float32, size=16)
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    lab = SuperResolutionLab(model, images)
    lab.num_inference_steps.value, lab.inner_steps.value = 3, 2
    return lab


def finished(lab):
    lab.wait(60)
    assert lab.run_button.disabled is False and lab.stop_button.disabled is True


def test_run_is_sample_with_the_settings_shown(lab):
    lab.example.value, lab.factor.value, lab.seed.value, lab.step_size.value = 1, 2, 5, (0.1, 0.3)
    lab.fd_step.value, lab.eta.value = 0.05, 0.5
    lab.run_button.click()
    finished(lab)
    task = fcs_lab.SuperResolution(fcs_lab.downsample(lab.images[1:2], 2), 2)
    expected = fcs_lab.sample(
        lab.model,
        task,
        num_inference_steps=3,
        inner_steps=2,
        step_size=(0.3, 0.1),
        fd_step=0.05,
        eta=0.5,
        generator=torch.Generator().manual_seed(5),
        progress=False,
    )
    assert torch.equal(lab.result.images, expected.images)
    assert lab.status.value == "done (newton: 15 evaluations)"
    assert lab.progress.value == 3 and lab.scrubber.max == 2
    assert lab.result_caption.value.startswith(f"PSNR {psnr(expected.images, lab.images[1:2]).item():.1f} dB")


def test_the_sampler_may_be_told_of_another_operator(lab):
    lab.reduced_by.value, lab.assumed.value = "box", "bicubic"
    task, large = lab.task, lab.images[:1]
    assert torch.allclose(task.y, fcs_lab.downsample(large, 4, "box"))
    assert torch.allclose(task.A(large), fcs_lab.downsample(large, 4))
    lab.assumed.value = "the same"
    assert torch.allclose(lab.task.A(large), task.y)


def test_what_is_given_may_be_noisy(lab):
    clean, picture = lab.task, lab.small_picture.value
    lab.noise_std.value = 0.2
    task = lab.task
    assert task.noise_std == 0.2 and clean.noise_std == 0
    assert (task.y - clean.y).std() == pytest.approx(0.2, rel=0.5)
    assert torch.equal(task.y, lab.task.y), "the same noise each time"
    assert lab.small_caption.value == "4×4 pixels, σ_y = 0.2" and lab.small_picture.value != picture
    lab.run_button.click()
    finished(lab)
    assert lab.status.value == "done (newton: 15 evaluations)"
    measured = fcs_lab.metrics.data_consistency(task, lab.result.images).item()
    assert lab.result_caption.value.endswith(f"A x − y: {measured:.4f} rms"), "against the noisy y"


def test_the_defaults_are_the_samplers_own(lab):
    lab.run_button.click()
    finished(lab)
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 3, "inner_steps": 2, "step_size": 0.1, "generator": generator, "progress": False}
    assert torch.equal(lab.result.images, fcs_lab.sample(lab.model, lab.task, **settings).images)


def test_h_is_asked_for_where_there_is_a_difference(lab):
    assert lab.fd_step.layout.display != "none"
    lab.direction.value = "identity"
    assert lab.fd_step.layout.display == "none" and lab.eta.layout.display != "none"


def test_what_is_given_is_shown_at_once(lab):
    before = lab.small_picture.value, lab.bicubic_picture.value
    lab.factor.value = 8
    assert lab.small_caption.value == "2×2 pixels"
    assert lab.small_picture.value != before[0] and lab.bicubic_picture.value != before[1]


def test_stop_leaves_a_partial_result(lab):
    lab.num_inference_steps.value = 100
    lab.run()
    lab.stop()
    finished(lab)
    assert not lab.result.completed and lab.status.value.startswith("stopped, partial result")


def test_factors_are_those_that_divide_the_image():
    lab = SuperResolutionLab(tiny_denoiser(torch.float32, size=12), torch.zeros(1, 1, 12, 12))
    assert [factor for _, factor in lab.factor.options] == [2, 4]


def test_images_have_to_fit_the_model():
    with pytest.raises(ValueError, match=r"images has shape \(1, 1, 8, 8\); expected \(N, 1, 16, 16\)"):
        SuperResolutionLab(tiny_denoiser(torch.float32, size=16), torch.zeros(1, 1, 8, 8))
