"""Two images joined: the left of one, the right of another, the middle made up. Does it come out convincing?

For each bundled model, 32 pairs of test images of different classes. Columns 12 to 19 of 32 are hidden, about a third of the
object's width (and whole cells of the latent model). Compared with real images; with the same middle completed where both
sides come from one image, or from two of one class; and with a naive blend, where one side fades into the other.

Measured: the mean step |∂x| across the two seams, over that of real images at the same columns; how sure a classifier is
of what it sees; and how plausible the model itself finds the result, by the loss that it was trained with.

What it shows: digits join into digits, often a third one, nearly as plausible as real ones and far more so than the blend.
Garments of different kinds do not: the sides are given, and no middle makes a shirt and a shoe one garment; those of one
kind come out better. The seams are smooth either way, so they alone say little. "newton" and "gradient" do equally well;
"identity" is worse on the digits and no different on the garments.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import Classifier, load_classifier
from fcs_lab.metrics import denoising_loss
from fcs_lab.plots import Figure, show
from fcs_lab.records import save_figure

MODELS, SEED, PAIRS, STEPS, INNER = ("mnist", "fashion"), 0, 32, 10, 4
SHOWN = 8
LEFT, RIGHT = 12, 20  # the first hidden column, and the first that is given again
DATA = {"mnist": (fcs_lab.load_digits, "digits"), "fashion": (fcs_lab.load_garments, "garments")}
DIRECTIONS = {"newton  Je": "newton", "gradient  Jᵀe": "gradient", "identity  e": "identity"}
PANELS = {
    "seam": "step across the seams\n(1: all test images)",
    "confidence": "the classifier's confidence\n(probability of the likeliest class)",
    "loss": "the model's denoising loss\n(1: real images; low is plausible)",
}
SIDES = {"sides of one image\nnewton  Je": "one image", "sides of one class\nnewton  Je": "one class"}


def main(output: Path) -> None:
    pictures, numbers, seconds = {}, {}, {}
    for name in MODELS:
        start = time.perf_counter()
        pictures[name], numbers[name] = study(name)
        seconds[name] = round(time.perf_counter() - start, 1)
    settings = {
        "pairs": PAIRS,
        "num_inference_steps": STEPS,
        "inner_steps": inner_steps(),
        "hidden columns": [LEFT, RIGHT - 1],
    }
    save_figure(draw(pictures, numbers), output / "fig11_joined", model=MODELS, seed=SEED, settings=settings,
                numbers=numbers, timings={"seconds": seconds})  # fmt: skip


def inner_steps() -> list[int]:
    """Few in the noisy half, where x̂_0 is little more than an average."""
    return [1] * (STEPS // 2) + [INNER] * (STEPS - STEPS // 2)


def study(name: str) -> tuple[dict[str, Tensor], dict]:
    """The images of each row, and what is measured on them."""
    print(f"{name} …")
    model = fcs_lab.load(name, device="cpu")
    load, kind = DATA[name]
    images, labels = load(256)
    classifier = load_classifier(kind)
    other, same = partners(labels, alike=False), partners(labels, alike=True)
    left = images[:PAIRS]
    rows = {"left": left, "right": images[other], "real images": left}
    rows["given"] = joined(left, images[other])
    for label, direction in DIRECTIONS.items():
        rows[label] = complete(model, rows["given"], direction)
    rows["naive blend"] = blend(left, images[other])
    for label, right in zip(SIDES, (left, images[same]), strict=True):
        rows[label] = complete(model, joined(left, right), "newton")
    usual = {"seam": seam_step(images).mean(), "confidence": 1.0, "loss": denoising_loss(model, left).mean()}
    measured = ("real images", *SIDES, *DIRECTIONS, "naive blend")
    return rows, {label: measure(model, classifier, rows[label], usual) for label in measured}


def partners(labels: Tensor, alike: bool) -> list[int]:
    """For each of the first images a later one, of the same class or of another, none used twice."""
    free = list(range(PAIRS, len(labels)))
    chosen = []
    for label in labels[:PAIRS]:
        chosen.append(next(j for j in free if (labels[j] == label) == alike))
        free.remove(chosen[-1])
    return chosen


def joined(left: Tensor, right: Tensor) -> Tensor:
    """The left of one and the right of the other; black between them, which the mask will hide."""
    middle = torch.full_like(left[..., LEFT:RIGHT], -1)
    return torch.cat([left[..., :LEFT], middle, right[..., RIGHT:]], -1)


def blend(left: Tensor, right: Tensor) -> Tensor:
    """The left image fading into the right one over the hidden columns."""
    weight = torch.linspace(0, 1, RIGHT - LEFT + 2)[1:-1]
    middle = (1 - weight) * left[..., LEFT:RIGHT] + weight * right[..., LEFT:RIGHT]
    return torch.cat([left[..., :LEFT], middle, right[..., RIGHT:]], -1)


def hidden() -> Tensor:
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, LEFT:RIGHT] = True
    return mask


def complete(model: fcs_lab.Denoiser, given: Tensor, direction: str) -> Tensor:
    """The images with their hidden columns made up."""
    return fcs_lab.sample(
        model,
        fcs_lab.Inpainting(given, hidden()),
        num_inference_steps=STEPS,
        inner_steps=inner_steps(),
        direction=direction,
        generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(given))],
    ).images


def seam_step(images: Tensor) -> Tensor:
    """|x(c) − x(c − 1)|, the mean over the rows and the two seams: (B,)."""
    return torch.stack([(images[..., c] - images[..., c - 1]).abs().mean((1, 2)) for c in (LEFT, RIGHT)]).mean(0)


@torch.no_grad()
def measure(model: fcs_lab.Denoiser, classifier: Classifier, images: Tensor, usual: dict) -> dict:
    """The mean of each measure over the images, and its standard error, both over what is usual."""
    measures = {
        "seam": seam_step(images),
        "confidence": classifier(images).softmax(1).amax(1),
        "loss": denoising_loss(model, images),
    }
    return {
        name: {
            "mean": float(f"{x.mean() / usual[name]:.4g}"),
            "error": float(f"{x.std() / len(x) ** 0.5 / usual[name]:.4g}"),
        }
        for name, x in measures.items()
    }


def draw(pictures: dict[str, dict[str, Tensor]], numbers: dict[str, dict]) -> Figure:
    shown = ["left", "right", "given", *DIRECTIONS, "naive blend", next(iter(SIDES))]
    count = min(SHOWN, PAIRS)
    size, label_width, gap, measured = 0.62, 1.4, 0.35, 3.1
    width, height = label_width + len(MODELS) * (count * size + gap), len(shown) * size + 0.4 + measured
    figure = Figure(figsize=(width, height))
    for m, name in enumerate(MODELS):
        x = label_width + m * (count * size + gap)
        figure.text((x + count * size / 2) / width, 1 - 0.1 / height, name, ha="center", va="top", fontsize=11)
        for r, row in enumerate(shown):
            y = height - 0.4 - (r + 1) * size
            for c in range(count):
                axes = figure.add_axes(((x + c * size) / width, y / height, 0.58 / width, 0.58 / height))
                show(axes, pictures[name][row][c], hidden()[None] if row == "given" else None)
                if m == c == 0:
                    axes.set_ylabel(row, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    labels = list(numbers[MODELS[0]])
    left, room = 1.8, (width - 1.95) / len(PANELS)
    for i, (measure, title) in enumerate(PANELS.items()):
        axes = figure.add_axes(((left + i * room) / width, 0.7 / height, (room - 0.25) / width, (measured - 1.4) / height))
        for m, name in enumerate(MODELS):
            values = [numbers[name][label][measure] for label in labels]
            mean, error = ([value[key] for value in values] for key in ("mean", "error"))
            y = [-k + 0.15 * (1 - 2 * m) for k in range(len(labels))]
            axes.errorbar(mean, y, xerr=error, fmt="os"[m], ms=5, label=name)
        axes.set_yticks([-k for k in range(len(labels))], labels if i == 0 else [], fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.axvline(1, color="0.6", lw=0.8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
        if i == 1:
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=len(MODELS))
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
