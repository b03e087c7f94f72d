"""How the error hangs on two settings at a time: λ with K, T′ with K, and what is hidden with λ.

Two digits, or other pictures, each cell sampled with the same noise; the number in a cell is the mean squared error of what
is hidden. The maps are `fcs_lab.sensitivity.SensitivityMap`s, which the widget `SensitivityLab` fills for any other pair of
settings; `tab11_failures.py` measures single rows on 64 digits. Two digits decide nothing below a tenth or so.
"""

import time
from pathlib import Path

import options
from options import DEFAULT, Options

from fcs_lab.plots import Figure
from fcs_lab.sensitivity import SensitivityMap

MODEL, SEED, IMAGES = "mnist", 0, 2
STEPS, INNER = 4, 2
MAPS = {
    f"right half, T′ = {STEPS}": {"x": ("inner_steps", [1, 2, 4]), "y": ("step_size_first", [0.02, 0.1, 0.5, 2.0, 8.0]),
                                  "num_inference_steps": STEPS},
    "right half": {"x": ("inner_steps", [1, 2, 4]), "y": ("num_inference_steps", [1, 2, 4, 8])},
    f"T′ = {STEPS}, K = {INNER}": {"x": ("hidden", [0.05, 0.25, 0.5, 0.75, 0.95]), "y": ("step_size_first", [0.1, 0.5, 2.0]),
                                   "num_inference_steps": STEPS, "inner_steps": INNER},
}  # fmt: skip


def main(output: Path, asked: Options = DEFAULT) -> None:
    start = time.perf_counter()
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    pictures = asked.pictures(model, IMAGES)
    figure, numbers = Figure(figsize=(11, 4.2), layout="constrained"), {}
    grid = figure.subplots(1, len(MAPS), gridspec_kw={"width_ratios": [len(told["x"][1]) for told in MAPS.values()]})
    for axes, (title, told) in zip(grid, MAPS.items(), strict=True):
        found = SensitivityMap(model, pictures, seed=seed, **told).run(progress=False)
        found.plot(axes=axes, title=title)
        numbers[title] = {f"{x:g}, {y:g}": cell.of("mse")[0] for (x, y), cell in found.cells.items()}
        print(title, "done")
    settings = {"images": len(pictures), "maps": {title: dict(told) for title, told in MAPS.items()}}
    asked.save(figure, output / "fig18_sensitivity", model=MODEL, seed=seed, settings=settings, numbers=numbers,
               timings={"seconds": round(time.perf_counter() - start, 1)})  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
