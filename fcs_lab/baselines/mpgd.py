"""MPGD: a gradient step on x̂_0 itself, as if it lay on the data's manifold and stayed there."""

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

__all__ = ["mpgd", "mpgd_peer"]


def mpgd(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    step_size: float = 1.0,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """MPGD (He et al., ICLR 2024, arXiv 2311.16424): x̂_0 ← x̂_0 + c e, then DDIM's step. One evaluation a timestep.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T', the evaluations.
        step_size: c. For inpainting 1 is the projection.
        eta: η of the step; 1 is DDPM's noise.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4), 4)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.mpgd(model, task, num_inference_steps=4, step_size=16.0, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, mpgd_peer(step_size, eta), num_inference_steps, **options)


def mpgd_peer(step_size: float = 1.0, eta: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `mpgd`."""
    check_number("step_size", step_size, 0)
    check_number("eta", eta, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        watch.eta = eta
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            x0 = clipped(x0, watch)
            x = watch.step(i, x, x0, moved=x0 + step_size * watch.error(x0))
        return x

    return Peer("mpgd", method)
