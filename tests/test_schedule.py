"""The levels that are read from diffusers' schedulers, and the step between them, against truth and against diffusers."""

import itertools
import math

import pytest
import torch
from conftest import generators
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from tiny_pipelines import SD15

import fcs_lab
from fcs_lab.schedule import Schedule, is_flow, read_schedule

F64 = torch.float64
SD = {k: v for k, v in SD15.items() if k != "steps_offset"} | {"clip_sample": False}
SPACINGS = ("leading", "linspace", "trailing")


def run(schedule: Schedule, denoise, x, eta=0.0, generator=None):
    for i, t in enumerate(schedule.timesteps):
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if eta else None
        x = schedule.step(i, x, denoise(x, *schedule.levels[i], t), schedule.sigma(i, eta), z)
    return x


def gaussian(mean, variance):
    """E[x_0 | x_t] of x_0 ~ N(mean, variance)."""
    return lambda x, a, s, t: mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_levels_are_the_tables_and_all_is_finite(spacing, zero_snr):
    """For every N the timesteps fall and are in the table; a point mass is reached but for what the last level leaves."""
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, set_alpha_to_one=False)
    alphas = scheduler.alphas_cumprod.double().clamp(0, 1)
    for N in range(1, 101):
        schedule = read_schedule(scheduler, N)
        assert len(schedule.timesteps) == N and len(schedule.levels) == N + 1
        assert all(a > b for a, b in itertools.pairwise(schedule.timesteps)) and schedule.timesteps[-1] >= 0
        assert [a for a, _ in schedule.levels[:-1]] == pytest.approx(alphas[schedule.timesteps].sqrt().tolist(), abs=1e-12)
        noise = torch.randn(200, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(N))
        x = schedule.levels[0][0] * 0.5 + schedule.levels[0][1] * noise
        for eta in (0.0, 1.0):
            end = run(schedule, lambda x, a, s, t: torch.full_like(x, 0.5), x, eta, torch.Generator().manual_seed(1))
            assert end.isfinite().all()
            # x' = a' 0.5 + s' ε: of a point mass the deterministic step keeps the noise's direction, to the very end.
            a, s = schedule.levels[-1]
            if eta == 0:
                assert torch.allclose(end, a * 0.5 + s * noise, atol=1e-9)
            assert (end - a * 0.5).abs().max() < 6 * s


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_gaussians_marginal_is_reached(spacing, eta):
    """In closed form the mean and variance after each step are known: the exact denoiser is linear in x_t."""
    mean, variance = 0.3, 0.2
    for N in (7, 61):
        schedule = read_schedule(DDIMScheduler(**SD, timestep_spacing=spacing), N)
        m, v = schedule.levels[0][0] * mean, schedule.levels[0][0] ** 2 * variance + schedule.levels[0][1] ** 2
        for i in range(N):
            (a, s), (a_next, s_next), sigma = schedule.levels[i], schedule.levels[i + 1], schedule.sigma(i, eta)
            gain = a * variance / (a**2 * variance + s**2)
            slope = a_next * gain + math.sqrt(max(s_next**2 - sigma**2, 0)) * (1 - a * gain) / s
            v = slope**2 * v + sigma**2
            m = a_next * mean + slope * (m - a * mean)
        a, s = schedule.levels[0]
        generator = torch.Generator().manual_seed(0)
        x = a * mean + math.sqrt(a**2 * variance + s**2) * torch.randn(20_000, 1, 1, 1, dtype=F64, generator=generator)
        end = run(schedule, gaussian(mean, variance), x, eta, generator)
        assert end.mean().item() == pytest.approx(m, abs=0.015) and end.var().item() == pytest.approx(v, abs=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_one_step_is_diffusers_ddim(eta):
    scheduler = DDIMScheduler(**SD, prediction_type="sample", steps_offset=1, set_alpha_to_one=False)
    scheduler.set_timesteps(20)
    schedule = read_schedule(scheduler, 20)
    assert schedule.timesteps == scheduler.timesteps.tolist()
    x, x0 = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for i, t in enumerate(schedule.timesteps):
        theirs = scheduler.step(x0, t, x, eta=eta, generator=generators(7)[0]).prev_sample
        z = torch.randn(x.shape, generator=generators(7)[0])
        assert torch.allclose(schedule.step(i, x, x0, schedule.sigma(i, eta), z), theirs, atol=2e-5)
        if i + 1 < 20:  # at the last step diffusers' variance, in float32, is the difference of two numbers near 1
            assert torch.allclose(schedule.step(i, x, x0, schedule.sigma(i, eta), z), theirs, atol=1e-6)


def test_one_step_is_diffusers_ddpm():
    scheduler = DDPMScheduler(**SD, prediction_type="sample")
    scheduler.set_timesteps(25)
    schedule = read_schedule(scheduler, 25)
    x, x0 = (torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for i, t in enumerate(schedule.timesteps):
        theirs = scheduler.step(x0, t, x, generator=generators(7)[0]).prev_sample
        z = torch.randn(x.shape, generator=generators(7)[0])
        assert torch.allclose(schedule.step(i, x, x0, schedule.sigma(i, 1.0), z), theirs, atol=1e-5)


def test_clipping_and_thresholding_are_diffusers():
    for config in ({"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.7}, {"thresholding": True}):
        scheduler = DDIMScheduler(prediction_type="sample", **({"clip_sample": False} | config))
        scheduler.set_timesteps(5)
        schedule = read_schedule(scheduler, 5)
        x, x0 = (2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
        theirs = scheduler.step(x0, schedule.timesteps[1], x, eta=0.0).prev_sample
        assert torch.allclose(schedule.step(1, x, x0), theirs, atol=1e-5)
        assert torch.equal(read_schedule(scheduler, 5, bounded=False).bound(x0), x0)


@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"use_karras_sigmas": True}])
def test_a_flows_step_is_eulers(config):
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    options = {"mu": 0.9} if "use_dynamic_shifting" in config else {}
    scheduler.set_timesteps(12, **options)
    schedule = read_schedule(scheduler, 12, **options)
    assert schedule.flow and schedule.timesteps == pytest.approx(scheduler.timesteps.tolist(), abs=1e-3)
    x, x0 = (torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for i, t in enumerate(scheduler.timesteps):
        velocity = (x - x0) / schedule.levels[i][1]
        theirs = scheduler.step(velocity, t, x).prev_sample
        assert torch.allclose(schedule.step(i, x, x0), theirs, atol=1e-5)


def test_the_shift_follows_the_images_tokens():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    assert read_schedule(scheduler, 8, tokens=4096).levels == read_schedule(scheduler, 8, mu=1.15).levels
    assert read_schedule(scheduler, 8, tokens=256).levels == read_schedule(scheduler, 8, mu=0.5).levels
    with pytest.raises(ValueError, match=r"use_dynamic_shifting.* pass mu or tokens"):
        read_schedule(scheduler, 8)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_multistep_solvers_of_flows_are_read_as_flows(kind):
    scheduler = kind(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    scheduler.set_timesteps(10)
    assert is_flow(scheduler)
    schedule = read_schedule(scheduler, 10)
    assert [s for _, s in schedule.levels[:-1]] == pytest.approx(scheduler.sigmas[:10].tolist(), abs=1e-6)
    assert all(a + s == pytest.approx(1) for a, s in schedule.levels)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_sigmas_are_mapped_to_the_nearest_timesteps(kind, spacing):
    """The levels' s/a are the scheduler's σ as near as the table of ᾱ allows."""
    scheduler = kind(**SD15, **{spacing: True})
    schedule = read_schedule(scheduler, 15)
    assert len(set(schedule.timesteps)) == 15
    reference = EulerDiscreteScheduler.from_config(scheduler.config)
    reference.set_timesteps(15)
    wanted = reference.sigmas[:15].log()
    found = torch.tensor([s / a for a, s in schedule.levels[:-1]]).log()
    assert (found - wanted).abs()[:8].max() < 0.02  # where the table is dense in log σ
    assert found[0].item() == pytest.approx(wanted[0].item(), abs=1e-3)


def test_timesteps_and_sigmas_of_ones_own():
    scheduler = DDIMScheduler(**SD)
    assert read_schedule(scheduler, timesteps=[900, 400, 10]).timesteps == [900, 400, 10]
    ratios = [((1 - a) / a) ** 0.5 for a in scheduler.alphas_cumprod[[900, 400, 10]].tolist()]
    assert read_schedule(scheduler, sigmas=ratios).timesteps == [900, 400, 10]
    for bad in ([400, 900], [1000, 0], [5, 5]):
        with pytest.raises(ValueError, match=r"timesteps is .*; expected falling timesteps from 999 to 0"):
            read_schedule(scheduler, timesteps=bad)
    flow = FlowMatchEulerDiscreteScheduler()
    assert [s for _, s in read_schedule(flow, timesteps=[800, 300]).levels] == [0.8, 0.3, 0.0]
    assert [s for _, s in read_schedule(flow, sigmas=[1.0, 0.5, 0.25]).levels] == pytest.approx([1.0, 0.5, 0.25, 0.0])


def test_other_schedulers_have_their_configurations_levels():
    for scheduler in (PNDMScheduler(**SD15), UniPCMultistepScheduler(**SD15), EulerDiscreteScheduler(**SD15)):
        spacing = scheduler.config.timestep_spacing
        twin = DDIMScheduler(
            **SD15, timestep_spacing=spacing, set_alpha_to_one=scheduler.config.get("set_alpha_to_one", True)
        )
        assert read_schedule(scheduler, 10).levels == read_schedule(twin, 10).levels
    lcm = LCMScheduler(**SD15)
    lcm.set_timesteps(4)
    assert read_schedule(lcm, 4).timesteps == lcm.timesteps.tolist()
    heun = FlowMatchHeunDiscreteScheduler(shift=2.0)
    assert read_schedule(heun, 6).levels == read_schedule(FlowMatchEulerDiscreteScheduler(shift=2.0), 6).levels


@pytest.mark.parametrize(
    ("scheduler", "words"),
    [
        (EDMEulerScheduler(), "sigma_data is 0.5"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas is True"),
        (EulerDiscreteScheduler(timestep_type="continuous"), "timestep_type is 'continuous'"),
    ],
)
def test_what_has_no_reading_is_refused_by_its_field(scheduler, words):
    with pytest.raises(ValueError, match=words):
        read_schedule(scheduler, 10)


def test_a_scheduler_is_left_as_it_was():
    for scheduler in (DDIMScheduler(**SD15), FlowMatchEulerDiscreteScheduler(), EulerDiscreteScheduler(**SD15)):
        before = dict(scheduler.config), {k: str(v) for k, v in vars(scheduler).items()}
        read_schedule(scheduler, 10)
        assert (dict(scheduler.config), {k: str(v) for k, v in vars(scheduler).items()}) == before


def test_zero_terminal_snr_samples_the_data_and_epsilon_is_refused():
    options = SD | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
    mean = torch.full((1, 1, 4, 4), 0.5, dtype=F64)
    model = fcs_lab.GaussianMixtureDenoiser(mean, 0.1, scheduler=DDIMScheduler(**options, prediction_type="v_prediction"))
    result = fcs_lab.sample(model, num_inference_steps=25, batch_size=400, generator=generators(0)[0], progress=False)
    assert result.x0.mean().item() == pytest.approx(0.5, abs=0.02)
    model.prediction_type, model.scheduler = "epsilon", DDIMScheduler(**options)
    with pytest.raises(ValueError, match=r"ᾱ_t = 0.*predicts ε there is no x̂_0.*rescale_betas_zero_snr=False"):
        fcs_lab.sample(model, num_inference_steps=25, progress=False)
