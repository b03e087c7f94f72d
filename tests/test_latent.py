"""Latent and text-conditional models: every layout against its own network, VAE and pipeline."""

import json
import logging
import subprocess
import sys

import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators, tiny_unet
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
)

import fcs_lab
from fcs_lab import zoo
from fcs_lab.denoisers import UNetDenoiser
from fcs_lab.directions import CountedDenoiser, gradient, newton, newton_jvp
from fcs_lab.latent import LatentDenoiser, in_latents
from fcs_lab.latent_space import Decoded, LatentInpainting

F64 = torch.float64
LAYOUTS = {"sd": tiny.sd, "sd21": tiny.sd21, "sdxl": tiny.sdxl, "sd3": tiny.sd3}
SHORT = {"num_inference_steps": 3, "inner_steps": 2, "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*sampling here uses DDIM")


def denoiser(pipeline, *prompt, dtype=F64, **prompts) -> LatentDenoiser:
    pipeline.to(dtype)
    return LatentDenoiser(pipeline, zoo.own_schedule("the model", pipeline.scheduler), *prompt, **prompts)


def noise(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def right_of(column: int, size: int = 32) -> torch.Tensor:
    return (torch.arange(size) >= column).expand(size, size)


def evaluate(pipeline, x, t, embeddings, pooled):
    """The pipeline's own network, one branch, its conditions written out by hand."""
    if hasattr(pipeline, "transformer"):
        return pipeline.transformer(x, embeddings, pooled, torch.tensor([float(t)])).sample
    added = (
        None if pooled is None else {"text_embeds": pooled, "time_ids": torch.tensor([[32, 32, 0, 0, 32, 32]], dtype=F64)}
    )
    return pipeline.unet(x, torch.tensor(t), embeddings, added_cond_kwargs=added).sample


@pytest.mark.parametrize("layout", LAYOUTS)
def test_estimate_is_the_guided_output_converted_by_hand(layout):
    pipeline, s, t = LAYOUTS[layout](), 2.5, 600
    model = denoiser(pipeline, "a photo of a sneaker", "a photo of a bag", s)
    x_t = noise(1, 4, 8, 8)
    texts = {"prompt": "a photo of a sneaker", "negative_prompt": "a photo of a bag", "do_classifier_free_guidance": True}
    three = {"prompt_2": None, "prompt_3": None} if layout == "sd3" else {}
    with torch.no_grad():
        encoded = pipeline.encode_prompt(**texts, **three, device="cpu", num_images_per_prompt=1)
        pooled = encoded[2:] or (None, None)
        cond = evaluate(pipeline, x_t, t, encoded[0], pooled[0])
        uncond = evaluate(pipeline, x_t, t, encoded[1], pooled[1])
        found = model(x_t, t)
        unguided = model.with_prompt("a photo of a sneaker", guidance_scale=1)(x_t, t)
    alpha_bar = None if layout == "sd3" else model.scheduler.alphas_cumprod[t].double()

    def x0(output):
        if layout == "sd3":
            return x_t - t / 1000 * output
        if layout == "sd21":
            return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
        return (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()

    assert (cond - uncond).norm() > 1e-4 * cond.norm()  # the text matters, or this would test nothing
    # The layers that up-cast to float32 leave its rounding.
    assert torch.allclose(found, x0(uncond + s * (cond - uncond)), atol=1e-5)
    assert torch.allclose(unguided, x0(cond), atol=1e-5)


def test_a_network_that_predicts_x0():
    pipeline = tiny.sd(DDIMScheduler(**tiny.SD15, prediction_type="sample"))
    model, x_t = denoiser(pipeline), noise(1, 4, 8, 8)
    with torch.no_grad():
        embeddings = pipeline.encode_prompt("", "cpu", 1, False)[0]
        assert torch.allclose(model(x_t, 300), pipeline.unet(x_t, 300, embeddings).sample, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_prompts_of_a_batch_are_as_each_alone(layout):
    prompts, negatives = ["a photo of a dress", "a photo of a bag"], ["a photo of a shirt", ""]
    model, x_t = denoiser(LAYOUTS[layout](), prompts, negatives, 3.0), noise(2, 4, 8, 8)
    together = model(x_t, 400)
    for i in range(2):
        alone = model.with_prompt(prompts[i], negatives[i], 3.0)
        assert torch.allclose(alone(x_t[i : i + 1], 400), together[i : i + 1], atol=1e-6)
    same = model.with_prompt(prompts[0], negatives[0], 3.0)(x_t, 400)
    assert torch.allclose(same[:1], together[:1], atol=1e-6) and not torch.allclose(same[1:], together[1:], atol=1e-4)
    times = torch.tensor([400, 700])
    assert torch.allclose(model(x_t, times)[1:], model.with_prompt(prompts[1], negatives[1], 3.0)(x_t[1:], 700), atol=1e-6)


def test_guidance_that_changes_nothing_costs_nothing():
    model = denoiser(tiny.sd(), "", None, 7.5)
    assert not model.snapshot().guided
    assert not denoiser(tiny.sd(), "a dress", "a dress", 7.5).snapshot().guided
    assert denoiser(tiny.sd(), "a dress", None, 7.5).snapshot().guided
    # SDXL guides away from zeros, not from the empty text, where its configuration says so.
    sdxl = denoiser(tiny.sdxl(), "", None, 7.5).snapshot()
    assert sdxl.guided and not sdxl._text[0][0].any()
    assert not denoiser(tiny.sdxl(force_zeros_for_empty_prompt=False), "", None, 7.5).snapshot().guided


def test_an_embedding_will_do_for_a_prompt():
    pipeline, x_t = tiny.sd(), noise(1, 4, 8, 8)
    model = denoiser(pipeline, "a dress", None, 2.0)
    wanted, unwanted = pipeline.encode_prompt("a dress", "cpu", 1, True)
    with torch.no_grad():
        assert torch.equal(model.with_prompt(wanted, unwanted, 2.0)(x_t, 300), model(x_t, 300))
    with pytest.raises(ValueError, match=r"negative_prompt is None; expected an embedding like prompt's, \(1, 16, 16\)"):
        model.with_prompt(wanted)
    with pytest.raises(ValueError, match=r"prompt is an embedding of shape \(1, 16, 7\); expected \(n, tokens, 16\)"):
        model.with_prompt(wanted[..., :7], guidance_scale=1)
    with pytest.raises(TypeError, match="expected text"):
        denoiser(tiny.sdxl()).with_prompt(wanted, guidance_scale=1)


@pytest.mark.parametrize("layout", ["sd", "sd3"])
@torch.no_grad()
def test_encode_and_decode_are_the_vaes(layout):
    pipeline = LAYOUTS[layout]()
    model = denoiser(pipeline)
    images = noise(2, 3, 32, 40).tanh()
    shift = {"sd": 0.0, "sd3": 0.1}[layout]
    latents = model.encode(images)
    assert latents.shape == (2, 4, 8, 10)
    assert torch.allclose(latents, (pipeline.vae.encode(images).latent_dist.mean - shift) * 0.7, atol=1e-12)
    assert torch.allclose(model.decode(latents), pipeline.vae.decode(latents / 0.7 + shift).sample, atol=1e-12)
    assert model.decode(latents).shape == images.shape and model.image_shape == (3, 32, 32)


def test_vae_slicing_and_tiling_are_respected():
    model = denoiser(tiny.sd())
    latents, calls = noise(3, 4, 8, 8), []
    model.vae.decoder.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    whole = model.decode(latents)
    model.pipeline.vae.enable_slicing()
    assert torch.allclose(model.decode(latents), whole, atol=1e-10)
    assert calls == [3, 1, 1, 1]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_latent_cell_is_known_if_all_of_its_pixels_are(seed):
    model = denoiser(tiny.sd())
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 1, 32, 32, generator=generator) < 0.04
    image = (torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1).double()
    task = LatentInpainting(image, mask, model)
    for b in range(2):
        for row in range(8):
            for column in range(8):
                hidden = any(
                    bool(mask[b, 0, i, j]) for i in range(4 * row, 4 * row + 4) for j in range(4 * column, 4 * column + 4)
                )
                assert task.known[b, 0, row, column] == (0 if hidden else 1)
    with torch.no_grad():
        y = model.encode(image * ~mask)
    x0 = noise(2, 4, 8, 8)
    cost, e = task.cost_and_error(x0)
    assert torch.allclose(e, task.known * (y - x0)) and torch.allclose(cost, e.square().flatten(1).sum(1) / 2)
    # What is under the mask has no influence.
    assert torch.equal(LatentInpainting(torch.where(mask, 0.9, image), mask, model).y, task.y)


def test_known_pixels_are_put_back_if_asked_for():
    model = denoiser(tiny.sd(), dtype=torch.float32)
    image, mask = noise(1, 3, 32, 32, dtype=torch.float32).tanh(), right_of(14)
    kept, redrawn = (
        fcs_lab.sample(
            model, LatentInpainting(image, mask, model, keep_known=keep), batch_size=2, generator=generators(1, 2), **SHORT
        )
        for keep in (True, False)
    )
    assert torch.equal(kept.x0, redrawn.x0)
    assert torch.equal(kept.images[..., :14], image[..., :14].expand(2, -1, -1, -1))
    assert torch.equal(kept.images[..., 14:], redrawn.images[..., 14:])
    assert not torch.allclose(redrawn.images[..., :14], image[..., :14], atol=0.1)


def test_a_task_on_pixels_is_pulled_back_through_the_decoder():
    model, x0 = denoiser(tiny.sd()), noise(2, 4, 8, 8)
    task = fcs_lab.SuperResolution(noise(2, 3, 8, 8, seed=1).tanh(), 4)
    found = in_latents(task, model)
    assert isinstance(found, Decoded) and (found.batch_size, found.shape) == (2, (4, 8, 8))
    cost, e = found.cost_and_error(x0)

    def by_hand(z):
        return (task.A(model.vae.decode(z / 0.7).sample) - task.y).square().flatten(1).sum(1) / 2

    z = x0.clone().requires_grad_()
    expected = by_hand(z)
    assert torch.allclose(cost, expected.detach())
    assert torch.allclose(e, -torch.autograd.grad(expected.sum(), z)[0], atol=1e-9)
    v, h = noise(2, 4, 8, 8, seed=2), 1e-6
    with torch.no_grad():
        slope = (by_hand(x0 + h * v) - by_hand(x0 - h * v)) / (2 * h)
    assert torch.allclose(slope, -(e * v).flatten(1).sum(1), rtol=1e-5)


class LinearCode(LatentDenoiser):
    """A model whose VAE is linear and loses nothing: 1×4×4 images, 4×2×2 latents, image = M latent."""

    def __init__(self, matrix):
        self.matrix, self.inverse = matrix, torch.linalg.inv(matrix)
        self.shape, self.factor, self.multiple = (4, 2, 2), 2, 2

    image_shape = (1, 4, 4)

    def decode(self, latents):
        return (latents.flatten(1) @ self.matrix.T).reshape(-1, 1, 4, 4)

    def encode(self, images):
        return (images.flatten(1) @ self.inverse.T).reshape(-1, 4, 2, 2)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_forward_variant_is_the_inverse_of_the_decoder(orthogonal):
    """J_D⁻¹ e by differences; where the code is orthogonal that is J_Dᵀ e as well."""
    matrix = torch.linalg.qr(noise(16, 16))[0] if orthogonal else noise(16, 16) + 4 * torch.eye(16, dtype=F64)
    model, x0 = LinearCode(matrix), noise(3, 4, 2, 2)
    task = fcs_lab.Inpainting(noise(3, 1, 4, 4, seed=1).tanh(), right_of(2, 4))
    e = task.error(model.decode(x0))
    forward, backward = (Decoded(task, model, derivative=name).error(x0).flatten(1) for name in ("forward", "backward"))
    assert torch.allclose(forward, torch.linalg.solve(matrix, e.flatten(1).T).T, atol=1e-10)
    assert torch.allclose(backward, e.flatten(1) @ matrix, atol=1e-10)
    assert torch.allclose(forward, backward, atol=1e-10) is orthogonal
    solved = x0 + forward.reshape(x0.shape)
    assert torch.allclose(task.cost(model.decode(solved)), torch.zeros(3, dtype=F64), atol=1e-12)


@pytest.mark.parametrize("derivative", ["forward", "backward"])
def test_super_resolution_runs_without_a_pass_back_through_the_network(derivative):
    model = denoiser(tiny.sd(), "a dress", None, 2.0, dtype=torch.float32)
    task = Decoded(fcs_lab.SuperResolution(noise(1, 3, 8, 8, dtype=torch.float32).tanh(), 4), model, derivative=derivative)
    result = fcs_lab.sample(model, task, generator=generators(0)[0], **SHORT)
    assert result.images.shape == (1, 3, 32, 32) and result.x0.shape == (1, 4, 8, 8)
    assert (result.nfe, result.n_backward) == (3 * 5, 0)


@pytest.mark.parametrize(("layout", "scale"), [("sd", 1.0), ("sd", 3.0), ("sd21", 3.0), ("sdxl", 3.0), ("sd3", 3.0)])
def test_without_a_task_it_is_the_pipelines_own_sampling(layout, scale):
    pipeline = LAYOUTS[layout]()
    model = denoiser(pipeline, "a photo of a coat", None, scale, dtype=torch.float32)
    if layout != "sd3":
        pipeline.scheduler = model.scheduler
    latents = noise(2, 4, 8, 8, dtype=torch.float32)
    asked = {"num_inference_steps": 4, "height": 32, "width": 32, "guidance_scale": scale, "latents": latents}
    theirs = pipeline(["a photo of a coat"] * 2, output_type="latent", **asked).images
    pictures = pipeline(["a photo of a coat"] * 2, output_type="pt", **asked).images
    eta = {} if layout == "sd3" else {"eta": 0.0}
    ours = fcs_lab.sample(model, num_inference_steps=4, x_T=latents, progress=False, **eta)
    assert torch.allclose(ours.x0, theirs, atol=1e-4 * theirs.abs().max())
    assert torch.allclose(ours.images / 2 + 0.5, pictures, atol=1e-4)


def test_latents_are_never_clipped():
    """Schedulers clip x̂_0 to [-1, 1] by default, and PNDM's configuration does not say otherwise."""
    model = denoiser(tiny.sd())
    assert DDIMScheduler().config.clip_sample and not model.scheduler.config.clip_sample
    by_hand = LatentDenoiser(tiny.sd(), DDIMScheduler(**tiny.SD15))
    assert not by_hand.scheduler.config.clip_sample
    assert fcs_lab.sample(by_hand, x_T=3 * noise(1, 4, 8, 8), **SHORT).x0.abs().max() > 1.5


class ExactFlow:
    """The rectified flow of x_0 ~ N(μ, v): x_σ = (1−σ) x_0 + σ ε, x̂_0 in closed form."""

    shape, device, dtype = (1, 1, 2), torch.device("cpu"), F64
    scheduler = FlowMatchEulerDiscreteScheduler()
    mean, variance = torch.tensor([0.4, -0.3], dtype=F64), torch.tensor([0.5, 0.01], dtype=F64)

    def __call__(self, x_t, t):
        sigma = torch.as_tensor(t, dtype=F64).reshape(-1, 1, 1, 1) / 1000
        a = 1 - sigma
        return self.mean + a * self.variance / (a**2 * self.variance + sigma**2) * (x_t - a * self.mean)


def test_an_exact_rectified_flow_carries_noise_to_data():
    """Its ODE maps ε to μ + √v ε; Euler's error falls like 1/T'."""
    model, x_T = ExactFlow(), noise(50, 1, 1, 2)
    errors = []
    for steps in (40, 80):
        result = fcs_lab.sample(model, num_inference_steps=steps, x_T=x_T, progress=False)
        errors.append((result.x0 - (model.mean + model.variance.sqrt() * x_T)).abs().mean().item())
    assert errors[0] < 0.02 and 1.6 < errors[0] / errors[1] < 2.6


@pytest.mark.parametrize("direction", ["newton", "gradient"])
def test_an_exact_rectified_flow_meets_a_constraint(direction):
    model = ExactFlow()
    task = fcs_lab.Inpainting(torch.tensor([[[[0.7, 0.0]]]], dtype=F64), torch.tensor([[False, True]]))
    result = fcs_lab.sample(
        model, task, direction=direction, num_inference_steps=10, step_size=0.1, batch_size=20, progress=False
    )
    assert (result.x0[..., 0] - 0.7).abs().mean() < 0.1
    assert (result.x0[..., 1] - model.mean[1]).abs().mean() < 0.2


def test_a_pixel_network_trained_as_a_flow():
    model, x_t = UNetDenoiser(tiny_unet().double(), FlowMatchEulerDiscreteScheduler()), noise(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(x_t, 250.5), x_t - 0.2505 * model.unet(x_t, 250.5).sample)
        assert torch.equal(model(x_t, 0.0), x_t)
    for t, error in ((1000.5, ValueError), (-1, ValueError), (True, TypeError), ("5", TypeError)):
        with pytest.raises(error, match=r"t is"):
            model(x_t, t)
    assert fcs_lab.sample(model, num_inference_steps=3, progress=False).images.shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"scheduler is a DDIMScheduler with another noise schedule"):
        fcs_lab.sample(model, scheduler=DDIMScheduler())


@pytest.mark.parametrize("layout", ["sd", "sdxl", "sd3"])
def test_products_with_the_jacobian_agree(layout):
    """Finite difference, forward mode and reverse mode, guidance included."""
    model = CountedDenoiser(denoiser(LAYOUTS[layout](), "a photo of a boot", None, 2.0), keep_graph=True)
    x_t, u, v, t = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1), noise(1, 4, 8, 8, seed=2), 500
    x0 = model(x_t, t)
    Jt_u = model.run(gradient(x_t, t, x0, u))
    with torch.no_grad():
        Jv = model.run(newton_jvp(x_t, t, x0, v))
        difference = model.run(newton(x_t, t, x0, v, fd_step=1e-2))
    assert (Jv * u).sum().item() == pytest.approx((Jt_u * v).sum().item(), rel=1e-5)
    assert (difference - Jv).norm() < 0.02 * Jv.norm()
    assert Jt_u.abs().max() > 1e-3


@pytest.mark.parametrize("direction", ["newton", "newton-jvp", "gradient", "identity", "exact"])
def test_every_direction_runs_in_latent_space(direction):
    model = denoiser(tiny.sd(), "a dress", None, 2.0, dtype=torch.float32)
    task = fcs_lab.Inpainting(noise(1, 3, 32, 32, dtype=torch.float32).tanh(), right_of(16))
    options = {"num_inference_steps": 1, "inner_steps": 1, "progress": False}
    result = fcs_lab.sample(model, task, direction=direction, generator=generators(0)[0], **options)
    assert result.images.isfinite().all() and result.images.shape == (1, 3, 32, 32)


def test_one_generator_an_image_gives_one_result_whatever_the_batch():
    prompts, image = ["a dress", "a bag"], noise(1, 3, 32, 32, dtype=torch.float32).tanh()
    model, task = denoiser(tiny.sd21(), prompts, None, 2.0, dtype=torch.float32), fcs_lab.Inpainting(image, right_of(16))
    together = fcs_lab.sample(model, task, generator=generators(5, 6), **SHORT)
    alone = fcs_lab.sample(model.with_prompt("a bag", None, 2.0), task, generator=generators(6), **SHORT)
    assert (together.x0[1:] - alone.x0).abs().max() < 1e-2


# Loading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_from_a_folder(tmp_path, layout):
    pipeline = LAYOUTS[layout]()
    pipeline.save_pretrained(tmp_path)
    model = fcs_lab.load(tmp_path, device="cpu", torch_dtype=F64, prompt="a photo of a coat", guidance_scale=2)
    x_t = noise(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.allclose(model(x_t, 300), denoiser(pipeline, "a photo of a coat", None, 2)(x_t, 300), atol=1e-6)
    assert repr(model).endswith("prompt='a photo of a coat', negative_prompt=None, guidance_scale=2)")
    assert model.num_prompts == 1 and isinstance(model, fcs_lab.Denoiser)
    assert isinstance(model.scheduler, FlowMatchEulerDiscreteScheduler if layout == "sd3" else DDIMScheduler)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["sd", "sdxl"])
def test_half_precision(tmp_path, layout, dtype):
    LAYOUTS[layout]().save_pretrained(tmp_path)
    half, full = (fcs_lab.load(tmp_path, device="cpu", torch_dtype=each, prompt="a coat") for each in (dtype, torch.float32))
    x_t = noise(1, 4, 8, 8, dtype=torch.float32)
    assert half.dtype == dtype
    with torch.no_grad():
        x0 = half(x_t, 300)
        assert x0.dtype == torch.float32 and (x0 - full(x_t, 300)).norm() < 0.05 * x0.norm()
        assert half.decode(x0).dtype == torch.float32
        assert (half.decode(x0) - full.decode(x0)).norm() < 0.05 * full.decode(x0).norm()
    # SDXL's VAE overflows in float16: it runs in float32, and is left as it was.
    with half._autoencoder() as vae:
        assert vae.dtype == (torch.float32 if (layout, dtype) == ("sdxl", torch.float16) else dtype)
    assert half.vae.dtype == dtype
    assert fcs_lab.sample(half, num_inference_steps=2, progress=False).images.isfinite().all()


def test_loading_is_silent_and_keeps_real_warnings(tmp_path):
    tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False)).save_pretrained(tmp_path)
    script = f"import fcs_lab; fcs_lab.load({str(tmp_path)!r}, device='cpu', prompt='a dress')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
    heard, logger = [], logging.getLogger("transformers.utils.import_utils")
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger.addHandler(handler)
    try:
        with zoo.quiet():
            logger.warning("`CLIPImageProcessor` requires torchvision (not installed)")
            logger.warning("something is wrong")
        logger.warning("`CLIPImageProcessor` requires torchvision (not installed)")
    finally:
        logger.removeHandler(handler)
    assert heard == ["something is wrong", "`CLIPImageProcessor` requires torchvision (not installed)"]
    assert not logger.filters


# Bad input


def test_a_prompt_for_an_unconditional_model(tmp_path):
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    for argument in ({"prompt": "a dress"}, {"negative_prompt": "a dress"}, {"guidance_scale": 2.0}):
        (name,) = argument
        with pytest.raises(ValueError, match=rf"{name} is .*unconditional model; it takes no prompt"):
            fcs_lab.load(tmp_path, **argument)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prompt": 3}, TypeError, "prompt is 3; expected a string or a list of strings"),
        ({"prompt": []}, TypeError, r"prompt is \[\]"),
        ({"prompt": "a", "negative_prompt": [1]}, TypeError, r"negative_prompt is \[1\]"),
        ({"prompt": ["a", "b"], "negative_prompt": ["a", "b", "c"]}, ValueError, "3 negative prompts for 2 prompts"),
        ({"prompt": "a", "guidance_scale": -1}, ValueError, "guidance_scale is -1; expected a number of at least 0"),
        ({"prompt": "a", "guidance_scale": "high"}, ValueError, "guidance_scale is 'high'"),
        ({"prompt": "a", "guidance_scale": float("nan")}, ValueError, "guidance_scale is nan"),
    ],
)
def test_wrong_prompts_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        denoiser(tiny.sd()).with_prompt(**arguments)


def test_a_negative_prompt_without_guidance_warns():
    with pytest.warns(UserWarning, match="negative_prompt has no effect: guidance_scale is 1") as caught:
        denoiser(tiny.sd()).with_prompt("a dress", "a bag", 1)
    assert caught[0].filename == __file__


def test_another_number_of_prompts_than_images():
    model = denoiser(tiny.sd(), ["a dress", "a bag"], dtype=torch.float32)
    with pytest.raises(ValueError, match="2 prompts for a batch of 3"):
        model(noise(3, 4, 8, 8), 300)
    with pytest.raises(ValueError, match=r"2 prompts; expected one, or one for each of 3"):
        fcs_lab.sample(model, batch_size=3)
    task = fcs_lab.Inpainting(noise(1, 3, 32, 32).tanh(), right_of(16))
    with pytest.raises(ValueError, match="expected one prompt for all images"):
        fcs_lab.sample(model, task, direction="exact")


def test_sizes_that_the_vae_does_not_divide_name_the_nearest():
    model = denoiser(tiny.sd())
    image = torch.zeros(1, 3, 30, 45)
    with pytest.raises(ValueError, match=r"images is 30×45 .*multiples of 4: the nearest is 32×44"):
        model.encode(image)
    task = fcs_lab.Inpainting(image, (torch.arange(45) > 20).expand(30, 45))
    with pytest.raises(ValueError, match=r"image is 30×45 .*the nearest is 32×44"):
        fcs_lab.sample(model, task)
    with pytest.raises(ValueError, match=r"the task's image is 30×30 .*the nearest is 32×32"):
        fcs_lab.sample(model, fcs_lab.SuperResolution(torch.zeros(1, 3, 10, 10), 3))
    with pytest.raises(ValueError, match=r"multiples of 8: the nearest is 32×48"):  # patches of 2×2 latents
        denoiser(tiny.sd3()).encode(torch.zeros(1, 3, 32, 44))
    with pytest.raises(ValueError, match=r"image has shape \(1, 1, 32, 32\); expected \(B, 3, height, width\)"):
        LatentInpainting(torch.zeros(1, 1, 32, 32), right_of(16), model)
    grey = fcs_lab.Inpainting(torch.zeros(1, 1, 32, 32), right_of(16))  # for a colour model a grey image is a colour one
    assert fcs_lab.sample(model, grey, num_inference_steps=1, inner_steps=1, progress=False).images.shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"x_t has shape \(1, 3, 8, 8\)"):
        model(torch.zeros(1, 3, 8, 8), 10)


def test_a_mask_that_hides_all_latents():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[1::4, 2::4] = True  # a sixteenth of the pixels, one of every cell
    with pytest.raises(ValueError, match="mask hides a pixel of every 4×4 latent cell"):
        fcs_lab.sample(denoiser(tiny.sd()), fcs_lab.Inpainting(torch.zeros(1, 3, 32, 32), mask))


def test_networks_that_are_no_base_model():
    with pytest.raises(ValueError, match=r"9 input channels, the VAE 4 .*base model \(such as stable-diffusion-v1-5"):
        denoiser(tiny.sd(unet=tiny.unet(in_channels=9)))
    with pytest.raises(ValueError, match=r"guidance distilled into it .*guidance_scale has no null prompt"):
        denoiser(tiny.sd(unet=tiny.unet(time_cond_proj_dim=8)))
    parts = tiny.sdxl().components
    refiner = StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)
    with pytest.raises(ValueError, match=r"SDXL's refiner"):
        denoiser(refiner)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for part in ("_class_name", "unet"):
        folder = tmp_path / part
        DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)
        index = json.loads((folder / "model_index.json").read_text()) | {part: ["custom", "Custom"]}
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "custom.py").write_text((tmp_path / "custom.py").read_text())
        with pytest.raises(ValueError, match=r"code of its own \((unet|its pipeline) is custom.Custom\), which is not run"):
            fcs_lab.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["cuda:77", "meta", "toaster"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ValueError, match=rf"device is '{device}'"):
        fcs_lab.load("mnist", device=device)


def test_the_pipeline_itself_stays_usable(tmp_path):
    tiny.sd().save_pretrained(tmp_path)
    model = fcs_lab.load(tmp_path, device="cpu")
    assert isinstance(model.pipeline, DiffusionPipeline)
    model.pipeline.set_progress_bar_config(disable=True)
    assert model.pipeline("a dress", num_inference_steps=2).images[0].size == (32, 32)
