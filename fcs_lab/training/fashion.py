"""Training of `fashion`, a small latent text-to-image model of garments in Stable Diffusion's layout.

Two runs, one after the other: the autoencoder (`train_vae`), and then, in its latent space, the U-Net together with the
text encoder (`train_latent`). Both can be interrupted and go on where they were.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fcs_lab.data import GARMENTS
from fcs_lab.training.loop import optimize, write_sheet

__all__ = ["FASHION", "FashionRecipe", "captions", "make_tokenizer", "train_fashion"]

TEMPLATES = ("a photo of {}", "{}")
"""How captions are made of `GARMENTS`; the first is the one that the documentation uses."""


@dataclass(frozen=True)
class Stage:
    """Length and learning rate of one of the two runs."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 200
    ema_decay: float = 0.999
    seed: int = 0


@dataclass(frozen=True)
class FashionRecipe:
    """All that a run depends on besides its data: the arguments of the models, the two stages, the losses' weights."""

    vae: dict[str, Any]
    unet: dict[str, Any]
    text_encoder: dict[str, Any]
    scheduler: dict[str, Any]
    vae_stage: Stage
    latent_stage: Stage
    kl_weight: float = 1e-3
    """Of KL(q(z|x) ‖ N(0, I)), a latent number's mean, beside the pixels' mean absolute error."""
    caption_dropout: float = 0.1
    """How often the caption is the empty one, so that there is a null prompt to guide away from."""


FASHION = FashionRecipe(
    vae={
        "in_channels": 1,
        "out_channels": 1,
        "sample_size": 32,
        "latent_channels": 4,
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    unet={
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (96, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    text_encoder={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
    },
    scheduler={
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    vae_stage=Stage(steps=3000, batch_size=64, learning_rate=1e-3),
    latent_stage=Stage(steps=7000, batch_size=64, learning_rate=1e-3),
)


def captions() -> list[list[str]]:
    """For each of the ten classes, the captions that its garments are trained with."""
    return [[template.format(garment) for template in TEMPLATES] for garment in GARMENTS]


def make_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte, and the captions' words as single tokens."""
    # The 256 symbols that byte-pair encodings write bytes with: printable ones as themselves, the others shifted up.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    symbols = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: dict[tuple[str, str], None] = {}  # an ordered set
    words = {word for group in captions() for caption in group for word in caption.replace("-", " - ").split()}
    for word in sorted(words):
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if i == len(word) else "")
            merges[left, right] = None
            left += right
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_length)


def train_fashion(
    recipe: FashionRecipe,
    images: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    save_every: int = 500,
    progress: bool = True,
) -> Path:
    """Train both parts, or go on with the run in folder `out`.

    Args:
        recipe: What to train and how.
        images: Training images (N, 1, H, W), float32 in [-1, 1].
        labels: Their classes (N,), 0…9.
        out: Folder of the run. It receives `vae/` and `latent/` (the states), `model/` (the pipeline in Stable
            Diffusion's layout) and `samples/step-NNNNN.png` (one row a template-0 caption).
        max_steps: Stop each of the two parts after this many steps of this call. None: to the recipe's end.
        device, bf16, save_every, progress: As for `fcs_lab.training.diffusion.train`.

    Returns:
        The folder of the pipeline.
    """
    out, device = Path(out), torch.device(device)
    common = {"max_steps": max_steps, "save_every": save_every, "progress": progress}
    autocast = {"device_type": device.type, "dtype": torch.bfloat16} if bf16 else None
    vae = _train_vae(recipe, images, out / "vae", device, autocast, common)
    latents, scaling = _encode(vae, images, device)
    vae.register_to_config(scaling_factor=scaling)
    _train_latent(recipe, vae, latents * scaling, labels, out, device, autocast, common)
    return out / "model"


def _train_vae(recipe, images, out: Path, device, autocast, common) -> AutoencoderKL:
    torch.manual_seed(recipe.vae_stage.seed)
    vae = AutoencoderKL(**recipe.vae).to(device)

    def loss_of(generator: torch.Generator) -> Tensor:
        x = images[torch.randint(len(images), (recipe.vae_stage.batch_size,), generator=generator)].to(device)
        with torch.autocast(**autocast) if autocast else nullcontext():
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return (decoded.float() - x).abs().mean() + recipe.kl_weight * kl

    optimize(
        list(vae.parameters()), loss_of, recipe.vae_stage, out, lambda step: vae.save_pretrained(out / "model"), **common
    )
    # The averaged weights are the model; what the run ended with is only where it would go on.
    vae.load_state_dict(load_file(out / "model" / "diffusion_pytorch_model.safetensors"))
    return vae.requires_grad_(False).eval()


@torch.no_grad()
def _encode(vae: AutoencoderKL, images: Tensor, device) -> tuple[Tensor, float]:
    """The latents of all images, and the factor that gives them unit variance."""
    latents = torch.cat([vae.encode(part.to(device)).latent_dist.mode().cpu() for part in images.split(500)])
    return latents, 1 / latents.std().item()


def _train_latent(recipe, vae, latents, labels, out: Path, device, autocast, common) -> None:
    torch.manual_seed(recipe.latent_stage.seed)
    tokenizer = make_tokenizer(recipe.text_encoder["max_position_embeddings"])
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            **recipe.text_encoder,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(device)
    unet = UNet2DConditionModel(**recipe.unet).to(device)
    scheduler = DDIMScheduler(**recipe.scheduler)
    # Row 0 is the empty caption; class c with template j is row 1 + c · len(TEMPLATES) + j.
    texts = ["", *(caption for group in captions() for caption in group)]
    tokens = tokenizer(texts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    tokens = tokens.input_ids.to(device)
    labels = labels.long()

    def loss_of(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(latents), (recipe.latent_stage.batch_size,), generator=generator)
        x_0 = latents[batch].to(device)
        rows = 1 + labels[batch] * len(TEMPLATES) + torch.randint(len(TEMPLATES), batch.shape, generator=generator)
        rows[torch.rand(len(rows), generator=generator) < recipe.caption_dropout] = 0
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x_0),), generator=generator).to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        with torch.autocast(**autocast) if autocast else nullcontext():
            text = text_encoder(tokens).last_hidden_state  # of the 21 captions there are, once
            prediction = unet(scheduler.add_noise(x_0, noise, t), t, text[rows.to(device)]).sample
        return (prediction.float() - noise).square().mean()

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
        _write_samples(pipeline, out / "samples" / f"step-{step:05d}.png")

    optimize([*unet.parameters(), *text_encoder.parameters()], loss_of, recipe.latent_stage, out / "latent", save, **common)


def _write_samples(pipeline: StableDiffusionPipeline, path: Path, columns: int = 8, guidance_scale: float = 2.0) -> None:
    """A row of samples for each garment, always from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = [group[0] for group in captions() for _ in range(columns)]
    images = pipeline(
        prompts,
        num_inference_steps=25,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(i % columns) for i in range(len(prompts))],
        output_type="pt",
    ).images
    write_sheet(images * 2 - 1, columns, path)
