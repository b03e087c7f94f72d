"""What the method does, in colour: emoji that the model was not trained on, completed, enlarged and coloured.

The first pictures of those held out, in their order, and the first seeds: nothing is picked. The right half is hidden,
with and without the picture's own prompt; so is what a thick brush went over; a picture is made four times smaller; its
colours are taken away. Below are Algorithm 1 along J e, Jᵀ e and e, from the same noise. The first is made of evaluations
alone, the second needs backward passes as well. `tab10_emoji.py` measures such tasks on 128 pictures.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options
from torch import Tensor

import fcs_lab
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import as_model
from fcs_lab.metrics import psnr
from fcs_lab.plots import Figure, show

MODEL, SEED, PICTURES, STEPS, INNER, GUIDANCE, FACTOR = "emoji", 0, 2, 10, 3, 2.5, 4
DIRECTIONS = {"J e": "newton", "Jᵀ e": "gradient", "e": "identity"}
TASKS = ("right half", "right half,\nwith its prompt", "a brush", "×4 smaller", "its colours")
"""The second takes the pictures of the first; each other takes the next `PICTURES`."""


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    if as_model(model).image_shape[0] != 3:
        raise ValueError(f"model is {asked.model!r}, whose images are grey; colours need an RGB model")
    pictures = asked.pictures(model, (len(TASKS) - 1) * PICTURES)
    names = fcs_lab.load_emoji(len(pictures))[2] if asked.default else [asked.prompt or ""] * len(pictures)
    rows: dict[str, dict[str, Tensor]] = {}
    numbers: dict[str, dict] = {}
    seconds: dict[str, float] = {}
    for i, task in enumerate(TASKS):
        first = max(0, i - 1) * PICTURES % len(pictures)
        truth = pictures[first : first + PICTURES]
        constraint, given = constrained_by(task, truth)
        prompts = names[first : first + PICTURES] if "prompt" in task else None
        rows[task], numbers[task] = {"truth": truth, "given": given}, {}
        for label, direction in DIRECTIONS.items():
            print(f"{' '.join(task.split())}, {label} …")
            start = time.perf_counter()
            result = fcs_lab.sample(
                model if prompts is None else model.with_prompt(prompts, guidance_scale=GUIDANCE),
                constraint,
                batch_size=len(truth),
                num_inference_steps=STEPS,
                inner_steps=INNER,
                direction=direction,
                generator=[torch.Generator().manual_seed(seed + first + j) for j in range(len(truth))],
            )
            rows[task][label] = result.images.cpu()
            found = psnr(result.images.cpu(), truth)
            numbers[task][label] = {"psnr": options.mean(found), "evaluations": result.nfe, "backward": result.n_backward}
            seconds[label] = round(seconds.get(label, 0) + time.perf_counter() - start, 1)
    settings = {"images": len(pictures), "prompts": names, "guidance_scale": GUIDANCE, "num_inference_steps": STEPS,
                "inner_steps": INNER, "factor": FACTOR}  # fmt: skip
    asked.save(draw(rows), output / "fig16_emoji", model=MODEL, seed=seed, settings=settings, numbers=numbers,
               timings={"seconds": seconds})  # fmt: skip


def constrained_by(task: str, truth: Tensor) -> tuple[Constraint, Tensor]:
    """The constraint, and the pictures as they are given, what is hidden being a chequerboard."""
    H, W = truth.shape[-2:]
    if task == "×4 smaller":
        small = fcs_lab.downsample(truth, FACTOR)
        return fcs_lab.SuperResolution(small, FACTOR), small
    if task == "its colours":
        grey = fcs_lab.Colorization(torch.zeros(1, 1, H, W)).A(truth)
        return fcs_lab.Colorization(grey), grey.expand(-1, 3, -1, -1)
    mask = brushed(H, W) if task == "a brush" else torch.arange(W).expand(H, W) >= W // 2
    row, column = torch.meshgrid(torch.arange(H) * 16 // H, torch.arange(W) * 16 // W, indexing="ij")
    chequers = 0.9 - 0.25 * ((row + column) % 2)
    return fcs_lab.Inpainting(truth, mask), torch.where(mask, chequers, truth)


def brushed(H: int, W: int) -> Tensor:
    """A wave that a thick brush drew from the left to the right, three times up and down."""
    row, column = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
    middle = 0.6 * torch.sin(3 * torch.pi * column)
    return (row - middle).abs() < 0.35


def draw(rows: dict[str, dict[str, Tensor]]) -> Figure:
    """A pair of columns for each task, on white paper without axes."""
    labels = ["truth", "given", *DIRECTIONS]
    shown = max(len(one["truth"]) for one in rows.values())
    size, gap, between, left, top = 0.86, 0.05, 0.22, 0.62, 0.62
    width = left + len(rows) * (shown * (size + gap) + between)
    height = top + len(labels) * (size + gap)
    figure = Figure(figsize=(width, height))
    for c, (task, found) in enumerate(rows.items()):
        x0 = left + c * (shown * (size + gap) + between)
        middle = (x0 + (shown * (size + gap) - gap) / 2) / width
        figure.text(middle, 1 - (top - 0.12) / height, task, ha="center", va="bottom", fontsize=11)
        for r, label in enumerate(labels):
            for i, image in enumerate(found[label]):
                place = (x0 + i * (size + gap), height - top - r * (size + gap) - size, size, size)
                axes = figure.add_axes([place[0] / width, place[1] / height, size / width, size / height])
                show(axes, image)
                axes.set(xticks=[], yticks=[])
                for spine in axes.spines.values():
                    spine.set(visible=True, color="0.85", linewidth=0.6)
    for r, label in enumerate(labels):
        y = height - top - r * (size + gap) - size / 2
        figure.text((left - 0.12) / width, y / height, label, ha="right", va="center", fontsize=12)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
