"""Non-linear guidance: to a class, to the style of an image, to a silhouette, with each direction from the same noise.

The class is a classifier's; the style is the Gram matrix of its first block's features; the silhouette is where the image
is brighter than nearly black. Class and style are decided in the noisy half of the run, and the model is left to itself
afterwards: guided to the end, images please the features and no longer the eye. The silhouette, like inpainting, takes
its inner steps in the second half.

A cost that was minimised is no judge of the result. So beside the classifier stands the class of the nearest test image
(allowing for a shift by one pixel), beside the first block's Gram matrix the second block's, and beside the overlap with
the mask the model's own denoising loss, over that of the real images which the masks come from.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.data import GARMENTS
from fcs_lab.features import class_guidance, gram, silhouette, style
from fcs_lab.metrics import accuracy, denoising_loss
from fcs_lab.plots import Figure, show
from fcs_lab.records import save_figure

MODELS, SEED, SAMPLES, STEPS, INNER = ("mnist", "fashion"), 0, 20, 12, 4
SHOWN = 8
DATA = {"mnist": (fcs_lab.load_digits, "digits"), "fashion": (fcs_lab.load_garments, "garments")}
DIRECTIONS = {"identity  e": "identity", "gradient  Jᵀe": "gradient", "newton  Je": "newton"}
FREE, PROMPTED = "no guidance", "the model's own\nprompt"
THRESHOLD = -0.8  # what is brighter belongs to the object
GUIDANCE_SCALE = 2.0
PANELS = (  # kind of guidance, title, measure -> (what it is, colour of the marker's face)
    (
        "class",
        "share of the asked class",
        {"share": (": classifier", None), "share, nearest image": (": nearest image", "w")},
    ),
    ("style", "Gram distance, relative", {"gram": (": 1st block", None), "gram, second block": (": 2nd block", "w")}),
    ("silhouette", "overlap with the mask (IoU)", {"iou": ("", None)}),
    ("silhouette", "denoising loss with the mask\n(1: real images)", {"loss": ("", None)}),
)


def main(output: Path) -> None:
    pictures, numbers, seconds = {}, {}, {}
    for name in MODELS:
        start = time.perf_counter()
        pictures[name], numbers[name] = study(name)
        seconds[name] = round(time.perf_counter() - start, 1)
    settings = {"samples": SAMPLES, "num_inference_steps": STEPS, "inner_steps": schedules(), "threshold": THRESHOLD}
    save_figure(draw(pictures, numbers), output / "fig12_style_mask", model=MODELS, seed=SEED, settings=settings,
                numbers=numbers, timings={"seconds": seconds})  # fmt: skip


def schedules() -> dict[str, list[int]]:
    """The inner steps at each timestep."""
    first = STEPS // 2
    early, late = [INNER] * first + [0] * (STEPS - first), [0] * first + [INNER] * (STEPS - first)
    return {"class": early, "style": early, "silhouette": late}


def study(name: str) -> tuple[dict[str, Tensor], dict]:
    """The images of each row, and what is measured on them."""
    print(f"{name} …")
    model = fcs_lab.load(name, device="cpu")
    load, kind = DATA[name]
    images, labels = load(256)
    classifier = load_classifier(kind)
    asked = torch.arange(SAMPLES) % 10
    brightness = images.flatten(1).mean(1).argsort()
    references = images[torch.stack([brightness[:SAMPLES], brightness.flip(0)[:SAMPLES]], 1).flatten()[:SAMPLES]]
    outlined = images[-SAMPLES:]
    masks = outlined > THRESHOLD
    tasks = {
        "class": class_guidance(classifier, asked),
        "style": style(references, classifier.features[:7]),
        "silhouette": silhouette(masks, threshold=THRESHOLD),
    }

    def measure(kind: str, images: Tensor) -> dict[str, float]:
        found = {}
        if kind in ("class", FREE):
            found["share"] = accuracy(classifier, images, asked)
            found["share, nearest image"] = (judge(images) == asked).float().mean().item()
        if kind in ("style", FREE):
            for label, last in (("gram", 7), ("gram, second block", 14)):
                found[label] = gram_distance(images, references, classifier.features[:last])
        if kind in ("silhouette", FREE):
            found["iou"] = mask_iou(images > THRESHOLD, masks)
            found["loss"] = (denoising_loss(model, images).mean() / denoising_loss(model, outlined).mean()).item()
        return {key: float(f"{value:.4g}") for key, value in found.items()}

    judge = NearestImage(images, labels)
    rows = {"references": references, "masks": masks * 2.0 - 1, FREE: draw_samples(model)}
    numbers = {FREE: measure(FREE, rows[FREE]), "accuracy of the nearest image": judge.accuracy}
    for kind, task in tasks.items():
        for label, direction in DIRECTIONS.items():
            rows[kind, label] = draw_samples(model, task, inner_steps=schedules()[kind], direction=direction)
            numbers[f"{kind}: {label}"] = measure(kind, rows[kind, label])
    if isinstance(model, fcs_lab.LatentDenoiser):
        prompts = [f"a photo of {GARMENTS[i]}" for i in asked]
        prompted = draw_samples(model.with_prompt(prompts, guidance_scale=GUIDANCE_SCALE))
        numbers[f"class: {PROMPTED}"] = measure("class", prompted)
    return rows, numbers


def draw_samples(model: fcs_lab.Denoiser, task: fcs_lab.CostConstraint | None = None, **options) -> Tensor:
    """Images from the same noise, whatever the task."""
    generators = [torch.Generator().manual_seed(SEED + i) for i in range(SAMPLES)]
    return fcs_lab.sample(model, task, num_inference_steps=STEPS, batch_size=SAMPLES, generator=generators, **options).images


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


@torch.no_grad()
def gram_distance(images: Tensor, references: Tensor, features: torch.nn.Module) -> float:
    """‖G − G_ref‖_F / ‖G_ref‖_F, the mean over the images."""
    G, wanted = gram(features(images)), gram(features(references))
    return (torch.linalg.matrix_norm(G - wanted) / torch.linalg.matrix_norm(wanted)).mean().item()


def mask_iou(found: Tensor, wanted: Tensor) -> float:
    """Intersection over union, the mean over the images."""
    return ((found & wanted).flatten(1).sum(1) / (found | wanted).flatten(1).sum(1)).mean().item()


def draw(pictures: dict[str, dict], numbers: dict[str, dict]) -> Figure:
    sections = {
        "": {FREE: FREE},
        "to a class": {("class", label): label for label in DIRECTIONS},
        "to the style of": {"references": "the reference", **{("style", label): label for label in DIRECTIONS}},
        "to a silhouette": {"masks": "the mask", **{("silhouette", label): label for label in DIRECTIONS}},
    }
    count = min(SHOWN, SAMPLES)
    size, label_width, gap, space, measured = 0.62, 1.4, 0.35, 0.3, 2.7
    width = label_width + len(MODELS) * (count * size + gap)
    height = sum(len(rows) for rows in sections.values()) * size + len(sections) * space + measured + 0.2
    figure = Figure(figsize=(width, height))
    for m, name in enumerate(MODELS):
        x, y = label_width + m * (count * size + gap), height - 0.1
        figure.text((x + count * size / 2) / width, y / height, name, ha="center", va="top", fontsize=11)
        for title, rows in sections.items():
            y -= space
            if m == 0:
                figure.text(0.01, (y + 0.04) / height, title, fontsize=10, fontweight="bold", va="bottom")
            for row, label in rows.items():
                y -= size
                for c in range(count):
                    axes = figure.add_axes((x / width + c * size / width, y / height, 0.58 / width, 0.58 / height))
                    show(axes, pictures[name][row][c])
                    if title == "to a class" and row == next(iter(rows)):
                        asked = GARMENTS[c % 10].split()[-1] if name == "fashion" else str(c % 10)
                        axes.set_title(asked, fontsize=8, pad=2)
                    if m == c == 0:
                        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    labels = [FREE, *DIRECTIONS, PROMPTED]
    left, room = 1.5, (width - 1.65) / len(PANELS)
    for i, (kind, title, measures) in enumerate(PANELS):
        axes = figure.add_axes(((left + i * room) / width, 0.85 / height, (room - 0.25) / width, (measured - 1.25) / height))
        for m, name in enumerate(MODELS):
            for measure, (what, face) in measures.items():
                found = [numbers[name].get(label if label == FREE else f"{kind}: {label}", {}) for label in labels]
                points = [(row[measure], -k + 0.15 * (1 - 2 * m)) for k, row in enumerate(found) if measure in row]
                axes.plot(
                    *zip(*points, strict=True), "os"[m], color=f"C{m}", ms=6, mfc=face or f"C{m}", label=f"{name}{what}"
                )
        axes.set_yticks([-k for k in range(len(labels))], labels if i == 0 else [], fontsize=8)
        axes.set_ylim(-len(labels) + 0.5, 0.5)
        axes.set_title(title, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(alpha=0.3)
        axes.legend(
            fontsize=6.5,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=len(measures),
            columnspacing=0.6,
            handletextpad=0.1,
        )
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
