"""ΠGDM: DDIM's step, and then one along Jᵀ of what is missing from the measurements."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import gradient
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["pigdm", "pigdm_peer"]


def pigdm(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """ΠGDM (Song et al., ICLR 2023): x' ← x' + a a' Jᵀ Aᵀ (A Aᵀ + σ_y²/r_t² I)⁻¹ (y − A x̂_0), r_t² = s²/(a² + s²).

    One evaluation and one backward pass a timestep. σ_y is the task's `noise_std`; with 0 the matrix is A⁺.

    Args:
        model, task: As for `fcs_lab.sample`; the task is linear.
        num_inference_steps: T', the evaluations and the backward passes.
        eta: η of DDIM's step; 1 is DDPM's noise.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task without A⁺ or a proximal step.

    Example:
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4), 4)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.pigdm(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 4)
    """
    return run(model, task, pigdm_peer(eta), num_inference_steps, **options)


def pigdm_peer(eta: float = 1.0) -> Peer:
    """The method by itself; the settings are those of `pigdm`."""
    check_number("eta", eta, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        watch.eta = eta
        for i, t in enumerate(watch.schedule.timesteps):
            (a, s), a_next = watch.schedule.levels[i], watch.schedule.levels[i + 1][0]
            x0 = yield x, t
            noise_std = watch.task.noise_std
            if noise_std == 0:
                missing = watch.task.pinv(watch.task.y - watch.task.A(x0))
            else:  # the proximal step moves x̂_0 by just that
                missing = watch.task.prox(x0, noise_std**2 * (a**2 + s**2) / s**2) - x0
            pull = yield from gradient(x, t, x0, missing)
            x = watch.step(i, x, x0) + a * a_next * pull
        return x

    return Peer("pigdm", method, ("A", "pinv", "prox", "noise_std", "y"), differentiates=True)
