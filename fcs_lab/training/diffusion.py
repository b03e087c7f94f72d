"""Training of a pixel U-Net, unconditional or tuned to inpainting, in pieces that may be interrupted."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from fcs_lab.denoisers import InpaintingDenoiser, UNetDenoiser, is_tuned
from fcs_lab.sampler import sample
from fcs_lab.training.loop import optimize, write_sheet
from fcs_lab.training.masks import draw_masks
from fcs_lab.zoo import load

__all__ = ["CIFAR10", "MNIST", "MNIST_INPAINTING", "Recipe", "train"]


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on besides its data.

    `unet` and `scheduler` are the arguments of diffusers' `UNet2DModel` and `DDPMScheduler`; `steps` is the length of
    the learning rate's cosine (or see `latent.Stage`); `checkpoints` are the steps at which the averaged weights are also
    kept in half precision; `flip` mirrors half of the images; a U-Net with 2C + 1 channels is trained to inpaint, from the
    weights of the bundled model `start_from`, if there is one.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    steps: int
    checkpoints: tuple[int, ...]
    batch_size: int = 64
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    cooldown_steps: int | None = None
    ema_decay: float = 0.999
    flip: bool = False
    start_from: str | None = None
    seed: int = 0


MNIST = Recipe(
    unet={
        "sample_size": 32,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "attention_head_dim": 32,
    },
    scheduler={"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"},
    steps=8000,
    checkpoints=(300, 1000, 2500, 5000, 8000),
)

# Tuned to inpainting, as inpainting checkpoints are: it begins as `mnist`, and is told the mask and the masked image, too.
MNIST_INPAINTING = replace(
    MNIST, unet=MNIST.unet | {"in_channels": 3}, start_from="mnist", steps=4000, checkpoints=(), learning_rate=5e-4
)

# 16.2 million parameters, 32 MB in half precision. No dropout: it would draw from torch's own generator, and a resumed run
# would not be the uninterrupted one any more.
CIFAR10 = Recipe(
    unet={
        "sample_size": 32,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "block_out_channels": (128, 192, 192),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 32,
        "attention_head_dim": 64,
    },
    scheduler={"num_train_timesteps": 1000, "beta_schedule": "linear", "prediction_type": "epsilon"},
    steps=100_000,
    checkpoints=(),
    batch_size=128,
    learning_rate=2e-4,
    warmup_steps=2000,
    ema_decay=0.9999,
    flip=True,
)


def train(
    recipe: Recipe,
    images: Tensor,
    out: str | Path,
    *,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    save_every: int = 500,
    progress: bool = True,
) -> Path:
    """Train, or go on with, the run in folder `out`.

    Args:
        recipe: What to train and how.
        images: Training images (N, C, H, W), float32 in [-1, 1].
        out: Folder of the run. A `state.safetensors` in it is resumed. It receives `model/` (diffusers' layout, EMA
            weights), `checkpoints/step-NNNNN/` (the same in half precision) and `samples/step-NNNNN.png`.
        max_steps: Stop after this many steps of this call; the run can be resumed. None: to the recipe's end.
        device: Where to train.
        bf16: Run the network under bfloat16 autocast (twice as fast on a CPU with AVX512-BF16 and on a GPU).
        save_every: Steps between two saves of the state, each with a sheet of samples.
        progress: Show a progress bar.

    Returns:
        The folder of the finished model, or of its latest state if stopped before the end.
    """
    out, device = Path(out), torch.device(device)
    torch.manual_seed(recipe.seed)
    unet = UNet2DModel(**recipe.unet).to(device)
    if recipe.start_from is not None:
        _begin_as(unet, load(recipe.start_from, device=device).unet)
    scheduler = DDPMScheduler(**recipe.scheduler)
    tuned = is_tuned(unet)

    def loss_of(generator: torch.Generator) -> Tensor:
        x_0 = images[torch.randint(len(images), (recipe.batch_size,), generator=generator)].to(device)
        if recipe.flip:
            x_0 = torch.where(torch.rand(len(x_0), 1, 1, 1, generator=generator).to(device) < 0.5, x_0, x_0.flip(3))
        t = torch.randint(scheduler.config.num_train_timesteps, (len(x_0),), generator=generator).to(device)
        noise = torch.randn(x_0.shape, generator=generator).to(device)
        x_t = scheduler.add_noise(x_0, noise, t)
        if tuned:
            masks = draw_masks(len(x_0), x_0.shape[-1], generator).to(device)
            x_t = torch.cat([x_t, masks, x_0 * (1 - masks)], 1)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            prediction = unet(x_t, t).sample
        return (prediction.float() - noise).square().mean()

    def save(step: int) -> None:
        pipeline = DDPMPipeline(unet, scheduler)
        pipeline.save_pretrained(out / "model")
        if step in recipe.checkpoints:
            kept = out / "checkpoints" / f"step-{step:05d}"
            pipeline.save_pretrained(kept)
            copy.deepcopy(unet).half().save_pretrained(kept / "unet")
        path = out / "samples" / f"step-{step:05d}.png"
        if tuned:
            _write_completions(InpaintingDenoiser(unet, scheduler), images[:8].to(device), path)
        else:
            _write_samples(unet, scheduler, path)

    optimize(
        list(unet.parameters()),
        loss_of,
        recipe,
        out,
        save,
        max_steps=max_steps,
        save_every=save_every,
        save_at=recipe.checkpoints,
        progress=progress,
    )
    return out / "model"


@torch.no_grad()
def _begin_as(unet: UNet2DModel, base: UNet2DModel) -> None:
    """Take a base model's weights; the channels that it has not count for nothing at first."""
    weights = base.state_dict()
    first = torch.zeros_like(unet.conv_in.weight)
    first[:, : base.config.in_channels] = weights["conv_in.weight"]
    unet.load_state_dict(weights | {"conv_in.weight": first})


def _write_samples(unet, scheduler: DDPMScheduler, path: Path, rows: int = 4, num_inference_steps: int = 50) -> None:
    """A sheet of rows×rows samples, always from the same noise, so that sheets can be compared."""
    generator = torch.Generator().manual_seed(0)
    model = UNetDenoiser(unet, scheduler)
    images = sample(
        model, num_inference_steps=num_inference_steps, eta=0, batch_size=rows**2, generator=generator, progress=False
    ).images
    write_sheet(images, rows, path)


def _write_completions(model: InpaintingDenoiser, images: Tensor, path: Path, num_inference_steps: int = 20) -> None:
    """A sheet: training images, the same under masks, and two completions of each, always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    masks = draw_masks(len(images), images.shape[-1], generator).bool()
    model = model.given(1 - masks.to(images), images)
    rows = [images.cpu(), torch.where(masks, 0.0, images.cpu())]
    options = {"num_inference_steps": num_inference_steps, "batch_size": len(images), "progress": False}
    rows += [sample(model, generator=generator, **options).images.cpu() for _ in range(2)]
    write_sheet(torch.cat(rows), len(images), path)
