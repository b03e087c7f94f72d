"""Guidance to a class, a style and a silhouette (fig12_style_mask.py), of 60 digits and 60 garments.

A cost that was minimised is no judge of the result. So beside the classifier stands the class of the nearest test image
(allowing for a shift by one pixel), beside the first block's Gram matrix the second block's, and beside the overlap with
the mask the model's own denoising loss, over that of the real images which the masks come from. Means and standard errors.
"""

import argparse
import time
from pathlib import Path

import fig12_style_mask as fig12
import torch
from fig12_style_mask import DIRECTIONS, FREE
from options import mean
from torch import Tensor
from torch.nn.functional import avg_pool2d

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.data import GARMENTS
from fcs_lab.metrics import denoising_loss
from fcs_lab.records import save_record

SEED, SAMPLES, MODELS = 0, 60, ("mnist", "fashion")
LOADERS = {"mnist": fcs_lab.load_digits, "fashion": fcs_lab.load_garments}
PROMPTED, GUIDANCE_SCALE = "class: the model's own prompt", 2.0
JUDGE = "the nearest image's own accuracy"
MEASURES = {
    "share": "named as asked",
    "share, nearest image": "nearest image as asked",
    "gram": "Gram distance, 1st block",
    "gram, second block": "2nd block",
    "iou": "overlap (IoU)",
    "loss": "denoising loss",
}


def main(output: Path) -> None:
    numbers, seconds = {}, {}
    for name in MODELS:
        print(f"{name} …")
        start = time.perf_counter()
        numbers[name] = study(name)
        seconds[name] = round(time.perf_counter() - start, 1)
    settings = {"samples": SAMPLES, "num_inference_steps": fig12.STEPS, "inner_steps": fig12.schedules(),
                "threshold": fig12.THRESHOLDS[MODELS[0]], "guidance_scale": GUIDANCE_SCALE}  # fmt: skip
    save_record(output / "tab18_guidance.json", model=MODELS, seed=SEED, settings=settings, numbers=numbers,
                timings={"seconds": seconds})  # fmt: skip
    table = as_markdown(numbers)
    (output / "tab18_guidance.md").write_text(table)
    print(table)


@torch.no_grad()
def study(name: str) -> dict:
    """What is measured on each row of the figure."""
    model = fcs_lab.load(name, device="cpu")
    images, labels = LOADERS[name](256)
    classifier, judge, asked = load_classifier(fig12.DATA[name][0]), NearestImage(images, labels), fig12.asked_for(SAMPLES)
    rows, _ = fig12.study(model, name, SAMPLES, SEED)
    outlined = images[-SAMPLES:]
    usual = denoising_loss(model, outlined).mean()

    def measure(images: Tensor, kind: str) -> dict[str, dict[str, float]]:
        found = {}
        if kind in ("class", FREE):
            found["share"] = (classifier(images).argmax(1) == asked).float()
            found["share, nearest image"] = (judge(images) == asked).float()
        if kind in ("style", FREE):
            for label, last in (("gram", 7), ("gram, second block", 14)):
                found[label] = fig12.gram_distances(images, rows["references"], classifier.features[:last])
        if kind in ("silhouette", FREE):
            found["iou"] = overlap(images > fig12.THRESHOLDS[name], rows["masks"] > 0)
            found["loss"] = denoising_loss(model, images) / usual
        return {key: mean(x) for key, x in found.items()}

    numbers = {FREE: measure(rows[FREE], FREE)}
    for kind in fig12.schedules():
        for label in DIRECTIONS:
            numbers[f"{kind}: {label}"] = measure(rows[kind, label], kind)
    if isinstance(model, fcs_lab.LatentDenoiser):
        prompts = [f"a photo of {GARMENTS[i]}" for i in asked]
        prompted = model.with_prompt(prompts, guidance_scale=GUIDANCE_SCALE)
        numbers[PROMPTED] = measure(
            fig12.draw_samples(prompted, None, SAMPLES, SEED, num_inference_steps=fig12.STEPS), "class"
        )
    return numbers | {JUDGE: judge.accuracy}


class NearestImage:
    """A judge that had no part in the guidance: the class of the nearest test image, shifted by a pixel at most."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.labels = labels
        blurred = avg_pool2d(images + 1, 3, 1, 1)
        shifts = [blurred.roll((dy, dx), (2, 3)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        self.shifted = [shifted.flatten(1) for shifted in shifts]
        own = self._distances(images).fill_diagonal_(torch.inf)  # each by the others
        self.accuracy = round((labels[own.argmin(1)] == labels).float().mean().item(), 3)

    def __call__(self, images: Tensor) -> Tensor:
        return self.labels[self._distances(images).argmin(1)]

    def _distances(self, images: Tensor) -> Tensor:
        blurred = avg_pool2d(images + 1, 3, 1, 1).flatten(1)
        return torch.stack([torch.cdist(blurred, shifted) for shifted in self.shifted]).amin(0)


def overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union, (B,)."""
    return (found & wanted).flatten(1).sum(1) / (found | wanted).flatten(1).sum(1)


def as_markdown(numbers: dict) -> str:
    table = ""
    for name, rows in numbers.items():
        table += f"**{name}**\n\n| | " + " | ".join(MEASURES.values()) + " |\n| --- |" + " --- |" * len(MEASURES) + "\n"
        for label, found in rows.items():
            if isinstance(found, dict):
                cells = [f"{found[m]['mean']:.2f} ± {found[m]['error']:.2f}" if m in found else "" for m in MEASURES]
                table += f"| {label} | " + " | ".join(cells) + " |\n"
        table += f"\nThe nearest image names {rows[JUDGE]:.0%} of the test images.\n\n"
    return table + f"Means of {SAMPLES} samples ± standard errors.\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
