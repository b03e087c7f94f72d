"""A sheet of failures: for each what is there, what the sampler is given, and what comes out.

The cases are those of `fcs_lab.failures`, 10 timesteps with K = 3, the first pictures and seeds, none picked; above each
the mean squared error to what is there, of the hidden part where there is one. `tab11_failures.py` measures them on 64.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.constraints import Inpainting
from fcs_lab.failures import CASES, SHORT, run_case
from fcs_lab.filters import upsample
from fcs_lab.plots import Figure, show

SEED, IMAGES = 0, 2
SHOWN = {
    "nothing wrong": ("noise in y", "no noise"),
    "noise, σ_y = 0.3": ("noise in y", "σ_y = 0.3"),
    "… λ a fifth": ("noise in y", "σ_y = 0.3, λ a fifth"),
    "a wrong kernel": ("a wrong operator", "×4, box told to be bicubic"),
    "upside down": ("images that the model does not know", "digits, upside down"),
    "inverted": ("images that the model does not know", "digits, inverted"),
    "garments": ("images that the model does not know", "garments"),
    "two averaged": ("images that the model does not know", "two digits averaged"),
    "no prompt": ("prompts and their weight", "no prompt"),
    "guidance 15": ("prompts and their weight", "its own prompt, guidance 15"),
    "a wrong prompt": ("prompts and their weight", "another garment's, guidance 2"),
    "… guidance 15": ("prompts and their weight", "another garment's, guidance 15"),
}
COLUMNS = 6
ROWS = ("there", "given", "sample")


def main(output: Path, asked: Options = DEFAULT) -> None:
    asked.refuse("the cases are of the bundled digits and garments", "model", "images", "prompt", "dtype")
    start, seed = time.perf_counter(), asked.seed_or(SEED)
    models = {name: fcs_lab.load(name, device=asked.device) for name in ("mnist", "fashion")}
    numbers, pictures = {}, {}
    for title, (section, name) in SHOWN.items():
        case = CASES[section][name]
        ran = run_case(case, IMAGES, seed=seed, model=models[case.model])
        given = ran.task.y if isinstance(ran.task, Inpainting) else upsample(ran.task.y.clamp(-1, 1), 4)
        pictures[title] = ran.truth, given.clamp(-1, 1), ran.result.images.cpu()
        numbers[title] = ran.values.get("hidden", ran.values.get("all")).mean().item()
        print(title, "done")
    figure = draw(pictures, numbers)
    settings = {"images": IMAGES, "cases": SHOWN} | SHORT
    asked.save(figure, output / "fig19_failures", model=["mnist", "fashion"], seed=seed, settings=settings,
               numbers={"mse": numbers}, timings={"seconds": round(time.perf_counter() - start, 1)})  # fmt: skip


def draw(pictures: dict[str, tuple[torch.Tensor, ...]], errors: dict[str, float]) -> Figure:
    blocks = -(-len(pictures) // COLUMNS)
    figure = Figure(figsize=(0.9 + 0.62 * COLUMNS * (IMAGES + 0.5), blocks * (0.62 * len(ROWS) + 0.5)))
    outer = figure.add_gridspec(blocks, COLUMNS, left=0.07, right=0.995, top=0.955, bottom=0.005, wspace=0.12, hspace=0.2)
    for place, (title, rows) in enumerate(pictures.items()):
        inner = outer[place // COLUMNS, place % COLUMNS].subgridspec(len(ROWS), IMAGES, wspace=0.05, hspace=0.05)
        around = outer[place // COLUMNS, place % COLUMNS].get_position(figure)
        middle = (around.x0 + around.x1) / 2
        figure.text(middle, around.y1 + 0.012, f"{title}: {errors[title]:.2f}", fontsize=8, ha="center", va="bottom")
        for r, images in enumerate(rows):
            for c, image in enumerate(images):
                axes = figure.add_subplot(inner[r, c])
                show(axes, image)
                if c == 0 and place % COLUMNS == 0:
                    axes.set_ylabel(ROWS[r], rotation=0, ha="right", va="center", fontsize=9, labelpad=6)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
