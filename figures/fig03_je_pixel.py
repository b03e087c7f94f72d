"""J e, J⁻¹ e and Jᵀ e for an error in one pixel of x̂_0, over the timesteps."""

import argparse
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.plots import direction_grid
from fcs_lab.probes import compare_directions
from fcs_lab.records import save_figure

MODEL, SEED, DIGIT, PIXEL = "mnist", 0, 0, (9, 20)
TIMESTEPS = (800, 600, 400, 200)
REGULARIZATION, ITERATIONS, STEP_SIZE = 0.1, 30, 0.2


def main(output: Path) -> None:
    model = fcs_lab.load(MODEL)
    image = fcs_lab.load_digits(DIGIT + 1)[0][DIGIT:].to(model.device)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)).to(image)
    rows = {
        name: [] for name in ("x_t", "x̂_0", "newton  J e", "exact  J⁻¹ e\n(cos with J e)", "gradient  Jᵀ e\n(cos with J e)")
    }
    numbers, captions = {}, {label: [] for label in list(rows)[2:]}
    for t in TIMESTEPS:
        print(f"t = {t} …")
        x_t = model.scheduler.add_noise(image, noise, torch.tensor([t]))
        with torch.no_grad():
            x0 = model(x_t, t)
        e = torch.zeros_like(x0)
        # The pixel should be light where it is dark, dark where it is light.
        e[..., PIXEL[0], PIXEL[1]] = -1.0 if x0[..., PIXEL[0], PIXEL[1]] > 0 else 1.0
        compared = compare_directions(
            model, x_t, t, e, regularization=REGULARIZATION, step_size=STEP_SIZE, max_iterations=ITERATIONS
        )
        for label, values in zip(rows, (x_t, x0, *(compared[name].d for name in ("J e", "J⁻¹ e", "Jᵀ e"))), strict=True):
            rows[label].append(values)
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
        pixels=[PIXEL] * len(TIMESTEPS),
        captions=captions,
        column_titles=[f"t = {t}" for t in TIMESTEPS],
        title="An error in one pixel (framed): where x_t is moved",
    )
    settings = {"digit": DIGIT, "pixel": PIXEL, "timesteps": TIMESTEPS, "regularization": REGULARIZATION}
    settings |= {"solve_iterations": ITERATIONS, "step_size": STEP_SIZE}
    save_figure(figure, output / "fig03_je_pixel", model=MODEL, seed=SEED, settings=settings, numbers=numbers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
