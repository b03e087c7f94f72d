"""The preset "fast": one probe J e a timestep, and no evaluation after it.

Algorithm 1 evaluates the network again after each update, to see where x̂_0 has gone. But the probe itself says much of it.
For an exact denoiser J = (a/s²) Cov[x_0 | x_t], so x̂_0 + α J e is how the posterior's mean moves, to first order, when it
hears of the known part: one step of conjugate gradients on a Kalman filter's update. So x̂_0 is moved along J e as far as
fits the task best, which costs no evaluation, and projected onto the task; and x of the next timestep is pushed along J e,
where the evaluation that is due anyway takes it up.

Without the probe (no J e) and with all noise fresh this is DDNM; with e in place of J e and no fresh noise, FlowChef's step.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.directions import newton, unit
from fcs_lab.trace import Watch

__all__ = ["FAST_STEPS", "fast", "fast_plan"]

FAST_STEPS = 30
"""T' of the preset, about 60 evaluations."""

PUSH, LONGEST = 2.0, 5.0
"""Found on digits that no table shows."""


def fast(x: Tensor, watch: Watch, *, fd_step: float, push: float = PUSH, longest: float = LONGEST) -> Method:
    """Sample under a constraint with two evaluations a timestep, one at the last.

    Args:
        x: x_T, (B, C, H, W).
        watch: The run's schedule, its task, its step and its noise.
        fd_step: h, relative to ‖e‖_∞.
        push: λ, in units of the next level's noise s'.
        longest: The longest step α of x̂_0 along J e.
    """
    timesteps, levels = watch.schedule.timesteps, watch.schedule.levels
    watch.along = partial(newton, fd_step=fd_step)
    watch.λ = [[push * s] for _, s in levels[1:-1]] + [[]]
    for i, t in enumerate(timesteps):
        x0 = yield x, t
        pushed = bool(watch.λ[i])
        if pushed:
            e = _missing(x0, watch)
            d = yield from watch.direction(x, t, x0, e)  # J e
            x0 = x0 + _step_length(x0, d, watch).clamp(max=longest) * d
        x0 = x0.clamp(-1, 1) if watch.bounded else x0
        if hasattr(watch.task, "pinv"):
            x0 = x0 + watch.task.pinv(watch.task.y - watch.task.A(x0))
        x = watch.step(i, x, x0, moved=x0, sigma=levels[i + 1][1])  # all noise fresh
        if pushed:
            x = x + watch.λ[i][0] * unit(d, e)
    return x


def fast_plan(T: int) -> list[int]:
    """Of each evaluation, in order, its timestep's place in a schedule of T."""
    return [i for i in range(T) for _ in range(1 if i == T - 1 else 2)]


def _missing(x0: Tensor, watch: Watch) -> Tensor:
    """A⁺(y − A x̂_0), the shortest move that meets a linear task; e where there is no A⁺."""
    e = watch.error(x0)
    return watch.task.pinv(watch.task.y - watch.task.A(x0)) if hasattr(watch.task, "pinv") else e


def _step_length(x0: Tensor, d: Tensor, watch: Watch) -> Tensor:
    """α of each image, (B, 1, 1, 1), that makes C(x̂_0 + α d) least: exact where C is quadratic, else by its slopes."""

    def slope(x0: Tensor) -> Tensor:
        return (watch.task.cost_and_error(x0)[1] * d).flatten(1).sum(1)

    here, there = slope(x0), slope(x0 + d)
    bends = here - there
    α = torch.where(bends > 0, here / bends.where(bends > 0, 1), 0.0)
    return α.clamp_min(0).reshape(-1, *[1] * (d.ndim - 1))
