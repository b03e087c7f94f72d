"""DAPS: at each noise level x_0 itself is sampled, and noised anew, so that levels do not hang on one another."""

from __future__ import annotations

import math
from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, Settings, clipped, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["daps", "daps_budget", "daps_peer"]


def daps(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 30,
    ode_steps: int = 2,
    langevin_steps: int = 10,
    noise_floor: float = 0.05,
    **options: Unpack[RunOptions],
) -> Result:
    """DAPS (Zhang et al., CVPR 2025, arXiv 2407.01521): x̂_0 by a short ODE, x_0 by Langevin steps, noised to the next level.

    The ODE goes from x_t along timesteps of the schedule, evenly spaced. The Langevin steps, which need no evaluation,
    sample N(x_0; x̂_0, (s/a)²) · exp(−C(x_0)/σ_y²).

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T', the annealing levels.
        ode_steps: Evaluations at each level (fewer at the last ones).
        langevin_steps: Steps of the sampling of x_0.
        noise_floor: σ_y is the task's `noise_std`, and this at least.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.daps(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (7, 0)
    """
    return run(model, task, daps_peer(ode_steps, langevin_steps, noise_floor), num_inference_steps, **options)


def daps_peer(ode_steps: int = 2, langevin_steps: int = 10, noise_floor: float = 0.05) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `daps`."""
    check_count("ode_steps", ode_steps, 1, 1000)
    check_count("langevin_steps", langevin_steps, 1, 100_000)
    check_number("noise_floor", noise_floor, 1e-4)

    def method(x: Tensor, watch: Watch) -> Method:
        timesteps, levels = watch.schedule.timesteps, watch.schedule.levels
        variance = max(getattr(watch.task, "noise_std", 0.0), noise_floor) ** 2
        for i in range(len(timesteps)):
            a, s = levels[i]
            places, z = _places(i, len(timesteps), ode_steps), x
            for j, after in zip(places, [*places[1:], None], strict=True):
                x0 = yield z, timesteps[j]
                if after is not None:
                    z = levels[after][0] * x0 + levels[after][1] * (z - levels[j][0] * x0) / levels[j][1]
            x0 = clipped(x0, watch)
            # A third of what is stable: the two terms' curvatures are 1/σ_y² (at ‖A‖ = 1) and (a/s)².
            rate = (a / s) ** 2
            Δ = 1 / (3 * (1 / variance + rate))
            drawn = x0
            for _ in range(langevin_steps):
                _, e = watch.task.cost_and_error(drawn)
                drawn = drawn + Δ * (rate * (x0 - drawn) + e / variance) + math.sqrt(2 * Δ) * watch.noise(drawn)
            if i == len(timesteps) - 1:
                drawn = x0  # the sample is an estimate, not a draw
            x = watch.step(i, x, x0, moved=drawn, sigma=levels[i + 1][1])
        return x

    return Peer("daps", method, plan=lambda T: [j for i in range(T) for j in _places(i, T, ode_steps)])


def daps_budget(evaluations: int) -> Settings:
    """Settings for so many evaluations: two a level, one at the last."""
    return {"num_inference_steps": (evaluations + 1) // 2, "ode_steps": 2}


def _places(i: int, T: int, n: int) -> list[int]:
    """The timesteps' places that the ODE from the i-th of T visits, n at most."""
    n = min(n, T - i)
    return [i + k * (T - i) // n for k in range(n)]
