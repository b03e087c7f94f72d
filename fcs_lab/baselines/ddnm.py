"""DDNM: x̂_0 is replaced by the nearest image that meets the task."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, clipped, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["ddnm", "ddnm_peer"]


def ddnm(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """DDNM (Wang et al., ICLR 2023, arXiv 2212.00490): x̂_0 ← x̂_0 + A⁺(y − A x̂_0), one evaluation a timestep.

    Args:
        model, task: As for `fcs_lab.sample`; the task is linear.
        num_inference_steps: T', the evaluations.
        eta: The share of each step's noise that is fresh: x' = a' x̂_0 + s'(η z + √(1 − η²) ε̂). 1 is all of it, which is
            more than DDPM's, and matters: with DDPM's share it loses decibels.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task without A⁺.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.ddnm(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, ddnm_peer(eta), num_inference_steps, **options)


def ddnm_peer(eta: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `ddnm`."""
    check_number("eta", eta, 0, 1)

    def method(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            x0 = clipped(x0, watch)
            projected = x0 + watch.task.pinv(watch.task.y - watch.task.A(x0))
            x = watch.step(i, x, x0, moved=projected, sigma=eta * watch.schedule.levels[i + 1][1])
        return x

    return Peer("ddnm", method, ("A", "pinv", "y"))
