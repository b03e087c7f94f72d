"""J e, J⁻¹ e and Jᵀ e for an error in one pixel of x̂_0, over the timesteps."""

from pathlib import Path

import options
import torch
from options import DEFAULT, SOLVED, Options

from fcs_lab.denoisers import UNetDenoiser, as_model
from fcs_lab.plots import direction_grid
from fcs_lab.probes import compare_directions

MODEL, SEED, DIGIT, PIXEL = "mnist", 0, 0, (9, 20)
TIMESTEPS = (800, 600, 400, 200)
REGULARIZATION, ITERATIONS, STEP_SIZE = 0.1, 30, 0.2


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    image, pixel = asked.picture(model, DIGIT), options.place(model, PIXEL)
    decode = torch.no_grad()(as_model(model).decode)
    rows = {
        name: [] for name in ("x_t", "x̂_0", "newton  J e", "exact  J⁻¹ e\n(cos with J e)", "gradient  Jᵀ e\n(cos with J e)")
    }
    numbers, captions = {}, {label: [] for label in list(rows)[2:]}
    for t in TIMESTEPS:
        print(f"t = {t} …")
        x_t = options.noisy(model, image, t, seed)
        with torch.no_grad():
            x0 = model(x_t, t)
        e = torch.zeros_like(x0)
        # The pixel should be light where it is dark, dark where it is light; so should a latent cell's channels.
        e[(..., *pixel)] = torch.where(x0[(..., *pixel)] > 0, -1.0, 1.0)
        compared = compare_directions(
            model, x_t, t, e, regularization=REGULARIZATION, step_size=STEP_SIZE, max_iterations=ITERATIONS
        )
        directions = [compared[name].d for name in ("J e", "J⁻¹ e", "Jᵀ e")]
        for label, values in zip(rows, (decode(x_t), decode(x0), *directions), strict=True):
            rows[label].append(values.float())
        for label, name in zip(captions, ("J e", "J⁻¹ e", "Jᵀ e"), strict=True):
            one = compared[name]
            captions[label].append(f"±{one.d.abs().max():.2g}" + (f", cos {one.cosine:.2f}" if name != "J e" else ""))
        numbers[str(t)] = {
            name: {"norm_inf": one.d.abs().max().item(), "cosine_with_Je": one.cosine, "error_left": one.left}
            for name, one in compared.items()
        }
    figure = direction_grid(
        {label: torch.cat(values) for label, values in rows.items()},
        images=["x_t", "x̂_0"],
        pixels=[pixel if isinstance(model, UNetDenoiser) else None] * len(TIMESTEPS),
        captions=captions,
        column_titles=[f"t = {t}" for t in TIMESTEPS],
        title="An error in one pixel (framed): where x_t is moved",
    )
    settings = {"image": DIGIT, "pixel": pixel, "timesteps": TIMESTEPS, "regularization": REGULARIZATION}
    settings |= {"solve_iterations": ITERATIONS, "step_size": STEP_SIZE}
    asked.save(figure, output / "fig03_je_pixel", model=MODEL, seed=seed,
                settings=settings, numbers=numbers, tolerance=SOLVED)  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
