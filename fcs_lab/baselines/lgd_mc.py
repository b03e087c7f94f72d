"""LGD-MC: DPS, with the error averaged over what x_0 may be."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, per_image_norm, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import gradient
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["lgd_mc", "lgd_mc_peer"]


def lgd_mc(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    step_size: float = 8.0,
    draws: int = 4,
    **options: Unpack[RunOptions],
) -> Result:
    """LGD-MC (Song et al., ICML 2023): DPS with e and ‖r‖ averaged over x̂_0 + r_t z, r_t = s/√(a² + s²), z ~ N(0, I).

    One evaluation and one backward pass a timestep; the draws cost only the task's own work.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T', the evaluations and the backward passes.
        step_size: ζ.
        draws: How many z.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.lgd_mc(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 4)
    """
    return run(model, task, lgd_mc_peer(step_size, draws), num_inference_steps, **options)


def lgd_mc_peer(step_size: float = 8.0, draws: int = 4) -> Peer:
    """The method by itself; the settings are those of `lgd_mc`."""
    check_number("step_size", step_size, 0)
    check_count("draws", draws, 1, 1000)

    def method(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            a, s = watch.schedule.levels[i]
            x0 = yield x, t
            spread = s / (a**2 + s**2) ** 0.5
            drawn = [watch.task.cost_and_error(x0 + spread * watch.noise(x0)) for _ in range(draws)]
            cost, e = (torch.stack(parts).mean(0) for parts in zip(*drawn, strict=True))
            pull = yield from gradient(x, t, x0, e)
            x = watch.step(i, x, x0) + step_size * pull / per_image_norm(cost, x)
        return x

    return Peer("lgd_mc", method, differentiates=True)
