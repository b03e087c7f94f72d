"""The preset "fast": one probe J e a timestep, and no evaluation after it.

Algorithm 1 evaluates the network again after each update, to see where x̂_0 has gone. But the probe itself says much of it.
For an exact denoiser J = (a/s²) Cov[x_0 | x_t], so x̂_0 + α J e is how the posterior's mean moves, to first order, when it
hears of the known part: one step of conjugate gradients on a Kalman filter's update. The last probes serve as directions
beside it, as secants do. So x̂_0 is moved in their span to where it fits the task best, which costs no evaluation, and
projected onto the task; and x of the next timestep is pushed along J e, where the evaluation that is due anyway takes it up.

Without probes and with all noise fresh this is DDNM; with e in place of J e and no fresh noise, FlowChef's step. It takes
linear tasks that have A⁺, in latent space inpainting only.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.constraints import Constraint, needs
from fcs_lab.directions import FD_STEP, newton, unit
from fcs_lab.trace import Watch

__all__ = ["FAST_NEEDS", "FAST_STEPS", "fast", "fast_plan"]

FAST_STEPS = 30
"""T' of the preset, about 60 evaluations."""

FAST_NEEDS = ("A", "pinv", "y")
"""What of a task it uses."""

PUSH, MEMORY, RIDGE = 1.5, 4, 0.01
"""Found on digits that no table shows."""


def fast(x: Tensor, watch: Watch, *, fd_step: float | None = None, push: float = PUSH, memory: int = MEMORY) -> Method:
    """Sample under a constraint with two evaluations a timestep, one at the last.

    Args:
        x: x_T, (B, C, H, W).
        watch: The run's schedule, its task, its step and its noise.
        fd_step: h, relative to ‖e‖_∞. None: the right one for what the network computes in.
        push: λ, in units of the next level's noise s'.
        memory: In the span of how many of the last probes x̂_0 is moved.

    Raises:
        TypeError: The task has no A⁺. Through a decoder it did much worse than Algorithm 1, so there it is refused.
    """
    needs(watch.task, FAST_NEEDS)
    timesteps, levels = watch.schedule.timesteps, watch.schedule.levels
    watch.along = partial(newton, fd_step=FD_STEP[watch.f.dtype] if fd_step is None else fd_step)
    watch.λ = [[push * s] for _, s in levels[1:-1]] + [[]]
    probes: list[Tensor] = []
    for i, t in enumerate(timesteps):
        x0 = yield x, t
        watch.error(x0)  # for the trace
        if watch.λ[i]:
            e = watch.task.pinv(watch.task.y - watch.task.A(x0))  # the shortest move that meets the task
            d = yield from watch.direction(x, t, x0, e)  # J e
            probes = [d, *probes][:memory]
            x0 = _moved(x0, probes, watch.task)
        x0 = x0.clamp(-1, 1) if watch.bounded else x0
        x0 = x0 + watch.task.pinv(watch.task.y - watch.task.A(x0))
        x = watch.step(i, x, x0, moved=x0, sigma=levels[i + 1][1])  # all noise fresh
        if watch.λ[i]:
            x = x + watch.λ[i][0] * unit(d, e)
    return x


def fast_plan(T: int) -> list[int]:
    """Of each evaluation, in order, its timestep's place in a schedule of T."""
    return [i for i in range(T) for _ in range(1 if i == T - 1 else 2)]


def _moved(x0: Tensor, probes: list[Tensor], task: Constraint, ridge: float = RIDGE) -> Tensor:
    """x̂_0 + Σ α_j d_j with ½‖y − A x̂_0‖² least, but for a ridge: (DᵀAᵀA D) α = DᵀAᵀ(y − A x̂_0), each d_j of length 1."""
    if not probes:
        return x0
    D = torch.stack([d / d.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1) for d in probes], 1)
    AD = torch.stack([task.A(D[:, j]).flatten(1) for j in range(len(probes))], 1)  # (B, probes, measurements)
    G, b = AD @ AD.mT, AD @ (task.y - task.A(x0)).flatten(1)[:, :, None]
    largest = G.diagonal(dim1=1, dim2=2).amax(1)[:, None, None]
    α = torch.linalg.solve(G + (ridge * largest + 1e-12) * torch.eye(len(probes)).to(G), b)
    return x0 + (α[..., None, None] * D).sum(1)
