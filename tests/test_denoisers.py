import pytest
import torch
from conftest import tiny_denoiser, tiny_unet
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.func import jacrev

import fcs_lab
from fcs_lab.denoisers import UNetDenoiser, alpha_bar_at, forward_mode

F64 = torch.float64
TIMES = (20, 300, 700)


def noisy(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def dense(denoiser, x_t, t):
    return jacrev(lambda x: denoiser(x[None], t)[0])(x_t[0]).reshape(x_t[0].numel(), -1)


@pytest.mark.parametrize("t", TIMES)
def test_mixture_matches_quadrature(t):
    """E[x_0 | x_t] and Var[x_0 | x_t] in one dimension, by summing the posterior on a fine grid."""
    means, variances = torch.tensor([-0.7, 0.1, 0.8], dtype=F64), torch.tensor([0.01, 0.2, 0.05], dtype=F64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    denoiser = fcs_lab.GaussianMixtureDenoiser(means.reshape(3, 1, 1, 1), variances, weights)
    x_t = torch.tensor(0.37, dtype=F64)
    alpha_bar = denoiser.scheduler.alphas_cumprod[t].to(F64)
    x_0 = torch.linspace(-6, 6, 200_001, dtype=F64)
    density = (weights / (2 * torch.pi * variances).sqrt() * (-((x_0[:, None] - means) ** 2) / (2 * variances)).exp()).sum(1)
    posterior = density * (-((x_t - alpha_bar.sqrt() * x_0) ** 2) / (2 * (1 - alpha_bar))).exp()
    posterior /= posterior.sum()
    mean = (posterior * x_0).sum()
    x = x_t.reshape(1, 1, 1, 1)
    assert denoiser(x, t).item() == pytest.approx(mean.item(), abs=1e-9)
    assert denoiser.covariance(x, t).item() == pytest.approx((posterior * (x_0 - mean) ** 2).sum().item(), abs=1e-9)


@pytest.mark.parametrize("t", TIMES)
def test_mixture_jacobian_is_the_scaled_posterior_covariance(mixture, t):
    x_t = noisy(1, 1, 2, 3)
    J = mixture.jacobian(x_t, t)[0]
    assert torch.allclose(J, dense(mixture, x_t, t), atol=1e-8)
    assert (J - J.T).norm() <= 1e-10 * J.norm()
    assert torch.linalg.eigvalsh(J).min() > 0


@pytest.mark.parametrize("t", TIMES)
def test_ideal_denoiser_is_a_mixture_of_points(t):
    data = noisy(7, 1, 3, 3, seed=2).clamp(-1, 1)
    ideal, points = fcs_lab.IdealDenoiser(data), fcs_lab.GaussianMixtureDenoiser(data, 0.0)
    x_t = noisy(2, 1, 3, 3, seed=3)
    assert torch.allclose(ideal(x_t, t), points(x_t, t), atol=1e-12)
    assert torch.allclose(ideal.jacobian(x_t, t), points.jacobian(x_t, t), atol=1e-9)
    J = ideal.jacobian(x_t[:1], t)[0]
    assert torch.allclose(J, dense(ideal, x_t[:1], t), atol=1e-8)
    assert torch.linalg.eigvalsh(J).min() > -1e-10


def test_one_timestep_a_sample(mixture):
    x_t = noisy(3, 1, 2, 3)
    together = mixture(x_t, torch.tensor([10, 400, 900]))
    alone = torch.cat([mixture(x_t[i : i + 1], t) for i, t in enumerate((10, 400, 900))])
    assert torch.allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_x0_inverts_the_prediction(prediction_type):
    """Whatever the network is said to predict, DDIM's own conversion must find the same x̂_0."""
    denoiser = tiny_denoiser(prediction_type=prediction_type)
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)
    x_t, t = noisy(2, 1, 8, 8), 500
    with torch.no_grad():
        expected = scheduler.step(denoiser.unet(x_t, t).sample, t, x_t).pred_original_sample
        assert torch.allclose(denoiser(x_t, t), expected, atol=1e-6)  # diffusers keeps √ᾱ in float32


def test_learned_variance_is_left_out():
    denoiser = tiny_denoiser(out_channels=2)
    x_t = noisy(1, 1, 8, 8)
    with torch.no_grad():
        epsilon = denoiser.unet(x_t, 300).sample[:, :1]
        alpha_bar = alpha_bar_at(denoiser, 300, x_t)
        assert torch.allclose(denoiser(x_t, 300), (x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt())


def test_half_precision_stays_inside():
    full, half = tiny_denoiser(torch.float32), tiny_denoiser(torch.bfloat16)
    x_t = noisy(1, 1, 8, 8).float()
    with torch.no_grad():
        x0 = half(x_t, 300)
        assert x0.dtype == torch.float32 and half.dtype == torch.bfloat16
        assert half(x_t.bfloat16(), 300).dtype == torch.bfloat16
        assert (x0 - full(x_t, 300)).norm() < 0.05 * x0.norm()


@pytest.mark.parametrize(
    ("t", "error", "words"),
    [
        (1000, ValueError, "0 to 999"),
        (-1, ValueError, "0 to 999"),
        (0.5, TypeError, "0.5"),
        (True, TypeError, "True"),
        (torch.tensor([1.0]), TypeError, "float32"),
        (torch.tensor([1, 2, 3]), ValueError, "one for each of 2"),
    ],
)
def test_wrong_timesteps_are_refused(mixture, t, error, words):
    for denoiser in (mixture, tiny_denoiser()):
        with pytest.raises(error, match=words):
            denoiser(torch.zeros(2, *denoiser.shape, dtype=F64), t)


def test_wrong_shapes_are_refused(mixture):
    for denoiser in (mixture, tiny_denoiser()):
        with pytest.raises(ValueError, match="the model takes"):
            denoiser(torch.zeros(2, 3, 5, 5, dtype=F64), 10)


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="3 output channels"):
        UNetDenoiser(tiny_unet(out_channels=3), DDIMScheduler())
    with pytest.raises(ValueError, match="covariances has shape"):
        fcs_lab.GaussianMixtureDenoiser(torch.zeros(2, 1, 2, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="negative eigenvalue"):
        fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
    with pytest.raises(ValueError, match="weights"):
        fcs_lab.GaussianMixtureDenoiser(torch.zeros(2, 1, 2, 2), 0.1, torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="data has shape"):
        fcs_lab.IdealDenoiser(torch.zeros(0, 1, 2, 2))


def test_forward_mode_leaves_the_model_as_it_was():
    denoiser = tiny_denoiser()
    x_t, v = noisy(1, 1, 8, 8), noisy(1, 1, 8, 8, seed=1)

    def state():
        modules = list(denoiser.unet.modules())
        return (
            [len(m._forward_pre_hooks) for m in modules],
            [p.requires_grad for p in denoiser.unet.parameters()],
            [type(m.processor) for m in modules if hasattr(m, "processor")],
        )

    before = state()
    with forward_mode(denoiser):
        tangent = torch.func.jvp(lambda x: denoiser(x, 300), (x_t,), (v,))[1]
    assert torch.allclose(tangent.flatten(), dense(denoiser, x_t, 300) @ v.flatten(), atol=1e-10)
    assert state() == before
    with pytest.raises(RuntimeError, match="stop"), forward_mode(denoiser):
        raise RuntimeError("stop")
    assert state() == before


def test_forward_mode_through_a_text_conditional_network():
    """Stable Diffusion's kind of U-Net: cross-attention to an encoded prompt."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).double()
    prompt = noisy(1, 3, 6, seed=4)

    class Prompted:
        def __init__(self):
            self.unet = unet.requires_grad_(False)

        def __call__(self, x_t):
            return self.unet(x_t, 300, encoder_hidden_states=prompt).sample

    denoiser, x_t, v = Prompted(), noisy(1, 4, 8, 8), noisy(1, 4, 8, 8, seed=1)
    with forward_mode(denoiser):
        tangent = torch.func.jvp(denoiser, (x_t,), (v,))[1]
    h = 1e-6
    difference = (denoiser(x_t + h * v) - denoiser(x_t - h * v)) / (2 * h)
    assert torch.allclose(tangent, difference, atol=1e-7)


def test_ten_lines_meet_the_protocol():
    """The example in `Denoiser`'s docstring is run as it stands there."""
    source = fcs_lab.Denoiser.__doc__.split("```python")[1].split("```")[0]
    names = {"DDIMScheduler": DDIMScheduler, "torch": torch, "alpha_bar_at": alpha_bar_at}
    import textwrap

    exec(textwrap.dedent(source), names)
    shrink = names["Shrink"]()
    assert isinstance(shrink, fcs_lab.Denoiser)
    gaussian = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 8, 8), 1.0)
    x_t = noisy(2, 1, 8, 8).float()
    assert torch.allclose(shrink(x_t, 400), gaussian(x_t, 400), atol=1e-6)
