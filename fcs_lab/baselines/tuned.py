"""The tuned model: a network that was trained to inpaint, told the mask and the masked image; no method at all."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, clipped, run
from fcs_lab.checks import check_number, describe
from fcs_lab.constraints import Inpainting, for_channels
from fcs_lab.denoisers import InpaintingDenoiser
from fcs_lab.latent_space import network_of
from fcs_lab.sampler import Result, check_task
from fcs_lab.trace import Watch

__all__ = ["tuned"]


def tuned(
    model: InpaintingDenoiser | DiffusionPipeline,
    task: Inpainting,
    *,
    num_inference_steps: int = 20,
    eta: float = 1.0,
    **options: Any,
) -> Result:
    """What a model that was trained for inpainting does, one evaluation a timestep.

    Args:
        model: `fcs_lab.load("mnist-inpainting")`, or any such pixel model; or a diffusers inpainting pipeline, such as a
            `StableDiffusionInpaintPipeline` with an inpainting checkpoint.
        task: Inpainting.
        num_inference_steps: T', the evaluations.
        eta: η of the step; 1 is DDPM's noise. A pipeline has its own scheduler, and no use for it.
        **options: As for `fcs_lab.sample`; for a pipeline what its call takes (prompt, guidance_scale, generator, …).

    Returns:
        As for `fcs_lab.sample`, the known pixels as they were; of a pipeline without a trace, `nfe` its network's calls.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a model that takes no mask; a task that is not inpainting.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist-inpainting")
        >>> result = fcs_lab.baselines.tuned(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    check_number("eta", eta, 0)
    check_task(task)
    if not isinstance(task, Inpainting):
        raise TypeError(f"task is {describe(task)}; a tuned model takes fcs_lab.Inpainting")
    if isinstance(model, DiffusionPipeline) and "mask_image" in inspect.signature(type(model).__call__).parameters:
        return _by_pipeline(model, task, num_inference_steps, options)
    if not isinstance(model, InpaintingDenoiser):
        raise TypeError(
            f"model is {describe(model)}; expected one that is tuned to inpainting: fcs_lab.load('mnist-inpainting'), or a "
            "diffusers inpainting pipeline"
        )
    task = for_channels(task, model.shape[0])
    given = model.given(task.known.to(model.device), task.y.to(model.device))

    def method(x: Tensor, watch: Watch) -> Method:
        known, y = watch.task.known, watch.task.y
        watch.eta = eta
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = clipped((yield x, t), watch)
            last = i == len(watch.schedule.timesteps) - 1
            x = watch.step(i, x, x0, moved=known * y + (1 - known) * x0 if last else x0)
        return x

    return run(given, task, Peer("tuned", method, ("known", "y")), num_inference_steps, **options)


def _by_pipeline(pipe: DiffusionPipeline, task: Inpainting, num_inference_steps: int, options: dict[str, Any]) -> Result:
    calls: list[int] = []
    network: nn.Module = network_of(pipe)
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    options = {"prompt": [""] * len(task.y)} | options
    try:
        images = pipe(
            image=task.y / 2 + 0.5,
            mask_image=task.mask.float().expand(len(task.y), -1, -1, -1),
            height=task.shape[1],
            width=task.shape[2],
            num_inference_steps=num_inference_steps,
            output_type="pt",
            **options,
        ).images
    finally:
        hook.remove()
    images = (images.float() * 2 - 1).clamp(-1, 1)
    images = torch.where(task.mask.to(images.device), images, task.y.to(images))
    return Result(images, images, [], float(len(calls)), 0.0)
