"""LanPaint: at each noise level Langevin steps, under which the known and the hidden part come to agree."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, Settings, clipped, repeated, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["lanpaint", "lanpaint_budget", "lanpaint_peer"]


def lanpaint(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 20,
    langevin_steps: int = 5,
    step_size: float = 0.3,
    weight: float = 8.0,
    friction: float = 2.0,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """LanPaint (Zheng et al., TMLR 2025, arXiv 2502.03491), for inpainting: n + 1 evaluations a timestep.

    n underdamped Langevin steps of x_t, then the step of the schedule. The force times s² is

        hidden:  −(x_t − a x̂_0)
        known:   −(1 + λ)(x_t − a y) + λ (x_t − a x̂_0)

    and times are in units of s, so that steps shrink as the noise does. In the end the known part is y.

    Args:
        model, task: As for `fcs_lab.sample`; the task is inpainting.
        num_inference_steps: T'.
        langevin_steps: n.
        step_size: Of a Langevin step, in units of s.
        weight: λ, how strongly the known part is held, and pushed away from what the model would have it.
        friction: Of the velocity, in units of 1/s.
        eta: η of the schedule's step; 1 is DDPM's noise.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task that is not inpainting.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.lanpaint(model, task, num_inference_steps=4, langevin_steps=5, progress=False)
        >>> result.nfe, result.n_backward
        (24, 0)
    """
    peer = lanpaint_peer(langevin_steps, step_size, weight, friction, eta)
    return run(model, task, peer, num_inference_steps, **options)


def lanpaint_peer(
    langevin_steps: int = 5, step_size: float = 0.3, weight: float = 8.0, friction: float = 2.0, eta: float = 1.0
) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `lanpaint`."""
    check_count("langevin_steps", langevin_steps, 0, 1000)
    check_number("step_size", step_size, 0, 1)
    check_number("weight", weight, 0)
    check_number("friction", friction, 0)
    check_number("eta", eta, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        known, y = watch.task.known, watch.task.y
        kept = math.exp(-friction * step_size)  # of the velocity, in a step
        watch.eta = eta
        for i, t in enumerate(watch.schedule.timesteps):
            a, s = watch.schedule.levels[i]
            x0 = clipped((yield x, t), watch)
            velocity = watch.noise(x) if langevin_steps else x
            for _ in range(langevin_steps):
                towards, held = a * x0 - x, a * y - x
                force = torch.where(known > 0, (1 + weight) * held - weight * towards, towards) / s
                velocity = kept * velocity + math.sqrt(1 - kept**2) * watch.noise(x) + step_size * force
                x = x + step_size * s * velocity
                x0 = clipped((yield x, t), watch)
            x = watch.step(i, x, x0, moved=known * y + (1 - known) * x0)
        return x

    return Peer("lanpaint", method, ("known", "y"), plan=repeated(langevin_steps + 1))


def lanpaint_budget(evaluations: int) -> Settings:
    """Settings for so many evaluations: 2 to 10 Langevin steps at each of about 20 timesteps."""
    n = min(10, max(2, evaluations // 20 - 1))
    return {"num_inference_steps": evaluations // (n + 1), "langevin_steps": n}
