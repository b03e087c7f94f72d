"""The largest eigenvalue magnitudes of J, of its symmetric and of its skew part, over the timesteps."""

from pathlib import Path

import options
from options import DEFAULT, Options

from fcs_lab.plots import Figure
from fcs_lab.probes import JacobianOperator, measure_spectrum, measure_symmetry

MODEL, SEED, DIGIT, PROBES = "mnist", 0, 0, 32
TIMESTEPS = (900, 700, 500, 300, 100)
# The authors' figures for Stable Diffusion 1.5 (arXiv 2410.18804; Arnoldi, 30 vectors), not measured here.
AUTHORS = {
    "t": (900, 700, 500, 300),
    "J": (16.85, 8.45, 7.88, 4.98),
    "symmetric": (16.44, 8.65, 9.00, 6.52),
    "skew": (2.67, 3.35, 2.51, 1.22),
}
STYLE = {"J": ("J", "C0"), "symmetric": ("symmetric part  (J + Jᵀ)/2", "C2"), "skew": ("skew part  (J − Jᵀ)/2", "C3")}


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    image = asked.picture(model, DIGIT)
    numbers, cost = {}, {}
    for t in TIMESTEPS:
        # Differences for J v: here six times faster than forward mode, and far closer than the 1 % that is asked for.
        J = JacobianOperator(model, options.noisy(model, image, t, seed), t, "fd")
        spectrum, symmetry = measure_spectrum(J, k=2), measure_symmetry(J, probes=PROBES)
        numbers[str(t)] = {
            "largest_magnitude": spectrum.radii,
            "effective_rank": spectrum.effective_rank,
            "relative_skew": symmetry.relative_skew,
            "relative_skew_interval": symmetry.interval,
        }
        # Arnoldi's restarts depend on the machine's rounding.
        cost[str(t)] = {"evaluations": J.f.forward, "backward_passes": J.f.backward}
        print(f"t = {t}: " + ", ".join(f"{name} {radius:.2f}" for name, radius in spectrum.radii.items()))

    figure = Figure(figsize=(8.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, (label, colour) in STYLE.items():
        radii = [numbers[str(t)]["largest_magnitude"][name] for t in TIMESTEPS]
        left.plot(TIMESTEPS, radii, "o-", color=colour, label=label, ms=4)
        left.plot(AUTHORS["t"], AUTHORS[name], "x--", color=colour, alpha=0.45, ms=5)
    left.plot([], [], "x--", color="0.5", label="the authors', SD 1.5 (not measured here)")
    left.set(
        xlabel="timestep t",
        ylabel="largest |μ|",
        yscale="log",
        ylim=(None, 100),
        title=f"Eigenvalue magnitudes, {Path(asked.model or MODEL).name}",
    )
    left.legend(fontsize=7, loc="upper left")
    skew = [numbers[str(t)]["relative_skew"] for t in TIMESTEPS]
    low, high = zip(*(numbers[str(t)]["relative_skew_interval"] for t in TIMESTEPS), strict=True)
    right.plot(TIMESTEPS, skew, "o-", color="C3", ms=4)
    right.fill_between(TIMESTEPS, low, high, color="C3", alpha=0.2, lw=0, label="95 % interval")
    right.set(xlabel="timestep t", ylabel="‖J − Jᵀ‖ / ‖J + Jᵀ‖  (Frobenius)", ylim=(0, None), title="How skew J is")
    right.legend(fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    settings = {"image": DIGIT, "timesteps": TIMESTEPS, "probes": PROBES, "method": "fd", "authors_sd15": AUTHORS}
    asked.save(figure, output / "fig05_eigenvalues", model=MODEL, seed=seed,
                settings=settings, numbers=numbers, timings=cost)  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
