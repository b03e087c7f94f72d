"""Is J symmetric? That of an exact denoiser is; a trained one's has a skew part, and then J e and Jᵀ e differ."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from scipy.stats import t as student_t
from torch import Tensor

from fcs_lab.checks import is_int, refuse_meta
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.probes.jacobian import JacobianOperator

__all__ = ["Symmetry", "measure_symmetry"]

AnyJacobian = LinearOperator | np.ndarray | tuple[Denoiser, Tensor, int]


@dataclass(frozen=True)
class Symmetry:
    """What `measure_symmetry` returns. Numbers that are not defined are NaN, and `undefined` says why."""

    relative_skew: float
    """‖J − Jᵀ‖_F / ‖J + Jᵀ‖_F: 0 if J is symmetric, 1 if as much skew as symmetric, infinite if only skew."""
    interval: tuple[float, float]
    """Its confidence interval; both ends the value itself if it is exact."""
    confidence: float
    """The interval's, in (0, 1)."""
    norm: float
    """‖J‖_F, estimated from the same products."""
    cosine: float | None
    """cos(J e, Jᵀ e); None if no e was given."""
    probes: int
    """Random vectors used; 0 if J was taken as a matrix, and the numbers are exact."""
    undefined: str | None
    """Why numbers are NaN; None if none is."""


@ordinary()
def measure_symmetry(
    J: AnyJacobian,
    e: Tensor | np.ndarray | None = None,
    *,
    probes: int = 32,
    confidence: float = 0.95,
    seed: int = 0,
) -> Symmetry:
    """How far J is from symmetric: ‖J − Jᵀ‖_F / ‖J + Jᵀ‖_F, and cos(J e, Jᵀ e) for a direction e.

    E ‖M g‖² = ‖M‖_F² for a vector g of random signs (Hutchinson), so n products with J and n with Jᵀ, at the same x_t
    and t, estimate both norms. A matrix is measured exactly, and so is an operator with no more dimensions than probes.
    The interval is Student's, for the logarithm of the ratio of the two means; it is an approximation, better the more
    probes there are.

    Args:
        J: A matrix (D, D), a `JacobianOperator` or other SciPy linear operator with a transpose, or
            (denoiser, x_t, t).
        e: A direction, an image (1, C, H, W) or a vector (D,).
        probes: n, at least 2.
        confidence: Of the interval, in (0, 1).
        seed: Of the random vectors.

    Where ‖J‖_F ≤ √(machine epsilon) nothing is left of J but rounding: the ratio is NaN, and so reported.

    Raises:
        TypeError: J or e is none of these; or J comes from a denoiser that is not differentiable, so without Jᵀ.
        ValueError: J is not square or not finite, e does not fit it or is zero, a number is out of range.

    Example:
        >>> import numpy as np
        >>> J = np.array([[1.0, 0.5], [-0.5, 1.0]])
        >>> round(fcs_lab.probes.measure_symmetry(J).relative_skew, 3)  # ‖J − Jᵀ‖ = √2, ‖J + Jᵀ‖ = √8
        0.5
    """
    if not is_int(probes) or probes < 2:
        raise ValueError(f"probes is {probes!r}; expected a whole number of at least 2")
    if not isinstance(confidence, numbers.Real) or not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence!r}; expected a number between 0 and 1")
    J = as_operator(J)
    D = J.shape[0]
    e = None if e is None else _direction(e, D, J.dtype)

    exact = is_matrix(J) or probes >= D
    G = np.eye(D, dtype=J.dtype)  # ‖M I‖_F = ‖M‖_F: the same sums, exactly
    if not exact:
        G = np.random.default_rng(seed).choice(np.array([-1, 1], J.dtype), (D, probes))
    JG, JTG = (np.asarray(product, np.float64) for product in (J @ G, J.T @ G))
    count = 1 if exact else probes
    norm = math.sqrt(np.square(JG).sum() / count)
    undefined = []
    if norm <= math.sqrt(np.finfo(J.dtype).eps):
        undefined.append(f"‖J‖_F is {norm:.2g}, no more than rounding: J − Jᵀ and J + Jᵀ cannot be told apart")
        relative_skew, interval = math.nan, (math.nan, math.nan)
    else:
        skew, symmetric = np.square(JG - JTG).sum(0), np.square(JG + JTG).sum(0)
        relative_skew, interval = _ratio_of_norms(skew, symmetric, None if exact else confidence)

    cosine = None
    if e is not None:
        cosine = cosine_of(J @ e, J.T @ e) if not undefined else math.nan
        if math.isnan(cosine) and not undefined:
            undefined.append("J e or Jᵀ e is zero: they have no angle")
    return Symmetry(
        relative_skew, interval, float(confidence), norm, cosine, 0 if exact else int(probes), "; ".join(undefined) or None
    )


def _ratio_of_norms(skew: np.ndarray, symmetric: np.ndarray, confidence: float | None) -> tuple[float, tuple[float, float]]:
    """√(Σ skew / Σ symmetric) and its interval (None: it is exact), by the delta method for log(Σ skew / Σ symmetric)."""
    if symmetric.sum() == 0:
        return math.inf, (math.inf, math.inf)
    ratio = skew.sum() / symmetric.sum()
    value = math.sqrt(ratio)
    if confidence is None or ratio == 0:
        return value, (value, value)
    n = len(skew)
    relative = skew / skew.mean() - symmetric / symmetric.mean()  # to first order, each probe's share of the logarithm
    deviation = student_t.ppf((1 + confidence) / 2, n - 1) * relative.std(ddof=1) / math.sqrt(n)
    return value, (value * math.exp(-deviation / 2), value * math.exp(deviation / 2))


def cosine_of(a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> float:
    """Of the angle between two vectors (D,); NaN if one is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size > 0 else math.nan


def _direction(e: Tensor | np.ndarray, D: int, dtype: np.dtype) -> np.ndarray:
    if not isinstance(e, Tensor | np.ndarray):
        raise TypeError(f"e is {e!r}; expected an image (1, C, H, W) or a vector ({D},)")
    if isinstance(e, Tensor):
        refuse_meta("e", e)
    vector = np.asarray(e.detach().cpu() if isinstance(e, Tensor) else e)
    if vector.size != D:
        raise ValueError(f"e has shape {tuple(e.shape)}; expected {D} entries, as many as x_t has")
    if not np.isfinite(vector).all():
        raise ValueError("e has NaN or infinite values; expected finite ones")
    if not vector.any():
        raise ValueError("e is zero: J e and Jᵀ e are zero, and have no angle; expected a direction")
    return vector.reshape(D).astype(dtype)


def as_operator(J: AnyJacobian) -> LinearOperator:
    """J as a square SciPy operator, whatever it came as."""
    if isinstance(J, tuple) and len(J) == 3:
        return JacobianOperator(*J)
    if isinstance(J, np.ndarray):
        if not np.issubdtype(J.dtype, np.floating):
            raise TypeError(f"J is a matrix of {J.dtype}; expected a floating-point one")
        if not np.isfinite(J).all():
            raise ValueError("J has NaN or infinite entries; expected finite ones")
    elif not isinstance(J, LinearOperator):
        raise TypeError(f"J is a {type(J).__name__}; expected a matrix, a JacobianOperator, or (denoiser, x_t, t)")
    if len(J.shape) != 2 or J.shape[0] != J.shape[1]:
        raise ValueError(f"J has shape {J.shape}; expected a square one, (D, D)")
    return aslinearoperator(J)


def is_matrix(J: LinearOperator) -> bool:
    """Whether `as_operator` made it from a matrix, which is then its attribute A."""
    return isinstance(getattr(J, "A", None), np.ndarray)
