"""Layers in colour: emoji laid over one another, what they are made of, and what is made of them.

The first composites of the rows of `tab09_emoji_layers.py`, by its settings: two emoji on white, over a photograph that is
given, and one behind the other. Each layer is cut out by its mask, as `LayersResult.to_pil` exports it; what is transparent
is chequered. By J e, without and with a prompt a layer, and by k-means of the pixels; the number is the masks' mean IoU,
under the best permutation.
"""

import time
from pathlib import Path

import options
import tab09_emoji_layers as tab09
import torch
from options import DEFAULT, Options
from tab09_emoji_layers import Row
from torch import Tensor

from fcs_lab.composites import Composites
from fcs_lab.metrics import mask_iou, match_layers
from fcs_lab.plots import Figure, show

MODEL = "emoji"
SHOWN = (
    ("two", "white", "overlapping", 0),
    ("two more", "white", "overlapping", 1),
    ("over a photograph", "photograph", "overlapping", 0),
    ("one behind the other", "white", "behind", 0),
)
"""A title, the ground, how two emoji lie, and which of the table's composites it is."""
METHODS = {"J e": ("J e", False), "J e, a prompt each": ("J e", True), "k-means": ("k-means", False)}


def main(output: Path, asked: Options = DEFAULT) -> None:
    what = "the layers are known of emoji alone, and the settings are the table's"
    asked.refuse(what, "model", "images", "prompt", "dtype", "seed")
    model = asked.load(MODEL)
    panels, numbers, seconds = [], [], {}
    for title, ground, arrangement, i in SHOWN:
        made, prompts = tab09.composites_of(2, ground, arrangement)
        made, prompts = Composites(*(part[i : i + 1] for part in vars(made).values())), prompts[i : i + 1]
        shown, found = {"truth": cut_out(made.layers[0], made.masks[0])}, {"composite": title, "prompts": prompts[0]}
        for label, (method, prompted) in METHODS.items():
            print(f"{title}, {label} …")
            start = time.perf_counter()
            layers, masks, *_ = tab09.infer(model, Row(2, method, ground, arrangement, prompted=prompted), made, prompts, i)
            seconds[label] = round(seconds.get(label, 0) + time.perf_counter() - start, 1)
            order = match_layers(layers, made.layers)[0]
            layers, masks = layers[:, order], masks[:, order]
            shown[label] = cut_out(layers[0], masks[0])
            found[label] = mask_iou(masks, made.masks, made.layers).item()
        panels.append((title, made.images[0], shown))
        numbers.append(found)
    settings = {"num_inference_steps": tab09.STEPS, "guidance_scale": tab09.GUIDANCE, "smoothness": tab09.SMOOTHNESS,
                "temperature": tab09.TEMPERATURE, "place": tab09.PLACE}  # fmt: skip
    asked.save(draw(panels, numbers), output / "fig17_emoji_layers", model=MODEL, seed=tab09.SEED, settings=settings,
               numbers=numbers, timings={"seconds": seconds})  # fmt: skip


def cut_out(layers: Tensor, masks: Tensor) -> Tensor:
    """The layers (K, 3, H, W) where their masks (K, H, W) show them, over a chequerboard."""
    H, W = layers.shape[-2:]
    chequers = 0.8 - 0.3 * ((torch.arange(H)[:, None] // 8 + torch.arange(W) // 8) % 2)
    alpha = masks[:, None].to(layers)
    return alpha * layers + (1 - alpha) * chequers


def draw(panels: list[tuple[str, Tensor, dict[str, Tensor]]], numbers: list[dict]) -> Figure:
    """A row for each composite; a block of columns for the truth and for each method."""
    size, gap, between, under, top, left = 0.72, 0.04, 0.2, 0.2, 0.42, 1.02
    widest = max(len(shown["truth"]) for _, _, shown in panels)
    labels = list(panels[0][2])
    block = widest * (size + gap) + between
    width, height = left + size + between + len(labels) * block, top + len(panels) * (size + under)
    figure = Figure(figsize=(width, height))

    def panel(x: float, y: float, image: Tensor) -> None:
        axes = figure.add_axes((x / width, 1 - (y + size) / height, size / width, size / height))
        show(axes, image)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color="0.8", linewidth=0.6)

    for c, label in enumerate(["composite", *labels]):
        x = left + (size + between + (c - 1) * block if c else 0)
        figure.text(x / width, 1 - (top - 0.1) / height, label, fontsize=9, weight="bold", va="bottom")
    for r, ((title, composite, shown), found) in enumerate(zip(panels, numbers, strict=True)):
        y = top + r * (size + under)
        words = title.replace(" the ", "\nthe ").replace(" a ", "\na ")
        figure.text((left - 0.1) / width, 1 - (y + size / 2) / height, words, ha="right", va="center", fontsize=8.5)
        panel(left, y, composite)
        for c, label in enumerate(labels):
            x = left + size + between + c * block
            for k, layer in enumerate(shown[label]):
                panel(x + k * (size + gap), y, layer)
            if label in found:
                figure.text(
                    x / width, 1 - (y + size + 0.03) / height, f"IoU {found[label]:.2f}", fontsize=7, va="top", color="0.35"
                )
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
