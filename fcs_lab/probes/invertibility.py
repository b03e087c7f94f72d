"""Is x̂_0(·, t) locally invertible at x_t? What Newton's J⁻¹ e assumes (paper, the step from Jᵀ e to J e), put to the test.

The ball test solves x̂_0(x_t + δ) = x̂_0(x_t) + r g for growing radii r and unit directions g, by Newton's method whose
linear systems SciPy's GMRES solves with finite differences: forward evaluations only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from scipy.sparse import eye_array
from scipy.sparse.linalg import aslinearoperator, gmres
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.checks import check_count, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import CountedDenoiser
from fcs_lab.probes.jacobian import JacobianOperator, check_direction, check_point, check_vector
from fcs_lab.probes.linear_reach import LinearReach, measure_linear_reach

__all__ = [
    "Invertibility",
    "Reach",
    "Solve",
    "find_displacement",
    "measure_invertibility",
]

RADII = tuple(4.0**k for k in range(-5, 3))
"""Radii r of the ball test, in ‖·‖_2 of x̂_0: a pixel from black to white is 2. Below float64 it starts at 1/16."""

# A residual of this share of r is a solution; less would drown in the rounding of x̂_0.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.1}

SMALL = 256
"""Up to this many pixels a float64 model's dense J is computed without being asked for."""

STATIONARY = 0.05
"""The `removable` share of a residual below which the solver is said to stand at its minimum."""


@dataclass(frozen=True)
class Solve:
    """One attempt at x̂_0(x_t + δ) = x̂_0(x_t) + move, from several starts; the best of them."""

    outcome: Literal["solved", "no solution", "not converged"]
    """"solved": from one start at least. "no solution": every start ended where the residual has a minimum that is not
    zero. "not converged": some start ended, out of iterations or of progress, where the residual could still fall (or
    where this cannot be told, because the denoiser is not differentiable)."""
    residual: float
    """‖x̂_0(x_t + δ) − x̂_0(x_t) − move‖ / ‖move‖."""
    removable: float
    """Share of that residual which a step of length ‖δ‖ = √D (the length of the noise) could take off, to first order:
    √D ‖Jᵀr‖/‖r‖² of the residual r. Below 0.05 ‖r‖ is at a minimum. 0 if solved, NaN if it cannot be told."""
    delta: Tensor = field(repr=False)
    """δ, (1, C, H, W)."""
    stretch: float
    """The difference quotient ‖Δx̂_0‖/‖Δx_t‖ from x_t to x_t + δ; NaN if δ = 0."""
    disagreement: float
    """Largest ‖δ_i − δ_j‖ among the starts that were solved, relative to the largest ‖δ_i‖; NaN if fewer than two were.
    Near 0: one solution. Near 1: x̂_0 does not tell apart points as far from each other as from x_t."""
    nfe: int
    """Forward evaluations."""
    n_backward: int
    """Backward passes, all of them for `removable`."""


@dataclass(frozen=True)
class Reach:
    """The ball test in one direction g."""

    radius: float
    """Largest r that was solved; 0 if none was."""
    no_solution_at: float
    """Smallest r found to have no solution; infinite if there was none. The ball ends between the two."""
    limited: bool
    """The largest r asked for was solved: `radius` is where the search ended, not where the ball does."""
    solves: dict[float, Solve] = field(repr=False)
    """Every r that was tried, in the order of the trials."""


@dataclass(frozen=True)
class Invertibility:
    """What `measure_invertibility` returns. `print` shows it as a table."""

    radius: float
    """The least of the directions' radii, in ‖·‖_2 of x̂_0. An estimate: directions that were not tried may do worse, and
    where the next r ended "not converged", a better solver might get further."""
    limited: bool
    """No direction failed up to the largest r asked for."""
    directions: dict[str, Reach]
    """The ball test in each: "e", "random 1", …, "+leading 1", "−leading 1", … and "+trailing 1", … (left singular
    vectors of J, whose sign means nothing: so both)."""
    stretch: tuple[float, float]
    """Least and greatest difference quotient ‖Δx̂_0‖/‖Δx_t‖ over all solutions; NaN without any."""
    singular_values: np.ndarray | None = field(repr=False)
    """Of J at x_t, largest first (D,); None without a dense float64 J."""
    condition_number: float | None
    """Largest over smallest singular value, infinite if that is 0 to rounding; None without a dense float64 J."""
    linear: LinearReach | None = field(repr=False)
    """Of e; None without e."""
    nfe: int
    """Forward evaluations of the ball test and of `linear`."""
    n_backward: int
    """Backward passes, to tell "no solution" from "not converged"; those of a dense J are not among them."""

    def __str__(self) -> str:
        lines = [f"{'direction':12s} {'radius':>9s} {'no solution at':>14s} {'‖δ‖':>9s} {'disagreement':>12s}  next r was"]
        for name, reach in self.directions.items():
            solve = reach.solves.get(reach.radius)
            length, disagreement = (solve.delta.norm().item(), solve.disagreement) if solve else (math.nan, math.nan)
            failed = {r: one.outcome for r, one in reach.solves.items() if one.outcome != "solved"}
            lines.append(
                f"{name:12s} {reach.radius:9.4g} {reach.no_solution_at:14.4g} {length:9.4g} {disagreement:12.1e}  "
                + (f"{failed[min(failed)]} (r = {min(failed):.4g})" if failed else "not tried: the search limit")
            )
        if self.condition_number is not None:
            lines.append(f"condition number of J {self.condition_number:.3g}, smallest σ {self.singular_values[-1]:.3g}")
        lines.append(
            f"radius of the ball {'≥' if self.limited else '≈'} {self.radius:.4g}; "
            f"‖Δx̂_0‖/‖Δx_t‖ from {self.stretch[0]:.3g} to {self.stretch[1]:.3g}"
        )
        return "\n".join(lines)


@ordinary()
@typed
def measure_invertibility(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    e: Tensor | None = None,
    *,
    J: np.ndarray | None = None,
    n_random: int = 2,
    n_singular: int = 1,
    radii: Sequence[float] | None = None,
    bisections: int = 4,
    starts: int = 2,
    tolerance: float | None = None,
    max_iterations: int = 20,
    max_krylov: int = 40,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Invertibility:
    """On how large a ball around x̂_0(x_t) can x̂_0(·, t) be inverted?

    In each direction g the radius r grows until x̂_0(x_t + δ) = x̂_0(x_t) + r g is not solved any more, each solution being
    the start of the next; then the last step is bisected. See `find_displacement` for a single solve.

    Args:
        denoiser: The model; in float64, if small radii are to be told from rounding.
        x_t: The point (1, C, H, W).
        t: The timestep.
        e: The task's error direction (1, C, H, W), of any length.
        J: The dense Jacobian there, (D, D) in float64, from `JacobianOperator(denoiser, x_t, t).dense()`: gives singular
            values and the directions that belong to them, and preconditions the solves. None: computed, if the model is
            in float64 and has at most 256 pixels; else done without.
        n_random: How many random directions.
        n_singular: How many leading, and as many trailing, left singular vectors of J, each in both signs.
        radii: r to try, increasing; the last one is the search limit. None: 4⁻⁵ to 16 by factors of 4, in float64; from
            1/16, in lower precision.
        bisections: Halvings (in log r) of the interval between the last r that was solved and the next.
        starts: Starts of each solve; two or more tell whether the solution is the only one.
        tolerance, max_iterations, max_krylov: Of each solve; see `find_displacement`.
        generator: Draws random directions and starts. None: a fresh one with seed 0.
        progress: Show a progress bar over the directions.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> found = fcs_lab.probes.measure_invertibility(model, x_t, t, e, radii=[0.1, 1.0], progress=False)
        >>> found.radius, found.limited  # x̂_0 is affine: the search ends, not the ball
        (1.0, True)
    """
    x_t = check_point(denoiser, x_t, t)
    if radii is None:
        radii = [r for r in RADII if denoiser.dtype == torch.float64 or r >= 1 / 16]
    radii = [float(r) for r in radii]
    if not radii or not all(0 < a < b < math.inf for a, b in zip([radii[0] / 2, *radii], radii, strict=False)):
        raise ValueError(f"radii is {radii!r}; expected positive, increasing numbers")
    for name, count in (("n_random", n_random), ("n_singular", n_singular), ("bisections", bisections)):
        check_count(name, count, 0, 10_000)
    _check_solver(starts, tolerance, max_iterations, max_krylov)
    if e is not None:
        e = check_direction("e", e, x_t)
    D = x_t.numel()
    if J is not None and (not isinstance(J, np.ndarray) or J.shape != (D, D) or J.dtype != np.float64):
        found = f"an array of shape {J.shape}, {J.dtype}" if isinstance(J, np.ndarray) else repr(J)
        raise ValueError(f"J is {found}; expected the dense Jacobian ({D}, {D}) in float64")
    if J is None and denoiser.dtype == torch.float64 and D <= SMALL:
        differentiable = denoiser(x_t.clone().requires_grad_(), t).requires_grad
        J = JacobianOperator(denoiser, x_t, t, "jvp" if differentiable else "fd").dense(progress=False)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    # Unit directions g.
    units = {} if e is None else {"e": e}
    units |= {
        f"random {i + 1}": torch.randn(x_t.shape, generator=generator, dtype=torch.float32).to(x_t) for i in range(n_random)
    }
    inverse = singular_values = condition = None
    if J is not None:
        singular_values, condition, inverse, singular = _decompose(J, n_singular)
        units |= {name: _image(g, x_t) for name, g in singular.items()}

    solver = {"starts": starts, "tolerance": tolerance, "max_iterations": max_iterations, "max_krylov": max_krylov}

    def reach(g: Tensor) -> Reach:
        def solve(r: float, guess: Tensor | None) -> Solve:
            return find_displacement(denoiser, x_t, t, r * g, guess=guess, inverse=inverse, generator=generator, **solver)

        return _grow(solve, radii, bisections)

    bar = tqdm(units.items(), desc="ball test", disable=not progress)
    directions = {name: reach(g / g.norm()) for name, g in bar}
    linear = None if e is None else measure_linear_reach(denoiser, x_t, t, e)
    solves = [solve for one in directions.values() for solve in one.solves.values()]
    stretches = [solve.stretch for solve in solves if solve.outcome == "solved"]
    return Invertibility(
        radius=min((one.radius for one in directions.values()), default=math.nan),
        limited=all(one.limited for one in directions.values()),
        directions=directions,
        stretch=(min(stretches, default=math.nan), max(stretches, default=math.nan)),
        singular_values=singular_values,
        condition_number=None if condition is None else float(condition),
        linear=linear,
        nfe=sum(solve.nfe for solve in solves) + (0 if linear is None else linear.nfe),
        n_backward=sum(solve.n_backward for solve in solves),
    )


def _decompose(J: np.ndarray, n_singular: int) -> tuple[np.ndarray, float, np.ndarray, dict[str, np.ndarray]]:
    """J's singular values, its condition number, its pseudo-inverse, and its leading and trailing left singular vectors."""
    U, singular_values, Vt = np.linalg.svd(J)
    rounding = singular_values[0] * len(J) * np.finfo(J.dtype).eps
    condition = singular_values[0] / singular_values[-1] if singular_values[-1] > rounding else math.inf
    kept = singular_values > rounding
    inverse = (Vt[kept].T / singular_values[kept]) @ U[:, kept].T
    vectors = {}
    for name, columns in (("leading", range(len(J))), ("trailing", range(len(J) - 1, -1, -1))):
        for i, column in enumerate(columns[:n_singular]):
            vectors |= {f"+{name} {i + 1}": U[:, column], f"−{name} {i + 1}": -U[:, column]}
    return singular_values, condition, inverse, vectors


def _grow(solve: Callable[[float, Tensor | None], Solve], radii: list[float], bisections: int) -> Reach:
    """How far a direction can be followed: the radius grows until a solve fails, then the last step is bisected."""
    solves: dict[float, Solve] = {}

    def solved(r: float, below: float) -> bool:
        solves[r] = solve(r, solves[below].delta * (r / below) if below else None)
        return solves[r].outcome == "solved"

    low, high = 0.0, math.inf
    for r in radii:
        if not solved(r, low):
            high = r
            break
        low = r
    for _ in range(bisections if low and high < math.inf else 0):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if solved(middle, low) else (low, middle)
    without = [r for r, one in solves.items() if one.outcome == "no solution"]
    return Reach(low, min(without, default=math.inf), high == math.inf, solves)


@ordinary()
@typed
def find_displacement(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    move: Tensor,
    *,
    guess: Tensor | None = None,
    inverse: np.ndarray | None = None,
    starts: int = 2,
    tolerance: float | None = None,
    max_iterations: int = 20,
    max_krylov: int = 40,
    generator: torch.Generator | None = None,
) -> Solve:
    """δ with x̂_0(x_t + δ) = x̂_0(x_t) + move, by an inexact Newton method: the equation that δ = J⁻¹ e solves to first order.

    Each iteration solves J s = r for the residual r by GMRES (to a tenth; products of J by finite differences with the
    step that the dtype needs, SciPy's own would be noise in float32), and halves s until ‖r‖ falls. Where no start is
    solved, a backward pass tells a minimum of ‖r‖ (Jᵀr = 0, "no solution") from a solver that gave up ("not converged").
    That is evidence from where the starts led, not a proof.

    Args:
        denoiser: The model.
        x_t: The point (1, C, H, W).
        t: The timestep.
        move: How x̂_0 is to change (1, C, H, W); not zero.
        guess: Where the first start begins, as a δ; None: 0. The others begin at random displacements from it, as long as
            it (as `move`, if it is 0).
        inverse: An approximate J⁻¹ (D, D), which preconditions GMRES; None: none.
        starts: How many starts.
        tolerance: A residual of this share of ‖move‖_2 is a solution. None: 0.001 in float64, 0.01 in float32, 0.1 below.
        max_iterations: Newton iterations of a start.
        max_krylov: Krylov vectors, that is evaluations, of an iteration.
        generator: Draws the starts. None: a fresh one with seed 0.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> found = fcs_lab.probes.find_displacement(model, x_t, t, 0.1 * e)
        >>> found.outcome, bool(found.residual < 1e-4)
        ('solved', True)
    """
    x_t = check_point(denoiser, x_t, t)
    move = check_direction("move", move, x_t)
    guess = torch.zeros_like(x_t) if guess is None else check_vector("guess", guess, x_t)
    D = x_t.numel()
    if inverse is not None and np.shape(inverse) != (D, D):
        raise ValueError(f"inverse has shape {np.shape(inverse)}; expected ({D}, {D})")
    _check_solver(starts, tolerance, max_iterations, max_krylov)
    generator = torch.Generator().manual_seed(0) if generator is None else generator

    accepted = (TOLERANCE[denoiser.dtype] if tolerance is None else tolerance) * move.norm().item()
    f = CountedDenoiser(denoiser)
    with torch.no_grad():
        target = f(x_t, t) + move
    length = guess.norm() if bool(guess.any()) else move.norm()
    ends = []
    for i in range(starts):
        noise = torch.randn(x_t.shape, generator=generator, dtype=torch.float32).to(x_t)
        start = guess + (i > 0) * length * noise / noise.norm()
        ends.append(_newton_krylov(denoiser, x_t, t, target, start, inverse, accepted, max_iterations, max_krylov))
    best = min(ends, key=lambda end: end.residual if math.isfinite(end.residual) else math.inf)
    solved = [end.delta for end in ends if end.solved]
    nowhere_to_go = all(end.removable < STATIONARY for end in ends)
    outcome = "solved" if solved else "no solution" if nowhere_to_go else "not converged"
    distances = [(a - b).norm().item() for k, a in enumerate(solved) for b in solved[:k]]
    length = best.delta.norm().item()
    with torch.no_grad():
        moved = (f(x_t + best.delta, t) - target + move).norm().item()
    return Solve(
        outcome=outcome,
        residual=best.residual / move.norm().item(),
        removable=best.removable,
        delta=best.delta,
        stretch=moved / length if length else math.nan,
        disagreement=max(distances) / max(delta.norm().item() for delta in solved) if distances else math.nan,
        nfe=f.forward + sum(end.nfe for end in ends),
        n_backward=sum(end.n_backward for end in ends),
    )


@dataclass(frozen=True)
class _End:
    """Where one start of the solver ended."""

    delta: Tensor
    residual: float
    solved: bool
    removable: float
    nfe: int
    n_backward: int


def _newton_krylov(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    target: Tensor,
    delta: Tensor,
    inverse: np.ndarray | None,
    tolerance: float,
    max_iterations: int,
    max_krylov: int,
) -> _End:
    """Newton's method from one start, until ‖x̂_0(x_t + δ) − target‖ ≤ tolerance or it gets no further."""
    # What to try in turn when progress ends: far from x_t its J is no preconditioner any more, and where J is nearly
    # singular the later Krylov vectors are rounding, and huge.
    tries = [(None, max_krylov), (None, 1)]
    if inverse is not None:
        tries = [(inverse, max_krylov), (inverse, 1), *tries]
    nfe = 0
    for iteration in range(max_iterations + 1):
        J = JacobianOperator(denoiser, x_t + delta, t, method="fd")
        residual = target - J.x0
        size = residual.norm().item()
        if size <= tolerance:
            return _End(delta, size, True, 0.0, nfe + J.f.forward, 0)
        if iteration == max_iterations or not tries or not math.isfinite(size):
            break
        preconditioner, krylov = tries[0]
        M = aslinearoperator(
            eye_array(x_t.numel(), dtype=J.dtype) if preconditioner is None else preconditioner.astype(J.dtype)
        )
        # From the right, so that GMRES minimises ‖J s − r‖ itself and any progress is a way down.
        z, _ = gmres(J @ M, residual.flatten().cpu().numpy(), rtol=0.1, restart=min(krylov, x_t.numel()), maxiter=1)
        step = J.image(M @ z)
        for scale in 0.5 ** np.arange(10):
            with torch.no_grad():
                new = (target - J.f(x_t + delta + scale * step, t)).norm().item()
            if new < (1 - 1e-4 * scale) * size:  # Armijo's condition
                break
        if new < size:
            delta = delta + scale * step
        if not new < 0.995 * size:
            tries.pop(0)
        nfe += J.f.forward
    nfe += J.f.forward
    removable = math.nan
    if J.differentiable and math.isfinite(size):
        slope = np.linalg.norm((J.T @ residual.flatten().cpu().numpy()).astype(np.float64))
        removable = float(math.sqrt(x_t.numel()) * slope / size**2)
    return _End(delta, size, False, removable, nfe, J.f.backward)


def _image(v: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(v)).to(like).reshape(like.shape)


def _check_solver(starts: int, tolerance: float | None, max_iterations: int, max_krylov: int) -> None:
    for name, count in (("starts", starts), ("max_iterations", max_iterations), ("max_krylov", max_krylov)):
        check_count(name, count, 1, 10_000)
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance!r}; expected a number between 0 and 1, or None")
