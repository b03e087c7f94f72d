"""`FastConstrainedPipeline`: diffusers' call, and the method's result."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

import fcs_lab
from fcs_lab.latent import LatentDenoiser
from fcs_lab.latent_space import LatentInpainting
from fcs_lab.pipelines import FastConstrainedPipeline

DDIM = DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False)
SHORT = {"num_inference_steps": 2, "inner_steps": 1}
PROMPT = "a photo of a dress"


@pytest.fixture(scope="module")
def pipe():
    return quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM)))


@pytest.fixture
def photo():
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    """White on the right."""
    return (torch.arange(32) >= 14).expand(1, 1, 32, 32).float()


def quiet_pipe(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def model_of(pipe, *prompt):
    return LatentDenoiser(pipe, pipe.scheduler, *prompt)


def to_image(x):
    return Image.fromarray((x[0].permute(1, 2, 0).squeeze(-1).numpy() * 255).round().astype("uint8"))


def test_the_call_is_diffusers_own():
    theirs, ours = (
        list(inspect.signature(one.__call__).parameters.values())
        for one in (StableDiffusionInpaintPipeline, FastConstrainedPipeline)
    )
    named = [parameter.name for parameter in theirs if parameter.kind is not parameter.VAR_KEYWORD]
    assert [parameter.name for parameter in ours[: len(named)]] == named
    defaults = {parameter.name: parameter.default for parameter in theirs}
    changed = {p.name: p.default for p in ours[: len(named)] if p.default != defaults[p.name]}
    names = ("latents",)
    own = {"guidance_scale": None, "eta": None}  # the pipeline's default, and the method's
    assert changed == own | {"num_inference_steps": 20, "callback_on_step_end_tensor_inputs": names}
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(named) : -1])
    assert ours[-1].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_sample(channels, scale, photo, mask):
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM, channels=channels)))
    photo = photo[:, :channels]
    given = {"image": photo, "mask_image": mask, "guidance_scale": scale}
    theirs = pipe(PROMPT, **given, generator=seeded(), output_type="pt", **SHORT).images
    latents = pipe(PROMPT, **given, generator=seeded(), output_type="latent", **SHORT).images
    model = model_of(pipe, PROMPT, None, scale)
    ours = fcs_lab.sample(model, LatentInpainting(photo * 2 - 1, mask, model), generator=seeded(), progress=False, **SHORT)
    assert torch.allclose(latents, ours.x0, atol=1e-5)
    assert torch.allclose(theirs, ours.images / 2 + 0.5, atol=1e-5)
    options = {"direction": "gradient", "step_size": 0.2, "keep_known": True, "eta": 0.0}
    theirs = pipe(PROMPT, **given, generator=seeded(), output_type="pt", **SHORT, **options).images
    task = LatentInpainting(photo * 2 - 1, mask, model, keep_known=options.pop("keep_known"))
    ours = fcs_lab.sample(model, task, generator=seeded(), progress=False, **SHORT, **options)
    assert torch.allclose(theirs, ours.images / 2 + 0.5, atol=1e-5)
    assert torch.allclose(theirs[..., :14], photo[..., :14], atol=1e-6)


def test_a_script_with_pil_images_of_another_size(pipe, photo, mask):
    large, grey = to_image(photo).resize((96, 64)), Image.linear_gradient("L").rotate(90).resize((96, 64))
    found = pipe(PROMPT, large, grey, generator=seeded(), **SHORT)
    assert [image.size for image in found.images] == [(32, 32)] and found.nsfw_content_detected is None
    # The same, with diffusers' own processors, and the mask cut at a half by hand.
    image = StableDiffusionInpaintPipeline.from_pipe(tiny.sd(DDIM)).image_processor.preprocess(large, 32, 32)
    levels = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS)) / 255
    assert 0 < (levels >= 0.5).mean() < 1 and len(np.unique(levels)) > 2
    model = model_of(pipe, PROMPT, None, 7.5)
    task = LatentInpainting(image, torch.from_numpy(levels >= 0.5), model)
    ours = fcs_lab.sample(model, task, generator=seeded(), progress=False, **SHORT)
    difference = np.asarray(found.images[0]).astype(int) - np.asarray(ours.to_pil()[0]).astype(int)
    assert abs(difference).max() <= 1
    sized = pipe(PROMPT, large, grey, height=24, width=40, **SHORT).images
    assert sized[0].size == (40, 24)


def test_output_types(pipe, photo, mask):
    def call(output_type, **options):
        return pipe(PROMPT, photo, mask, generator=seeded(), output_type=output_type, **SHORT, **options)

    pt, array, pil = (call(name).images for name in ("pt", "np", "pil"))
    assert pt.shape == (1, 3, 32, 32) and pt.min() >= 0 and pt.max() <= 1
    assert array.shape == (1, 32, 32, 3) and np.allclose(array[0], pt[0].permute(1, 2, 0).numpy())
    assert np.array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype("uint8"))
    images, nsfw = call("pil", return_dict=False)
    assert images == pil and nsfw is None
    assert call("latent").images.shape == (1, 4, 8, 8)


def test_batches(pipe, photo, mask):
    pair = torch.cat([photo, 1 - photo])
    prompts = ["a dress", "a bag"]
    common = {"output_type": "pt", "guidance_scale": 2.0, **SHORT}
    four = pipe(prompts, pair, mask, num_images_per_prompt=2, generator=generators(0, 1, 2, 3), **common).images
    assert len(four) == 4
    for i, (prompt, image) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):  # images in turn, as in diffusers
        alone = pipe(prompts[prompt], pair[image : image + 1], mask, generator=generators(i), **common).images
        assert (four[i] - alone[0]).abs().max() < 2e-2
    assert len(pipe("a dress", pair, mask, **common).images) == 2
    assert len(pipe(prompts, photo, mask, **common).images) == 2
    with pytest.raises(ValueError, match=r"image holds 2 images for a batch of 3 \(prompts × num_images_per_prompt\)"):
        pipe("a dress", pair, mask, num_images_per_prompt=3, **common)
    with pytest.raises(ValueError, match="list of generators of length 3"):
        pipe(prompts, pair, mask, generator=generators(0, 1, 2), **common)


def test_latents_eta_and_embeddings_are_honoured(pipe, photo, mask):
    def call(prompt=PROMPT, **options):
        return pipe(prompt, photo, mask, output_type="pt", generator=seeded(), **SHORT, **options).images

    x_T = torch.randn(1, 4, 8, 8, generator=seeded(9))
    model = model_of(pipe, PROMPT, None, 7.5)
    ours = fcs_lab.sample(
        model, LatentInpainting(photo * 2 - 1, mask, model), x_T=x_T, eta=0.0, progress=False, **SHORT
    ).images
    assert torch.allclose(call(latents=x_T, eta=0.0), ours / 2 + 0.5, atol=1e-5)
    assert not torch.allclose(call(eta=0.0), call(), atol=1e-3)
    wanted, unwanted = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    assert torch.allclose(call(None, prompt_embeds=wanted, negative_prompt_embeds=unwanted), call(), atol=1e-5)
    assert torch.allclose(call(None), call(""), atol=1e-5)
    assert not torch.allclose(call(negative_prompt="a bag"), call(), atol=1e-4)


def test_clip_skip_is_honoured_where_diffusers_can(photo, mask):
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM)))
    encoder = pipe.text_encoder
    common = {"image": photo, "mask_image": mask, "output_type": "pt", **SHORT}
    if not hasattr(encoder, "text_model"):  # transformers 5 took it away, diffusers 0.42 looks for it
        with pytest.raises(ValueError, match="clip_skip is 1, which diffusers cannot honour"):
            pipe(PROMPT, **common, clip_skip=1)
        object.__setattr__(encoder, "text_model", SimpleNamespace(final_layer_norm=encoder.final_layer_norm))
    skipped = pipe.encode_prompt(PROMPT, "cpu", 1, False, clip_skip=1)[0]
    found = pipe(PROMPT, **common, generator=seeded(), clip_skip=1).images
    assert torch.allclose(found, pipe(None, **common, generator=seeded(), prompt_embeds=skipped).images, atol=1e-5)
    assert not torch.allclose(found, pipe(PROMPT, **common, generator=seeded()).images, atol=1e-4)


def test_the_callback_is_diffusers(pipe, photo, mask):
    seen = []

    def look(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        seen.append((step, int(timestep), {name: tensor.shape for name, tensor in tensors.items()}))
        return tensors

    names = ["latents", "x0", "prompt_embeds"]
    common = {"image": photo, "mask_image": mask, "output_type": "latent", **SHORT}
    plain = pipe(PROMPT, **common, generator=seeded()).images
    watched = pipe(
        PROMPT, **common, generator=seeded(), callback_on_step_end=look, callback_on_step_end_tensor_inputs=names
    ).images
    assert torch.equal(plain, watched)
    shapes = {"latents": (1, 4, 8, 8), "x0": (1, 4, 8, 8), "prompt_embeds": (2, 16, 16)}
    scheduler = DDIMScheduler.from_config(DDIM.config)
    scheduler.set_timesteps(2)
    assert seen == [(step, t, shapes) for step, t in enumerate(scheduler.timesteps.tolist())]
    assert pipe.num_timesteps == 2
    zeros = pipe(PROMPT, **common, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 8, 8)}).images
    assert not zeros.any()
    assert torch.equal(pipe(PROMPT, **common, generator=seeded(), callback_on_step_end=lambda *_: None).images, plain)


def test_a_callback_can_end_the_run(pipe, photo, mask):
    estimates = []

    def stop(pipeline, step, timestep, tensors):
        estimates.append(tensors["x0"])
        pipeline._interrupt = step == 1
        return {}

    found = pipe(
        PROMPT,
        photo,
        mask,
        num_inference_steps=5,
        output_type="latent",
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["x0"],
    ).images
    assert len(estimates) == 2 and torch.equal(found, estimates[-1])
    pipe(PROMPT, photo, mask, **SHORT)
    assert not pipe.interrupt


def test_a_callback_can_end_guidance(pipe, photo, mask):
    """diffusers' own callback for it; and one that changes the scale."""
    rows = []
    hook = pipe.unet.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    common = {"image": photo, "mask_image": mask, "output_type": "latent", "num_inference_steps": 3, "inner_steps": 0}
    cut = pipe(
        PROMPT,
        **common,
        generator=seeded(),
        callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=0),
    ).images
    assert rows == [2, 1, 1]

    rows.clear()

    def more(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 9.0
        return {}

    assert not torch.equal(pipe(PROMPT, **common, generator=seeded(), callback_on_step_end=more).images, cut)
    assert rows == [2, 2, 2]
    hook.remove()


def test_other_constraints(pipe):
    small = torch.rand(2, 3, 8, 8, generator=seeded()) * 2 - 1
    task = fcs_lab.SuperResolution(small, 4)
    found = pipe(PROMPT, constraint=task, generator=generators(1, 2), output_type="pt", guidance_scale=2.0, **SHORT).images
    ours = fcs_lab.sample(
        model_of(pipe, PROMPT, None, 2.0), task, generator=generators(1, 2), progress=False, **SHORT
    ).images
    assert torch.allclose(found, ours / 2 + 0.5, atol=1e-5)
    cost = fcs_lab.CostConstraint(lambda images: images.square().flatten(1).mean(1))
    wide = pipe(PROMPT, constraint=cost, height=24, width=40, output_type="pt", **SHORT).images
    assert wide.shape == (1, 3, 24, 40)
    large = fcs_lab.SuperResolution(torch.zeros(1, 3, 10, 12), 4)
    assert pipe(constraint=large, output_type="pt", **SHORT).images.shape == (1, 3, 40, 48)
    with pytest.raises(ValueError, match=r"height is 32; the constraint's images have 40"):
        pipe(constraint=large, height=32)
    with pytest.raises(ValueError, match=r"image is given together with constraint"):
        pipe(image=small, constraint=large)
    with pytest.raises(ValueError, match=r"keep_known is given together with constraint"):
        pipe(keep_known=True, constraint=large)


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_mask_crop(channels):
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM, channels=channels)))
    image = to_image(torch.rand(1, channels, 100, 120, generator=seeded()))
    mask = Image.new("L", image.size)
    mask.paste(255, (50, 40, 62, 52))
    (found,) = pipe(PROMPT, image, mask, padding_mask_crop=10, generator=seeded(), **SHORT).images
    assert found.size == image.size and found.mode == "RGB"  # as diffusers leaves it
    changed = (np.asarray(found) != np.asarray(image.convert("RGB"))).any(-1)
    rows, columns = np.nonzero(changed)
    assert changed[40:52, 50:62].mean() > 0.9
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (40, 52, 50, 62)
    with pytest.raises(ValueError, match="mask_image is empty"):
        pipe(PROMPT, image, Image.new("L", image.size), padding_mask_crop=10)


def test_the_safety_checker_is_asked(photo, mask):
    class Checker(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, images, clip_input):
            assert clip_input.shape == (2, 3, 32, 32)
            images = images.clone()
            images[1] = 0
            return images, [False, True]

    class Extractor:
        def __call__(self, images, return_tensors):
            levels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2) / 255
            return self.Batch(pixel_values=torch.from_numpy(levels))

        class Batch(dict):
            def to(self, device):
                self.pixel_values = self["pixel_values"].to(device)
                return self

    pipe = quiet_pipe(
        FastConstrainedPipeline.from_pipe(tiny.sd(DDIM), safety_checker=Checker(), feature_extractor=Extractor())
    )
    found = pipe(PROMPT, photo, mask, num_images_per_prompt=2, output_type="np", **SHORT)
    assert found.nsfw_content_detected == [False, True]
    assert found.images[0].any() and not found.images[1].any()
    images, nsfw = pipe(PROMPT, photo, mask, num_images_per_prompt=2, return_dict=False, **SHORT)
    assert nsfw == [False, True] and np.asarray(images[1]).max() == 0


def test_progress_bars_are_set_as_in_diffusers(pipe, photo, mask, capfd):
    pipe(PROMPT, photo, mask, **SHORT)
    assert capfd.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False, desc="filling in")
    pipe(PROMPT, photo, mask, **SHORT)
    assert "filling in: 100%" in (err := capfd.readouterr().err) and "2/2" in err and "sampling" not in err
    quiet_pipe(pipe)


def test_made_from_a_folder_and_saved_again(tmp_path, photo, mask):
    tiny.sd(DDIM).save_pretrained(tmp_path / "base")
    pipe = FastConstrainedPipeline.from_pretrained(tmp_path / "base", torch_dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert quiet_pipe(pipe)(PROMPT, photo, mask, **SHORT).images[0].size == (32, 32)
    pipe.save_pretrained(tmp_path / "again")
    assert isinstance(FastConstrainedPipeline.from_pretrained(tmp_path / "again"), FastConstrainedPipeline)
    assert isinstance(fcs_lab.load(tmp_path / "again", device="cpu"), LatentDenoiser)
    assert isinstance(StableDiffusionPipeline.from_pretrained(tmp_path / "again"), StableDiffusionPipeline)


def test_made_from_a_pipeline_it_shares_its_parts():
    base = tiny.sd(DDIM).to(torch.float16)
    pipe = FastConstrainedPipeline.from_pipe(base)
    assert pipe.unet is base.unet and pipe.vae is base.vae and pipe.text_encoder is base.text_encoder
    assert pipe.dtype == base.dtype == torch.float16  # diffusers would have made all of it float32
    assert FastConstrainedPipeline.from_pipe(base, torch_dtype=torch.float32).dtype == torch.float32


def test_any_scheduler_gives_its_noise_schedule(photo, mask):
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd()))
    before = dict(pipe.scheduler.config)
    found = pipe(PROMPT, photo, mask, generator=seeded(), output_type="pt", **SHORT).images
    assert dict(pipe.scheduler.config) == before
    other = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM)))
    assert torch.allclose(found, other(PROMPT, photo, mask, generator=seeded(), output_type="pt", **SHORT).images, atol=1e-5)


def test_offloaded_parts_are_handed_back(pipe, photo, mask, monkeypatch):
    """What offloading itself does takes a GPU; that its hooks are called at the end does not."""
    freed = []
    monkeypatch.setattr(pipe.pipeline, "maybe_free_model_hooks", lambda: freed.append(pipe.vae.training))
    pipe(PROMPT, photo, mask, **SHORT)
    assert len(freed) == 2  # after the pipeline's loop, and after its latents were decoded


def test_an_inpainting_model_is_refused():
    words = r"9 input channels.*base model \(such as stable-diffusion-v1-5/"
    with pytest.raises(ValueError, match=words):
        FastConstrainedPipeline.from_pipe(tiny.sd(unet=tiny.unet(in_channels=9)))
    with pytest.raises(TypeError, match="pipe is 'sd'; expected a diffusers pipeline"):
        FastConstrainedPipeline("sd")
    with pytest.raises(TypeError, match="does not go from a prompt"):
        FastConstrainedPipeline.from_pretrained("mnist")


def test_an_inpainting_pipeline_lends_its_parts(photo, mask):
    base = tiny.sd(DDIM)
    pipe = FastConstrainedPipeline.from_pipe(StableDiffusionInpaintPipeline.from_pipe(base))
    assert type(pipe.pipeline) is StableDiffusionPipeline and pipe.unet is base.unet
    pipe.scheduler = scheduler = DDIMScheduler.from_config(DDIM.config)
    assert pipe.pipeline.scheduler is scheduler


# Families, with what their tiny pipelines are asked; text as embeddings where they have no encoder.
OTHERS = {
    "SDXL": (tiny.sdxl, lambda: {"prompt": PROMPT}, 32),
    "SD 3": (tiny.sd3, lambda: {"prompt": PROMPT}, 32),
    "Flux 1": (tiny.flux, lambda: tiny.flux_text(1), 32),
    "Flux 2 Klein": (tiny.klein, lambda: tiny.text(1), 32),
    "Qwen-Image": (tiny.qwen, lambda: tiny.text(1, "prompt_embeds_mask") | {"true_cfg_scale": 2.0}, 32),
    "Z-Image": (tiny.z_image, lambda: tiny.z_image_text(1), 32),
    "Lumina 2": (tiny.lumina, lambda: tiny.text(1, "prompt_attention_mask"), 32),
    "Sana": (tiny.sana, lambda: tiny.text(1, "prompt_attention_mask") | {"use_resolution_binning": False}, 32),
    "PixArt-Σ": (tiny.pixart, lambda: tiny.text(1, "prompt_attention_mask") | {"use_resolution_binning": False}, 32),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families(family, mask):
    make, arguments, side = OTHERS[family]
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(make()))
    # Lumina 2 does not repeat embeddings that it is guided away from.
    pair = torch.rand(1 if family == "Lumina 2" else 2, 3, side, side, generator=seeded())
    arguments = arguments()
    estimates = []

    def stop(pipeline, step, timestep, tensors):
        estimates.append((step, tensors["x0"]))
        pipeline._interrupt = step == 1

    watch = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["x0"]} if family != "PixArt-Σ" else {}
    size = {"height": side, "width": side}
    images = pipe(**arguments, image=pair, mask_image=mask, **size, keep_known=True, **SHORT, output_type="pt").images
    known = ~mask[0].bool()
    assert images.shape == pair.shape and torch.allclose(
        images[:, known.expand(3, -1, -1)], pair[:, known.expand(3, -1, -1)]
    )
    one = {"image": pair[:1], "mask_image": mask, "num_inference_steps": 4, "inner_steps": 1}
    images = pipe(**arguments, **one, **size, **watch, generator=seeded(), output_type="pil").images
    assert images[0].size == (side, side) and [step for step, _ in estimates] == ([0, 1] if watch else [])
    if family in ("SDXL", "SD 3"):
        images = pipe(**arguments, **one, **size, direction="gradient", generator=seeded()).images
        assert images[0].size == (side, side)
    else:
        with pytest.raises(ValueError, match="direction is 'gradient'; expected 'newton', 'identity'"):
            pipe(**arguments, **one, **size, direction="gradient")


def test_what_only_the_pipeline_takes_goes_on_to_it(photo, mask):
    pipe = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(EulerDiscreteScheduler(**tiny.SD15))))
    seen = []

    def look(pipeline, step, timestep, tensors):
        seen.append(int(timestep))

    common = {"image": photo, "mask_image": mask, "inner_steps": 1, "output_type": "latent", "generator": seeded()}
    pipe(PROMPT, **common, timesteps=[900, 500, 100], callback_on_step_end=look, guidance_rescale=0.5)
    assert seen == [900, 500, 100]
    with pytest.raises(ValueError, match="cfg_trunc_ratio is given, which StableDiffusionPipeline does not take"):
        pipe(PROMPT, **common, cfg_trunc_ratio=0.5)
    with pytest.raises(ValueError, match=r"guidance_rescale is given, which cannot be honoured with direction 'gradient'"):
        pipe(PROMPT, **common, guidance_rescale=0.5, direction="gradient")


MASKS = {
    "bool": lambda m: m.bool(),
    "uint8 of 0 and 1": lambda m: m.to(torch.uint8),
    "uint8 of 0 and 255": lambda m: (m * 255).to(torch.uint8),
    "int64": lambda m: (m * 255).long(),
    "float64": lambda m: m.double(),
    "half": lambda m: m.half(),
    "two axes": lambda m: m[0, 0],
    "three axes": lambda m: m[0],
    "array": lambda m: m[0, 0].bool().numpy(),
    "array of bytes, channels last": lambda m: (m[0, 0, :, :, None] * 255).to(torch.uint8).numpy(),
    "list of arrays": lambda m: [m[0, 0].numpy()],
    "PIL": to_image,
    "list of PIL": lambda m: [to_image(m)],
    "soft": lambda m: m * 0.2 + 0.35,  # cut at a half
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_every_kind(pipe, photo, mask, kind):
    common = {"image": photo, "output_type": "latent", "guidance_scale": 1.0, **SHORT}
    expected = pipe(PROMPT, mask_image=mask, **common, generator=seeded()).images
    assert torch.equal(pipe(PROMPT, mask_image=MASKS[kind](mask), **common, generator=seeded()).images, expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": 0.8}, "strength is 0.8; expected 1.0"),
        ({"masked_image_latents": torch.zeros(1, 4, 8, 8)}, "masked_image_latents is given"),
        ({"image": None}, "image is missing; expected image and mask_image, or a constraint"),
        ({"mask_image": None}, "mask_image is missing"),
        ({"height": 30}, "height is 30; the VAE needs a multiple of 4: the nearest is 32"),
        ({"width": 0}, "width is 0; expected a positive whole number"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"the pipeline makes \(3, 16, 16\).* or latents of that size"),
        ({"image": torch.zeros(1, 4, 8, 8)}, "image has 4 channels; expected 3"),
        ({"image": torch.zeros(1, 1, 32, 32)}, "image has 1 channels; expected 3"),
        ({"image": np.full((32, 32, 3), 255, dtype=np.uint8)}, r"image has values outside \[0, 1\], or NaN"),
        ({"image": torch.full((1, 3, 32, 32), torch.nan)}, r"image has NaN or infinite values"),
        ({"image": torch.zeros(1, 3, 16, 32)}, r"image is 16×32 and mask_image 32×32 \(height × width\); expected one size"),
        ({"mask_image": torch.full((32, 32), 2.0)}, r"mask_image has values from 2 to 2; expected whole numbers of 0 and 1"),
        ({"mask_image": torch.full((32, 32), -1)}, r"mask_image has values from -1 to -1"),
        ({"mask_image": torch.full((32, 32), 256)}, r"mask_image has values from 256 to 256"),
        ({"mask_image": torch.full((32, 32), torch.nan)}, r"mask_image has values from nan to nan"),
        ({"mask_image": torch.zeros(1, 3, 32, 32)}, r"mask_image has shape \(1, 3, 32, 32\)"),
        ({"mask_image": torch.zeros(1, 1, 32, 32)}, "mask is empty"),
        ({"mask_image": torch.ones(1, 1, 32, 32)}, "mask is full"),
        ({"mask_image": torch.eye(4).repeat(8, 8)[None, None]}, "mask hides a pixel of every 4×4 latent cell"),
        ({"callback_on_step_end_tensor_inputs": ["mask"]}, r"callback_on_step_end_tensor_inputs.*found \['mask'\]"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, "Cannot forward both `prompt`"),
        ({"padding_mask_crop": 8}, "image and mask_image should be a PIL image each"),
        ({"direction": "newtonian"}, "direction is 'newtonian'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": "20"}, "num_inference_steps is '20'"),
        ({"num_inference_steps": 2000}, "num_inference_steps is 2000; expected 1 to 1000"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(pipe, photo, mask, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipe(**{"prompt": PROMPT, "image": photo, "mask_image": mask} | arguments)


def test_what_is_no_picture_is_refused(pipe, photo, mask, tmp_path):
    for name in ("image", "mask_image"):
        with pytest.raises(TypeError, match=f"{name} is 'dog.png'; expected PIL images, arrays or tensors"):
            pipe(PROMPT, **{"image": photo, "mask_image": mask, name: "dog.png"})
    to_image(photo).save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="image cannot be read from its file"):
        pipe(PROMPT, Image.open(tmp_path / "photo.png"), mask)
