"""e, J e, Jᵀ e and J⁻¹ e side by side at one point, and what a step along each does to x̂_0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fcs_lab.checks import check_tensor, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import CountedDenoiser, exact, gradient, newton, norm_inf
from fcs_lab.probes.jacobian import ACCURATE_FD_STEP, check_direction, check_point
from fcs_lab.probes.symmetry import cosine_of

__all__ = ["Compared", "compare_directions"]

SOLVE_ITERATIONS = 20
"""Of the solve for J⁻¹ e: a few seconds on a CPU."""


@dataclass(frozen=True)
class Compared:
    """One direction in which x_t may be moved, and what that does to x̂_0."""

    d: Tensor
    """The direction (1, C, H, W)."""
    change: Tensor
    """x̂_0(x_t + λ d/‖d‖_∞) − x̂_0(x_t), (1, C, H, W)."""
    left: float
    """What is left of the error, ‖known ⊙ (e − change)‖/‖e‖: 1 before the step, 0 for a perfect one."""
    cosine: float
    """cos(d, J e) with the true J e, by forward mode; NaN if d or J e is zero."""


@ordinary()
@typed
def compare_directions(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    e: Tensor,
    known: Tensor | None = None,
    *,
    fd_step: float | None = None,
    regularization: float = 0.1,
    step_size: float = 0.1,
    max_iterations: int = SOLVE_ITERATIONS,
) -> dict[str, Compared]:
    """e, J e, Jᵀ e and J⁻¹ e at one point, and the change of x̂_0 after one step of Algorithm 1 along each.

    Args:
        denoiser: The model.
        x_t: The point (1, C, H, W).
        t: Its timestep.
        e: The error (1, C, H, W), not zero.
        known: Where the error counts (1, C, H, W). None: where e is not zero.
        fd_step: h of J e, relative to ‖e‖_∞. None: the most accurate one for the dtype.
        regularization: Of J⁻¹ e, relative to ‖J e‖/‖e‖; see `directions.exact`.
        step_size: λ: how far the most-moved pixel of x_t moves.
        max_iterations: Of the solve for J⁻¹ e.

    Returns:
        "e", "J e", "Jᵀ e" and "J⁻¹ e".

    Raises:
        TypeError, ValueError: The point does not fit the model, e does not fit the point or is zero, h or λ is not
            positive, or the denoiser is not differentiable.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> found = fcs_lab.probes.compare_directions(model, x_t, t, 0.1 * e)
        >>> {name: round(one.cosine, 2) for name, one in found.items()}  # J is symmetric, so J e is Jᵀ e
        {'e': 0.79, 'J e': 1.0, 'Jᵀ e': 1.0, 'J⁻¹ e': 0.29}
    """
    x_t = check_point(denoiser, x_t, t)
    e = check_direction("e", e, x_t)
    fd_step = ACCURATE_FD_STEP[denoiser.dtype] if fd_step is None else fd_step
    for name, value in (("fd_step", fd_step), ("step_size", step_size)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; expected a positive number")
    if known is not None:
        check_tensor("known", known, *e.shape, like="any")
    known = (e != 0).to(e) if known is None else known.to(e)
    f = CountedDenoiser(denoiser, keep_graph=True)
    x0 = f(x_t, t)
    if not f.differentiable:
        raise TypeError("the denoiser is not differentiable: Jᵀ e needs a backward pass, J⁻¹ e its products")
    with torch.no_grad():
        Jte = f.run(gradient(x_t, t, x0, e))
        f.keep_graph = False
        directions = {
            "e": e,
            "J e": f.run(newton(x_t, t, x0, e, fd_step=fd_step)),
            "Jᵀ e": Jte,
            "J⁻¹ e": f.run(exact(x_t, t, x0, e, regularization=regularization, max_iterations=max_iterations)),
        }
        true = f.jvp(x_t, t, e)
        d = torch.cat(list(directions.values()))
        moved = f(x_t + step_size * d / norm_inf(d).clamp_min(torch.finfo(d.dtype).tiny), t) - x0
    left = (known * (e - moved)).flatten(1).norm(dim=1) / e.norm()
    return {
        name: Compared(d[i : i + 1], moved[i : i + 1], left[i].item(), cosine_of(d[i].flatten().cpu(), true.flatten().cpu()))
        for i, name in enumerate(directions)
    }
