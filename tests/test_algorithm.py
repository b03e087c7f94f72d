"""Algorithm 1 as a coroutine, what stands around it, and that what a caller hands over is left as it was."""

import copy
import inspect
import itertools

import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators, tiny_unet
from diffusers import DDIMScheduler

import fcs_lab
from fcs_lab import algorithm, metrics, probes
from fcs_lab.algorithm import algorithm_1, plan
from fcs_lab.denoisers import UNetDenoiser, as_model
from fcs_lab.directions import EVALUATIONS, CountedDenoiser, Differentiation, gradient, identity, newton
from fcs_lab.latent import LatentDenoiser
from fcs_lab.pipelines import FastConstrainedPipeline
from fcs_lab.schedule import read_schedule

F64 = torch.float64


def setting(mixture, direction, λ):
    """Algorithm 1's arguments on a mixture, with a right half to fill in."""
    image = torch.rand(2, *mixture.shape, generator=generators(1)[0], dtype=F64) * 1.6 - 0.8
    mask = torch.zeros(mixture.shape[1:], dtype=torch.bool)
    mask[:, 2:] = True
    task = fcs_lab.Inpainting(image, mask)
    schedule = read_schedule(mixture.scheduler, len(λ))
    x = torch.randn(2, *mixture.shape, generator=generators(0)[0], dtype=F64)
    return task, (x, schedule.timesteps, λ, task.error, direction, schedule.step)


def test_it_is_driven_by_hand(mixture):
    """A driver of four lines: points out, estimates in; the first is (x_T, the plan's first), and all follow the plan."""
    λ = [[0.3, 0.2], [], [0.1]]
    for name, direction in {"newton": lambda *a: newton(*a, fd_step=0.01), "identity": identity}.items():
        task, arguments = setting(mixture, direction, λ)
        method, asked = algorithm_1(*arguments), []
        x, t = next(method)
        assert x is arguments[0]
        with pytest.raises(StopIteration) as end:
            while True:
                asked.append(t)
                x, t = method.send(mixture(x, t))
        assert asked == plan(arguments[1], λ, EVALUATIONS[name])
        driven = fcs_lab.sample(
            mixture,
            task,
            num_inference_steps=3,
            inner_steps=[2, 0, 1],
            step_size=lambda t, k, t1=arguments[1][0]: (0.3, 0.2)[k] if t == t1 else 0.1,
            direction=name,
            fd_step=0.01,
            eta=0,
            x_T=arguments[0],
            progress=False,
        )
        assert torch.allclose(end.value.value, driven.x0, atol=1e-12)


def test_what_needs_derivatives_is_asked_of_the_driver(mixture):
    _, arguments = setting(mixture, gradient, [[0.1]])
    method = algorithm_1(*arguments)
    x, t = next(method)
    question = method.send(mixture(x, t))
    assert isinstance(question, Differentiation)
    f = CountedDenoiser(mixture, keep_graph=True)
    assert f.answer(question).shape == x.shape


def test_a_pullback_uses_the_graph_at_hand_or_makes_one(mixture):
    x, u = (torch.randn(1, *mixture.shape, generator=generators(i)[0], dtype=F64) for i in (0, 1))
    truth = (mixture.jacobian(x, 300)[0].T @ u.flatten()).reshape(x.shape)
    f = CountedDenoiser(mixture, keep_graph=True)
    f(x, 300)
    assert torch.allclose(f.pullback(x, 300, u), truth, atol=1e-10) and (f.forward, f.backward) == (1, 1)
    assert torch.allclose(f.pullback(x, 300, u), truth, atol=1e-10) and (f.forward, f.backward) == (2, 2)


def test_it_fits_a_screen():
    """And what stands around it (trace, callbacks, graph flags) is not in its lines."""
    body = inspect.getsource(algorithm.algorithm_1).split('"""')[2]
    assert len(body.strip().splitlines()) <= 10
    for word in ("trace", "callback", "grad", "progress", "isfinite"):
        assert word not in body


class Broken:
    """The mixture's denoiser, but for what it returns from some evaluation on."""

    def __init__(self, mixture, returns, after=0):
        self.mixture, self.returns, self.after, self.calls = mixture, returns, after, 0
        self.scheduler, self.shape, self.device, self.dtype = mixture.scheduler, mixture.shape, mixture.device, mixture.dtype

    def __call__(self, x_t, t):
        self.calls += 1
        x0 = self.mixture(x_t, t)
        return self.returns(x0) if self.calls > self.after else x0


@pytest.mark.parametrize(
    ("returns", "error", "words"),
    [
        (lambda x0: None, TypeError, "the denoiser returned NoneType"),
        (lambda x0: x0[:, :, :1], ValueError, r"the denoiser returned shape \(1, 1, 1, 3\); expected x_t's, \(1, 1, 2, 3\)"),
        (lambda x0: x0.float(), TypeError, r"the denoiser returned torch.float32; expected x_t's dtype, torch.float64"),
    ],
)
def test_a_denoiser_that_returns_something_else_is_named(mixture, returns, error, words):
    with pytest.raises(error, match=words):
        fcs_lab.sample(Broken(mixture, returns), num_inference_steps=2, progress=False)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0, r"the estimate x̂_0 is not finite at timestep t = 800 \(step 1 of 5\), inner step 0, .* torch.float64"),
        (10, r"the estimate x̂_0 is not finite at timestep t = 600 \(step 2 of 5\), inner step 1"),
    ],
)
def test_nothing_that_is_not_finite_goes_on(mixture, after, words):
    task, _ = setting(mixture, identity, [[]])
    model = Broken(mixture, lambda x0: x0 * float("nan"), after)
    with pytest.raises(FloatingPointError, match=words):
        fcs_lab.sample(model, task, num_inference_steps=5, inner_steps=3, progress=False)


def test_each_quantity_that_is_not_finite_is_named(mixture):
    def cost(x0):
        return (x0.square().flatten(1).sum(1) * 1e300) ** 2

    for task, options, words in (
        (fcs_lab.CostConstraint(cost), {}, "the error e is not finite"),
        (setting(mixture, identity, [[]])[0], {"step_size": 1e308}, "is not finite at timestep"),
    ):
        with pytest.raises(FloatingPointError, match=words):
            fcs_lab.sample(mixture, task, num_inference_steps=2, inner_steps=2, progress=False, **options)


def test_a_decoder_that_overflows_gives_no_black_picture():
    pipeline = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"the decoded image is not finite.*the VAE in float32"):
        fcs_lab.sample(LatentDenoiser(pipeline, pipeline.scheduler), num_inference_steps=1, progress=False)


def test_a_network_that_overflows_in_half_precision_is_named():
    model = fcs_lab.load("mnist", device="cpu", torch_dtype=torch.float16)
    with torch.no_grad():
        model.unet.conv_in.weight.mul_(3e5)
    with pytest.raises(FloatingPointError, match=r"x̂_0 is not finite at timestep .*torch.float16.*bfloat16"):
        fcs_lab.sample(model, num_inference_steps=2, progress=False)


# What a caller hands over.


def state_of(networks):
    return [
        (
            network.training,
            [module.training for module in network.modules()],
            [(p.requires_grad, p.dtype, p.device, p._version) for p in network.parameters()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in network.modules()],
        )
        for network in networks
    ]


def pixel():
    unet = tiny_unet(in_channels=1, out_channels=1)
    return UNetDenoiser(unet.train().requires_grad_(True), DDIMScheduler()), [unet]


def latent():
    pipeline = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False), channels=1)
    networks = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    for i, network in enumerate(networks):
        network.train(i % 2 == 0).requires_grad_(i != 1)
    return LatentDenoiser(pipeline, pipeline.scheduler, "a dress", None, 2.0), networks


def entries(model):
    """Every public entry that evaluates a model, by name."""
    shape = as_model(model).image_shape
    image = torch.linspace(-1, 1, shape[1] * shape[2]).reshape(1, *shape)
    mask = torch.zeros(shape[1:], dtype=torch.bool)
    mask[:, shape[2] // 2 :] = True
    task = fcs_lab.Inpainting(image, mask)
    short = {"num_inference_steps": 1, "inner_steps": 1, "progress": False, "generator": torch.Generator().manual_seed(0)}
    x_t = torch.randn(1, *model.shape, generator=generators(0)[0])
    e = torch.randn(1, *model.shape, generator=generators(1)[0])

    def fails(x0):
        raise ZeroDivisionError

    def failing():
        with pytest.raises(ZeroDivisionError):
            fcs_lab.sample(model, fcs_lab.CostConstraint(fails), **short)

    def products():
        J = probes.JacobianOperator(model, x_t, 300)
        return J @ e.flatten().numpy(), J.T @ e.flatten().numpy()

    def along(direction):
        return lambda: fcs_lab.sample(model, task, direction=direction, **short)

    return {f"sample {name}": along(name) for name in ("newton", "newton-jvp", "gradient", "identity")} | {
        "sample free": lambda: fcs_lab.sample(model, **{k: v for k, v in short.items() if k != "inner_steps"}),
        "sample that fails": failing,
        "infer_layers": lambda: fcs_lab.infer_layers(model, image, **short),
        "JacobianOperator": products,
        "compare_directions": lambda: probes.compare_directions(model, x_t, 300, e, max_iterations=2),
        "measure_fd_error": lambda: probes.measure_fd_error(model, x_t, 300, e, h=[0.1], dtypes=[torch.float32]),
        "measure_linear_reach": lambda: probes.measure_linear_reach(model, x_t, 300, e),
        "denoising_loss": lambda: metrics.denoising_loss(model, image, timesteps=[300], noises=1),
        "the denoiser": lambda: model(x_t, 300),
        "decode": lambda: as_model(model).decode(x_t),
    }


@pytest.mark.parametrize("make", [pixel, latent])
def test_what_a_caller_hands_over_is_left_as_it_was(make):
    model, networks = make()
    for name, call in entries(model).items():
        before, config, rng = state_of(networks), dict(model.scheduler.config), torch.get_rng_state()
        call()
        assert state_of(networks) == before, name
        assert dict(model.scheduler.config) == config and torch.equal(torch.get_rng_state(), rng), name


def test_the_pipeline_leaves_its_parts_as_they_were():
    pipe = FastConstrainedPipeline.from_pipe(tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False)))
    pipe.unet.requires_grad_(True).train()
    pipe.text_encoder.train()
    networks = [pipe.unet, pipe.vae, pipe.text_encoder]
    before, scheduler, rng = state_of(networks), pipe.scheduler, torch.get_rng_state()
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    options = {"num_inference_steps": 1, "inner_steps": 1, "generator": torch.Generator().manual_seed(0)}
    pipe("a dress", torch.rand(1, 3, 32, 32, generator=generators(0)[0]), mask, **options)
    assert state_of(networks) == before and pipe.scheduler is scheduler and torch.equal(torch.get_rng_state(), rng)


def test_what_is_sampled_is_what_the_pipeline_is_then():
    """A U-Net, a VAE or a text encoder put in later counts."""
    pipeline = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False))
    model = LatentDenoiser(pipeline, pipeline.scheduler, "a dress")
    x = torch.randn(1, *model.shape, generator=generators(0)[0])

    def seen():
        result = fcs_lab.sample(
            model, num_inference_steps=1, x_T=x, generator=torch.Generator().manual_seed(0), progress=False
        )
        return model(x, 500), result.images

    stages = [seen()]
    for part in ("unet", "text_encoder", "vae"):
        torch.manual_seed(7)
        old = getattr(pipeline, part)
        new = type(old).from_config(old.config) if part != "text_encoder" else type(old)(old.config)
        setattr(pipeline, part, new.eval())
        stages.append(seen())
    for (x0, images), (x0_then, images_then) in itertools.pairwise(stages[:3]):
        assert not torch.equal(x0, x0_then) and not torch.equal(images, images_then)
    assert torch.equal(stages[2][0], stages[3][0]) and not torch.equal(stages[2][1], stages[3][1])


def test_a_compiled_network_and_a_users_denoiser_of_five_members():
    pipeline = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False))
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    assert LatentDenoiser(pipeline, pipeline.scheduler).dtype == torch.float32

    class Shrink:
        scheduler, shape = DDIMScheduler(clip_sample=False), (1, 8, 8)
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, x_t, t):
            return 0.5 * x_t

    model = as_model(Shrink())
    assert (model.image_shape, model.num_prompts, model.any_size) == ((1, 8, 8), None, False)
    assert fcs_lab.sample(Shrink(), num_inference_steps=2, progress=False).images.shape == (1, 1, 8, 8)
    assert copy.copy(model).decode(torch.ones(1)).item() == 1
    with pytest.raises(TypeError, match=r"use fcs_lab.load"):
        as_model("mnist")


def test_a_callback_may_replace_the_task(mixture):
    """As layer inference does with its masks: the trace shows the other cost from the next timestep on."""
    task, (x, *_) = setting(mixture, identity, [[]])
    zero = fcs_lab.CostConstraint(lambda x0: 0 * x0.flatten(1).sum(1))
    result = fcs_lab.sample(
        mixture,
        task,
        num_inference_steps=3,
        inner_steps=1,
        x_T=x,
        callback_on_step_end=lambda state, i, t, tensors: {"task": zero} if i == 0 else None,
        progress=False,
    )
    assert [bool(entry.cost.any()) for entry in result.trace] == [True, True, False, False, False, False]
