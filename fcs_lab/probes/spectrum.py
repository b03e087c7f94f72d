"""The spectrum of J, of its symmetric part and of its skew part: what J does to directions, and how many it leaves."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import eigs, eigsh, svds

from fcs_lab.checks import check_count
from fcs_lab.contexts import ordinary
from fcs_lab.probes.symmetry import AnyJacobian, as_operator, is_matrix

__all__ = ["Spectrum", "measure_spectrum"]

RESTARTS = 30
"""Of Arnoldi, at most: with 30 vectors, up to about 800 products. Separate eigenvalues take one to three."""


@dataclass(frozen=True)
class Spectrum:
    """What `measure_spectrum` returns: all D values of a matrix, the k largest of an operator, largest magnitude first."""

    eigenvalues: np.ndarray
    """μ of J, complex."""
    symmetric: np.ndarray
    """Eigenvalues of (J + Jᵀ)/2, real."""
    skew: np.ndarray
    """Eigenvalue magnitudes of (J − Jᵀ)/2; the eigenvalues are imaginary and come in pairs ±iν."""
    singular_values: np.ndarray
    """σ of J."""
    effective_rank: float
    """(Σ σ²)² / Σ σ⁴, the participation ratio of the σ²: n for n equal singular values and otherwise zeros; 0 where J = 0.

    One of several numbers that go by this name. It is not the stable rank ‖J‖_F²/‖J‖_2² = Σ σ² / σ_max², which is never
    larger."""
    negative_fraction: float | None
    """The part of the D eigenvalues of (J + Jᵀ)/2 that are negative beyond the decomposition's rounding, D ε max |μ|; None
    unless J is a matrix. A matrix that was itself made by products can carry a rounding of more."""
    exact: bool
    """Whether J was taken as a matrix."""

    @property
    def radii(self) -> dict[str, float]:
        """The largest eigenvalue magnitude of "J", of its "symmetric" and of its "skew" part (the authors' figure)."""
        parts = {"J": self.eigenvalues, "symmetric": self.symmetric, "skew": self.skew}
        return {name: float(np.abs(values[0])) for name, values in parts.items()}


@ordinary()
def measure_spectrum(
    J: AnyJacobian, k: int = 6, *, vectors: int = 30, tol: float = 1e-3, probes: int = 16, seed: int = 0
) -> Spectrum:
    """The largest eigenvalues of J, (J + Jᵀ)/2 and (J − Jᵀ)/2, the largest singular values, and the effective rank.

    A matrix is decomposed. An operator is never written out: Arnoldi (SciPy's `eigs`, `eigsh`, `svds`), some `vectors`
    products or a few times as many for each of the four. Its effective rank has the k largest singular values as
    they are and the sums over the others by random probing. At D of about a thousand, `J.dense()` costs no more, and a
    matrix's spectrum is exact and complete; at D of a latent or of an RGB image, Arnoldi is the only way.

    Args:
        J: A matrix (D, D), a `JacobianOperator` or other SciPy linear operator with a transpose, or
            (denoiser, x_t, t).
        k: How many of the largest magnitudes of an operator.
        vectors: Arnoldi's basis, at least 2k + 2 (the authors take 30).
        tol: Arnoldi's relative accuracy. Products by finite differences carry rounding and allow no less than 1e-3.
        probes: Random vectors for the effective rank.
        seed: Of Arnoldi's first vector and of the probes.

    An operator with hardly more dimensions than `vectors` is taken as a matrix.

    Raises:
        TypeError: J is none of these; or J comes from a denoiser that is not differentiable, so without Jᵀ.
        ValueError: J is not square or not finite, or a number is out of range.
        scipy.sparse.linalg.ArpackNoConvergence: Arnoldi has not come to `tol`.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> J = fcs_lab.probes.JacobianOperator(model, x_t, t).dense(progress=False)
        >>> found = fcs_lab.probes.measure_spectrum(J)
        >>> found.eigenvalues.real.round(2).tolist(), found.exact
        ([0.47, 0.06], True)
    """
    check_count("k", k, 1)
    check_count("vectors", vectors, 2 * k + 2)
    check_count("probes", probes, 1)
    if not isinstance(tol, numbers.Real) or not tol > 0:
        raise ValueError(f"tol is {tol!r}; expected a positive number")
    J = as_operator(J)
    D = J.shape[0]
    if is_matrix(J):
        return _of_matrix(J.A)
    if vectors >= D:
        return _of_matrix(J @ np.eye(D, dtype=J.dtype))

    rng = np.random.default_rng(seed)
    start = rng.standard_normal(D).astype(J.dtype)
    if not (J @ start).any() and not (J.T @ start).any():  # Arnoldi cannot begin
        zeros = np.zeros(k)
        return Spectrum(zeros.astype(complex), zeros, zeros, zeros, 0.0, None, False)
    options = {"k": k, "ncv": int(vectors), "tol": tol, "v0": start, "maxiter": RESTARTS, "return_eigenvectors": False}
    eigenvalues = _largest_first(eigs(J, **options))
    symmetric = _largest_first(eigsh((J + J.T) / 2, **options))
    S = (J - J.T) / 2
    skew = np.abs(_largest_first(eigs(S, **options))) if (S @ start).any() else np.zeros(k)
    del options["return_eigenvectors"]
    _, sigma, Vt = svds(J, **options, return_singular_vectors="vh")
    # Σσ² = ‖J‖_F² and Σσ⁴ = ‖JᵀJ‖_F², by Hutchinson in the complement of the k right singular vectors that are known.
    G = rng.choice(np.array([-1, 1], J.dtype), (D, probes))
    rest = J @ (G - Vt.T @ (Vt @ G))
    rest = (rest, J.T @ rest)
    second, fourth = (
        (sigma.astype(np.float64) ** power).sum() + np.square(R, dtype=np.float64).sum() / probes
        for power, R in zip((2, 4), rest, strict=True)
    )
    return Spectrum(eigenvalues, symmetric, skew, _largest_first(sigma), float(second**2 / fourth), None, False)


def _of_matrix(J: np.ndarray) -> Spectrum:
    symmetric = np.linalg.eigvalsh((J + J.T) / 2)
    skew = np.linalg.eigvalsh((J - J.T) / 2j)  # −iS is Hermitian
    sigma = np.linalg.svd(J, compute_uv=False)
    rounding = len(J) * np.finfo(J.dtype).eps * np.abs(symmetric).max()
    second, fourth = (np.square(sigma, dtype=np.float64).sum(), np.power(sigma, 4, dtype=np.float64).sum())
    return Spectrum(
        _largest_first(np.linalg.eigvals(J).astype(complex)),
        _largest_first(symmetric),
        _largest_first(np.abs(skew)),
        sigma,
        float(second**2 / fourth) if fourth else 0.0,
        float((symmetric < -rounding).mean()),
        True,
    )


def _largest_first(values: np.ndarray) -> np.ndarray:
    return values[np.argsort(-np.abs(values), kind="stable")]
