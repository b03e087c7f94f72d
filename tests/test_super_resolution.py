"""The linear operators of super-resolution, deblurring and colourisation, and the metrics that judge them."""

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser
from PIL import Image
from scipy.ndimage import convolve
from torch.nn.functional import avg_pool2d, interpolate

import fcs_lab
from fcs_lab.metrics import data_consistency, psnr

F64 = torch.float64


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * 1.6 - 0.8


def a_kernel(height=5, width=3):
    """Neither symmetric nor separable, so that a flip, a transposition or a rank too low would show."""
    kernel = random(height, width, seed=11).abs() + 0.05
    return kernel / kernel.sum()


OPERATORS = {
    "bicubic": lambda: fcs_lab.SuperResolution(random(2, 3, 6, 4), 4),
    "bicubic ×8": lambda: fcs_lab.SuperResolution(random(2, 1, 4, 3), 8),
    "box": lambda: fcs_lab.SuperResolution(random(2, 3, 6, 4), 2, "box"),
    "kernel ×3": lambda: fcs_lab.SuperResolution(random(2, 1, 5, 4), 3, a_kernel()),
    "blur": lambda: fcs_lab.Blur(random(2, 3, 9, 12), a_kernel()),
    "blur, a kernel larger than the image": lambda: fcs_lab.Blur(random(1, 1, 4, 4), a_kernel(11, 13)),
    "colourisation": lambda: fcs_lab.Colorization(random(2, 1, 5, 7)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_transpose_is_exact(name):
    task = OPERATORS[name]()
    u, v = random(task.batch_size, *task.shape, seed=1), random(*task.y.shape, seed=2)
    assert torch.allclose((task.A(u) * v).sum(), (u * task.A_adjoint(v)).sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_error_is_the_negative_gradient_of_the_cost(name):
    task = OPERATORS[name]()
    x0 = random(task.batch_size, *task.shape, seed=3).requires_grad_()
    gradient = torch.autograd.grad(task.cost(x0).sum(), x0)[0]
    assert torch.allclose(task.error(x0.detach()), -gradient, atol=1e-13)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_it_reduces_as_torch_does(factor):
    x = random(2, 3, 48, 32)
    bicubic = interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    assert torch.allclose(fcs_lab.downsample(x, factor), bicubic, atol=1e-12)
    assert torch.allclose(fcs_lab.downsample(x, factor, "box"), avg_pool2d(x, factor), atol=1e-12)


@pytest.mark.parametrize(
    ("resize", "size"), [(lambda x: fcs_lab.downsample(x, 4), (6, 8)), (lambda x: fcs_lab.upsample(x, 2), (48, 64))]
)
def test_pillow_resizes_the_same(resize, size):
    """Up to its 8 bits, to which it rounds twice."""
    (picture,) = fcs_lab.to_pil(random(1, 3, 32, 24))
    expected = fcs_lab.to_tensor(picture.resize(size, Image.Resampling.BICUBIC))
    assert (resize(picture) - expected).abs().max() < 1.5 / 127.5


@pytest.mark.parametrize("shape", [(1, 3), (5, 3), (3, 7)])
def test_blur_is_scipys_convolution(shape):
    x, kernel = random(2, 1, 9, 12), a_kernel(*shape)
    expected = np.stack([[convolve(one[0].numpy(), kernel.numpy(), mode="nearest")] for one in x])
    assert np.allclose(fcs_lab.blur(x, kernel).numpy(), expected, atol=1e-13)
    assert torch.equal(fcs_lab.blur(x, kernel.numpy()), fcs_lab.blur(x, kernel))


def test_the_kernel_is_the_picture_of_a_point():
    point, kernel = torch.zeros(1, 1, 9, 9, dtype=F64), a_kernel()
    point[..., 4, 4] = 1
    assert torch.allclose(fcs_lab.blur(point, kernel)[0, 0, 2:7, 3:6], kernel, atol=1e-15)


@pytest.mark.parametrize(("factor", "first"), [(2, 0), (3, 1), (4, 1)])
def test_a_kernel_blurs_then_subsamples_in_the_stated_phase(factor, first):
    x = random(2, 3, 12, 24)
    expected = fcs_lab.blur(x, a_kernel())[..., first::factor, first::factor]
    assert torch.allclose(fcs_lab.downsample(x, factor, a_kernel()), expected, atol=1e-13)


def test_a_box_of_odd_size_is_also_a_kernel():
    x = random(1, 1, 9, 12)
    as_kernel = fcs_lab.downsample(x, 3, torch.full((3, 3), 1 / 9, dtype=F64))
    assert torch.allclose(as_kernel, fcs_lab.downsample(x, 3, "box"), atol=1e-13)


def test_a_separable_kernel_takes_one_term():
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=F64)
    assert len(fcs_lab.Blur(random(1, 1, 8, 8), taps[:, None] * taps).D_h) == 1
    assert len(fcs_lab.Blur(random(1, 1, 8, 8), a_kernel()).D_h) == 3


def test_luminance_is_pillows():
    (picture,) = fcs_lab.to_pil(random(1, 3, 6, 5))
    grey = fcs_lab.to_tensor(picture.convert("L"))
    task = fcs_lab.Colorization(picture.convert("L"))
    assert task.shape == (3, 6, 5)
    assert (task.A(fcs_lab.to_tensor(picture)) - grey).abs().max() < 1.01 / 127.5


def test_a_measurement_may_overshoot_and_be_noisy():
    """A bicubic reduction of an edge leaves [-1, 1], and clipping it would make the truth inconsistent."""
    x = torch.full((1, 1, 16, 16), -1.0)
    x[..., 8:] = 1
    low_res = fcs_lab.downsample(x, 4)
    assert low_res.abs().max() > 1.01
    task = fcs_lab.SuperResolution(low_res, 4)
    assert data_consistency(task, x).item() < 1e-6
    noisy = fcs_lab.SuperResolution(low_res + 0.2 * torch.randn(low_res.shape), 4)
    assert noisy.y.abs().max() > 1


def test_metrics_against_closed_forms():
    truth = random(2, 3, 8, 8)
    off = truth + torch.tensor([0.1, 0.02], dtype=F64).reshape(2, 1, 1, 1)
    assert torch.allclose(psnr(off, truth), 20 * torch.log10(torch.tensor([2 / 0.1, 2 / 0.02], dtype=F64)))
    assert psnr(truth, truth).isinf().all()
    # A keeps constants, so what is off by c everywhere is off by c in the small image.
    task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4)
    assert torch.allclose(data_consistency(task, off), torch.tensor([0.1, 0.02], dtype=F64))
    assert data_consistency(task, off.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8), True), ValueError, "factor is True"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8), 2, "nearest"), ValueError, "kernel is 'nearest'.*'bicubic'"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8), 2, 3), TypeError, "kernel is 3"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8) * 100, 2), ValueError, "low_res has values in"),
        (lambda: fcs_lab.SuperResolution(random(1, 1, 8, 8) * torch.nan, 2), ValueError, "low_res has NaN"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), torch.full((2, 3), 1 / 6)), ValueError, r"shape \(2, 3\).*odd"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), torch.full((3,), 1 / 3)), ValueError, r"shape \(3,\)"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), torch.ones(3, 3)), ValueError, "kernel sums to 9"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), torch.full((3, 3), torch.nan)), ValueError, "kernel sums to nan"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), torch.ones(1, 1, dtype=torch.int64)), TypeError, "floating-point"),
        (lambda: fcs_lab.Blur(random(1, 1, 8, 8), "box"), TypeError, "kernel is 'box'"),
        (lambda: fcs_lab.Colorization(random(1, 3, 8, 8)), ValueError, "grey has 3 channels"),
        (lambda: fcs_lab.downsample(random(1, 1, 9, 8), 2), ValueError, "images is 9×8.*factor 2"),
        (lambda: fcs_lab.downsample(random(1, 1, 8, 8), 1.5), ValueError, "factor is 1.5"),
        (lambda: fcs_lab.upsample(random(1, 1, 8, 8), 0), ValueError, "factor is 0"),
    ],
)  # fmt: skip
def test_wrong_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_the_exact_denoiser_recalls_the_digit_behind_a_small_one():
    """With the posterior known in closed form, the only digit of the set that fits is the answer."""
    truth = fcs_lab.load_digits(12)[0].to(F64)
    ideal = fcs_lab.IdealDenoiser(truth)
    task = fcs_lab.SuperResolution(fcs_lab.downsample(truth[:3], 8), 8)
    seeds = [torch.Generator().manual_seed(i) for i in range(3)]
    result = fcs_lab.sample(ideal, task, inner_steps=10, step_size=0.5, generator=seeds, progress=False)
    assert (psnr(result.images, truth[:3]) > 30).all()


@pytest.mark.parametrize("task", [
    lambda x: fcs_lab.SuperResolution(fcs_lab.downsample(x, 2), 2),
    lambda x: fcs_lab.SuperResolution(fcs_lab.downsample(x, 2, "box"), 2, "box"),
    lambda x: fcs_lab.Blur(fcs_lab.blur(x, a_kernel()), a_kernel()),
])  # fmt: skip
def test_sampling_in_another_precision_than_the_measurement(task):
    """y in float64, the model in float32: everything that A is made of has to follow."""
    model = tiny_denoiser(torch.float32)
    result = fcs_lab.sample(model, task(random(2, 1, 8, 8)), num_inference_steps=2, inner_steps=1, progress=False)
    assert result.images.shape == (2, 1, 8, 8) and result.images.dtype == torch.float32
