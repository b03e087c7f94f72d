"""A whole run with λ fixed against Algorithm 1's rule: the error ‖e‖ before and after the inner steps of each timestep.

Fixed means x_t ← x_t + λ d with d = J e and λ = 0.5, 1.5 and 3 over μ_max², where μ_max is J's largest eigenvalue magnitude,
by Arnoldi, at every timestep of that run, where its inner steps begin. For a symmetric J and an affine x̂_0 a step multiplies
the error along μ_max's eigenvector by 1 − λμ_max², so by 0.5, −0.5 and −2: the last one would grow, as far as the error of a
task lies along it. Algorithm 1 moves by λ_k d/‖d‖_∞. A timestep is said to diverge where its inner steps leave more error
than there was before them.
"""

import time
from collections.abc import Generator
from pathlib import Path

import numpy as np
import options
import torch
from options import DEFAULT, Options
from scipy.sparse.linalg import eigs
from torch import Tensor

import fcs_lab
from fcs_lab.algorithm import Method, algorithm_1
from fcs_lab.directions import FD_STEP, Question, newton
from fcs_lab.plots import Figure
from fcs_lab.probes import JacobianOperator
from fcs_lab.sampler import drive
from fcs_lab.trace import Watch

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 2, 20, 5
FACTORS = (0.5, 1.5, 3.0)  # λ μ_max²
STEP_SIZE = (0.5, 0.1)  # λ_1 and λ_K of Algorithm 1
RULE = "Algorithm 1"


def main(output: Path, asked: Options = DEFAULT) -> None:
    start = time.perf_counter()
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    truth = asked.pictures(model, DIGITS)
    numbers = {f"{factor:g} / mu_max^2": [] for factor in FACTORS} | {RULE: []}
    for i in range(len(truth)):
        task = fcs_lab.Inpainting(truth[i : i + 1], options.right_half(model))
        for factor, name in zip((*FACTORS, None), numbers, strict=True):
            found = run(model, task, factor, seed + i)
            numbers[name].append(found)
            over = found["diverges at t"]
            print(f"image {i}, λ = {name}: " + (f"diverges at {len(over)} of {len(found['t'])} timesteps, t = "
                  + ", ".join(map(str, over)) if over else "diverges nowhere")
                  + f"; ‖e‖ {found['before'][0]:.3g} → {found['after'][-1]:.3g}"
                  + (f"; ended at t = {found['ended at t']}" if found["ended at t"] is not None else ""))  # fmt: skip
    settings = {"images": len(truth), "num_inference_steps": STEPS, "inner_steps": INNER, "step_size": STEP_SIZE,
                "factors": FACTORS, "mask": "right half"}  # fmt: skip
    asked.save(draw(numbers), output / "fig14_convergence_run", model=MODEL, seed=seed, settings=settings, numbers=numbers,
               timings={"seconds": round(time.perf_counter() - start, 1)})  # fmt: skip


def run(model: fcs_lab.Denoiser, task: fcs_lab.Inpainting, factor: float | None, seed: int) -> dict:
    """The errors of one run; a factor of None is Algorithm 1's rule."""
    mu, before, trace, ended = {}, {}, [], None

    def along(x: Tensor, t: float, x0: Tensor, e: Tensor) -> Generator[Question, Tensor, Tensor]:
        if t not in mu:  # the first inner step of this timestep
            mu[t], before[t] = largest_eigenvalue(model, x, t), e.norm().item()
        return newton(x, t, x0, e, fd_step=FD_STEP[model.dtype])

    def fixed(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            x0 = yield x, t
            for _ in range(INNER):
                d = yield from along(x, t, x0, watch.error(x0))
                x = x + factor / mu[t] ** 2 * d
                x0 = yield x, t
            x = watch.step(i, x, x0)
        return x

    def method(x: Tensor, watch: Watch) -> Method:
        nonlocal trace
        trace = watch.trace
        if factor is not None:
            return fixed(x, watch)
        timesteps = watch.schedule.timesteps
        watch.along, watch.λ = along, [list(np.linspace(*STEP_SIZE, INNER)) for _ in timesteps]
        return algorithm_1(x, timesteps, watch.λ, watch.error, watch.direction, watch.step)

    try:
        drive(model, task, method, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(seed), progress=False)
    except (FloatingPointError, ValueError) as error:
        print(error)
        ended = trace[-1].t
    after = {entry.t: entry.error_norm.item() for entry in trace}  # the last of each timestep: after its inner steps
    return {
        "t": list(before),
        "mu_max": list(mu.values()),
        "before": list(before.values()),
        "after": list(after.values()),
        "diverges at t": [t for t in after if after[t] > before[t]],
        "ended at t": ended,
    }


def largest_eigenvalue(model: fcs_lab.Denoiser, x: Tensor, t: float) -> float:
    """μ_max of J at (x, t), by Arnoldi."""
    J = JacobianOperator(model, x, t, method="fd")
    return float(abs(eigs(J, k=1, ncv=12, tol=1e-2, v0=np.ones(J.shape[0]), return_eigenvectors=False)[0]))


def draw(numbers: dict[str, list[dict]]) -> Figure:
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    errors, radii = figure.subplots(2, len(numbers), sharex=True, sharey="row", height_ratios=(3, 2))
    for c, (name, runs) in enumerate(numbers.items()):
        for i, found in enumerate(runs):
            t, after = np.array(found["t"]), np.array(found["after"])
            errors[c].plot(t, found["before"], f"C{i}", lw=1, ls=":")
            errors[c].plot(t[: len(after)], after, f"C{i}", lw=1.3)
            over = np.isin(t[: len(after)], found["diverges at t"])
            errors[c].plot(t[: len(after)][over], after[over], "x", color="k", ms=5)
            radii[c].plot(t[: len(found["mu_max"])], found["mu_max"], f"C{i}", lw=1.3)
        count = sum(len(found["diverges at t"]) for found in runs)
        title = name if name == RULE else rf"$\lambda={name.split()[0]}/\mu_{{max}}^2$"
        errors[c].set_title(
            f"{title}\ndiverges at {count} of {sum(len(found['t']) for found in runs)} timesteps", fontsize=10
        )
        radii[c].set_xlabel("timestep t")
    errors[0].set(yscale="log", ylabel=r"error $\|e\|_2$ of the given half")
    radii[0].set(yscale="log", ylabel=r"$\mu_{max}$ of J")
    radii[0].invert_xaxis()
    errors[-1].plot([], [], "k:", lw=1, label="before the inner steps")
    errors[-1].plot([], [], "k", lw=1.3, label="after")
    errors[-1].plot([], [], "kx", ls="none", ms=5, label="it grew")
    errors[-1].legend(fontsize=8, loc="lower left")
    for axes in (*errors, *radii):
        axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
