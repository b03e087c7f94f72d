import math

import pytest
import torch
from conftest import generators, tiny_denoiser
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, EDMEulerScheduler

import fcs_lab
from fcs_lab.zoo import WEIGHTS

F64 = torch.float64
DIRECTIONS = ("newton", "newton-jvp", "gradient", "exact", "identity")
SHORT = {"num_inference_steps": 6, "inner_steps": 3, "progress": False}


class Counting:
    """A denoiser that keeps its own count, to hold against the sampler's."""

    def __init__(self, denoiser):
        self.denoiser, self.calls = denoiser, 0
        self.scheduler, self.shape = denoiser.scheduler, denoiser.shape
        self.device, self.dtype = denoiser.device, denoiser.dtype

    def __call__(self, x_t, t):
        self.calls += 1
        return self.denoiser(x_t, t)


def half_hidden(denoiser, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, *denoiser.shape, generator=generator, dtype=F64) * 1.6 - 0.8
    mask = torch.zeros(denoiser.shape[1:], dtype=torch.bool)
    mask[:, denoiser.shape[2] // 2 :] = True
    return fcs_lab.Inpainting(image, mask)


def test_without_a_constraint_it_is_diffusers_own_ddim():
    """Same noise, same model: the images of `DDIMPipeline`."""
    pipeline = DDIMPipeline.from_pretrained(WEIGHTS / "mnist")
    pipeline.set_progress_bar_config(disable=True)
    for eta in (0.0, 1.0):
        theirs = pipeline(batch_size=2, generator=generators(3, 4), num_inference_steps=8, eta=eta, output_type="np").images
        ours = fcs_lab.sample(
            fcs_lab.load("mnist", device="cpu"),
            batch_size=2,
            generator=generators(3, 4),
            num_inference_steps=8,
            eta=eta,
            progress=False,
        )
        assert torch.allclose(ours.images / 2 + 0.5, torch.from_numpy(theirs).permute(0, 3, 1, 2), atol=1e-4)
        assert ours.nfe == 8


def test_samples_of_the_exact_denoiser_have_the_data_moments():
    generator = torch.Generator().manual_seed(0)
    root = torch.tensor([[0.5, 0.0], [0.4, 0.2]], dtype=F64)
    mean, covariance = torch.tensor([0.3, -0.2], dtype=F64), root @ root.T
    denoiser = fcs_lab.GaussianMixtureDenoiser(mean.reshape(1, 1, 1, 2), covariance[None])
    x = fcs_lab.sample(denoiser, num_inference_steps=200, batch_size=20_000, generator=generator, progress=False).x0.flatten(
        1
    )
    assert torch.allclose(x.mean(0), mean, atol=0.02)
    assert torch.allclose(x.T.cov(), covariance, atol=0.02)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_evaluations_are_counted(mixture, direction):
    model = Counting(mixture)
    result = fcs_lab.sample(model, half_hidden(mixture), direction=direction, **SHORT)
    assert result.nfe == model.calls
    T, K = 6, 3
    expected = {"newton": (2 * K + 1) * T, "newton-jvp": (2 * K + 1) * T, "gradient": (K + 1) * T, "identity": (K + 1) * T}
    if direction in expected:
        assert result.nfe == expected[direction]
        assert result.n_backward == (K * T if direction == "gradient" else 0)


def test_guidance_along_any_direction_fits_the_known_pixels(mixture):
    """With the exact denoiser every direction must bring A x̂_0 to y."""
    task = half_hidden(mixture)
    free = fcs_lab.sample(mixture, generator=generators(0), progress=False)
    for direction in DIRECTIONS:
        result = fcs_lab.sample(
            mixture, task, direction=direction, step_size=(0.5, 0.02), generator=generators(0), progress=False
        )
        assert task.cost(result.x0) < 0.02 * task.cost(free.x0), direction


def test_algorithm_1_by_hand(mixture):
    """One timestep with K = 2, written out."""
    task = half_hidden(mixture)
    result = fcs_lab.sample(
        mixture,
        task,
        num_inference_steps=1,
        inner_steps=2,
        step_size=(0.4, 0.1),
        fd_step=0.01,
        eta=0,
        generator=generators(8),
        progress=False,
    )
    x_t = torch.randn(1, *mixture.shape, generator=generators(8)[0], dtype=F64)
    for step_size in (0.4, 0.1):
        x0 = mixture(x_t, 0)
        e = task.known * (task.y - x0)
        h = 0.01 / e.abs().max()
        d = (mixture(x_t + h * e, 0) - x0) / h
        x_t = x_t + step_size * d / d.abs().max()
    assert torch.allclose(result.x0, mixture(x_t, 0), atol=1e-6)  # a single step to t = −1 returns x̂_0


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_image_does_not_depend_on_its_neighbours_in_float64(direction):
    model = tiny_denoiser()
    few = 1 if direction == "exact" else 2  # a solve an inner step
    task, settings = half_hidden(model, 3), {"num_inference_steps": 2, "inner_steps": few, "progress": False}
    together = fcs_lab.sample(model, task, direction=direction, generator=generators(0, 1, 2), **settings)
    for i in (0, 2):
        alone = fcs_lab.Inpainting(task.y[i : i + 1], task.mask)
        result = fcs_lab.sample(model, alone, direction=direction, generator=generators(i), **settings)
        assert torch.allclose(result.x0, together.x0[i : i + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("direction", ["newton", "gradient"])
def test_an_image_does_not_depend_on_its_neighbours_on_the_bundled_model(mnist, digits, right_half, direction):
    together = fcs_lab.sample(
        mnist, fcs_lab.Inpainting(digits, right_half), direction=direction, generator=generators(0, 1, 2, 3), **SHORT
    )
    for i in (0, 3):
        task = fcs_lab.Inpainting(digits[i : i + 1], right_half)
        alone = fcs_lab.sample(mnist, task, direction=direction, generator=generators(i), **SHORT)
        assert torch.allclose(alone.images, together.images[i : i + 1], atol=1e-3, rtol=0)


def test_the_bundled_model_completes_digits(mnist, digits, right_half):
    digits = digits[:2]
    task = fcs_lab.Inpainting(digits, right_half)
    result = fcs_lab.sample(mnist, task, generator=generators(0, 1), progress=False)
    difference = (result.images - digits).square()
    assert difference[..., :16].mean() < 0.0005
    blank = (digits + 1).square()[..., 16:].mean()
    assert difference[..., 16:].mean() < blank
    assert result.nfe == 220
    assert [image.size for image in result.to_pil()] == [(32, 32)] * 2


def test_an_image_that_fits_already_is_left_alone(mixture):
    """One image's error is zero from the start; its neighbour's is not."""
    task = half_hidden(mixture, 2)

    def cost(x0):
        return task.cost(x0) * torch.tensor([0.0, 1.0], dtype=F64)

    result = fcs_lab.sample(mixture, fcs_lab.CostConstraint(cost), generator=generators(0, 1), **SHORT)
    free = fcs_lab.sample(mixture, generator=generators(0, 1), **SHORT)
    assert torch.allclose(result.x0[0], free.x0[0], atol=1e-12)
    assert not torch.allclose(result.x0[1], free.x0[1], atol=1e-2)
    lengths = torch.stack([entry.step_length for entry in result.trace])
    assert not lengths[:, 0].any() and lengths[:, 1].any()


def test_no_inner_steps_is_no_constraint(mixture):
    task = half_hidden(mixture)
    none = fcs_lab.sample(mixture, task, num_inference_steps=5, inner_steps=0, generator=generators(1), progress=False)
    free = fcs_lab.sample(mixture, num_inference_steps=5, generator=generators(1), progress=False)
    assert torch.equal(none.x0, free.x0)


def test_inner_steps_and_step_sizes_by_timestep(mixture):
    task = half_hidden(mixture)
    seen = []

    def step_size(t, k):
        seen.append((t, k))
        return 0.01 * (k + 1)

    result = fcs_lab.sample(
        mixture,
        task,
        num_inference_steps=3,
        inner_steps=[0, 2, 1],
        step_size=step_size,
        generator=generators(1),
        progress=False,
    )
    t = [entry.t for entry in result.trace if entry.inner_step == 0]
    assert seen == [(t[1], 0), (t[1], 1), (t[2], 0)]
    assert [(entry.step, entry.inner_step) for entry in result.trace] == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert [round(entry.step_length.item(), 9) for entry in result.trace] == [0, 0.01, 0.02, 0, 0.01, 0]
    # A timestep's estimate and two evaluations an update.
    assert [entry.nfe for entry in result.trace] == [1, 2 + 1, 4 + 1, 6, 7 + 1, 9]
    assert result.nfe == 9


def test_step_size_pair_is_linear(mixture):
    result = fcs_lab.sample(mixture, half_hidden(mixture), num_inference_steps=2, step_size=(0.5, 0.1), progress=False)
    lengths = [entry.step_length.item() for entry in result.trace[:6]]
    assert lengths == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0])


def test_the_trace_tells_the_error_of_the_estimate(mixture):
    task = half_hidden(mixture, 2)
    result = fcs_lab.sample(mixture, task, generator=generators(0, 1), trace_x0=True, **SHORT)
    kept = [entry for entry in result.trace if entry.x0 is not None]
    assert len(kept) == 6
    for entry in kept:
        assert torch.allclose(entry.cost, task.cost(entry.x0))
        assert torch.allclose(entry.error_norm, task.error(entry.x0).flatten(1).norm(dim=1))


def test_a_callback_may_end_the_run_and_change_x_t(mixture):
    calls = []

    def stop(state, step_index, timestep, kwargs):
        calls.append((step_index, timestep, kwargs["x_t"].shape))
        state.interrupt = step_index == 2

    result = fcs_lab.sample(
        mixture, generator=generators(0), callback_on_step_end=stop, num_inference_steps=10, progress=False
    )
    assert [call[0] for call in calls] == [0, 1, 2]
    assert not result.completed and result.nfe == 3
    assert result.images.shape == (1, 1, 2, 3)

    zeroed = fcs_lab.sample(
        mixture,
        generator=generators(0),
        eta=0,
        num_inference_steps=3,
        callback_on_step_end=lambda state, i, t, kwargs: {"x_t": torch.zeros_like(kwargs["x_t"])},
        progress=False,
    )
    assert zeroed.completed and not zeroed.x0.any()


def test_one_picture_several_completions(mixture):
    task = half_hidden(mixture)
    result = fcs_lab.sample(mixture, task, batch_size=3, generator=generators(0, 1, 2), **SHORT)
    assert result.images.shape == (3, 1, 2, 3)
    alone = fcs_lab.sample(mixture, task, generator=generators(1), **SHORT)
    assert torch.allclose(result.x0[1:2], alone.x0, atol=1e-9)


def test_same_seed_same_images(mnist, digits, right_half):
    task = fcs_lab.Inpainting(digits[:1], right_half)
    runs = [fcs_lab.sample(mnist, task, generator=generators(5), **SHORT).images for _ in range(2)]
    assert torch.equal(*runs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_samples(digits, right_half, dtype):
    model = fcs_lab.load("mnist", device="cpu", torch_dtype=dtype)
    assert model.unet.conv_out.weight.is_contiguous(memory_format=torch.channels_last), "or it takes several times as long"
    task = fcs_lab.Inpainting(digits[:1], right_half)
    result = fcs_lab.sample(model, task, num_inference_steps=4, inner_steps=2, generator=generators(0), progress=False)
    assert result.images.dtype == torch.float32
    free = fcs_lab.sample(model, num_inference_steps=4, generator=generators(0), progress=False)
    assert task.cost(result.x0) < 0.1 * task.cost(free.x0)


def test_ddpm_may_step(mixture):
    result = fcs_lab.sample(mixture, scheduler=DDPMScheduler(clip_sample=False), generator=generators(0), **SHORT)
    assert result.x0.isfinite().all()


def test_the_callers_scheduler_is_left_as_it_was(mixture):
    scheduler = DDIMScheduler(clip_sample=False)
    before = dict(scheduler.config), scheduler.num_inference_steps
    fcs_lab.sample(mixture, scheduler=scheduler, generator=generators(0), **SHORT)
    assert (dict(scheduler.config), scheduler.num_inference_steps) == before


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"num_inference_steps": 0}, ValueError, "num_inference_steps is 0; expected 1 to 1000"),
        ({"num_inference_steps": 1001}, ValueError, "num_inference_steps is 1001"),
        ({"num_inference_steps": 2.5}, ValueError, "num_inference_steps is 2.5"),
        ({"inner_steps": -1}, ValueError, "inner_steps is -1"),
        ({"inner_steps": [1, 2]}, ValueError, "inner_steps has 2 entries; expected one for each of 20"),
        ({"inner_steps": [1] * 19 + [-1]}, ValueError, "inner_steps"),
        ({"inner_steps": 1.5}, ValueError, "inner_steps is 1.5"),
        ({"step_size": "large"}, TypeError, "step_size is 'large'"),
        ({"step_size": (1, 2, 3)}, TypeError, r"step_size is \(1, 2, 3\)"),
        ({"step_size": (0.5, -0.1)}, ValueError, "step_size gives -0.1;"),
        ({"step_size": math.nan}, (TypeError, ValueError), "step_size"),
        ({"step_size": lambda t, k: None}, ValueError, "step_size gives None"),
        ({"direction": "sideways"}, ValueError, "direction is 'sideways'; expected one of 'newton'"),
        ({"fd_step": 0}, ValueError, "fd_step is 0"),
        ({"regularization": -1}, ValueError, "regularization is -1"),
        ({"eta": -0.5}, ValueError, "eta is -0.5"),
        ({"scheduler": EDMEulerScheduler()}, ValueError, "EDMEulerScheduler whose sigma_data is 0.5"),
        ({"scheduler": "ddim"}, TypeError, "scheduler is 'ddim'; expected SchedulerMixin"),
        ({"generator": (torch.Generator(),)}, TypeError, "generator holds .*; expected a torch.Generator, or a list"),
        ({"scheduler": DDIMScheduler(beta_schedule="squaredcos_cap_v2")}, ValueError, "another noise schedule"),
        ({"generator": 0}, TypeError, "generator holds 0"),
        ({"generator": [torch.Generator()] * 2, "batch_size": 3}, ValueError, "list of 2; expected one for each of 3"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"task": "inpaint"}, TypeError, "task is 'inpaint'"),
        ({"model": "mnist"}, TypeError, "use fcs_lab.load"),
    ],
)
def test_bad_arguments_are_named_before_any_work(mixture, arguments, error, words):
    model = Counting(mixture)
    arguments = {"model": model, "task": half_hidden(mixture), "progress": False} | arguments
    with pytest.raises(error, match=words):
        fcs_lab.sample(arguments.pop("model"), arguments.pop("task"), **arguments)
    assert model.calls == 0


def test_the_task_must_fit_the_model(mnist, right_half):
    with pytest.raises(ValueError, match=r"the task's image is in colour .* the model makes grey images"):
        fcs_lab.sample(mnist, fcs_lab.Inpainting(torch.rand(1, 3, 32, 32), right_half))
    grey = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    short = {"num_inference_steps": 2, "inner_steps": 1, "progress": False}
    scans = [fcs_lab.Inpainting(one, right_half) for one in (grey, grey.expand(-1, 3, -1, -1))]  # one saved as RGB
    found = [fcs_lab.sample(mnist, one, generator=torch.Generator().manual_seed(1), **short).images for one in scans]
    assert torch.allclose(*found, atol=1e-5)
    with pytest.raises(ValueError, match=r"28×28 .*; the model takes 32×32"):
        fcs_lab.sample(mnist, fcs_lab.Inpainting(torch.zeros(1, 1, 28, 28), right_half[:28, :28]))
    with pytest.raises(ValueError, match="batch_size is 3; the task describes 2"):
        fcs_lab.sample(mnist, fcs_lab.Inpainting(torch.zeros(2, 1, 32, 32), right_half), batch_size=3)


def test_diffusers_loads_the_bundled_model():
    pipeline = DDPMPipeline.from_pretrained(WEIGHTS / "mnist")
    assert pipeline.unet.config.sample_size == 32
