"""Layer inference: composites of 2, 3 and 4 digits or garments, what they were made of, and what each method makes of them.

The settings are those of the table (tab03_layers.py), the composites others. `--model emoji` takes emoji apart, of which
fig17_emoji_layers.py shows more. With `--images`, the pictures are taken for composites: what they were made of is not
known, and nothing is measured.
"""

import time
from pathlib import Path

import numpy as np
import options
import torch
from matplotlib.colors import to_rgb
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.composites import MIN_VISIBLE, example_composites
from fcs_lab.layers import late_inner_steps
from fcs_lab.metrics import layer_psnr, mask_iou, match_layers
from fcs_lab.plots import Figure, show

SEED, STEPS, INNER, LAYERS = 7, 10, 5, (2, 3, 4)
STEP_SIZE, TEMPERATURE = (0.5, 0.1), (0.1, 0.02)
# Each kind's model, smoothness of the masks, weight of a pixel's place in k-means, and what is where no layer is.
KINDS = {
    "digits": ("mnist", 1.5, 3.0, -1.0),
    "garments": ("fashion", 2.0, 1.0, -1.0),
    "emoji": ("emoji", 3.0, 1.0, 1.0),
}
DRAWN = ("digits", "garments")
ROWS = {"newton  Je": "newton", "gradient  Jᵀe": "gradient", "identity  e": "identity", "k-means": None}
COLOURS = np.array([to_rgb(colour) for colour in ("#4c9be8", "#f28e2b", "#59c15f", "#e15fb0")])


def main(output: Path, asked: Options = DEFAULT) -> None:
    kinds = chosen(asked)
    seed, rows, numbers, seconds = asked.seed_or(SEED), {}, {}, {}
    for kind, (name, smoothness, place, background) in kinds.items():
        model = asked.load(name)
        for K in LAYERS:
            if asked.images is not None:
                made = None
                composite = asked.picture(model, list(kinds).index(kind))
                rows.setdefault(f"{kind}\ntruth", []).append((composite, None, None))
            else:
                made = example_composites(model, 1, K, seed)[0]
                composite = made.images
                rows.setdefault(f"{kind}\ntruth", []).append((composite, made.layers, made.masks))
            key = f"{kind}, {K} layers"
            numbers[key], seconds[key] = {}, {}
            for label, direction in ROWS.items():
                print(f"{key}, {label} …")
                start = time.perf_counter()
                if direction is None:
                    layers, masks = cluster_layers(composite, K, place=place, background=background)
                else:
                    layers, masks = infer(model, composite, K, direction, smoothness, seed)
                seconds[key][label] = round(time.perf_counter() - start, 2)
                if made is not None:
                    order = match_layers(layers, made.layers)[0]
                    layers, masks = layers[:, order], masks[:, order]
                    numbers[key][label] = {
                        "mask_iou": mask_iou(masks, made.masks, made.layers).item(),
                        "psnr": layer_psnr(layers, made.layers).item(),
                    }
                rows.setdefault(f"{kind}\n{label}", []).append(((masks[:, :, None] * layers).sum(1), layers, masks))
    settings = {
        "num_inference_steps": STEPS,
        "inner_steps": late_inner_steps(STEPS, INNER),
        "step_size": STEP_SIZE,
        "temperature": TEMPERATURE,
        "smoothness": {kind: values[1] for kind, values in kinds.items()},
        "min_visible": {K: MIN_VISIBLE[K] for K in LAYERS},
    }
    asked.save(draw(rows, numbers), output / "fig10_layers", model=[values[0] for values in kinds.values()], seed=seed,
                settings=settings, numbers=numbers, timings={"seconds": seconds})  # fmt: skip


def chosen(asked: Options) -> dict[str, tuple]:
    """The kinds of composites: the bundled ones, one of them, or, without the makings, those of a folder.

    Raises:
        ValueError: A model that there are no composites for, and no folder.
    """
    if asked.default:
        return {kind: KINDS[kind] for kind in DRAWN}
    if asked.images is None:
        kinds = {kind: values for kind, values in KINDS.items() if values[0] == asked.model}
        if not kinds:
            known = ", ".join(repr(values[0]) for values in KINDS.values())
            raise ValueError(f"model is {asked.model!r}; composites can be made for {known} only, so give --images")
        return kinds
    return {"pictures": (asked.model or "mnist", 2.0, 1.0, -1.0)}


def infer(
    model: fcs_lab.Denoiser, composite: torch.Tensor, K: int, direction: str, smoothness: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    result = fcs_lab.infer_layers(
        model,
        composite,
        K,
        direction=direction,
        num_inference_steps=STEPS,
        inner_steps=late_inner_steps(STEPS, INNER),
        step_size=STEP_SIZE,
        temperature=TEMPERATURE,
        smoothness=smoothness,
        generator=torch.Generator().manual_seed(seed),
        progress=False,
    )
    return result.layers[None].cpu(), result.masks[None].cpu()


def draw(rows: dict[str, list[tuple[torch.Tensor, ...]]], numbers: dict) -> Figure:
    """A block of columns for each number of layers: the composite (or what the layers make), the masks, the layers."""
    size, gap, label_width, head, under = 0.62, 0.05, 1.0, 0.5, 0.17
    widths = [(K + 2) * (size + gap) + 0.2 for K in LAYERS]
    width, height = label_width + sum(widths), head + len(rows) * (size + under) + 0.15
    figure = Figure(figsize=(width, height))
    first = next(iter(rows)).split("\n")[0]
    for r, (label, blocks) in enumerate(rows.items()):
        kind, method = label.split("\n")
        top = head + r * (size + under) + 0.15 * (kind != first)
        middle = 1 - (top + size / 2) / height
        known = blocks[0][1] is not None
        figure.text((label_width - 0.1) / width, middle, method if known else "given", ha="right", va="center", fontsize=8.5)
        if method == "truth":
            figure.text(0.05 / width, 1 - (top - 0.02) / height, kind, ha="left", va="top", fontsize=9, weight="bold")
        for b, (K, (whole, layers, masks)) in enumerate(zip(LAYERS, blocks, strict=True)):
            left = label_width + sum(widths[:b])
            panels = [whole[0], tinted(whole[0], masks[0]), *layers[0]] if layers is not None else [whole[0]]
            titles = ["composite", "masks", *(f"layer {k + 1}" for k in range(K))]
            for c, (panel, title) in enumerate(zip(panels, titles, strict=layers is not None)):
                x = (left + c * (size + gap)) / width
                axes = figure.add_axes((x, 1 - (top + size) / height, size / width, size / height))
                show(axes, panel)
                if r == 0:
                    axes.set_title(title, fontsize=7, pad=2, color="k" if c < 2 else COLOURS[c - 2] * 0.8)
            if n := numbers[f"{kind}, {K} layers"].get(method):
                text = f"IoU {n['mask_iou']:.2f}, {n['psnr']:.1f} dB"
                figure.text(left / width, 1 - (top + size + 0.03) / height, text, fontsize=6, va="top", color="0.35")
            if r == 0:
                figure.text(left / width, 1 - 0.08 / height, f"{K} layers", fontsize=9, va="top", weight="bold")
    return figure


def tinted(image: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The masks (K, H, W) as colours, with the image's brightness: (3, H, W) in [-1, 1]."""
    colours = torch.from_numpy(COLOURS[: len(masks)]).to(masks)
    brightness = 0.25 + 0.75 * (image.mean(0) / 2 + 0.5).clamp(0, 1)
    return torch.einsum("kc,khw->chw", colours, masks) * brightness * 2 - 1


if __name__ == "__main__":
    main(*options.parse(__doc__))
