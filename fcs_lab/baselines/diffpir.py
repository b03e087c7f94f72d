"""DiffPIR: x̂_0 and the measurements are traded off by a proximal step."""

from __future__ import annotations

import math
from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, clipped, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["diffpir", "diffpir_peer"]


def diffpir(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    noise_floor: float = 0.01,
    strength: float = 1.0,
    zeta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """DiffPIR (Zhu et al., CVPR-W 2023, arXiv 2305.08995): x̂_0 ← argmin ‖y − A x‖²/2σ_y² + w_t/2 ‖x − x̂_0‖².

    w_t = λ a²/s²: the noisier x_t, the less x̂_0 counts. One evaluation a timestep.

    Args:
        model, task: As for `fcs_lab.sample`; the task is linear.
        num_inference_steps: T', the evaluations.
        noise_floor: σ_y is the task's `noise_std`, and this at least; in units of images in [-1, 1].
        strength: λ.
        zeta: ζ, the share of fresh noise in a step: x' = a' x̂_0 + s'(√(1 − ζ) ε̂ + √ζ z), with ε̂ of the x̂_0 that came out.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task without a proximal step.

    Example:
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4), 4)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.diffpir(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, diffpir_peer(noise_floor, strength, zeta), num_inference_steps, **options)


def diffpir_peer(noise_floor: float = 0.01, strength: float = 1.0, zeta: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `diffpir`."""
    check_number("noise_floor", noise_floor, 1e-6)
    check_number("strength", strength, 1e-9)
    check_number("zeta", zeta, 0, 1)

    def method(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            a, s = watch.schedule.levels[i]
            x0 = yield x, t
            noise_std = max(watch.task.noise_std, noise_floor)
            x0 = watch.task.prox(clipped(x0, watch), max(noise_std**2 * strength * a**2 / s**2, 1e-8))
            x = watch.step(i, x, x0, moved=x0, sigma=math.sqrt(zeta) * watch.schedule.levels[i + 1][1])
        return x

    return Peer("diffpir", method, ("prox", "noise_std"))
