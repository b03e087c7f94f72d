"""Measures of images, against closed forms."""

import pytest
import torch
from conftest import Opaque

import fcs_lab
from fcs_lab.denoisers import alpha_bar_at
from fcs_lab.metrics import denoising_loss, mask_error, masked_mse, psnr, with_error

F64 = torch.float64


def test_the_denoising_loss_of_a_gaussian_is_known():
    """For x_0 ~ N(μ, v I): x̂_0 = μ + c (x_t − a μ) with c = a v/(a² v + s²), so the loss is a quadratic form in ε."""
    mean, v = torch.full((1, 1, 8, 8), 0.2, dtype=F64), 0.3
    model = fcs_lab.GaussianMixtureDenoiser(mean, v)
    images = mean + torch.tensor([0.0, 0.5, 1.0], dtype=F64).reshape(3, 1, 1, 1)
    found = denoising_loss(model, images, timesteps=(400,), noises=400)
    alpha_bar = alpha_bar_at(model, 400, images)
    a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    c = a * v / (a.square() * v + s.square())
    # x_0 − x̂_0 = (1 − c a)(x_0 − μ) − c s ε, and its square is expected over ε.
    expected = (a / s).square() * ((1 - c * a).square() * (images - mean).square().flatten(1).mean(1) + (c * s).square())
    assert torch.allclose(found, expected, rtol=0.02)


def test_the_denoising_loss_is_the_networks_own():
    """(ε̂ − ε)² with ε̂ what the network itself says."""
    model = fcs_lab.load("mnist", device="cpu")
    images = fcs_lab.load_digits(2)[0]
    epsilon = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1, -1)
    x_t = model.scheduler.add_noise(images, epsilon, torch.tensor([300, 300]))
    with torch.no_grad():
        expected = (model.unet(x_t, 300).sample - epsilon).square().flatten(1).mean(1)
    assert torch.allclose(denoising_loss(model, images, timesteps=(300,), noises=1, seed=3), expected, rtol=1e-3)


def test_what_is_none_of_the_models_kind_has_a_high_loss():
    digits = fcs_lab.load_digits(8)[0]
    ideal = Opaque(fcs_lab.IdealDenoiser(digits))
    assert denoising_loss(ideal, digits).max() < 0.01 < denoising_loss(ideal, digits.flip(-2)).min()


def test_one_truth_may_be_that_of_all_images():
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(4, 4, dtype=torch.bool)
    repeated = images[:1].expand(3, -1, -1, -1)
    assert torch.equal(masked_mse(images, images[:1], mask), masked_mse(images, repeated, mask))
    assert torch.equal(psnr(images, images[:1]), psnr(images, repeated))
    with pytest.raises(ValueError, match=r"truth has shape \(2, 1, 4, 4\); expected \(3, 1, 4, 4\)"):
        psnr(images, images[:2])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (torch.tensor([1.0, 2.0, 3.0]), "2.00 ± 0.58 (n = 3)"),
        (torch.tensor([0.1, 0.104]), "0.1020 ± 0.0020 (n = 2)"),
        (torch.tensor([5.0, 5.0]), "5.000 ± 0.000 (n = 2)"),
        (torch.tensor([True, True, False, True]), "75% ± 25% (n = 4)"),
    ],
)
def test_a_mean_with_its_error(values, told):
    assert with_error(values) == told


@pytest.mark.parametrize(
    "values", [torch.tensor([1.0]), torch.ones(2, 2), torch.tensor([1, 2]), torch.tensor([1.0, torch.nan])]
)
def test_no_mean_of_these(values):
    with pytest.raises(ValueError, match="values"):
        with_error(values)


def test_mask_error_by_hand():
    """One pixel of three that count is off by 0.3 in both masks; where the layers agree nothing is counted."""
    layers = torch.zeros(1, 2, 1, 2, 2)
    layers[0, 0] = 1
    layers[0, :, :, 1, 1] = 0.3  # both alike: not counted
    truth = torch.tensor([[[[1.0, 1.0], [0.0, 0.5]], [[0.0, 0.0], [1.0, 0.5]]]])
    found = torch.tensor([[[[1.0, 0.7], [0.0, 0.0]], [[0.0, 0.3], [1.0, 1.0]]]])
    for masks in (found, found.flip(1)):  # whatever the order of the layers
        assert mask_error(masks, truth, layers).item() == pytest.approx(0.3 * 2 / (2 * 3))
    left = torch.tensor([[[True, False], [True, True]]])
    assert mask_error(found, truth, layers, left).item() == 0
    assert mask_error(found, truth, layers, torch.zeros(1, 2, 2, dtype=torch.bool)).isnan()
