"""The inner loop alone: how the error falls, or does not, for three step sizes and for the rule of Algorithm 1.

Above, x̂_0 is exact and affine (one Gaussian with the digits' covariance): J is symmetric, and the error along an
eigenvector changes by 1 − λμ² at each step. Below, the trained network at the same timestep. Its J is not normal, so the
first steps may lie above the dashed line max |1 − λμ²|; its x̂_0 is not affine, so that growth ends where x̂_0 can move no
further.

The last row is one step of the trained network at other timesteps, over λ: the forcing terms ‖e − λ J d‖/‖e‖ of the masked
error for d = J e and Jᵀ e, and where Algorithm 1's step sizes lie.
"""

import time
from pathlib import Path

import numpy as np
import options
import torch
from options import DEFAULT, Options
from scipy.sparse.linalg import eigs

import fcs_lab
from fcs_lab.plots import Figure
from fcs_lab.probes import ForcingBound, JacobianOperator, forcing_bound, measure_convergence, measure_forcing_term
from fcs_lab.probes.fd_error import in_precision

MODEL, SEED, DIGIT, STEPS = "mnist", 0, 3, 15
T = 500
FACTORS = (0.5, 1.5, 3.0)  # |1 − λ μ_max²|
STEP_SIZE = (0.5, 0.1)  # Algorithm 1's λ, first and last
FORCING_T = (900, 700, 300, 100)
ALGORITHM_1 = rf"Algorithm 1, $\lambda_k={STEP_SIZE[0]:g}$ and ${STEP_SIZE[1]:g}$"
BOX = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1}
ROUNDING = 0.1  # relative, of curves that fall by orders of magnitude
SMALL = 0.05  # ‖e‖_∞ of the directions, so that their first steps are those of the linear iteration
SHARES = {
    r"eigenvector of $\mu_{max}$": 1.0,
    r"of $0.7\,\mu_{max}$": 0.7,
    r"of $0.3\,\mu_{max}$": 0.3,
    r"null direction, $\mu=0$": 0.0,
}


def main(output: Path, asked: Options = DEFAULT) -> None:
    what = "the exact denoiser and the dense J are of the bundled digits, on the CPU"
    asked.refuse(what, "model", "images", "prompt", "device", "dtype")
    start, seed = time.perf_counter(), asked.seed_or(SEED)
    model = fcs_lab.load(MODEL, device="cpu")
    digits, _ = fcs_lab.load_digits(256)
    noise = torch.randn(digits[:1].shape, generator=torch.Generator().manual_seed(seed))
    x_t = model.scheduler.add_noise(digits[DIGIT : DIGIT + 1], noise, torch.tensor([T]))
    rows = {
        "symmetric J: the exact denoiser\nof one Gaussian": symmetric(digits, model, x_t),
        "trained J": trained(model, x_t, digits[DIGIT : DIGIT + 1]),
    }
    terms = {str(t): forcing(model, digits[DIGIT : DIGIT + 1], noise, t) for t in FORCING_T}
    settings = {
        "t": T,
        "forcing_t": FORCING_T,
        "digit": DIGIT,
        "steps": STEPS,
        "factors": FACTORS,
        "step_size": STEP_SIZE,
        "small": SMALL,
    }
    timings = {"seconds": round(time.perf_counter() - start, 1)}
    # Once Algorithm 1's steps overshoot the exact denoiser's error, rounding decides where they point.
    exact, trained_J = rows.items()
    kept = {"curves": {rule: curves for rule, curves in exact[1]["curves"].items() if rule != "Algorithm 1"}}
    numbers = {exact[0]: exact[1] | kept, trained_J[0]: trained_J[1], "forcing": terms}
    chaotic = {exact[0]: {"Algorithm 1": exact[1]["curves"]["Algorithm 1"]}}
    asked.save(draw(rows, terms), output / "fig06_convergence", model=MODEL, seed=seed, settings=settings,
               numbers=numbers, chaotic=chaotic, timings=timings, tolerance=ROUNDING)  # fmt: skip


def symmetric(digits: torch.Tensor, model: fcs_lab.Denoiser, x_t: torch.Tensor) -> dict:
    """Convergence along four eigenvectors of a symmetric J."""
    x_t, flat = x_t.double(), digits.double().flatten(1)
    mean, covariance = flat.mean(0).reshape(x_t.shape), flat.T.cov()[None]
    denoiser = fcs_lab.GaussianMixtureDenoiser(mean, covariance, scheduler=model.scheduler)
    J = denoiser.jacobian(x_t, T)[0].numpy()
    mu, vectors = np.linalg.eigh(J)
    directions = {}
    for name, share in SHARES.items():
        v = vectors[:, np.abs(mu / mu[-1] - share).argmin()]
        directions[name] = dict.fromkeys([*FACTORS, None], image(v, x_t))
    return converge(denoiser, x_t, forcing_bound(J, step_sizes(mu[-1])), directions)


def trained(model: fcs_lab.Denoiser, x_t: torch.Tensor, truth: torch.Tensor) -> dict:
    """Convergence of the trained network along J's leading eigenvector, the worst direction, and a task's error."""
    # In float64, or the condition of the eigenvectors would be rounding.
    J = JacobianOperator(in_precision(model, torch.float64), x_t.double(), T).dense()
    values, vectors = eigs(J, k=1, v0=np.ones(len(J)))
    bound = forcing_bound(J, step_sizes(abs(values[0])))
    masked = masked_error(model, x_t, T, truth)
    worst = [image(e, x_t) for e in bound.worst]
    directions = {
        r"$J$'s leading eigenvector": dict.fromkeys([*FACTORS, None], image(vectors[:, 0].real, x_t)),
        r"the worst: $e$ of greatest $\|(I-\lambda J^2)e\|$": dict(zip([*FACTORS, None], [*worst, worst[-1]], strict=True)),
        "the masked error of a digit": dict.fromkeys([*FACTORS, None], masked / masked.abs().max()),
    }
    return converge(model, x_t, bound, directions)


def masked_error(model: fcs_lab.Denoiser, x_t: torch.Tensor, t: int, truth: torch.Tensor) -> torch.Tensor:
    """e of the digit whose right half is hidden."""
    known = torch.ones_like(truth)
    known[..., truth.shape[-1] // 2 :] = 0
    with torch.no_grad():
        return known * (truth - model(x_t, t))


def forcing(model: fcs_lab.Denoiser, truth: torch.Tensor, noise: torch.Tensor, t: int) -> dict:
    """The forcing terms of one step at timestep t, over λ in units of 2/μ_max²."""
    x_t = model.scheduler.add_noise(truth, noise, torch.tensor([t]))
    e = masked_error(model, x_t, t, truth)
    J = JacobianOperator(model, x_t, t, method="fd")
    mu_max = abs(eigs(J, k=1, tol=1e-3, v0=np.ones(J.shape[0]), return_eigenvectors=False)[0])
    limit, units = 2 / mu_max**2, np.geomspace(0.03, 5, 40)
    found = measure_forcing_term(model, x_t, t, e, step_sizes=[*(units * limit), 1.0], max_iterations=20)
    return {
        "mu_max": float(f"{mu_max:.6g}"),
        "step_size / (2 / mu_max^2)": _rounded(units),
        "newton": _rounded(found.forcing["newton"][:-1]),
        "gradient": _rounded(found.forcing["gradient"][:-1]),
        "exact, step size 1": float(f"{found.forcing['exact'][-1]:.6g}"),
        "bound": _rounded(np.maximum(1, np.abs(1 - 2 * units))),
        "Algorithm 1": _rounded(np.array([found.of_algorithm_1("newton", size) for size in STEP_SIZE]) / limit),
    }


def step_sizes(mu_max: float) -> list[float]:
    """The λ for each of |1 − λ μ_max²|."""
    return [(1 - factor if factor < 1 else 1 + factor) / mu_max**2 for factor in FACTORS]


def image(v: np.ndarray, x_t: torch.Tensor) -> torch.Tensor:
    """A vector as an image of largest entry 1; SciPy's and LAPACK's vectors come with either sign."""
    v = v / v[np.abs(v).argmax()]
    return torch.from_numpy(v).to(x_t).reshape(x_t.shape)


def converge(model: fcs_lab.Denoiser, x_t: torch.Tensor, bound: ForcingBound, directions: dict) -> dict:
    """‖e_k‖/‖e_0‖ of each direction, for each fixed λ and for Algorithm 1's rule, with what binds it."""
    with torch.no_grad():
        x0 = model(x_t, T)
    curves = {}
    for i, factor in enumerate([*FACTORS, None]):
        if factor is None:
            steps, size = {"step_size": np.linspace(*STEP_SIZE, STEPS), "rule": "infinity"}, 1.0
        else:
            steps, size = {"step_size": float(bound.step_sizes[i]), "rule": "fixed"}, SMALL
        curves["Algorithm 1" if factor is None else f"{factor:g}"] = {}
        for name, e in directions.items():
            task = fcs_lab.LinearConstraint(lambda x: x, lambda y: y, x0 + size * e[factor])
            found = measure_convergence(model, x_t, T, task, steps=STEPS, **steps)
            curves["Algorithm 1" if factor is None else f"{factor:g}"][name] = _rounded(
                found.error_norm / found.error_norm[0]
            )
    return {
        "step_size": _rounded(bound.step_sizes),
        "bound max|1 - step_size mu^2|": _rounded(bound.bound),
        "norm of I - step_size J^2": _rounded(bound.norm),
        "mu_max": abs(bound.eigenvalues[0]),
        "condition of the eigenvectors": float(f"{bound.condition:.3g}"),
        "curves": curves,
    }


def draw(rows: dict, terms: dict) -> Figure:
    figure = Figure(figsize=(12, 9.4), layout="constrained")
    axes = figure.subplots(len(rows) + 1, len(FACTORS) + 1, sharex="row", sharey="row")
    k = np.arange(STEPS + 1)
    for r, (label, row) in enumerate(rows.items()):
        for c, curves in enumerate(row["curves"].values()):
            panel = axes[r, c]
            for i, (name, curve) in enumerate(curves.items()):
                panel.plot(k, curve, f"C{i + 4 * r}", marker=".", lw=1.3, label=name)
            panel.set(yscale="log", ylim=((1e-4, 1e5), (3e-3, 3e3))[r])
            panel.grid(alpha=0.3)
            if c < len(FACTORS):
                bound, norm = (row[name][c] for name in ("bound max|1 - step_size mu^2|", "norm of I - step_size J^2"))
                panel.plot(k, bound**k, "k--", lw=1, label=r"$\max\,|1-\lambda\mu^2|^k$")
                text = rf"$\max|1-\lambda\mu^2|={bound:.2f}$" + "\n" + rf"$\|I-\lambda J^2\|_2={norm:.2f}$"
                panel.text(0.04, 0.96, text, transform=panel.transAxes, fontsize=9, va="top", bbox=BOX)
            if r == 0 and c < len(FACTORS):
                factor = FACTORS[c]
                times = f"{1 - factor if factor < 1 else 1 + factor:g}"
                panel.set_title(rf"$|1-\lambda\mu_{{max}}^2|={factor:g}$:  $\lambda={times}/\mu_{{max}}^2$", fontsize=10)
            elif r == 0:
                first, last = STEP_SIZE
                panel.set_title(rf"Algorithm 1: $\lambda_k={first:g}$ … ${last:g}$", fontsize=10)
        for panel in axes[r]:
            panel.set_xlabel("step k")
        axes[r, 0].set_ylabel(f"{label}\n" + r"$\|e_k\| \, / \, \|e_0\|$", fontsize=10)
        handles, labels = axes[r, 0].get_legend_handles_labels()
        axes[r, -1].legend(handles, labels, fontsize=8, loc="upper left")
    for c, (t, term) in enumerate(terms.items()):
        panel, λ = axes[-1, c], term["step_size / (2 / mu_max^2)"]
        panel.plot(λ, term["newton"], "C8", lw=1.5, label="newton, $d=Je$")
        panel.plot(λ, term["gradient"], "C9", lw=1.5, label="gradient, $d=J^Te$")
        panel.axhline(term["exact, step size 1"], color="0.5", ls=":", label="exact, $J^{-1}e$, regularised")
        panel.plot(λ, term["bound"], "k--", lw=1, label=r"$\max\,|1-\lambda\mu^2|$")
        taken = np.array(term["Algorithm 1"])
        panel.plot(taken, np.interp(taken, λ, term["newton"]), "ko", ms=6, mfc="none", label=ALGORITHM_1)
        panel.set(xscale="log", ylim=(0, 3.2), title=f"$t={t}$", xlabel=r"$\lambda \, / \, (2/\mu_{max}^2)$")
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
    axes[-1, 0].set_ylabel("trained J, one step\n" + r"$\|e-\lambda Jd\| \, / \, \|e\|$", fontsize=10)
    axes[-1, -1].legend(fontsize=7, loc="upper left")
    return figure


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


if __name__ == "__main__":
    main(*options.parse(__doc__))
