"""J e against Jᵀ e in samples: the same images, their right halves hidden, from the same noise.

J e takes evaluations alone, Jᵀ e backward passes. The record has the mean errors on the hidden half with their standard
errors, and those of the difference, image by image.
"""

import time
from pathlib import Path

import options
from options import DEFAULT, Options, mean
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.metrics import masked_mse
from fcs_lab.plots import Figure, show

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 24, 10, 5
COLUMNS = 12
DIRECTIONS = {"J e": "newton", "Jᵀ e": "gradient"}
JUDGES = {"mnist": ("digits", fcs_lab.load_digits), "fashion": ("garments", fcs_lab.load_garments)}


def main(output: Path, asked: Options = DEFAULT) -> None:
    name = asked.model or MODEL
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    truth, mask = asked.pictures(model, DIGITS), options.right_half(model)
    rows, hidden, numbers, seconds = {"truth": truth, "given": truth}, {}, {}, {}
    for label, direction in DIRECTIONS.items():
        print(f"{label} …")
        start = time.perf_counter()
        result = options.complete(model, truth, seed, num_inference_steps=STEPS, inner_steps=INNER, direction=direction)
        seconds[label] = round((time.perf_counter() - start) / len(truth), 2)
        rows[label], hidden[label] = result.images, masked_mse(result.images, truth, mask)
        numbers[label] = {
            "evaluations": result.nfe,
            "backward_passes": result.n_backward,
            "mse_hidden": mean(hidden[label]),
            "mse_known": mean(masked_mse(result.images, truth, ~mask)),
        }
        if asked.images is None and name in JUDGES:
            kind, load = JUDGES[name]
            right = load_classifier(kind)(result.images).argmax(1) == load(len(truth))[1]
            numbers[label]["named_as_the_truth"] = mean(right.float())
    numbers["mse_hidden, J e less Jᵀ e"] = mean(hidden["J e"] - hidden["Jᵀ e"])
    settings = {"images": len(truth), "num_inference_steps": STEPS, "inner_steps": INNER, "mask": "right half"}
    asked.save(draw(rows, hidden, mask, numbers), output / "fig15_je_jt_sheet", model=MODEL, seed=seed, settings=settings,
               numbers=numbers, timings={"seconds_per_image": seconds})  # fmt: skip


def draw(rows: dict[str, Tensor], hidden: dict[str, Tensor], mask: Tensor, numbers: dict) -> Figure:
    """Blocks of rows, with the error on the hidden half under each sample."""
    count = len(rows["truth"])
    columns = min(count, COLUMNS)
    size, gap, label_width, under, head = 0.72, 0.04, 0.75, 0.15, 0.42
    block = 2 * (size + gap) + len(DIRECTIONS) * (size + under) + 0.15
    blocks = -(-count // columns)
    width, height = label_width + columns * (size + gap) + 0.1, head + blocks * block
    figure = Figure(figsize=(width, height))
    text = ", ".join(
        f"{label} {found['mean']:.3f}" + ("" if found["error"] is None else f" ± {found['error']:.3f}")
        for label, found in ((label, numbers[label]["mse_hidden"]) for label in DIRECTIONS)
    )
    title = f"Right half hidden ({STEPS} timesteps, K = {INNER}); MSE on it, {count} images: {text}"
    figure.text(0.5, 1 - 0.08 / height, title, ha="center", va="top", fontsize=10)
    for i in range(count):
        top = head + i // columns * block
        for name, images in rows.items():
            x = (label_width + i % columns * (size + gap)) / width
            axes = figure.add_axes((x, 1 - (top + size) / height, size / width, size / height))
            show(axes, images[i], mask[0] if name == "given" else None)
            if name in DIRECTIONS:
                axes.set_xlabel(f"{hidden[name][i]:.2f}", fontsize=7, labelpad=1.5)
            if i % columns == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
            top += size + (under if name in DIRECTIONS else gap)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
