"""The probes, the Jacobian laboratory and the example images on latent models and on rectified flows."""

import builtins

import numpy as np
import pytest
import torch
from conftest import tiny_denoiser
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import SD15, sd, sd3

import fcs_lab
from fcs_lab.data import example_images
from fcs_lab.denoisers import UNetDenoiser, add_noise
from fcs_lab.latent import LatentDenoiser, decode, encode, image_shape
from fcs_lab.plots import direction_grid
from fcs_lab.probes import JacobianOperator, measure_fd_error, measure_spectrum, measure_symmetry
from fcs_lab.probes.fd_error import in_precision
from fcs_lab.widgets import JacobianLab

F64 = torch.float64


def noise_like(x, seed=0):
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(x)


@pytest.fixture
def latent():
    scheduler = DDIMScheduler(**SD15, clip_sample=False, set_alpha_to_one=False)
    return LatentDenoiser(sd(scheduler, channels=1), scheduler)


def test_images_go_in_and_out_of_any_model(latent):
    images = example_images(latent, 2)
    assert images.shape == (2, *image_shape(latent)) == (2, 1, 32, 32)
    x_0 = encode(latent, images)
    assert torch.equal(x_0, latent.encode(images)) and x_0.shape == (2, 4, 8, 8)
    assert torch.equal(decode(latent, x_0), latent.decode(x_0))
    pixel = tiny_denoiser(torch.float32)
    assert torch.equal(encode(pixel, images), images) and torch.equal(decode(pixel, images), images)


def test_noise_is_the_schedulers_own(latent):
    x_0 = noise_like(torch.empty(2, 4, 8, 8))
    noise, t = noise_like(x_0, seed=1), torch.tensor([10, 900])
    assert torch.allclose(add_noise(latent, x_0, noise, t), latent.scheduler.add_noise(x_0, noise, t), atol=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler()
    flow = UNetDenoiser(tiny_denoiser(torch.float32).unet, scheduler)
    t = scheduler.timesteps[[3, 700]]
    assert torch.allclose(add_noise(flow, x_0, noise, t), scheduler.scale_noise(x_0, t, noise), atol=1e-6)
    assert add_noise(latent, x_0.double(), noise.double(), 10).dtype == F64
    assert add_noise(latent, x_0.half(), noise.half(), 10).dtype == torch.float16


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_operator_is_the_dense_jacobian_of_the_latent_estimate(latent, guidance_scale):
    """At another size than the model's own, with guidance, where J is that of the guided estimate."""
    model = in_precision(latent.with_prompt("a photo of a coat", guidance_scale=guidance_scale), F64)
    x_t = noise_like(torch.empty(1, 4, 4, 2, dtype=F64))
    truth = torch.func.jacrev(lambda x: model(x[None], 500)[0])(x_t[0]).reshape(32, 32).numpy()
    J = JacobianOperator(model, x_t, 500, batch_size=32)
    assert np.allclose(J.dense(progress=False), truth, atol=1e-9)
    V = np.random.default_rng(0).standard_normal((32, 3))
    assert np.allclose(J @ V, truth @ V, atol=1e-9)
    differences = JacobianOperator(model, x_t, 500, method="fd", fd_step=1e-6)
    assert np.allclose(differences @ V, truth @ V, rtol=1e-3, atol=1e-4)
    symmetry = measure_symmetry(truth)
    assert measure_symmetry(J, probes=32).relative_skew == pytest.approx(symmetry.relative_skew, rel=1e-6)
    radius = np.abs(np.linalg.eigvals(truth)).max()
    assert measure_spectrum(J, k=2, vectors=32).radii["J"] == pytest.approx(radius, rel=1e-6)


def test_a_rectified_flow_has_a_jacobian_between_whole_timesteps():
    model = in_precision(LatentDenoiser(pipeline := sd3(), pipeline.scheduler), F64)
    x_t, t = noise_like(torch.empty(1, 4, 4, 4, dtype=F64)), 512.5
    truth = torch.func.jacrev(lambda x: model(x[None], t)[0])(x_t[0]).reshape(64, 64).numpy()
    V = np.random.default_rng(0).standard_normal((64, 2))
    assert np.allclose(JacobianOperator(model, x_t, t) @ V, truth @ V, atol=1e-9)
    with pytest.raises(ValueError, match="0 to 1000"):
        JacobianOperator(model, x_t, 1000.5)


def test_what_does_not_fit_is_refused(latent):
    with pytest.raises(ValueError, match=r"expected one sample, \(1, 4, 8, 6\)"):
        JacobianOperator(latent, torch.zeros(1, 3, 8, 6), 500)
    with pytest.raises(ValueError, match=r"expected one sample, \(1, 4, 8, 8\)"):
        JacobianOperator(latent, torch.zeros(4, 8, 8), 500)
    with pytest.raises(ValueError, match=r"expected one sample, \(1, 1, 8, 8\)"):
        JacobianOperator(tiny_denoiser(), torch.zeros(1, 1, 4, 4), 500)  # a pixel model has one size


def test_finite_differences_are_measured_in_latent_space(latent):
    x_t = noise_like(torch.empty(1, 4, 8, 8))
    found = measure_fd_error(latent, x_t, 500, noise_like(x_t, 1), h=[1e-3, 1e-1], dtypes=[F64], schemes=["forward"])
    error = found.curves[F64, "forward"].error
    assert error[0] < error[1] / 50 and found.Je.shape == x_t.shape


def test_the_laboratory_takes_a_latent_model(latent):
    lab = JacobianLab(latent)
    assert lab.message.value == "" and lab.images.shape == (256, 1, 32, 32) and lab.x_t.shape == (1, 4, 8, 8)
    assert (lab.picker.height, lab.picker.width) == (32, 32)  # pixels are picked in the decoded image
    # The pixel's error in latents: Jᵀ of the decoder, here a row of its dense Jacobian.
    before = lab.picture.value
    lab.picker.row, lab.picker.column = 20, 11
    assert lab.picture.value != before
    with torch.no_grad():
        x0 = latent(lab.x_t, 500)
        sign = -1.0 if latent.decode(x0)[0, 0, 20, 11] > 0 else 1.0
    row = torch.func.jacrev(lambda z: latent.decode(z)[0, 0, 20, 11])(x0)
    assert torch.allclose(lab.compared["e"].d, sign * row, atol=1e-5 * row.abs().max().item())
    lab.kind.value = "the left half"
    e = lab.compared["e"].d
    assert lab.message.value == "" and not e[..., 4:].any()
    assert torch.allclose(e[..., :4], (encode(latent, lab.images[:1]) - x0)[..., :4], atol=1e-5)
    with pytest.raises(ValueError, match=r"expected \(N, \*\(1, 32, 32\)\)"):
        JacobianLab(latent, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(("channels", "rows", "columns"), [(1, 1, 1), (3, 1, 1), (4, 2, 2), (5, 2, 3), (16, 4, 4)])
def test_latent_channels_are_drawn_side_by_side(channels, rows, columns):
    values = torch.arange(1.0, channels + 1).reshape(1, channels, 1, 1).expand(1, channels, 5, 6)
    (image,) = direction_grid({"d": values}, pixels=[(1, 1)]).axes[0].get_images()
    drawn = np.asarray(image.get_array())
    assert drawn.shape == (5 * rows, 6 * columns)
    if channels <= 3:
        assert (drawn == (channels + 1) / 2).all()
    else:
        tiles = drawn.reshape(rows, 5, columns, 6)[:, 0, :, 0].ravel()
        assert list(tiles) == [*range(1, channels + 1), *[0] * (rows * columns - channels)]


def test_example_images_are_of_the_models_kind(latent, mnist):
    assert torch.equal(example_images(latent), fcs_lab.load_garments()[0])
    assert torch.equal(example_images(mnist, 3), fcs_lab.load_digits(3)[0])
    small = example_images(tiny_denoiser(), 2)
    assert small.shape == (2, 1, 8, 8) and small.abs().max() <= 1
    with pytest.raises(ValueError, match="256 example images"):
        example_images(mnist, 257)
    with pytest.raises(ValueError, match="2 channels"):
        example_images(tiny_denoiser(in_channels=2, out_channels=2))


def test_photographs_are_scikit_images(monkeypatch):
    model = tiny_denoiser(in_channels=3, out_channels=3, size=16)
    images = example_images(model)
    assert images.shape == (4, 3, 16, 16) and images.std() > 0.3
    real = builtins.__import__

    def without_skimage(name, *arguments, **options):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_skimage)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        example_images(model)
