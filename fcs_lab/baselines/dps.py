"""DPS: an unconditional step, and then one along Jᵀ e."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, per_image_norm, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import gradient
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["dps", "dps_peer"]


def dps(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    step_size: float = 4.0,
    **options: Unpack[RunOptions],
) -> Result:
    """DPS (Chung et al., ICLR 2023, arXiv 2209.14687): DDPM's step, then x ← x + ζ/‖r‖ Jᵀe, ‖r‖ = √(2C) of each image.

    One evaluation and one backward pass a timestep.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T', the evaluations and the backward passes.
        step_size: ζ.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.dps(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 4)
    """
    return run(model, task, dps_peer(step_size), num_inference_steps, **options)


def dps_peer(step_size: float = 4.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `dps`."""
    check_number("step_size", step_size, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            cost, e = watch.task.cost_and_error(x0)
            pull = yield from gradient(x, t, x0, e)
            x = watch.step(i, x, x0) + step_size * pull / per_image_norm(cost, x)
        return x

    return Peer("dps", method, differentiates=True)
