"""How far x̂_0 is linear along the paper's step: what λ may be before the linearisation behind J e is off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from fcs_lab.checks import typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import CountedDenoiser, newton, norm_inf
from fcs_lab.probes.jacobian import ACCURATE_FD_STEP, check_direction, check_point

__all__ = ["LinearReach", "measure_linear_reach"]


@dataclass(frozen=True)
class LinearReach:
    """How far the paper's step, along d = J e, may go before x̂_0 is not where J says."""

    step_size: float
    """λ = ‖Δx_t‖_∞ at which the linear prediction is off by `error`; the search limit if it never is, 0 if it is at once,
    NaN if J e = 0: then there is no step."""
    moved: float
    """‖λ J d‖_2, the move of x̂_0 predicted there; compare with ‖e‖_2."""
    limited: bool
    """The prediction held as far as the search went."""
    step_sizes: np.ndarray = field(repr=False)
    """λ of the curve."""
    errors: np.ndarray = field(repr=False)
    """‖x̂_0(x_t + λ d) − x̂_0(x_t) − λ J d‖ / ‖λ J d‖ of the curve, with ‖d‖_∞ = 1."""
    nfe: int
    """Forward evaluations."""


@ordinary()
@typed
def measure_linear_reach(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    e: Tensor,
    *,
    error: float = 0.1,
    step_sizes: Sequence[float] = tuple(np.geomspace(0.01, 10, 25).tolist()),
) -> LinearReach:
    """How far may x_t go along d = J e before x̂_0 is off the linear prediction x̂_0 + λ J d by 10 %?

    Args:
        denoiser: The model.
        x_t: The point (1, C, H, W).
        t: The timestep.
        e: The task's error direction (1, C, H, W), of any length.
        error: The relative error that ends the search.
        step_sizes: λ to try, increasing, in units of ‖Δx_t‖_∞ as in Algorithm 1; evaluated in one batch. Where the error
            is first passed, λ is refined to 1 %.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> found = fcs_lab.probes.measure_linear_reach(model, x_t, t, e, step_sizes=[0.1, 1.0])
        >>> found.limited, bool(found.errors.max() < 1e-3)  # x̂_0 is affine: it is where J says
        (True, True)
    """
    x_t = check_point(denoiser, x_t, t)
    e = check_direction("e", e, x_t)
    if not error > 0:
        raise ValueError(f"error is {error!r}; expected a positive number")
    if not len(step_sizes) or not all(0 < a < b for a, b in zip([step_sizes[0] / 2, *step_sizes], step_sizes, strict=False)):
        raise ValueError(f"step_sizes is {step_sizes!r}; expected positive, increasing numbers")
    f, fd_step = CountedDenoiser(denoiser), ACCURATE_FD_STEP[denoiser.dtype]
    with torch.no_grad():
        x0 = f(x_t, t)
        d = f.run(newton(x_t, t, x0, e, fd_step=fd_step))
        if not bool(d.any()):  # no step to measure
            return LinearReach(math.nan, 0.0, False, np.asarray(step_sizes), np.full(len(step_sizes), math.nan), f.forward)
        d = d / norm_inf(d)
        Jd = f.run(newton(x_t, t, x0, d, fd_step=fd_step))

        def errors(sizes: Sequence[float]) -> np.ndarray:
            size = torch.tensor(sizes).to(x_t).reshape(-1, 1, 1, 1)
            off = f(x_t + size * d, t) - x0 - size * Jd
            return (off.flatten(1).norm(dim=1) / (size.flatten() * Jd.norm())).double().cpu().numpy()

        curve = errors(step_sizes)
        beyond = np.flatnonzero(~(curve <= error))
        if not len(beyond):
            reach = step_sizes[-1]
        elif beyond[0] == 0:
            reach = 0.0
        else:
            bracket = step_sizes[beyond[0] - 1], step_sizes[beyond[0]]
            reach = brentq(lambda size: errors([size])[0] - error, *bracket, rtol=0.01)
    return LinearReach(float(reach), reach * Jd.norm().item(), not len(beyond), np.asarray(step_sizes), curve, f.forward)
