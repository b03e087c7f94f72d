"""Local invertibility of x̂_0(·, t) over the timesteps: condition number of J, and how far the ball test gets."""

import math
from pathlib import Path

import numpy as np
import options
import torch
from options import DEFAULT, Options
from torch.nn.functional import interpolate

import fcs_lab
from fcs_lab.plots import Figure
from fcs_lab.probes import Invertibility, JacobianOperator, measure_invertibility

MODEL, SEED, DIGIT = "mnist", 0, 7
TIMESTEPS = (100, 500, 900)  # of the trained model, whose dense J is what takes the time
EXACT_TIMESTEPS = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900)
DIGITS, SMALL = 256, 8  # the exact denoiser's data: so many digits, reduced to 8×8
SOLVER = {"n_random": 1, "starts": 1, "bisections": 0, "max_iterations": 5, "max_krylov": 15}
RADII = tuple(8.0**k for k in range(-8, 2))
COLOURS = {"e": "C0", "random": "C7", "leading": "C2", "trailing": "C3"}


def main(output: Path, asked: Options = DEFAULT) -> None:
    what = "the exact denoisers and the dense J are of the bundled digits, in float64"
    asked.refuse(what, "model", "images", "prompt", "device", "dtype")
    seed = asked.seed_or(SEED)
    digits, labels = fcs_lab.load_digits(DIGITS)
    small = interpolate(digits, SMALL, mode="area").double()
    rest = torch.arange(DIGITS) != DIGIT % DIGITS  # the exact denoisers do not know the digit that they are asked about
    ideal = fcs_lab.IdealDenoiser(small[rest])
    mixture = gaussian_of_each_class(small[rest], labels[rest])
    trained = fcs_lab.load(MODEL, torch_dtype=torch.float64)
    digit = DIGIT % DIGITS
    exact = {t: ball_test(ideal, small[digit : digit + 1], t, seed) for t in EXACT_TIMESTEPS}
    network = {t: ball_test(trained, digits[digit : digit + 1].double(), t, seed) for t in TIMESTEPS}
    gaussians = {t: condition_number(mixture, small[digit : digit + 1], t, seed) for t in EXACT_TIMESTEPS}

    figure = Figure(figsize=(11.5, 3.8), layout="constrained")
    first, *others = figure.subplots(1, 3)
    first.plot(
        list(network), [one.condition_number for one in network.values()], "s-", ms=4, color="C1", label="trained network"
    )
    first.plot(list(gaussians), list(gaussians.values()), "o-", ms=4, color="C0", label="exact: a Gaussian a class")
    singular = [t for t, one in exact.items() if math.isinf(one.condition_number)]
    top = max([1e3, *gaussians.values(), *(one.condition_number for one in network.values())]) * 30
    first.plot(singular, [top] * len(singular), "^", ms=5, color="C4", label="exact: the digits (infinite)")
    first.set(xlabel="t", title="condition number of J", yscale="log")
    first.legend(fontsize=7.5, loc="lower right")
    for axes, over_t, title in zip(
        others, (network, exact), ("trained network", "exact denoiser of the digits"), strict=True
    ):
        draw_radii(axes, over_t)
        axes.set(xlabel="t", title=f"radius, {title}")
    others[0].set_ylabel(r"largest move $\|\Delta\hat x_0\|_2$ that is solved")
    others[0].legend(fontsize=7, ncols=2, loc="upper left")
    for axes in (first, *others):
        axes.grid(alpha=0.3)
        axes.set_xlim(-70, 970)

    numbers = {
        "trained network": {str(t): summary(one) for t, one in network.items()},
        "exact denoiser of the digits": {str(t): summary(one) for t, one in exact.items()},
        "exact, a Gaussian a class": {str(t): {"condition_number": value} for t, value in gaussians.items()},
    }
    both = {"trained network": network, "exact denoiser of the digits": exact}
    chaotic = {name: {str(t): undecided(one) for t, one in over_t.items()} for name, over_t in both.items()}
    timings = {f"evaluations, {name}": {str(t): one.nfe for t, one in over_t.items()} for name, over_t in both.items()}
    settings = {"digit": DIGIT, "mask": "right half", "digits": DIGITS, "radii": RADII} | SOLVER
    asked.save(figure, output / "fig08_invertibility", model=MODEL, seed=seed, settings=settings, numbers=numbers,
                chaotic=chaotic, timings=timings)  # fmt: skip


def gaussian_of_each_class(images: torch.Tensor, labels: torch.Tensor) -> fcs_lab.GaussianMixtureDenoiser:
    """A full-rank mixture: each class's mean and covariance, and a standard deviation of 0.1 more in every direction."""
    classes = [images[labels == label].flatten(1) for label in labels.unique()]
    spread = [(one - one.mean(0)).T @ (one - one.mean(0)) / len(one) for one in classes]
    means = torch.stack([one.mean(0) for one in classes]).reshape(-1, *images.shape[1:])
    return fcs_lab.GaussianMixtureDenoiser(
        means, torch.stack(spread) + 0.01 * torch.eye(images[0].numel(), dtype=images.dtype)
    )


def condition_number(denoiser: fcs_lab.Denoiser, truth: torch.Tensor, t: int, seed: int) -> float:
    return float(
        np.linalg.cond(JacobianOperator(denoiser, options.noisy(denoiser, truth, t, seed), t).dense(progress=False))
    )


def ball_test(denoiser: fcs_lab.Denoiser, truth: torch.Tensor, t: int, seed: int) -> Invertibility:
    """At a noisy version of the digit, with the error of the task "right half hidden"."""
    print(f"t = {t} …")
    mask = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    mask[:, mask.shape[-1] // 2 :] = True
    x_t = options.noisy(denoiser, truth, t, seed)
    with torch.no_grad():
        e = fcs_lab.Inpainting(truth, mask).to(x_t.device, x_t.dtype).error(denoiser(x_t, t))
    J = JacobianOperator(denoiser, x_t, t).dense(progress=False)
    return measure_invertibility(denoiser, x_t, t, e, J=J, radii=RADII, progress=False, **SOLVER)


def draw_radii(axes, over_t: dict[int, Invertibility]) -> None:
    """A line for each kind of direction (the lesser radius of the two signs); what is not solved at all lies at the foot."""
    floor = RADII[0] / 2
    for aside, (kind, colour) in enumerate(COLOURS.items()):
        reaches = {t: [r for name, r in one.directions.items() if kind in name.split()[0]] for t, one in over_t.items()}
        least = {t: min(some, key=lambda reach: reach.radius) for t, some in reaches.items()}
        aside = 10 * (aside - 1.5)  # so that marks of one timestep do not hide each other
        axes.plot(
            [t + aside for t in least],
            [max(reach.radius, floor) for reach in least.values()],
            "-",
            color=colour,
            lw=1,
            label=kind,
        )
        for t, reach in least.items():
            # Where the ball ends: full, if larger radii are known to have no solution; empty, if the solver gave up.
            marker = "^" if reach.limited else "o"
            fill = colour if reach.limited or reach.no_solution_at < math.inf else "white"
            axes.plot(t + aside, max(reach.radius, floor), marker, color=colour, mfc=fill, ms=5)
    axes.axhspan(floor / 1.5, floor * 1.5, color="0.92", zorder=0)
    axes.text(-60, floor, "none", fontsize=7, ha="left", va="center", color="0.4")
    axes.set_yscale("log")
    for label, marker, fill in (
        ("beyond: no solution", "o", "k"),
        ("beyond: not converged", "o", "white"),
        ("limit", "^", "k"),
    ):
        axes.plot([], [], marker, color="k", mfc=fill, ms=5, label=label)
    axes.set_ylim(floor / 1.5, RADII[-1] * 60)


def summary(one: Invertibility) -> dict:
    return {
        "condition_number": one.condition_number if math.isfinite(one.condition_number) else None,
        "smallest_singular_values": np.sort(one.singular_values)[:5].tolist(),
        "radius": one.radius,
        "radius_of_direction": {name: reach.radius for name, reach in one.directions.items() if "leading" not in name},
        "linear_step_size": one.linear.step_size if math.isfinite(one.linear.step_size) else None,
        "linear_moved": one.linear.moved,
    }


def undecided(one: Invertibility) -> dict:
    """How the solver fails beyond the ball, and the extremes that it met: another machine's rounding finds others.

    Of the leading singular vector it decides even which of the two signs is "+".
    """
    return {
        "radius_of_direction": {name: reach.radius for name, reach in one.directions.items() if "leading" in name},
        "outcome_beyond": {
            name: next((s.outcome for r, s in sorted(reach.solves.items()) if r > reach.radius), None)
            for name, reach in one.directions.items()
        },
        "stretch": [value if math.isfinite(value) else None for value in one.stretch],
    }


if __name__ == "__main__":
    main(*options.parse(__doc__))
