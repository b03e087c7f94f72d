"""FlowChef: x_t is moved along e, with J taken for the identity, along a deterministic path."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["flowchef", "flowchef_peer"]


def flowchef(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    step_size: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """FlowChef (Patel et al., ICCV 2025, arXiv 2412.00100): x_t ← x_t + c e, along the ODE. One evaluation a timestep.

    The move is made after the step, in the units of the next level (c a' e), so that no evaluation is spent on it.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T', the evaluations.
        step_size: c.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.flowchef(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, flowchef_peer(step_size), num_inference_steps, **options)


def flowchef_peer(step_size: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `flowchef`."""
    check_number("step_size", step_size, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        watch.eta = 0.0
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            x = watch.step(i, x, x0) + step_size * watch.schedule.levels[i + 1][0] * watch.error(x0)
        return x

    return Peer("flowchef", method)
