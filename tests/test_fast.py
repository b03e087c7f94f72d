"""The preset "fast", on exact denoisers, beside its kin, and wherever it is promised to run."""

from functools import partial

import pytest
import torch
from conftest import generators, tiny_denoiser, two_pixels
from diffusers import StableDiffusionPipeline

import fcs_lab
from fcs_lab import baselines, fast
from fcs_lab.metrics import masked_mse
from fcs_lab.zoo import WEIGHTS

F64 = torch.float64
RIGHT = (torch.arange(32) >= 16).expand(32, 32)


def test_against_a_known_posterior():
    """The second pixel's posterior has mean 0.24 and deviation 0.18; found are 0.253, which is off by 0.013, and 0.11."""
    model, task = two_pixels(1000)
    result = fcs_lab.sample(
        model, task, preset="fast", num_inference_steps=100, generator=torch.Generator().manual_seed(0), progress=False
    )
    found = result.x0[:, 0, 0]
    assert (found[:, 0] - 0.3).abs().max() < 1e-12
    assert abs(found[:, 1].mean() - 0.24) < 0.013 + 3.5 * found[:, 1].std() / 1000**0.5
    assert 0.08 < found[:, 1].std() < 0.16


def test_of_a_gaussian_the_step_along_the_probe_is_a_kalman_filters():
    """With one pixel known, x̂_0 + α J e is E[x_0 | x_t, y] in closed form."""
    model, task = two_pixels(5)
    x_t = torch.randn(5, 1, 1, 2, generator=generators(0)[0], dtype=F64)
    for t in (100, 500, 900):
        x0, J = model(x_t, t), model.jacobian(x_t, t)[0]
        e = task.error(x0)
        d = (e.flatten(1) @ J.T).reshape(x0.shape)
        moved = fast._moved(x0, [d], task, ridge=0.0)
        gain = J[:, 0] / J[0, 0]  # Cov[x_0 | x_t] is a multiple of J
        mean = x0.flatten(1)
        expected = mean + (0.3 - mean[:, :1]) * gain
        assert torch.allclose(moved.flatten(1), expected, atol=1e-10)


def test_a_probe_hears_what_ddnm_does_not():
    """At 20 timesteps the hidden pixel's mean is nearer to the posterior's than DDNM's."""
    model, task = two_pixels(1000)
    options = {"num_inference_steps": 20, "progress": False}
    ours = fcs_lab.sample(model, task, preset="fast", generator=torch.Generator().manual_seed(0), **options)
    theirs = baselines.ddnm(model, task, generator=torch.Generator().manual_seed(0), **options)
    off = [abs(result.x0[:, 0, 0, 1].mean().item() - 0.24) for result in (ours, theirs)]
    assert off[0] < off[1] - 0.01


def test_without_its_probe_it_is_ddnm():
    """Nothing moved along J e: the same as DDNM, at twice its price."""
    peer = baselines.Peer("no probe", partial(fast.fast, fd_step=1e-5, push=0.0, memory=0))
    model, half = tiny_denoiser(F64), (torch.arange(8) > 3).expand(8, 8)
    task = fcs_lab.Inpainting(torch.zeros(2, 1, 8, 8, dtype=F64), half)
    options = {"num_inference_steps": 6, "progress": False}
    ours = baselines.run(model, task, peer, generator=generators(0, 1), **options)
    theirs = baselines.ddnm(model, task, generator=generators(0, 1), **options)
    assert torch.allclose(ours.x0, theirs.x0, atol=1e-10) and (ours.nfe, theirs.nfe) == (11, 6)


def test_x0_is_moved_to_where_it_fits_best():
    """In the span of the probes any other move costs more; and each image of a batch by itself."""
    generator = torch.Generator().manual_seed(0)
    image, x0, d, older = (torch.randn(2, 1, 8, 8, generator=generator, dtype=F64).clamp(-1, 1) for _ in range(4))
    task = fcs_lab.SuperResolution(fcs_lab.downsample(image, 2), 2)
    moved = fast._moved(x0, [d, older], task, ridge=0.0)
    assert (task.cost(moved) < task.cost(x0)).all()
    for direction in (d, older):
        for step in (-0.01, 0.01):
            assert (task.cost(moved) < task.cost(moved + step * direction)).all()
    zero = torch.zeros_like(d)
    assert torch.equal(fast._moved(x0, [zero, zero], task), x0) and torch.equal(fast._moved(x0, [], task), x0)
    for i in (0, 1):
        one = fcs_lab.SuperResolution(fcs_lab.downsample(image[i : i + 1], 2), 2)
        alone = fast._moved(x0[i : i + 1], [d[i : i + 1], older[i : i + 1]], one)
        assert torch.allclose(alone[0], fast._moved(x0, [d, older], task)[i], atol=1e-12)


def test_an_image_comes_out_as_it_would_alone(mnist, digits, right_half):
    def run(images, *seeds):
        task = fcs_lab.Inpainting(images, right_half)
        return fcs_lab.sample(
            mnist, task, preset="fast", num_inference_steps=8, generator=generators(*seeds), progress=False
        ).images

    both = run(digits[:2], 0, 1)
    for i in (0, 1):
        assert (both[i] - run(digits[i : i + 1], i)[0]).abs().max() < 1e-3


def test_on_digits(mnist, digits, right_half):
    seen = []
    task = fcs_lab.Inpainting(digits, right_half)
    result = fcs_lab.sample(
        mnist,
        task,
        preset="fast",
        generator=generators(*range(len(digits))),
        callback_on_step_end=lambda state, i, t, x: seen.append(t),
        progress=False,
    )
    assert result.nfe == 59 and result.n_backward == 0 and len(seen) == 30
    assert len(result.trace) == 59 and sum(bool((entry.step_length > 0).all()) for entry in result.trace) == 29
    assert masked_mse(result.images, digits, ~right_half).max() < 1e-9
    assert masked_mse(result.images, digits, right_half).mean() < 0.35
    small = fcs_lab.SuperResolution(fcs_lab.downsample(digits, 4), 4)
    options = {"num_inference_steps": 10, "generator": generators(*range(len(digits))), "progress": False}
    assert small.cost(fcs_lab.sample(mnist, small, preset="fast", **options).x0).max() < 1e-6


def test_a_pipeline_does_the_same(capsys):
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "fashion")
    pipe.set_progress_bar_config(disable=True)
    task, prompts = fcs_lab.Inpainting(fcs_lab.load_garments(2)[0], RIGHT), ["a coat", "a dress"]
    counted = []
    pipe.unet.register_forward_hook(lambda *_: counted.append(1))
    pipe.set_progress_bar_config()
    with fcs_lab.constrained(pipe, task, preset="fast") as run:
        pipe(prompts, num_inference_steps=5, guidance_scale=2.0, generator=generators(0, 1), output_type="pt")
    assert run.result.nfe == len(counted) == 9 and run.result.completed
    assert "5 timesteps with 9 evaluations (30 make about 60)" in capsys.readouterr().err
    model = fcs_lab.load("fashion", device="cpu").with_prompt(prompts, guidance_scale=2.0)
    direct = fcs_lab.sample(model, task, preset="fast", num_inference_steps=5, generator=generators(0, 1), progress=False)
    assert (run.result.x0 - direct.x0).abs().max() < 1e-3


def test_where_nothing_is_left_to_do():
    image = torch.rand(1, 1, 2, 4, generator=generators(0)[0], dtype=F64) * 2 - 1
    exact = fcs_lab.IdealDenoiser(image)  # x̂_0 is the image wherever x_t is: e = 0 and J = 0
    task = fcs_lab.Inpainting(image, (torch.arange(4) >= 2).expand(2, 4))
    assert torch.equal(fcs_lab.sample(exact, task, preset="fast", generator=generators(0), progress=False).x0, image)


def test_what_contradicts_the_preset_is_refused(mnist, digits, right_half):
    task = fcs_lab.Inpainting(digits, right_half)
    for options, words in (
        ({"preset": "slow"}, "preset is 'slow'; expected 'fast', or None"),
        ({"preset": 1}, "preset is 1; expected 'fast', or None"),
        ({"inner_steps": 5}, "inner_steps is 5, and preset 'fast' sets that itself"),
        ({"step_size": 0.5}, "step_size is 0.5, and preset"),
        ({"direction": "newton"}, "direction is 'newton', and preset"),
        ({"eta": 1.0}, "eta is 1.0, and preset"),
        ({"regularization": 0.1}, "regularization is 0.1, and preset"),
        ({"fd_step": -1}, "fd_step is -1"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            fcs_lab.sample(mnist, task, **{"preset": "fast", "progress": False} | options)
    with pytest.raises(TypeError, match="task is None; preset 'fast' takes a constraint"):
        fcs_lab.sample(mnist, preset="fast", progress=False)
    with pytest.raises(TypeError, match="task is a CostConstraint, which has no A, no A⁺"):
        fcs_lab.sample(mnist, fcs_lab.CostConstraint(lambda x: x.square().flatten(1).sum(1)), preset="fast", progress=False)
    garments = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_garments(1)[0], 4), 4)
    with pytest.raises(TypeError, match=r"task is a Decoded, .* in latent space inpainting only"):
        fcs_lab.sample(fcs_lab.load("fashion", device="cpu"), garments, preset="fast", progress=False)
