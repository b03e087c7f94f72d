"""What is drawn from a posterior that is known exactly: does a method give each completion as often as it should?

The prior is a set of digits of which several share their left half, one, two, three and six times over; the model is its
exact denoiser. Given that half the posterior is known: 1/12, 2/12, 3/12 and 6/12. Above, the four completions; below, how
often each method drew each of them, with the standard error over the known halves, and the shares of as many exact draws.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.failures import SHORT, completed_modes, shared_half
from fcs_lab.plots import Figure, show

SEED, KNOWN, DRAWS, COUNTS = 0, 4, 32, (1, 2, 3, 6)
METHODS = {
    "e": {"method": "identity", **SHORT},
    "J e": {"method": "newton", **SHORT},
    "Jᵀ e": {"method": "gradient", **SHORT},
    "fast": {"method": "fast"},
    "RePaint": {"method": "repaint"},
    "DDNM": {"method": "ddnm"},
}


def main(output: Path, asked: Options = DEFAULT) -> None:
    asked.refuse("the prior is of the bundled digits", "model", "images", "prompt", "dtype")
    start, seed = time.perf_counter(), asked.seed_or(SEED)
    digits = fcs_lab.load_digits()[0]
    posteriors = [shared_half(digits[k * len(COUNTS) :], COUNTS) for k in range(KNOWN)]
    shares = {
        name: torch.stack([
            completed_modes(posterior, DRAWS, seed=seed + 1000 * k, **settings)[0] / DRAWS
            for k, posterior in enumerate(posteriors)
        ])
        for name, settings in METHODS.items()
    }  # fmt: skip
    exact = posteriors[0].probabilities
    error = {"the posterior": exact.tolist()} | {name: found.mean(0).tolist() for name, found in shares.items()}
    settings = {"known halves": KNOWN, "draws": DRAWS, "counts": COUNTS} | SHORT
    asked.save(draw(posteriors, shares), output / "fig20_diversity", model="mnist", seed=seed, settings=settings,
               numbers={"shares": error}, timings={"seconds": round(time.perf_counter() - start, 1)})  # fmt: skip


def draw(posteriors: list, shares: dict[str, torch.Tensor]) -> Figure:
    M = len(COUNTS)
    figure = Figure(figsize=(8.6, 3.9))
    top = figure.add_gridspec(
        1, M * len(posteriors) + len(posteriors) - 1, left=0.07, right=0.99, top=0.95, bottom=0.76, wspace=0.08
    )
    for k, posterior in enumerate(posteriors):
        for m in range(M):
            axes = figure.add_subplot(top[0, k * (M + 1) + m])
            show(axes, posterior.modes[m])
            axes.set_title(f"{COUNTS[m]}/{sum(COUNTS)}", fontsize=8, pad=2)
    axes = figure.add_axes((0.07, 0.09, 0.92, 0.62))
    colours = ("#56b4e9", "#0072b2", "#e69f00", "#d55e00")
    rows = {"the posterior": posteriors[0].probabilities[None]} | shares
    for m in range(M):
        at = [place + (m - (M - 1) / 2) * 0.2 for place in range(len(rows))]
        means = [found[:, m].mean().item() for found in rows.values()]
        bars = [found[:, m].std().item() / len(found) ** 0.5 if len(found) > 1 else 0.0 for found in rows.values()]
        axes.bar(at, means, 0.18, yerr=bars, color=colours[m], error_kw={"lw": 1}, label=f"{COUNTS[m]}/{sum(COUNTS)}")
        axes.axhline(COUNTS[m] / sum(COUNTS), color=colours[m], lw=0.6, ls=":", zorder=0)
    axes.set_xticks(range(len(rows)), list(rows), fontsize=9)
    axes.set(ylabel="share of the draws", ylim=(0, 1.05), xlim=(-0.5, len(rows) - 0.5))
    axes.legend(title="the posterior's share", fontsize=8, title_fontsize=8, ncols=2, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
