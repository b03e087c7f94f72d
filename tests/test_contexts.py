"""Whatever torch is set to around a call, the result is the same, or the precision that is really used is known."""

import threading
from contextlib import contextmanager
from functools import cache

import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators, tiny_denoiser
from diffusers import DDIMScheduler

import fcs_lab
from fcs_lab import probes
from fcs_lab.composites import make_composites
from fcs_lab.directions import FD_STEP
from fcs_lab.features import class_guidance
from fcs_lab.latent import LatentDenoiser
from fcs_lab.metrics import denoising_loss
from fcs_lab.pipelines import FastConstrainedPipeline

F32 = torch.float32
SHORT = {"num_inference_steps": 3, "inner_steps": 2, "progress": False}


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(F32)


CONTEXTS = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64 by default": default_dtype,
    "another device by default": lambda: torch.device("meta"),
}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu", dtype=F32)


def pixels():
    return tiny_denoiser(F32)


def halves(size=8, channels=1):
    mask = (torch.arange(size, device="cpu") >= size // 2).expand(size, size)
    return fcs_lab.Inpainting(noise(1, channels, size, size).clamp(-1, 1), mask)


def sampled(direction, make=halves):
    short = SHORT | ({"num_inference_steps": 1, "inner_steps": 1} if direction == "exact" else {})  # a long solve

    def call(model):
        return fcs_lab.sample(model, make(), direction=direction, generator=generators(0), **short).images

    return pixels, call


def reduced():
    return fcs_lab.SuperResolution(fcs_lab.downsample(noise(1, 1, 8, 8).clamp(-1, 1), 2), 2)


def blurred():
    kernel = torch.full((3, 3), 1 / 9, device="cpu", dtype=F32)
    return fcs_lab.Blur(fcs_lab.blur(noise(1, 1, 8, 8).clamp(-1, 1), kernel), kernel)


def guided():
    return class_guidance(lambda images: images.flatten(1) @ WEIGHTS, 1)


WEIGHTS = noise(64, 3, seed=3)  # not made within a context: what is made in inference mode cannot be differentiated


def latent_model():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    return LatentDenoiser(pipe, pipe.scheduler, "a dress", None, 2.0)


def exact():
    means = noise(3, 1, 2, 2)
    return fcs_lab.GaussianMixtureDenoiser(means, torch.eye(4, device="cpu", dtype=F32).expand(3, 4, 4) * 0.1)


def operator(model):
    J = probes.JacobianOperator(model, noise(1, 1, 8, 8), 300)
    v = noise(64, 2, seed=1).numpy()
    return torch.from_numpy(J @ v) + torch.from_numpy(J.T @ v)


def pipeline_call(pipe):
    image, mask = noise(1, 3, 32, 32).sigmoid(), torch.zeros(32, 32, device="cpu", dtype=torch.bool)
    mask[:, 16:] = True
    options = {"num_inference_steps": 2, "inner_steps": 1, "generator": torch.Generator().manual_seed(0)}
    return pipe("a dress", image, mask, output_type="pt", **options).images


def silent_pipeline():
    return FastConstrainedPipeline.from_pipe(tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False)))


def many_layers(model):
    found = fcs_lab.infer_layers(
        model,
        noise(1, 1, 8, 8).clamp(-1, 1),
        2,
        num_inference_steps=3,
        inner_steps=1,
        generator=generators(0),
        progress=False,
    )
    return torch.cat([found.layers.flatten(), found.masks.flatten()])


CALLS = {
    **{f"sample, {d}": sampled(d) for d in ("newton", "newton-jvp", "gradient", "exact", "identity")},
    "sample, enlarging": sampled("newton", reduced),
    "sample, deblurring": sampled("gradient", blurred),
    "sample, guided by a classifier": sampled("newton", guided),
    "sample, latent": (
        latent_model,
        lambda model: fcs_lab.sample(model, halves(32, 3), generator=generators(0), **SHORT).images,
    ),
    "sample, latent, through the decoder": (
        latent_model,
        lambda model: (
            fcs_lab.sample(
                model, fcs_lab.Colorization(noise(1, 1, 32, 32).clamp(-1, 1)), generator=generators(0), **SHORT
            ).images
        ),
    ),
    "a mixture": (exact, lambda model: model(noise(2, 1, 2, 2), 300) + model.jacobian(noise(1, 1, 2, 2), 300).sum()),
    "the Jacobian": (pixels, operator),
    "its symmetry": (
        pixels,
        lambda model: torch.tensor(
            [probes.measure_symmetry(probes.JacobianOperator(model, noise(1, 1, 8, 8), 300)).relative_skew],
            device="cpu",
            dtype=torch.float64,
        ),
    ),
    "the finite difference": (
        pixels,
        lambda model: torch.tensor(
            [probes.suggest_fd_step(model, noise(1, 1, 8, 8), 300, e=noise(1, 1, 8, 8, seed=2))],
            device="cpu",
            dtype=torch.float64,
        ),
    ),
    "layers": (pixels, many_layers),
    "loss": (
        pixels,
        lambda model: denoising_loss(model, noise(2, 1, 8, 8).clamp(-1, 1)),
    ),
    "composites": (
        fcs_lab.load_digits,
        lambda digits: make_composites(*digits, 2, 3, kind="stroke").images,
    ),
    "loading": (lambda: "mnist", lambda name: next(fcs_lab.load(name, device="cpu").unet.parameters()).clone()),
    "digits": (lambda: None, lambda _: fcs_lab.load_digits(3)[0]),
    "emoji": (lambda: None, lambda _: fcs_lab.load_emoji(3)[0]),
}


@cache
def outside(call):
    make, function = CALLS[call]
    return function(make())


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("call", CALLS)
def test_the_same_result_as_outside(call, context):
    expected = outside(call)
    make, function = CALLS[call]
    subject = make()
    with CONTEXTS[context]():
        found = function(subject)
    assert found.dtype == expected.dtype and found.device == expected.device
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("context", ["inference_mode", "no_grad", "float64 by default"])
def test_a_pipeline_too(context):
    pipe = silent_pipeline()
    expected = pipeline_call(pipe)
    with CONTEXTS[context]():
        assert torch.allclose(pipeline_call(pipe), expected, atol=1e-4)


def test_within_autocast_h_is_that_of_the_precision_that_the_network_has(monkeypatch):
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    for dtype in (torch.bfloat16, torch.float32):
        with (
            fcs_lab.constrained(pipe, halves(32, 3), inner_steps=1) as run,
            torch.autocast("cpu", torch.bfloat16, dtype != F32),
        ):
            pipe("a dress", num_inference_steps=2, generator=generators(0), output_type="latent")
        assert run.call.dtype == dtype and run.result.x0.dtype == F32
    assert FD_STEP[torch.bfloat16] > FD_STEP[F32]


def test_what_was_made_in_inference_mode_is_named():
    with torch.inference_mode():
        weights = noise(64, 3)
        task = class_guidance(lambda images: images.flatten(1) @ weights, 1)
        with pytest.raises(ValueError, match=r"fn uses tensors that were made inside torch.inference_mode"):
            fcs_lab.sample(pixels(), task, **SHORT)


def test_two_threads_with_two_models_do_not_disturb_each_other():
    models = [tiny_denoiser(F32, seed=seed) for seed in (0, 1)]
    for model in models:
        model.unet.train().requires_grad_(True)
    options = {"num_inference_steps": 8, "inner_steps": 2, "direction": "newton-jvp", "progress": False}

    def run(i, into):
        into[i] = fcs_lab.sample(models[i], halves(), generator=generators(i), **options).images

    alone, together = {}, {}
    for i in (0, 1):
        run(i, alone)
    threads = [threading.Thread(target=run, args=(i, together)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert torch.allclose(alone[i], together[i], atol=1e-5)
        assert models[i].unet.training and all(p.requires_grad for p in models[i].unet.parameters())
