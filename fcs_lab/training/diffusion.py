"""Training of an unconditional pixel U-Net, in pieces that may be interrupted.

Step n draws its batch, timesteps and noise from a generator seeded with (seed, n) and nothing else, so a run that
was interrupted and resumed takes the very steps that an uninterrupted one takes.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.images import to_pil

__all__ = ["MNIST", "Recipe", "train"]


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on besides its data.

    `unet` and `scheduler` are the arguments of diffusers' `UNet2DModel` and `DDPMScheduler`; `steps` is the length of
    the learning rate's cosine; `checkpoints` are the steps at which the averaged weights are also kept in half precision.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    steps: int
    checkpoints: tuple[int, ...]
    batch_size: int = 64
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    ema_decay: float = 0.999
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
    scheduler = DDPMScheduler(**recipe.scheduler)
    parameters = list(unet.parameters())
    ema = EMAModel(parameters, decay=recipe.ema_decay)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    step, loss_average = _resume(out, unet, ema, optimizer)
    last = recipe.steps if max_steps is None else min(recipe.steps, step + max_steps)

    def save() -> None:
        _save_state(out, unet, ema, optimizer, step, loss_average)
        ema.store(parameters)
        ema.copy_to(parameters)
        pipeline = DDPMPipeline(unet, scheduler)
        pipeline.save_pretrained(out / "model")
        if step in recipe.checkpoints:
            kept = out / "checkpoints" / f"step-{step:05d}"
            pipeline.save_pretrained(kept)
            copy.deepcopy(unet).half().save_pretrained(kept / "unet")
        _write_samples(unet, scheduler, out / "samples" / f"step-{step:05d}.png")
        ema.restore(parameters)

    bar = tqdm(total=recipe.steps, initial=step, unit="step", disable=not progress)
    generator = torch.Generator()
    try:
        while step < last:
            generator.manual_seed(recipe.seed * 10_000_019 + step)
            x_0 = images[torch.randint(len(images), (recipe.batch_size,), generator=generator)].to(device)
            t = torch.randint(scheduler.config.num_train_timesteps, (len(x_0),), generator=generator).to(device)
            noise = torch.randn(x_0.shape, generator=generator).to(device)
            x_t = scheduler.add_noise(x_0, noise, t)
            with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
                prediction = unet(x_t, t).sample
            loss = (prediction.float() - noise).square().mean()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.step(parameters)
            step += 1
            # A running mean over about 200 steps, exact from the first.
            weight = max(1 / step, 1 / 200)
            loss_average += weight * (loss.item() - loss_average)
            bar.update()
            bar.set_postfix(loss=f"{loss_average:.4f}")
            if step % save_every == 0 or step in recipe.checkpoints or step == last:
                save()
    except KeyboardInterrupt:
        # Nothing of an interrupted run is lost, unless it was hit in the midst of an update: then the last save stands.
        if step and optimizer.state[parameters[0]]["step"] == step == ema.optimization_step:
            save()
        raise
    finally:
        bar.close()
    return out / "model"


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    return min(1.0, (step + 1) / recipe.warmup_steps) * (1 + math.cos(math.pi * step / recipe.steps)) / 2


def _save_state(out: Path, unet, ema, optimizer, step: int, loss_average: float) -> None:
    """All that a resumed run needs, as one safetensors file, replaced in one move."""
    state = {f"model.{i}": p.detach() for i, p in enumerate(unet.parameters())}
    state |= {f"ema.{i}": p for i, p in enumerate(ema.shadow_params)}
    for i, p in enumerate(unet.parameters()):
        state |= {f"adam.{i}.{name}": value for name, value in optimizer.state[p].items()}
    state["loss_average"] = torch.tensor(loss_average, dtype=torch.float64)
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "state.safetensors.part"
    save_file(state, partial, metadata={"step": str(step)})
    partial.replace(out / "state.safetensors")


def _resume(out: Path, unet, ema, optimizer) -> tuple[int, float]:
    path = out / "state.safetensors"
    if not path.exists():
        return 0, 0.0
    state = load_file(path)
    with torch.no_grad():
        for i, p in enumerate(unet.parameters()):
            p.copy_(state[f"model.{i}"])
            ema.shadow_params[i].copy_(state[f"ema.{i}"])
            optimizer.state[p] = {
                name: state[f"adam.{i}.{name}"].to("cpu" if name == "step" else p.device)
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
    ema.optimization_step = step = int(state["adam.0.step"])
    return step, state["loss_average"].item()


def _write_samples(unet, scheduler: DDPMScheduler, path: Path, rows: int = 4, num_inference_steps: int = 50) -> None:
    """A sheet of rows×rows samples, always from the same noise, so that sheets can be compared."""
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(num_inference_steps)
    shape = (rows * rows, unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(unet.device)
    with torch.no_grad():
        for t in ddim.timesteps:
            x_t = ddim.step(unet(x_t, t).sample, t, x_t).prev_sample
    sheet = x_t.unflatten(0, (rows, rows)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(sheet[None].clamp(-1, 1).cpu())[0].save(path)
