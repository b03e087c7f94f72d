"""`constrained`: unmodified diffusers pipelines, tiny and random, whose own loop drives Algorithm 1."""

from pathlib import Path

import diffusers
import pytest
import tiny_pipelines as tiny
import torch
from conftest import generators
from diffusers import (
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FluxPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import SDCFGCutoffCallback
from peft import LoraConfig

import fcs_lab
from fcs_lab import families, sampler
from fcs_lab.families import FAMILIES as PROVED
from fcs_lab.families import family_of, takes_an_interrupt
from fcs_lab.forecast import forecast
from fcs_lab.latent_space import LatentInpainting, LatentSpace, network_of
from fcs_lab.widgets import FamilyMenu
from fcs_lab.zoo import WEIGHTS

F32 = torch.float32
H, W, T, K = 32, 48, 3, 2  # height and width unequal
SHORT = {"num_inference_steps": T, "height": H, "width": W}


def add_lora(pipe, scale=1.0):
    torch.manual_seed(9)
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"], lora_alpha=20 * scale))
    return pipe


def words():
    return {"prompt": ["a dress", "a coat"], "guidance_scale": 3.0, "num_images_per_prompt": 2}


def control():
    return words() | {"image": torch.rand(2, 3, H, W, generator=generators(3)[0])}


def binned(mask=None):
    return tiny.text(4, mask) | {"negative_prompt": None, "use_resolution_binning": False}


def true_guidance():
    text = tiny.flux_text(4)
    return text | {"true_cfg_scale": 2.0} | {f"negative_{name}": 0.5 * x for name, x in text.items()}


# name -> the family, the pipeline, the arguments of its call for four images (text as embeddings where a tiny model of it
# would be no smaller), and how many calls of the network an estimate takes.
FAMILIES = {
    "SD 1.x": ("Stable Diffusion 1.x, 2.x", tiny.sd, words, 1),
    "SD 2.x": ("Stable Diffusion 1.x, 2.x", tiny.sd21, words, 1),
    "SD + LoRA": ("Stable Diffusion 1.x, 2.x", lambda: add_lora(tiny.sd()), words, 1),
    "SD + ControlNet": ("Stable Diffusion + ControlNet", tiny.controlnet, control, 1),
    "SDXL": ("Stable Diffusion XL", tiny.sdxl, words, 1),
    "SD 3": ("Stable Diffusion 3", tiny.sd3, words, 1),
    "PixArt-Σ": ("PixArt-Σ", tiny.pixart, lambda: binned("prompt_attention_mask"), 1),
    "Sana": ("Sana", tiny.sana, lambda: binned("prompt_attention_mask"), 1),
    "AuraFlow": ("AuraFlow", tiny.auraflow, lambda: tiny.text(4, "prompt_attention_mask"), 1),
    "Lumina 2": ("Lumina 2", tiny.lumina, lambda: tiny.text(4, "prompt_attention_mask"), 2),
    "CogView 4": ("CogView 4", tiny.cogview, lambda: tiny.text(4), 2),
    "Flux 1": ("Flux 1", tiny.flux, lambda: tiny.flux_text(4), 1),
    "Flux 1, true guidance": ("Flux 1", tiny.flux, true_guidance, 2),
    "Chroma": ("Chroma", tiny.chroma, lambda: tiny.text(4, "prompt_attention_mask", mask_dtype=F32), 2),
    "Flux 2": ("Flux 2", tiny.flux2, lambda: tiny.text(4, guided=False), 1),
    "Flux 2 Klein": ("Flux 2 Klein", tiny.klein, lambda: tiny.text(4), 2),
    "Qwen-Image": ("Qwen-Image", tiny.qwen, lambda: tiny.text(4, "prompt_embeds_mask") | {"true_cfg_scale": 2.0}, 2),
    "Z-Image": ("Z-Image", tiny.z_image, lambda: tiny.z_image_text(4), 1),
}


def picture(n=1, height=H, width=W):
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(n, 3, 4, 6, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(-1, 1)


def right_half(height=H, width=W):
    return (torch.arange(width) >= width // 2).expand(height, width)


def inpainting(n=1, height=H, width=W):
    return fcs_lab.Inpainting(picture(n, height, width), right_half(height, width))


def attributes(pipe):
    """All that `constrained` touches: the objects themselves, and the hooks."""
    # Not the text encoders: transformers leaves hooks of its own on them where hidden states are asked for.
    parts = [getattr(pipe, name) for name in ("unet", "transformer", "controlnet", "vae") if hasattr(pipe, name)]
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for part in parts for m in part.modules()]
    return (
        {name: id(value) for name, value in vars(pipe).items() if name[0] != "_"},
        "decode" in vars(pipe.vae),
        hooks,
        dict(pipe.scheduler.config),
        dict(pipe.config),
    )


def cast(x, dtype):
    if isinstance(x, list):
        return [cast(one, dtype) for one in x]
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family(family, dtype, recwarn):
    name, make, arguments, calls = FAMILIES[family]
    pipe = make()
    if dtype != torch.float32:
        pipe.to(dtype)
    assert family_of(pipe).name == name
    counted = []
    hook = network_of(pipe).register_forward_hook(lambda *_: counted.append(1))
    asked = {name: cast(x, dtype) for name, x in arguments().items()}
    width = 64 if family == "Sana" else W  # its sizes are multiples of 32
    size = {"height": H, "width": width}
    task, factor = inpainting(1, H, width), pipe.vae_scale_factor
    before, fits = attributes(pipe), {}
    for inner in (K, 0):
        counted.clear()
        with fcs_lab.constrained(pipe, task, inner_steps=inner, eta=0.0) as run:
            assert run.result is None
            out = pipe(**asked, **size, num_inference_steps=T, generator=generators(0, 1, 2, 3), output_type="pt").images
        assert attributes(pipe) == before
        assert len(counted) == calls * T * (2 * inner + 1)
        result = run.result
        assert result.completed and result.nfe == T * (2 * inner + 1) and result.n_backward == 0
        assert out.shape == result.images.shape == (4, 3, H, width)
        assert result.x0.shape == (4, 4, H // factor, width // factor)
        assert result.images.isfinite().all() and result.x0.dtype == torch.float32
        # What the pipeline itself makes of its latents is what the task was imposed on.
        space = LatentSpace(pipe, tuple(result.x0.shape[1:]))
        difference = out.float() * 2 - 1 - space.decode(result.x0).clamp(-1, 1)
        assert difference.abs().mean() < (1e-5 if dtype == F32 else 2e-2)
        latent = LatentInpainting(task.y, task.mask, space)
        fits[inner] = latent.to(torch.device("cpu"), F32).cost(result.x0)
    hook.remove()
    assert (fits[K] < fits[0]).all(), fits
    assert len(result.trace) == T and result.trace[-1].inner_step == 0
    assert not [w for w in recwarn if "constrained" in str(w.message) or "scales its latents" in str(w.message)]


def test_the_table_says_what_is_proved_here():
    calls = {}
    for name, _, _, counted in FAMILIES.values():
        calls[name] = max(counted, calls.get(name, 0))
    assert calls == {family.name: family.calls for family in PROVED}
    text = (Path(fcs_lab.__file__).parents[1] / "notebooks" / "PIPELINES.md").read_text()
    between = text.split(families.BEGIN)[1].split(families.END)[0]
    assert between.strip() == families.table(), "run: python -m fcs_lab.families notebooks/PIPELINES.md"
    names = {name for kinds in families.UNPROVED.values() for name in kinds}
    assert not names & {name for family in PROVED for name in family.pipelines}
    for name in names - {"KolorsPipeline"}:  # which wants sentencepiece to be looked at
        assert families.what_it_takes(getattr(diffusers, name)) is None, name


@pytest.mark.parametrize("family", {name: key for key, (name, *_) in FAMILIES.items()}.values())
def test_which_families_can_be_interrupted(family):
    """The flag is set while the network is at work, so that families without a callback are asked as well."""
    _, make, arguments, _ = FAMILIES[family]
    pipe = make()

    def stop(*_):
        pipe._interrupt = True

    network_of(pipe).register_forward_hook(stop)
    size = {"height": H, "width": 64}
    with fcs_lab.constrained(pipe, inner_steps=0) as run:
        pipe(**arguments(), **size, num_inference_steps=T, generator=generators(0, 1, 2, 3), output_type="latent")
    assert run.result.completed == (not takes_an_interrupt(type(pipe)))
    assert run.result.nfe == (T if run.result.completed else 1)


class Tomorrow(FluxPipeline):
    """A family that nobody has seen: its latents are tokens, and it has no functions that tell how."""

    prepare_latents = FluxPipeline.prepare_latents

    @property
    def _unpack_latents(self):
        raise AttributeError


def test_a_family_that_nobody_proved(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", ())
    asked = tiny.flux_text(1) | SHORT | {"output_type": "latent"}
    with pytest.warns(UserWarning, match=r"FluxPipeline is of no family that constrained\(…\) is proved with"):  # noqa: SIM117
        with fcs_lab.constrained(tiny.flux(), inpainting(), inner_steps=K, eta=0.0) as run:
            run.pipe(**asked, generator=generators(0))
    base = tiny.flux()
    pipe = Tomorrow(**base.components)
    pipe.set_progress_bar_config(disable=True)
    counted = count_calls(pipe)
    with pytest.warns(UserWarning, match="Tomorrow is of no family"):  # noqa: SIM117
        with fcs_lab.constrained(pipe, inpainting()), pytest.raises(TypeError, match=r"layout=fcs_lab.Layout\(unpack"):
            pipe(**asked)
    assert not counted

    def unpack(tokens, height, width):
        patches = tokens.unflatten(1, (height // 8, width // 8)).unflatten(3, (4, 2, 2))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def pack(z):
        patches = z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    layout = fcs_lab.Layout(unpack, pack)
    with pytest.warns(UserWarning), fcs_lab.constrained(pipe, inpainting(), inner_steps=K, eta=0.0, layout=layout) as told:
        pipe(**asked, generator=generators(0))
    assert torch.equal(told.result.x0, run.result.x0)
    wrong = fcs_lab.Layout(unpack, lambda z: pack(z.flip(1)))
    with pytest.warns(UserWarning), fcs_lab.constrained(pipe, layout=wrong), pytest.raises(TypeError, match="inverse"):
        pipe(**asked)
    with pytest.raises(TypeError, match=r"layout is \(1, 2\)"), fcs_lab.constrained(pipe, layout=(1, 2)):
        pass


def test_a_scale_that_is_not_known_is_said():
    pipe = tiny.sd()
    pipe.vae.register_to_config(shift_factor=0.5)  # which this family's decoding leaves out
    with pytest.warns(UserWarning, match="scales its latents in a way that is not known"):  # noqa: SIM117
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=1):
            pipe("a dress", **SHORT, generator=generators(0))


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: tiny.flux(guidance_embeds=False), lambda: tiny.flux_text(1) | {"guidance_scale": 0.0}),
        (lambda: tiny.sd(LCMScheduler(**tiny.SD15), unet=tiny.unet(time_cond_proj_dim=8)), lambda: {"prompt": "a dress"}),
        (
            lambda: tiny.sdxl(EulerAncestralDiscreteScheduler(**tiny.SD15, timestep_spacing="trailing")),
            lambda: {"prompt": "a dress", "guidance_scale": 0.0},
        ),
    ],
    ids=["schnell", "LCM", "Turbo"],
)
def test_models_of_few_steps(make, arguments):
    pipe, costs = make(), []
    for inner in (0, 8):
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=inner, eta=0.0) as run:
            size = {"num_inference_steps": 4, "height": H, "width": W}
            pipe(**arguments(), **size, generator=generators(0), output_type="latent")
        assert run.result.nfe == 4 * (2 * inner + 1)
        costs.append(run.result.trace[-1].cost.item())
    assert costs[1] < costs[0]


class Integers(torch.nn.Module):
    """A linear layer as quantisation leaves it: weights in 8 bits, computed with in the input's dtype."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().max() / 127
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def test_a_quantised_network():
    plain, pipe = tiny.flux(), tiny.flux()
    for module in list(pipe.transformer.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, Integers(child))
    results = []
    for one in (plain, pipe):
        with fcs_lab.constrained(one, inpainting(), inner_steps=K, eta=0.0) as run:
            one(**tiny.flux_text(1), **SHORT, generator=generators(0), output_type="latent")
        results.append(run.result)
    assert results[1].completed and not torch.equal(results[0].x0, results[1].x0)
    assert torch.nn.functional.cosine_similarity(*(result.x0.flatten() for result in results), dim=0) > 0.95


def offloaded(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def compiled(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.vae = torch.compile(pipe.vae, backend="eager")


def sliced(pipe):
    pipe.vae.enable_slicing()


@pytest.mark.parametrize("prepare", [offloaded, compiled, sliced])
def test_a_pipeline_prepared_to_save_memory_or_time(prepare):
    results = []
    for made in (False, True):
        pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
        if made:
            prepare(pipe)
        before = attributes(pipe)
        with fcs_lab.constrained(pipe, inpainting(2), inner_steps=1, eta=0.0) as run:
            out = pipe(["a dress", "a coat"], **SHORT, generator=generators(0, 1), output_type="pt").images
        assert attributes(pipe)[:2] == before[:2] and out.shape == (2, 3, H, W)
        results.append(run.result)
    assert torch.allclose(results[0].x0, results[1].x0, atol=1e-4)


def test_tiles_that_are_smaller_than_the_image():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    pipe.vae.enable_tiling()
    pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 16, 4
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=1) as run:
        out = pipe("a dress", **SHORT, generator=generators(0), output_type="pt").images
    assert run.result.completed and out.shape == (1, 3, H, W)


def test_a_tiny_autoencoder_in_the_place_of_the_vae():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    torch.manual_seed(3)
    blocks = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    counts = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1), "upsampling_scaling_factor": 2}
    pipe.vae = AutoencoderTiny(**blocks, **counts).eval()
    task, costs = fcs_lab.SuperResolution(fcs_lab.downsample(picture(), 4), 4), []
    for one, inner in ((inpainting(), 0), (inpainting(), K), (task, 1)):
        with fcs_lab.constrained(pipe, one, inner_steps=inner, eta=0.0) as run:
            out = pipe("a dress", **SHORT, generator=generators(0), output_type="pt").images
        assert out.shape == (1, 3, H, W)
        assert torch.allclose(out * 2 - 1, LatentSpace(pipe, (4, 8, 12)).decode(run.result.x0).clamp(-1, 1), atol=1e-4)
        costs.append(run.result.trace[-1].cost.item())
    assert costs[1] < costs[0]


def test_guidance_that_is_cut_off_within_a_timestep_is_refused():
    for pipe, text, options in (
        (tiny.lumina(), tiny.text(1, "prompt_attention_mask"), {"cfg_trunc_ratio": 0.5}),
        (tiny.z_image(), tiny.z_image_text(1), {"cfg_truncation": 0.3}),
    ):
        if "cfg_truncation" not in options:
            words = r"guidance \(such as cfg_trunc_ratio or cfg_truncation\) changes the network within a timestep"
            with fcs_lab.constrained(pipe, inpainting(), inner_steps=K), pytest.raises(ValueError, match=words):
                pipe(**text, **SHORT, **options)
        else:  # by the timestep, which is one's at all of its evaluations
            with fcs_lab.constrained(pipe, inpainting(), inner_steps=K) as run:
                pipe(**text, **SHORT, **options, output_type="latent")
            assert run.result.completed


def test_a_size_that_the_pipeline_changes_is_refused():
    pipe = tiny.sana(sample_size=16)
    counted = count_calls(pipe)
    text = tiny.text(1, "prompt_attention_mask") | {"negative_prompt": None}
    with (
        fcs_lab.constrained(pipe, inpainting(1, H, 64)),
        pytest.raises(ValueError, match=r"the pipeline makes \(3, \d+, \d+\).*use_resolution_binning=False"),
    ):
        pipe(**text, height=H, width=64, num_inference_steps=T)
    assert not counted


@pytest.fixture(scope="module")
def fashion():
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "fashion")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_sample_latent_by_latent(fashion):
    """Guidance, two images, a list of generators: the same points, the same evaluations."""
    images, mask = fcs_lab.load_garments(2)[0], right_half(32, 32)
    task, prompts = fcs_lab.Inpainting(images, mask), ["a coat", "a dress"]
    seen, expected = [], []
    with fcs_lab.constrained(fashion, task, trace_x0=True) as run:
        fashion(
            prompts,
            num_inference_steps=8,
            guidance_scale=2.0,
            generator=generators(0, 1),
            callback_on_step_end=lambda pipe, i, t, tensors: seen.append(tensors["latents"].clone()) or {},
            output_type="latent",
        )
    model = fcs_lab.load("fashion", device="cpu").with_prompt(prompts, guidance_scale=2.0)
    direct = fcs_lab.sample(
        model,
        task,
        num_inference_steps=8,
        generator=generators(0, 1),
        trace_x0=True,
        callback_on_step_end=lambda state, i, t, tensors: expected.append(tensors["x_t"].clone()),
        progress=False,
    )
    assert len(seen) == 8 * 11 and run.result.nfe == direct.nfe == 88
    for ours, theirs in zip(seen[10::11], expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-3
    assert (run.result.x0 - direct.x0).abs().max() <= 1e-3
    assert (run.result.images - direct.images).abs().max() <= 1e-3
    for ours, theirs in zip(run.result.trace, direct.trace, strict=True):
        assert (ours.t, ours.inner_step, ours.nfe) == (theirs.t, theirs.inner_step, theirs.nfe)
        assert torch.allclose(ours.cost, theirs.cost, rtol=1e-3, atol=1e-4)


def test_without_a_task_it_is_the_pipelines_own_sampling():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False, set_alpha_to_one=False))
    plain = pipe("a dress", num_inference_steps=5, generator=generators(0), output_type="pt").images
    with fcs_lab.constrained(pipe, eta=0.0) as run:
        ours = pipe("a dress", num_inference_steps=5, generator=generators(0), output_type="pt").images
    assert torch.allclose(ours, plain, atol=1e-4) and run.result.nfe == 5


def test_a_lora_that_is_loaded_after_the_first_call_counts():
    pipe = tiny.sd()
    options = SHORT | {"output_type": "pt"}
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=1) as run:
        pipe("a dress", **options, generator=generators(0))
        first = run.result
        add_lora(pipe)
        pipe("a dress", **options, generator=generators(0))
    assert not torch.allclose(first.x0, run.result.x0, atol=1e-3) and run.result.completed


@pytest.mark.parametrize(
    "scheduler",
    [
        EulerDiscreteScheduler(**tiny.SD15, timestep_spacing="leading"),
        EulerDiscreteScheduler(**tiny.SD15, use_karras_sigmas=True),
        DPMSolverMultistepScheduler(**tiny.SD15),
        UniPCMultistepScheduler(**tiny.SD15),
        LCMScheduler(**tiny.SD15),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_whatever_scheduler_the_pipeline_comes_with(scheduler):
    pipe = tiny.sd(scheduler)
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=1) as run:
        pipe("a dress", **SHORT, generator=generators(0), output_type="latent")
        assert isinstance(pipe.scheduler, type(scheduler)) and pipe.scheduler is not scheduler
    assert run.result.completed and run.result.nfe == 9 and pipe.scheduler is scheduler


def test_timesteps_and_sigmas_of_ones_own_and_any_output_type():
    pipe = tiny.sd(EulerDiscreteScheduler(**tiny.SD15))
    size = {"height": H, "width": W}
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=1) as run:
        pipe("a dress", **size, timesteps=[900, 500, 100], generator=generators(0))
        assert [entry.t for entry in run.result.trace][::2] == [900, 500, 100]
        out = pipe("a dress", **size, sigmas=[10.0, 3.0, 1.0, 0.5], output_type="np", generator=generators(0)).images
        assert run.result.nfe == 12 and out.shape == (1, H, W, 3)
        latents = torch.randn(1, 4, 8, 12, generator=generators(4)[0])
        pipe("a dress", **SHORT, latents=latents, output_type="latent", eta=0.7)
    assert run.result.images.shape == (1, 3, H, W)


def test_the_bar_counts_timesteps_and_tells_the_cost(capfd):
    pipe = tiny.flux()  # which passes sigmas
    pipe.set_progress_bar_config(disable=False)
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=K):
        pipe(**tiny.flux_text(1), **SHORT, generator=generators(0), output_type="latent")
    shown = capfd.readouterr().err.split("\r")[-1]
    assert "3 timesteps × 5 evaluations: 100%" in shown and "3/3" in shown


def test_an_interrupted_run_shows_its_estimate():
    pipe = tiny.sd()

    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 6  # in the midst of the second timestep
        return {}

    with fcs_lab.constrained(pipe, inpainting(), inner_steps=K) as run:
        out = pipe("a dress", **SHORT, generator=generators(0), callback_on_step_end=stop, output_type="pt").images
    result = run.result
    assert not result.completed and result.nfe == 7
    expected = LatentSpace(pipe, (4, 8, 12)).decode(result.x0).clamp(-1, 1)
    assert torch.allclose(out * 2 - 1, expected, atol=1e-5) and torch.equal(result.images, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_after_an_exception_all_is_as_it_was_and_the_estimate_is_there(error):
    pipe = tiny.sdxl()
    before = attributes(pipe)

    def fail(pipe, i, t, tensors):
        if i == 4:
            raise error
        return {}

    with pytest.raises(error), fcs_lab.constrained(pipe, inpainting()) as run:
        pipe("a dress", **SHORT, generator=generators(0), callback_on_step_end=fail)
    assert attributes(pipe) == before
    assert not run.result.completed and run.result.nfe == 5 and run.result.images.isfinite().all()


def test_latents_are_replaced_at_the_end_of_a_timestep_only():
    pipe, zeros = tiny.sd(), torch.zeros(1, 4, 8, 12)
    for at, accepted in ((4, True), (6, False)):

        def replace(pipe, i, t, tensors, at=at):
            return {"latents": zeros.clone()} if i == at else {}

        options = {"callback_on_step_end": replace, "output_type": "latent", "generator": generators(0)}
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=K, eta=0.0) as run:
            if accepted:
                pipe("a dress", **SHORT, **options)
                replaced = run.result.x0
            else:
                with pytest.raises(ValueError, match=r"latents were replaced after evaluation 7 of 15, in the midst"):
                    pipe("a dress", **SHORT, **options)
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=K, eta=0.0) as run:
        pipe("a dress", **SHORT, generator=generators(0), output_type="latent")
    assert not torch.allclose(replaced, run.result.x0, atol=1e-3)


def test_what_changes_the_network_within_a_timestep_is_refused_by_name():
    options = SHORT | {"output_type": "latent"}
    pipe = tiny.sd()
    with (
        pytest.raises(ValueError, match=r"guidance_scale changes the network within a timestep"),
        fcs_lab.constrained(pipe, inpainting(), inner_steps=K),
    ):
        pipe("a dress", **options, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    pipe = tiny.controlnet()
    with (
        pytest.raises(ValueError, match=r"control_guidance_start and control_guidance_end changes"),
        fcs_lab.constrained(pipe, inpainting(), inner_steps=K),
    ):
        pipe("a dress", image=torch.rand(1, 3, H, W), control_guidance_end=0.5, **options)
    pipe = tiny.sd3()
    with (
        pytest.raises(ValueError, match=r"skip_guidance_layers is given"),
        fcs_lab.constrained(pipe, inpainting(), inner_steps=K),
    ):
        pipe("a dress", skip_guidance_layers=[0], skip_layer_guidance_stop=0.9, guidance_scale=3.0, **options)
    pipe = tiny.flux()
    pipe.transformer.__class__ = type("Cached", (type(pipe.transformer),), {"is_cache_enabled": True})
    with pytest.raises(ValueError, match=r"pipe.transformer has a feature cache"), fcs_lab.constrained(pipe):
        pass


def test_a_run_that_stops_short_says_so():
    pipe = tiny.sdxl()
    with pytest.warns(UserWarning, match=r"stopped after .* of 15 evaluations \(denoising_end\?\)"):  # noqa: SIM117
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=K) as run:
            pipe("a dress", **SHORT, denoising_end=0.5, generator=generators(0), output_type="pt")
    assert not run.result.completed


def test_no_black_picture():
    pipe = tiny.sd()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.mul_(float("inf"))
    with fcs_lab.constrained(pipe), pytest.raises(FloatingPointError, match=r"the decoded image is not finite"):
        pipe("a dress", **SHORT)
    pipe = tiny.sd()
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(float("nan"))
    with fcs_lab.constrained(pipe), pytest.raises(FloatingPointError, match=r"x̂_0 is not finite at timestep"):
        pipe("a dress", **SHORT)


def test_zero_terminal_snr_runs_with_v_and_is_refused_with_epsilon():
    options = tiny.SD15 | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    for prediction in ("v_prediction", "epsilon"):
        pipe = tiny.sd(DDIMScheduler(**options, prediction_type=prediction))
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=1) as run:
            if prediction == "epsilon":
                with pytest.raises(ValueError, match=r"t = 999, where ᾱ_t = 0 and a network that predicts ε has no x̂_0"):
                    pipe("a dress", **SHORT, output_type="latent")
            else:
                pipe("a dress", **SHORT, output_type="latent", generator=generators(0))
                assert run.result.x0.isfinite().all()


def test_other_tasks_go_through_the_decoder():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    task = fcs_lab.SuperResolution(fcs_lab.downsample(picture(), 4), 4)
    costs = []
    for inner in (0, 3):
        with fcs_lab.constrained(pipe, task, method="identity", inner_steps=inner, eta=0.0) as run:
            pipe("a dress", **SHORT, generator=generators(0), output_type="pt")
        costs.append(run.result.trace[-1].cost.item())
        assert run.result.nfe == T * (inner + 1)
    assert costs[1] < costs[0]
    pipe.vae._hf_hook = object()
    with pytest.warns(UserWarning, match=r"CPU offload"), fcs_lab.constrained(pipe, task, inner_steps=1):
        pipe("a dress", **SHORT, output_type="latent")


def count_calls(pipe):
    counted = []
    network_of(pipe).register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        (lambda: inpainting(1, 32, 32), SHORT, r"the task's images are \(3, 32, 32\); the pipeline makes \(3, 32, 48\)"),
        (lambda: inpainting(1, 32, 48), {"num_inference_steps": 2}, r"the pipeline makes \(3, 32, 32\)"),
        (lambda: inpainting(3), SHORT, r"the task describes 3 images; the pipeline makes 1"),
        (lambda: fcs_lab.CostConstraint(lambda x0: torch.zeros(len(x0))), SHORT, r"does not depend differentiably"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_before_any_evaluation(task, options, words):
    pipe = tiny.sd()
    counted = count_calls(pipe)
    with fcs_lab.constrained(pipe, task()), pytest.raises(ValueError, match=words):
        pipe("a dress", **options)
    assert not counted


@pytest.mark.parametrize(
    ("make", "options", "error", "words"),
    [
        (lambda: "a pipeline", {}, TypeError, r"pipe is 'a pipeline'; expected a diffusers pipeline"),
        (lambda: StableDiffusionImg2ImgPipeline.from_pipe(tiny.sd()), {}, TypeError, r"takes strength; supported"),
        (lambda: StableDiffusionInpaintPipeline.from_pipe(tiny.sd()), {}, TypeError, r"takes strength, mask_image;"),
        (lambda: DDIMPipeline.from_pretrained(WEIGHTS / "mnist"), {}, TypeError, r"does not go from a prompt"),
        (tiny.sd, {"method": "gradient"}, ValueError, r"method is 'gradient', which takes derivatives"),
        (tiny.sd, {"method": "exact"}, ValueError, r"method is 'exact', which takes derivatives"),
        (tiny.sd, {"method": "psld"}, ValueError, r"method is 'psld', which takes derivatives"),
        (tiny.sd, {"method": "pslb"}, ValueError, r"method is 'pslb'; expected 'newton', 'identity'"),
        (tiny.sd, {"preset": "slow"}, ValueError, r"preset is 'slow'; expected 'fast', or None"),
        (tiny.sd, {"preset": "fast", "inner_steps": 3}, ValueError, r"inner_steps is 3, and preset 'fast' sets that itself"),
        (tiny.sd, {"preset": "fast"}, TypeError, r"task is None; preset 'fast' takes a constraint"),
        (tiny.sd, {"task": "inpaint"}, TypeError, r"task is 'inpaint'"),
        (tiny.sd, {"inner_steps": -1}, ValueError, r"inner_steps is -1"),
        (tiny.sd, {"step_size": "large"}, TypeError, r"step_size is 'large'"),
        (tiny.sd, {"fd_step": 0}, ValueError, r"fd_step is 0"),
        (tiny.sd, {"eta": -1}, ValueError, r"eta is -1"),
        (lambda: tiny.sd(EDMEulerScheduler()), {}, ValueError, r"EDMEulerScheduler whose sigma_data is 0.5"),
    ],
)
def test_bad_arguments_are_named_before_any_work(make, options, error, words):
    with pytest.raises(error, match=words), fcs_lab.constrained(make(), **options):
        pass


def test_a_pipeline_without_a_vae_and_one_that_is_constrained_already():
    pipe = tiny.sd()
    with fcs_lab.constrained(pipe), pytest.raises(ValueError, match=r"within another constrained"):  # noqa: SIM117
        with fcs_lab.constrained(pipe):
            pass
    pipe.vae = None
    with pytest.raises(ValueError, match=r"without a VAE"), fcs_lab.constrained(pipe):
        pass


def test_a_list_of_inner_steps_has_to_fit_the_timesteps():
    pipe = tiny.sd()
    counted = count_calls(pipe)
    with fcs_lab.constrained(pipe, inpainting(), inner_steps=[0, 2, 1]) as run:
        pipe("a dress", **SHORT, output_type="latent", generator=generators(0))
        assert run.result.nfe == 1 + 5 + 3
        counted.clear()
        with pytest.raises(ValueError, match=r"inner_steps has 3 entries; expected one for each of 4"):
            pipe("a dress", num_inference_steps=4, height=H, width=W)
    assert not counted


def test_two_pipelines_do_not_disturb_each_other():
    one, two = tiny.sd(), tiny.sd()
    with fcs_lab.constrained(one, inpainting()) as first, fcs_lab.constrained(two, inner_steps=0) as second:
        for pipe in (two, one):
            pipe("a dress", **SHORT, generator=generators(0), output_type="latent")
    assert (first.result.nfe, second.result.nfe) == (33, 3)


def test_h_follows_the_networks_dtype(monkeypatch):
    asked = []
    direction_of = sampler.Settings.direction_of
    monkeypatch.setattr(
        sampler.Settings, "direction_of", lambda self, dtype: asked.append(dtype) or direction_of(self, dtype)
    )
    for dtype in (torch.float32, torch.bfloat16):
        pipe = tiny.sd().to(dtype)
        with fcs_lab.constrained(pipe, inpainting(), inner_steps=1):
            pipe("a dress", **SHORT, output_type="latent")
        assert asked[-1] == dtype


@pytest.mark.parametrize(("family", "calls"), [("SD 1.x", 1), ("Lumina 2", 2)])
def test_what_a_run_takes_is_told_before_it(family, calls):
    _, make, arguments, _ = FAMILIES[family]
    pipe = make()
    before = attributes(pipe)
    counted, size = count_calls(pipe), {"height": H, "width": W}
    told = forecast(pipe, **arguments(), **size, num_inference_steps=20, inner_steps=5)
    assert len(counted) == 2 * calls and attributes(pipe)[:2] == before[:2]
    assert (told.evaluations, told.calls, told.peak) == (220, calls, None) and told.seconds > 0
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    parameters = 4 * sum(p.numel() for part in networks for p in part.parameters())
    assert parameters <= told.weights < 1.02 * parameters  # and a few buffers
    assert f"220 evaluations, {'one call' if calls == 1 else '2 calls'} of the network each" in str(told)
    assert forecast(pipe, **arguments(), **size, num_inference_steps=4, inner_steps=2, method="identity").evaluations == 12
    with pytest.raises(ValueError, match="inner_steps is -1"):
        forecast(pipe, **arguments(), inner_steps=-1)


def test_the_menu_of_families():
    menu = FamilyMenu()
    for name, family in menu.family.options.items():
        menu.family.value = family
        assert (family.example or "of yours") in menu.code and "fcs_lab.constrained(pipe, task)" in menu.shown.value
        assert compile(menu.code, name, "exec")
