"""DDRM: the measurements are imposed singular vector by singular vector, each with the noise that it has."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, clipped, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["ddrm", "ddrm_peer"]


def ddrm(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    eta: float | None = None,
    eta_b: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """DDRM (Kawar et al., NeurIPS 2022, arXiv 2201.11793), one evaluation a timestep.

    With ȳ_i = ⟨u_i, y⟩/s_i, whose noise is σ_i = σ_y/s_i, and all else in the basis of the right singular vectors v_i:

        s_i = 0:        x' = a' x̂_0 + s'(√(1 − η²) ε̂ + η z)
        a' σ_i ≤ s':    x' = a' ((1 − η_b) x̂_0 + η_b ȳ_i) + √(s'² − (a' η_b σ_i)²) z
        a' σ_i > s':    x' = a' x̂_0 + s'(√(1 − η²) (ȳ_i − x̂_0)/σ_i + η z)

    Without noise in y and at η = η_b = 1 it is DDNM. σ_y is the task's `noise_std`.

    Args:
        model, task: As for `fcs_lab.sample`; the task is linear.
        num_inference_steps: T', the evaluations.
        eta: η, the share of fresh noise where y says nothing, or nothing any more. None: 1, and the paper's 0.85 where y is
            noisy, since at 1 what y said would be forgotten.
        eta_b: η_b, how much of the measurement is taken where it is better known than x_t.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task whose singular vectors cannot be had.

    Example:
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4), 4)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.ddrm(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, ddrm_peer(eta, eta_b), num_inference_steps, **options)


def ddrm_peer(eta: float | None = None, eta_b: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `ddrm`."""
    if eta is not None:
        check_number("eta", eta, 0, 1)
    check_number("eta_b", eta_b, 0, 1)

    def method(x: Tensor, watch: Watch) -> Method:
        task, system = watch.task, watch.task.singular()
        seen = system.values > 0
        y = system.coefficients(task.pinv(task.y))
        η = eta if eta is not None else 0.85 if task.noise_std else 1.0
        σ = task.noise_std / system.values.where(seen, 1)
        for i, t in enumerate(watch.schedule.timesteps):
            a, s = watch.schedule.levels[i + 1]
            x0 = clipped((yield x, t), watch)
            c0 = system.coefficients(x0)
            known = seen & (a * σ <= s)
            mixed = torch.where(known, (1 - eta_b) * c0 + eta_b * y, c0)
            x = watch.step(i, x, x0, moved=system.images(mixed), sigma=η * s)
            z = system.coefficients(watch.noise(x))
            c = torch.where(known, a * mixed + (s**2 - (a * eta_b * σ) ** 2).clamp_min(0).sqrt() * z, system.coefficients(x))
            drawn = a * c0 + s * ((1 - η**2) ** 0.5 * (y - c0) / σ.clamp_min(1e-12) + η * z)
            x = system.images(torch.where(seen & ~known, drawn, c))
        return x

    return Peer("ddrm", method, ("singular", "pinv", "y", "noise_std"))
