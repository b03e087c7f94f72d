"""The loop that all diffusion and autoencoder trainings share; it may be interrupted at any step and goes on.

Step n draws all that is random from a generator seeded with (seed, n) and nothing else, so a run that was interrupted
and resumed takes the very steps that an uninterrupted one takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Protocol

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from fcs_lab.images import to_pil

__all__ = ["optimize", "write_sheet"]


class Settings(Protocol):
    """What of a recipe the loop reads; `steps` is the length of the learning rate's course."""

    steps: int
    learning_rate: float
    warmup_steps: int
    cooldown_steps: int | None
    ema_decay: float
    seed: int


def optimize(
    parameters: list[nn.Parameter],
    loss_of: Callable[[torch.Generator], Tensor],
    settings: Settings,
    out: Path,
    save: Callable[[int], None],
    *,
    max_steps: int | None = None,
    save_every: int = 500,
    save_at: Collection[int] = (),
    progress: bool = True,
) -> None:
    """Minimise a loss with AdamW and keep a running average of the weights.

    Args:
        parameters: What is trained; they hold the latest weights in the end.
        loss_of: The loss of one batch; all that is random in it comes from the generator that it is given (CPU).
        settings: Steps, learning rate and so on.
        out: Folder of the run; `state.safetensors` in it is resumed.
        save: Called with the step, while the parameters hold their averages, to write down the model.
        max_steps: Stop after this many steps of this call. None: to the end.
        save_every: Steps between two saves.
        save_at: Steps that are saved besides.
        progress: Show a progress bar.
    """
    ema = EMAModel(parameters, decay=settings.ema_decay, foreach=True)
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    step, loss_average = _resume(out, parameters, ema, optimizer)
    last = settings.steps if max_steps is None else min(settings.steps, step + max_steps)

    def save_all() -> None:
        _save_state(out, parameters, ema, optimizer, step, loss_average)
        ema.store(parameters)
        ema.copy_to(parameters)
        save(step)
        ema.restore(parameters)

    bar = tqdm(total=settings.steps, initial=step, unit="step", disable=not progress)
    generator = torch.Generator()
    try:
        while step < last:
            generator.manual_seed(settings.seed * 10_000_019 + step)
            loss = loss_of(generator)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step, settings)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            ema.step(parameters)
            step += 1
            # A running mean over about 200 steps, exact from the first.
            weight = max(1 / step, 1 / 200)
            # It stays on the device: to read it is to wait for the step.
            loss_average += weight * (loss.detach().double() - loss_average)
            bar.update()
            if step % 10 == 0 or step == last:
                bar.set_postfix(loss=f"{loss_average.item():.4f}", refresh=False)
            if step % save_every == 0 or step in save_at or step == last:
                save_all()
    except KeyboardInterrupt:
        # Nothing of an interrupted run is lost, unless it was hit in the midst of an update: then the last save stands.
        if step and optimizer.state[parameters[0]]["step"] == step == ema.optimization_step:
            save_all()
        raise
    finally:
        bar.close()


def write_sheet(images: Tensor, columns: int, path: Path) -> None:
    """Write samples (N, C, H, W) in [-1, 1], `columns` in a row, as one picture."""
    sheet = images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(sheet[None])[0].save(path)


def _schedule(step: int, settings: Settings) -> float:
    """Linear warm-up, then half a cosine down to zero; or, with `cooldown_steps`, a plateau with a linear end."""
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    if settings.cooldown_steps is None:
        return warm * (1 + math.cos(math.pi * step / settings.steps)) / 2
    return warm * min(1.0, (settings.steps - step) / settings.cooldown_steps)


def _save_state(
    out: Path,
    parameters: list[nn.Parameter],
    ema: EMAModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    loss_average: Tensor,
) -> None:
    """All that a resumed run needs, as one safetensors file, replaced in one move."""
    state = {f"model.{i}": p.detach() for i, p in enumerate(parameters)}
    state |= {f"ema.{i}": p for i, p in enumerate(ema.shadow_params)}
    for i, p in enumerate(parameters):
        state |= {f"adam.{i}.{name}": value for name, value in optimizer.state[p].items()}
    state["loss_average"] = loss_average
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "state.safetensors.part"
    save_file(state, partial, metadata={"step": str(step)})
    partial.replace(out / "state.safetensors")


def _resume(
    out: Path, parameters: list[nn.Parameter], ema: EMAModel, optimizer: torch.optim.Optimizer
) -> tuple[int, Tensor]:
    path = out / "state.safetensors"
    if not path.exists():
        return 0, parameters[0].new_zeros((), dtype=torch.float64)
    state = load_file(path)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(state[f"model.{i}"])
            ema.shadow_params[i].copy_(state[f"ema.{i}"])
            optimizer.state[p] = {
                name: state[f"adam.{i}.{name}"].to("cpu" if name == "step" else p.device)
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
    ema.optimization_step = step = int(state["adam.0.step"])
    return step, state["loss_average"].to(parameters[0].device)
