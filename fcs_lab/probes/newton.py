"""How much of the error e a step leaves, to first order: the paper's λ J e, the gradient's λ Jᵀ e, and λ J⁻¹ e.

Newton for the system x̂_0(x_t + δ) = x̂_0(x_t) + e solves J δ = e. A step δ that solves it only in part is an *inexact*
Newton step, r = e − J δ its residual, and ω = ‖r‖/‖e‖ its forcing term (Dembo, Eisenstat, Steihaug 1982): below 1 it makes
headway.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from fcs_lab.checks import check_count, is_number, refuse_meta, typed
from fcs_lab.constraints import Constraint
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import CountedDenoiser, gradient, newton, norm_inf
from fcs_lab.probes.jacobian import ACCURATE_FD_STEP, JacobianOperator, check_direction, check_point

__all__ = ["Convergence", "ForcingBound", "ForcingTerm", "forcing_bound", "measure_convergence", "measure_forcing_term"]


@dataclass(frozen=True)
class ForcingTerm:
    """What `measure_forcing_term` returns. The steps are "newton" (d = J e), "gradient" (Jᵀ e) and "exact" (J⁻¹ e)."""

    step_sizes: np.ndarray
    """λ, (L,)."""
    forcing: dict[str, np.ndarray]
    """Step -> ω = ‖e − λ J d‖/‖e‖, (L,)."""
    best_step_size: dict[str, float]
    """Step -> the λ of the least forcing term, ⟨e, J d⟩/‖J d‖²; at most 0 where no step along d makes headway."""
    best_forcing: dict[str, float]
    """Step -> the forcing term there: the sine of the angle between e and J d, 1 where λ would have to be below 0."""
    norm_inf: dict[str, float]
    """Step -> ‖d‖_∞: a step of Algorithm 1 with λ_k is one with λ = λ_k/‖d‖_∞ here."""

    def of_algorithm_1(self, step: str, step_size: float) -> float:
        """The λ that Algorithm 1 takes where its own step size is λ_k (`sample`'s `step_size`)."""
        return step_size / self.norm_inf[step]


@dataclass(frozen=True)
class ForcingBound:
    """What the eigenvalues of J promise of I − λJ², and what it does."""

    step_sizes: np.ndarray
    """λ, (L,)."""
    bound: np.ndarray
    """max |1 − λμ²| over the eigenvalues μ of J, (L,): the paper's."""
    norm: np.ndarray
    """‖I − λJ²‖_2, (L,): the forcing term ω of the worst e. Equal to `bound` for normal J."""
    worst: np.ndarray
    """That e, of norm 1, (L, D)."""
    eigenvalues: np.ndarray
    """μ, (D,), complex, largest magnitude first."""
    condition: float
    """κ of the matrix of eigenvectors: `norm` is at most `condition` · `bound`. 1 for normal J."""


@dataclass(frozen=True)
class Convergence:
    """What `measure_convergence` returns."""

    error_norm: np.ndarray
    """‖e‖_2 before each step and after the last, (steps + 1,); NaN from where it is not finite."""
    step_size: np.ndarray
    """λ of each step x_t ← x_t + λ d, (steps,)."""
    x_t: Tensor
    """Where it ended, (1, C, H, W)."""
    x0: Tensor
    """x̂_0 there."""


@ordinary()
@typed
def measure_forcing_term(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    e: Tensor,
    *,
    step_sizes: Sequence[float] | None = None,
    regularization: float | None = 0.1,
    max_iterations: int = 50,
    within: Tensor | None = None,
) -> ForcingTerm:
    """ω = ‖e − λ J d‖/‖e‖ for d = J e, Jᵀ e and J⁻¹ e (paper, the inexact Newton step).

    For the first it is ‖(I − λ J J) e‖/‖e‖, for the second ‖(I − λ J Jᵀ) e‖/‖e‖. The products are of forward and reverse
    mode, and one of each d serves every λ.

    Args:
        denoiser: The model; it must be differentiable.
        x_t: The point (1, C, H, W).
        t: A timestep of the model's schedule.
        e: The error (1, C, H, W), not zero.
        step_sizes: λ, at least 0. None: 0, and 40 values from 1/100 to 10 times ‖e‖²/‖J e‖².
        regularization: ρ of the exact step, argmin_d ‖J d − e‖² + ρ²‖d‖², relative to ‖J e‖/‖e‖. None: leave that out.
        max_iterations: Of LSMR for the exact step, a product with J and one with Jᵀ each.
        within: Weights (broadcast to x_t), such as a constraint's `known`: what of the residual counts. None: all of it.
            Inpainting asks nothing of the hidden pixels, so that J e moves them is no error there.

    Raises:
        TypeError, ValueError: An argument does not fit, or J e = 0.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> found = fcs_lab.probes.measure_forcing_term(model, x_t, t, e, step_sizes=[0.0, 0.5])
        >>> none, some = found.forcing["newton"]
        >>> float(none), bool(some < 1)  # no step, no gain
        (1.0, True)
    """
    x_t = check_point(denoiser, x_t, t)
    e = check_direction("e", e, x_t)
    if regularization is not None and not (is_number(regularization) and regularization >= 0):
        raise ValueError(f"regularization is {regularization!r}; expected a number of at least 0, or None")
    weights = np.ones(e.numel()) if within is None else _weights(within, e)
    J = JacobianOperator(denoiser, x_t, t)
    if not J.differentiable:
        raise ValueError("the denoiser is not differentiable, and Jᵀ e needs a backward pass")
    target = e.double().flatten().cpu().numpy()
    if not np.any(weights * target):
        raise ValueError("within leaves nothing of e; expected weights that are not zero where e is not")
    Je = J @ target
    if not np.any(Je):
        raise ValueError("J e = 0: x̂_0 does not move along e at this (x_t, t), so no step along J e makes headway")
    gain = np.linalg.norm(Je) / np.linalg.norm(target)
    if step_sizes is None:
        step_sizes = np.concatenate([[0.0], np.geomspace(0.01, 10, 40) / gain**2])
    step_sizes = _step_sizes(step_sizes)

    directions = {"newton": Je, "gradient": J.T @ target}
    if regularization is not None:
        double = LinearOperator(  # so that LSMR keeps its account in float64
            J.shape, matvec=lambda v: (J @ v).astype(float), rmatvec=lambda u: (J.T @ u).astype(float), dtype=np.float64
        )
        damp = regularization * gain
        directions["exact"] = lsmr(double, target, damp, atol=1e-10, btol=1e-10, conlim=0, maxiter=max_iterations)[0]
    moved = {name: weights * (J @ d).astype(np.float64) for name, d in directions.items()}
    target = weights * target
    forcing, best_step_size, best_forcing = {}, {}, {}
    for name, Jd in moved.items():
        best_step_size[name] = float(target @ Jd / (Jd @ Jd)) if np.any(Jd) else 0.0
        tried = np.append(step_sizes, max(best_step_size[name], 0.0))
        left = np.linalg.norm(target - tried[:, None] * Jd, axis=1) / np.linalg.norm(target)
        forcing[name], best_forcing[name] = left[:-1], float(left[-1])
    size = {name: float(np.abs(d).max()) for name, d in directions.items()}
    return ForcingTerm(step_sizes, forcing, best_step_size, best_forcing, size)


@typed
def forcing_bound(J: np.ndarray, step_sizes: Sequence[float]) -> ForcingBound:
    """max |1 − λμ²| over the eigenvalues of a dense J, and ‖I − λJ²‖_2, which it bounds only if J is normal.

    Where J has null directions neither falls below 1: nothing is contracted along them.

    Args:
        J: (D, D), such as `JacobianOperator.dense` returns; in float64, if the condition is to be meaningful.
        step_sizes: λ, at least 0.

    Raises:
        ValueError: J is not a square matrix of finite numbers, or a λ is negative.

    Example:
        >>> import numpy as np
        >>> found = fcs_lab.probes.forcing_bound(np.diag([2.0, 1.0]), [0.25, 1.0])
        >>> found.bound.tolist()  # |1 − λ μ²|, the largest: μ = 1 where λ = 1/4, μ = 2 where λ = 1
        [0.75, 3.0]
    """
    J = np.asarray(J)
    if J.ndim != 2 or J.shape[0] != J.shape[1] or not np.isfinite(J).all():
        raise ValueError(f"J has shape {J.shape}; expected a square matrix of finite numbers")
    step_sizes = _step_sizes(step_sizes)
    J = J.astype(np.float64)
    # Of a symmetric J, `eig` finds eigenvectors that are not orthogonal where eigenvalues coincide.
    symmetric = np.allclose(J, J.T, rtol=0, atol=1e-12 * np.abs(J).max())
    eigenvalues, vectors = np.linalg.eigh((J + J.T) / 2) if symmetric else np.linalg.eig(J)
    order = np.argsort(-np.abs(eigenvalues))
    eigenvalues = eigenvalues[order].astype(complex)
    squared = J @ J
    norm, worst = np.empty(len(step_sizes)), np.empty((len(step_sizes), len(J)))
    for i, step_size in enumerate(step_sizes):
        residual = np.eye(len(J)) - step_size * squared
        squares, right = np.linalg.eigh(residual.T @ residual)  # of singular values, ascending
        norm[i], worst[i] = math.sqrt(max(squares[-1], 0.0)), right[:, -1]
    return ForcingBound(
        step_sizes=step_sizes,
        bound=np.abs(1 - step_sizes[:, None] * eigenvalues**2).max(axis=1),
        norm=norm,
        worst=worst,
        eigenvalues=eigenvalues,
        condition=float(np.linalg.cond(vectors)),
    )


@ordinary()
@typed
def measure_convergence(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    task: Constraint,
    *,
    steps: int = 20,
    step_size: float | Sequence[float] = 0.1,
    rule: Literal["fixed", "infinity"] = "infinity",
    direction: Literal["newton", "gradient"] = "newton",
) -> Convergence:
    """The inner loop of Algorithm 1 alone, at one timestep, for as long as one likes: how ‖e‖ falls, or does not.

    Args:
        denoiser: The model.
        x_t: The point to start from, (1, C, H, W).
        t: A timestep of the model's schedule.
        task: The constraint, which yields e anew after each step. `LinearConstraint` with A = I and y = x̂_0 + e is the
            system of equations that Newton's step is derived from.
        steps: How many.
        step_size: One number, or one for each step.
        rule: "infinity": Algorithm 1's, x_t ← x_t + λ_k d/‖d‖_∞; "fixed": x_t ← x_t + λ d.
        direction: d: "newton" (J e, by a forward difference) or "gradient" (Jᵀ e).

    Raises:
        TypeError, ValueError: An argument does not fit.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> task = fcs_lab.Inpainting(torch.full((1, 1, 1, 2), 0.3), torch.tensor([[False, True]]))
        >>> found = fcs_lab.probes.measure_convergence(model, x_t, t, task, steps=3)
        >>> [round(norm, 2) for norm in found.error_norm.tolist()]
        [0.3, 0.26, 0.21, 0.17]
    """
    x_t = check_point(denoiser, x_t, t)
    check_count("steps", steps, 1, 10_000)
    one = isinstance(step_size, numbers.Real)
    sizes = _step_sizes([step_size] * steps if one else step_size, "step_size")
    if len(sizes) != steps:
        raise ValueError(f"step_size has {len(sizes)} entries; expected one for each of {steps} steps")
    for name, value, known in (("rule", rule, ("fixed", "infinity")), ("direction", direction, ("newton", "gradient"))):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected {' or '.join(map(repr, known))}")
    f, task = CountedDenoiser(denoiser, keep_graph=direction == "gradient"), task.to(x_t.device, x_t.dtype)
    error_norm, taken = np.full(steps + 1, np.nan), np.full(steps, np.nan)
    for k in range(steps + 1):
        with torch.no_grad():
            x0 = f(x_t, t)
        e = task.error(x0)
        if not bool(e.isfinite().all()):
            break
        error_norm[k] = e.double().norm().item()
        if k < steps:
            with torch.no_grad():
                if direction == "newton":
                    d = f.run(newton(x_t, t, x0, e, fd_step=ACCURATE_FD_STEP[denoiser.dtype]))
                else:
                    d = f.run(gradient(x_t, t, x0, e))
                size = norm_inf(d).item()
                taken[k] = sizes[k] if rule == "fixed" else sizes[k] / size if size > 0 else 0.0
                x_t = x_t + taken[k] * d
    return Convergence(error_norm, taken, x_t, x0)


def _weights(within: Tensor, e: Tensor) -> np.ndarray:
    refuse_meta("within", within)
    if within.is_complex() or not bool(within.isfinite().all()):
        raise TypeError(f"within is {within!r}; expected a tensor of finite weights")
    try:
        return within.to(e).expand_as(e).double().flatten().cpu().numpy()
    except RuntimeError:
        raise ValueError(
            f"within has shape {tuple(within.shape)}; expected one that broadcasts to {tuple(e.shape)}"
        ) from None


def _step_sizes(step_sizes: Sequence[float], name: str = "step_sizes") -> np.ndarray:
    if isinstance(step_sizes, str | bytes):
        raise TypeError(f"{name} is {step_sizes!r}; expected numbers")
    for one in step_sizes:
        if not is_number(one) or one < 0:
            raise ValueError(f"{name} has {one!r}; expected numbers of at least 0")
    return np.asarray(step_sizes, dtype=np.float64)
