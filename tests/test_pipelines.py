"""`FastConstrainedPipeline`: diffusers' call, and the method's result."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators
from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

import fcs_lab
from fcs_lab.latent import LatentDenoiser, LatentInpainting
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
    assert changed == {"num_inference_steps": 20, "eta": None, "callback_on_step_end_tensor_inputs": ("latents",)}
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in ours[len(named) :])


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
    with pytest.raises(ValueError, match="generator is a list of 3"):
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
    """diffusers' own callback for it, and the scale alone."""
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

    def by_scale(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = 0.0
        return {}

    assert torch.equal(pipe(PROMPT, **common, generator=seeded(), callback_on_step_end=by_scale).images, cut)
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
    with pytest.warns(UserWarning, match="the pipeline comes with a PNDMScheduler; sampling here uses DDIM"):
        found = pipe(PROMPT, photo, mask, generator=seeded(), output_type="pt", **SHORT).images
    assert dict(pipe.scheduler.config) == before
    other = quiet_pipe(FastConstrainedPipeline.from_pipe(tiny.sd(DDIM)))
    assert torch.allclose(found, other(PROMPT, photo, mask, generator=seeded(), output_type="pt", **SHORT).images, atol=1e-5)


def test_offloaded_parts_are_handed_back(pipe, photo, mask, monkeypatch):
    """What offloading itself does takes a GPU; that its hooks are called at the end does not."""
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    pipe(PROMPT, photo, mask, **SHORT)
    assert freed == [True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny.sd(unet=tiny.unet(in_channels=9)), r"9 input channels.*base model \(such as stable-diffusion-v1-5/"),
        (lambda: tiny.sd(unet=tiny.unet(time_cond_proj_dim=8)), "guidance distilled into it"),
        (tiny.sdxl, "pipeline is a StableDiffusionXLPipeline; .*for SDXL and SD 3 use fcs_lab.load"),
        (tiny.sd3, "pipeline is a StableDiffusion3Pipeline; .*for SDXL and SD 3 use fcs_lab.load"),
    ],
)
def test_other_models_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        FastConstrainedPipeline.from_pipe(make())


def test_other_layouts_are_refused_before_they_are_read(tmp_path):
    for name, make in {"XL": tiny.sdxl, "3": tiny.sd3}.items():
        make().save_config(tmp_path / name)
        with pytest.raises(ValueError, match=f"is a StableDiffusion{name}Pipeline; expected SD 1.x or 2.x"):
            FastConstrainedPipeline.from_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=r"added conditions \(text_time\), as SDXL's does"):
        unet = tiny.unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=8)
        FastConstrainedPipeline.from_pipe(tiny.sd(DDIM), unet=unet)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strength": 0.8}, "strength is 0.8; expected 1.0"),
        ({"masked_image_latents": torch.zeros(1, 4, 8, 8)}, "masked_image_latents is given"),
        ({"timesteps": [900, 500]}, "timesteps is given"),
        ({"sigmas": [1.0]}, "sigmas is given"),
        ({"ip_adapter_image": torch.zeros(1)}, "ip_adapter_image is given"),
        ({"ip_adapter_image_embeds": []}, "ip_adapter_image_embeds is given"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs is given"),
        ({"image": None}, "image is missing; expected image and mask_image, or a constraint"),
        ({"mask_image": None}, "mask_image is missing"),
        ({"height": 30}, "height is 30; the VAE needs a multiple of 4: the nearest is 32"),
        ({"width": 0}, "width is 0; expected a positive whole number"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"latents has shape \(1, 4, 4, 4\); expected \(1, 4, 8, 8\)"),
        ({"image": torch.zeros(1, 4, 8, 8)}, "image has 4 channels; expected 3"),
        ({"image": torch.zeros(1, 1, 32, 32)}, "image has 1 channels; expected 3"),
        ({"image": np.full((32, 32, 3), 255, dtype=np.uint8)}, r"image has values outside \[0, 1\], or NaN"),
        ({"image": torch.full((1, 3, 32, 32), torch.nan)}, r"image has values outside \[0, 1\], or NaN"),
        ({"mask_image": torch.zeros(1, 1, 32, 32)}, "mask is empty"),
        ({"mask_image": torch.ones(1, 1, 32, 32)}, "mask is full"),
        ({"mask_image": torch.eye(4).repeat(8, 8)[None, None]}, "mask hides a pixel of every 4×4 latent cell"),
        ({"callback_on_step_end_tensor_inputs": ["mask"]}, r"callback_on_step_end_tensor_inputs.*found \['mask'\]"),
        ({"prompt_embeds": torch.zeros(1, 16, 16)}, "Cannot forward both `prompt`"),
        ({"padding_mask_crop": 8}, "should be a PIL image when inpainting mask crop"),
        ({"direction": "newtonian"}, "direction is 'newtonian'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": "20"}, "num_inference_steps is '20'"),
        ({"num_inference_steps": 2000}, "num_inference_steps is 2000; expected 1 to 1000"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(pipe, photo, mask, arguments, words):
    with pytest.raises(ValueError, match=words):
        pipe(**{"prompt": PROMPT, "image": photo, "mask_image": mask} | arguments)
