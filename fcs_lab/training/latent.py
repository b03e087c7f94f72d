"""Training of a latent text-to-image model in Stable Diffusion's layout, in runs that may be interrupted.

First the autoencoder (`train_autoencoder`), then, in its latent space, the U-Net together with the text encoder
(`train_text_to_image`). A *recipe* has all that they depend on besides the data; `fashion` and `emoji` are such recipes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fcs_lab.training.loop import optimize, write_sheet
from fcs_lab.zoo import quiet

with quiet():  # this import asks transformers for an image processor
    from diffusers import StableDiffusionPipeline

__all__ = [
    "SMALL_AUTOENCODER",
    "STABLE_DIFFUSION_NOISE",
    "LatentRecipe",
    "Run",
    "Stage",
    "byte_symbols",
    "encode_all",
    "train_autoencoder",
    "train_text_to_image",
]


SMALL_AUTOENCODER = {
    "latent_channels": 4,
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
"""What the bundled models' autoencoders have in common: about 1.6 million parameters, 4 latent channels, a factor of 4."""

STABLE_DIFFUSION_NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion's noise schedule; a recipe says what its network predicts."""


@dataclass(frozen=True)
class Stage:
    """Length and learning rate of one run.

    The learning rate warms up, and then falls along half a cosine; or, with `cooldown_steps`, stays where it is and falls
    linearly over the last so many steps: a run like that can be made longer, or cut short, as it goes.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 200
    cooldown_steps: int | None = None
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class LatentRecipe:
    """All that a run depends on besides its data: the arguments of the models, the stages, the losses' weights."""

    vae: dict[str, Any]
    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    vae_stage: Stage
    latent_stage: Stage
    kl_weight: float = 1e-3
    """Of KL(q(z|x) ‖ N(0, I)), a latent number's mean, beside the pixels' mean absolute error."""
    l2_weight: float = 0.0
    """Of the pixels' mean squared error, beside the mean absolute one."""
    noisy_share: float = 0.0
    """How many of the latents are noised to one of the timesteps from 400 to 950 of 1,000, where shapes are decided; the
    others to any."""


@dataclass(frozen=True)
class Run:
    """How a run goes, which changes nothing of what comes out but rounding."""

    device: torch.device
    bf16: bool = False
    max_steps: int | None = None
    save_every: int = 500
    progress: bool = True

    def optimize(self, parameters, loss_of, stage: Stage, out: Path, save) -> None:
        common = {"max_steps": self.max_steps, "save_every": self.save_every, "progress": self.progress}
        optimize(parameters, loss_of, stage, out, save, **common)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Bfloat16 if asked for; on a CPU also attention by plain matrix products, whose backward pass is fastest there."""
        with (
            torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext(),
            sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext(),
        ):
            yield

    def put(self, x: Tensor) -> Tensor:
        """On the device, the channels innermost, which convolutions in bfloat16 are fastest with."""
        return x.to(self.device).to(memory_format=torch.channels_last)


def train_autoencoder(
    recipe: LatentRecipe,
    draw: Callable[[torch.Generator, int], Tensor],
    out: Path,
    run: Run,
    *,
    decoder_of: AutoencoderKL | None = None,
    stage: Stage | None = None,
) -> AutoencoderKL:
    """Train the autoencoder, or go on with the run in `out`.

    Args:
        recipe: What to train and how.
        draw: (generator, n) -> n training images (n, C, H, W), float32 in [-1, 1].
        out: Folder of the run; the model is written to `out/model`.
        run: Device, precision, and so on.
        decoder_of: Train only this autoencoder's decoder, on the latents that its encoder gives.
        stage: Length and so on. None: `recipe.vae_stage`.

    Returns:
        The autoencoder with its averaged weights, frozen.
    """
    stage = stage or recipe.vae_stage
    torch.manual_seed(stage.seed)
    vae = (AutoencoderKL(**recipe.vae) if decoder_of is None else decoder_of).to(run.device).requires_grad_(True)
    trained = list(vae.parameters())
    if decoder_of is not None:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        trained = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]

    def loss_of(generator: torch.Generator) -> Tensor:
        x = run.put(draw(generator, stage.batch_size))
        with run.autocast():
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(run.device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - x
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return error.abs().mean() + recipe.l2_weight * error.square().mean() + recipe.kl_weight * kl

    run.optimize(trained, loss_of, stage, out, lambda step: vae.save_pretrained(out / "model"))
    # The averaged weights are the model; what the run ended with is only where it would go on.
    vae.load_state_dict(load_file(out / "model" / "diffusion_pytorch_model.safetensors"))
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: Tensor, run: Run) -> Tensor:
    """The latents (N, c, h, w) of images (N, C, H, W), the posteriors' modes, on the CPU."""
    return torch.cat([vae.encode(part.to(run.device)).latent_dist.mode().cpu() for part in images.split(250)])


def train_text_to_image(
    recipe: LatentRecipe,
    vae: AutoencoderKL,
    latents: Tensor,
    tokenizer: CLIPTokenizer,
    texts: Sequence[str],
    draw_texts: Callable[[torch.Generator, Tensor], Tensor],
    out: Path,
    run: Run,
    *,
    samples: Sequence[str],
    columns: int = 8,
    guidance_scale: float = 2.0,
    start_from: Path | None = None,
) -> None:
    """Train the U-Net together with the text encoder, or go on with the run in `out/latent`.

    Args:
        recipe, run: As for `train_autoencoder`.
        vae: The autoencoder, frozen.
        latents: Of the training images (N, c, h, w), as the U-Net is to see them.
        tokenizer: Of the captions.
        texts: All captions, the empty one among them.
        draw_texts: (generator, indices of images (n,)) -> their captions' indices in `texts`, (n,).
        out: It receives `latent/` (the state), `model/` (the pipeline) and `samples/step-NNNNN.png`.
        samples: The prompts of that sheet, each drawn `columns` times, with `guidance_scale`.
        start_from: A pipeline's folder, such as this run's own `model/` from another machine, whose U-Net and text encoder a
            run without a state begins with; the optimiser begins anew.
    """
    stage = recipe.latent_stage
    torch.manual_seed(stage.seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            **recipe.text_encoder,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(run.device)
    unet = UNet2DConditionModel(**recipe.unet).to(run.device)
    seen = 0
    if start_from is not None:
        for part, name in ((unet, "unet/diffusion_pytorch_model"), (text_encoder, "text_encoder/model")):
            part.load_state_dict(load_file(start_from / f"{name}.safetensors"))
        seen = json.loads((start_from / "training.json").read_text())["images_seen"]
        # Its steps count from 0 again, and are not to draw what the run before them drew.
        stage = replace(stage, seed=stage.seed + seen)
    scheduler = DDIMScheduler(**recipe.scheduler)
    tokens = tokenizer(list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
    tokens = torch.tensor(tokens.input_ids)
    velocity = scheduler.config.prediction_type == "v_prediction"

    def draw_timesteps(generator: torch.Generator) -> Tensor:
        t = torch.randint(scheduler.config.num_train_timesteps, (stage.batch_size,), generator=generator)
        if recipe.noisy_share:
            noisy = torch.randint(400, 951, t.shape, generator=generator)
            t = torch.where(torch.rand(t.shape, generator=generator) < recipe.noisy_share, noisy, t)
        return t

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(latents), (stage.batch_size,), generator=generator)
        caption = tokens[draw_texts(generator, batch)].to(run.device)
        x_0 = run.put(latents[batch])
        t = draw_timesteps(generator).to(run.device)
        noise = run.put(torch.randn(x_0.shape, generator=generator))
        with run.autocast():
            text = text_encoder(caption).last_hidden_state
            prediction = unet(scheduler.add_noise(x_0, noise, t), t, text).sample
        target = scheduler.get_velocity(x_0, noise, t) if velocity else noise
        return (prediction.float() - target).square().mean()

    def save(step: int) -> None:
        pipeline = StableDiffusionPipeline(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(out / "model")
        record = {"images_seen": seen + step * stage.batch_size, "steps": step, "batch_size": stage.batch_size}
        (out / "model" / "training.json").write_text(json.dumps(record) + "\n")
        _write_samples(pipeline, samples, columns, guidance_scale, out / "samples" / f"step-{step:05d}.png")

    run.optimize([*unet.parameters(), *text_encoder.parameters()], loss_of, stage, out / "latent", save)


def byte_symbols() -> list[str]:
    """The 256 symbols that byte-pair encodings write bytes with: printable ones as themselves, the others shifted up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _write_samples(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], columns: int, guidance_scale: float, path: Path
) -> None:
    """A row of samples for each prompt, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for prompt in prompts for _ in range(columns)]
    images = pipeline(
        prompts,
        num_inference_steps=25,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(i % columns) for i in range(len(prompts))],
        output_type="pt",
    ).images
    write_sheet(images * 2 - 1, columns, path)
