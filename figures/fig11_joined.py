"""Two images joined: the left of one, the right of another, the middle made up.

For each bundled model, pairs of test images of different classes. Columns 12 to 19 of 32 are hidden, about a third of the
object's width (and whole cells of the latent model). Beside them the same middle completed where both sides come from one
image, or from two of one class; and a naive blend, where one side fades into the other. Whether it comes out convincing,
`tab17_joined.py` measures on 64 pairs.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options
from torch import Tensor

import fcs_lab
from fcs_lab.plots import Figure, show

MODELS, SEED, PAIRS, STEPS, INNER = ("mnist", "fashion"), 0, 8, 10, 4
LEFT, RIGHT = 12 / 32, 20 / 32  # of the width: the first hidden column, and the first that is given again
DATA = {"mnist": fcs_lab.load_digits, "fashion": fcs_lab.load_garments}
DIRECTIONS = {"newton  Je": "newton", "gradient  Jᵀe": "gradient", "identity  e": "identity"}
ONE_IMAGE, ONE_CLASS = "sides of one image\nnewton  Je", "sides of one class\nnewton  Je"


def main(output: Path, asked: Options = DEFAULT) -> None:
    seed, pictures, numbers, seconds = asked.seed_or(SEED), {}, {}, {}
    for name in MODELS if asked.model is None else [asked.model]:
        print(f"{name} …")
        start = time.perf_counter()
        model = asked.load(name)
        if asked.images is None and name in DATA:
            rows = study(model, *DATA[name](), PAIRS, seed)
        else:
            images = asked.pictures(model, 2 * PAIRS)
            if len(images) < 2:
                raise ValueError(f"images: {str(asked.images)!r} has one; expected two at least, to join")
            rows = study(model, images, None, len(images) // 2, seed)
        pictures[name] = rows
        numbers[name] = {label: seam_step(images).mean().item() for label, images in rows.items()}
        seconds[name] = round(time.perf_counter() - start, 1)
    settings = {
        "pairs": len(rows["given"]),
        "num_inference_steps": STEPS,
        "inner_steps": inner_steps(),
        "hidden, of the width": [LEFT, RIGHT],
    }
    asked.save(draw(pictures), output / "fig11_joined", model=MODELS, seed=seed, settings=settings,
                numbers={"mean step across the seams": numbers}, timings={"seconds": seconds})  # fmt: skip


def inner_steps() -> list[int]:
    """Few in the noisy half, where x̂_0 is little more than an average."""
    return [1] * (STEPS // 2) + [INNER] * (STEPS - STEPS // 2)


def study(model: fcs_lab.Denoiser, images: Tensor, labels: Tensor | None, pairs: int, seed: int) -> dict[str, Tensor]:
    """The images of each row. Without labels, the partners are the next images, and there are none of one class."""
    left = images[:pairs]
    right = images[pairs : 2 * pairs] if labels is None else images[partners(labels, pairs, alike=False)]
    rows = {"left": left, "right": right, "given": joined(left, right)}
    for label, direction in DIRECTIONS.items():
        rows[label] = complete(model, rows["given"], direction, seed)
    rows["naive blend"] = blend(left, right)
    rows[ONE_IMAGE] = complete(model, joined(left, left), "newton", seed)
    if labels is not None:
        rows[ONE_CLASS] = complete(model, joined(left, images[partners(labels, pairs, alike=True)]), "newton", seed)
    return rows


def partners(labels: Tensor, pairs: int, alike: bool) -> list[int]:
    """For each of the first images a later one, of the same class or of another, none used twice."""
    free = list(range(pairs, len(labels)))
    chosen = []
    for label in labels[:pairs]:
        chosen.append(next(j for j in free if (labels[j] == label) == alike))
        free.remove(chosen[-1])
    return chosen


def seams(images: Tensor) -> tuple[int, int]:
    """The first hidden column, and the first that is given again."""
    return round(LEFT * images.shape[-1]), round(RIGHT * images.shape[-1])


def joined(left: Tensor, right: Tensor) -> Tensor:
    """The left of one and the right of the other; black between them, which the mask will hide."""
    first, last = seams(left)
    return torch.cat([left[..., :first], torch.full_like(left[..., first:last], -1), right[..., last:]], -1)


def blend(left: Tensor, right: Tensor) -> Tensor:
    """The left image fading into the right one over the hidden columns."""
    first, last = seams(left)
    weight = torch.linspace(0, 1, last - first + 2)[1:-1]
    middle = (1 - weight) * left[..., first:last] + weight * right[..., first:last]
    return torch.cat([left[..., :first], middle, right[..., last:]], -1)


def hidden(images: Tensor) -> Tensor:
    """The mask, (1, 1, H, W)."""
    mask = torch.zeros(1, 1, *images.shape[-2:], dtype=torch.bool)
    mask[..., slice(*seams(images))] = True
    return mask


def complete(model: fcs_lab.Denoiser, given: Tensor, direction: str, seed: int) -> Tensor:
    """The images with their hidden columns made up."""
    return options.sample(
        model,
        lambda images: fcs_lab.Inpainting(images, hidden(images)),
        given,
        seed,
        num_inference_steps=STEPS,
        inner_steps=inner_steps(),
        direction=direction,
    ).images


def seam_step(images: Tensor) -> Tensor:
    """|x(c) − x(c − 1)|, the mean over the rows, the channels and the two seams: (B,)."""
    steps = [(images[..., c] - images[..., c - 1]).abs().flatten(1).mean(1) for c in seams(images)]
    return torch.stack(steps).mean(0)


def draw(pictures: dict[str, dict[str, Tensor]]) -> Figure:
    shown = list(next(iter(pictures.values())))
    count = min(len(rows["given"]) for rows in pictures.values())
    size, label_width, gap = 0.62, 1.4, 0.35
    width, height = label_width + len(pictures) * (count * size + gap), len(shown) * size + 0.4
    figure = Figure(figsize=(width, height))
    for m, (name, rows) in enumerate(pictures.items()):
        x = label_width + m * (count * size + gap)
        title = Path(name).name
        figure.text((x + count * size / 2) / width, 1 - 0.1 / height, title, ha="center", va="top", fontsize=11)
        for r, row in enumerate(shown):
            y = height - 0.4 - (r + 1) * size
            for c in range(count):
                axes = figure.add_axes(((x + c * size) / width, y / height, 0.58 / width, 0.58 / height))
                show(axes, rows[row][c], hidden(rows[row])[0] if row == "given" else None)
                if m == c == 0:
                    axes.set_ylabel(row, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
