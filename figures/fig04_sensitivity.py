"""Sensitivity maps of pixels, forward (a column of J) against backward (a row of J)."""

from pathlib import Path

import numpy as np
import options
import torch
from options import DEFAULT, Options

from fcs_lab.denoisers import UNetDenoiser, as_model
from fcs_lab.plots import direction_grid
from fcs_lab.probes import JacobianOperator

MODEL, SEED, DIGIT = "mnist", 0, 0
TIMESTEPS = (700, 300)
PIXELS = ((9, 20), (16, 16), (24, 14))


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    image, pixels = asked.picture(model, DIGIT), [options.place(model, pixel) for pixel in PIXELS]
    width = model.shape[-1]
    rows = {name: [] for name in ("x̂_0", "forward\ncolumn of J", "backward\nrow of J\n(cos with column)", "difference")}
    captions, numbers = {label: [] for label in list(rows)[1:]}, {}
    for t in TIMESTEPS:
        J = JacobianOperator(model, options.noisy(model, image, t, seed), t)
        units = np.zeros((J.shape[0], len(pixels)), np.float32)
        units[[y * width + x for y, x in pixels], range(len(pixels))] = 1  # of several channels, in the first
        columns, rows_of_J = J @ units, J.T @ units
        numbers[str(t)] = {}
        for i, pixel in enumerate(pixels):
            column, row = columns[:, i], rows_of_J[:, i]
            size = np.linalg.norm(column) * np.linalg.norm(row)
            found = {
                "column_norm": float(np.linalg.norm(column)),
                "row_norm": float(np.linalg.norm(row)),
                "cosine": float(column @ row / size) if size else None,
                "relative_skew": float(np.linalg.norm(column - row) / np.linalg.norm(column + row)),
            }
            numbers[str(t)][f"row {pixel[0]}, column {pixel[1]}"] = found
            with torch.no_grad():
                x0 = as_model(model).decode(J.x0)
            maps = (x0, J.image(column), J.image(row), J.image(column - row))
            for label, values in zip(rows, maps, strict=True):
                rows[label].append(values.float())
            for label, values in zip(captions, maps[1:], strict=True):
                captions[label].append(f"±{values.abs().max():.2g}")
            captions["backward\nrow of J\n(cos with column)"][-1] += f", cos {found['cosine']:.2f}" if size else ""
    figure = direction_grid(
        {label: torch.cat(values) for label, values in rows.items()},
        images=["x̂_0"],
        pixels=(pixels if isinstance(model, UNetDenoiser) else [None] * len(pixels)) * len(TIMESTEPS),
        captions=captions,
        column_titles=[f"t = {t}" for t in TIMESTEPS for _ in pixels],
        title="What moves if this pixel of x_t moves; what moves this pixel of x̂_0",
    )
    settings = {"image": DIGIT, "timesteps": TIMESTEPS, "pixels": pixels}
    asked.save(figure, output / "fig04_sensitivity", model=MODEL, seed=seed,
                settings=settings, numbers=numbers)  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
