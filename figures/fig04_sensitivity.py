"""Sensitivity maps of pixels, forward (a column of J) against backward (a row of J)."""

import argparse
from pathlib import Path

import numpy as np
import torch

import fcs_lab
from fcs_lab.plots import direction_grid
from fcs_lab.probes import JacobianOperator
from fcs_lab.records import save_figure

MODEL, SEED, DIGIT = "mnist", 0, 0
TIMESTEPS = (700, 300)
PIXELS = ((9, 20), (16, 16), (24, 14))


def main(output: Path) -> None:
    model = fcs_lab.load(MODEL)
    image = fcs_lab.load_digits(DIGIT + 1)[0][DIGIT:].to(model.device)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)).to(image)
    height, width = image.shape[-2:]
    rows = {name: [] for name in ("x̂_0", "forward\ncolumn of J", "backward\nrow of J\n(cos with column)", "difference")}
    captions, numbers = {label: [] for label in list(rows)[1:]}, {}
    for t in TIMESTEPS:
        J = JacobianOperator(model, model.scheduler.add_noise(image, noise, torch.tensor([t])), t)
        units = np.zeros((height * width, len(PIXELS)), np.float32)
        units[[y * width + x for y, x in PIXELS], range(len(PIXELS))] = 1
        columns, rows_of_J = J @ units, J.T @ units
        numbers[str(t)] = {}
        for i, pixel in enumerate(PIXELS):
            column, row = columns[:, i], rows_of_J[:, i]
            size = np.linalg.norm(column) * np.linalg.norm(row)
            found = {
                "column_norm": float(np.linalg.norm(column)),
                "row_norm": float(np.linalg.norm(row)),
                "cosine": float(column @ row / size) if size else None,
                "relative_skew": float(np.linalg.norm(column - row) / np.linalg.norm(column + row)),
            }
            numbers[str(t)][f"row {pixel[0]}, column {pixel[1]}"] = found
            maps = (J.x0, J.image(column), J.image(row), J.image(column - row))
            for label, values in zip(rows, maps, strict=True):
                rows[label].append(values)
            for label, values in zip(captions, maps[1:], strict=True):
                captions[label].append(f"±{values.abs().max():.2g}")
            captions["backward\nrow of J\n(cos with column)"][-1] += f", cos {found['cosine']:.2f}" if size else ""
    figure = direction_grid(
        {label: torch.cat(values) for label, values in rows.items()},
        images=["x̂_0"],
        pixels=list(PIXELS) * len(TIMESTEPS),
        captions=captions,
        column_titles=[f"t = {t}" for t in TIMESTEPS for _ in PIXELS],
        title="What moves if this pixel of x_t moves; what moves this pixel of x̂_0",
    )
    settings = {"digit": DIGIT, "timesteps": TIMESTEPS, "pixels": PIXELS}
    save_figure(figure, output / "fig04_sensitivity", model=MODEL, seed=SEED, settings=settings, numbers=numbers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
