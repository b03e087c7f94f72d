"""Non-linear guidance: to a class, to the style of an image, to a silhouette, with each direction from the same noise.

The class is a classifier's; the style is the Gram matrix of its first block's features; the silhouette is where the image
is brighter than nearly black. Class and style are decided in the noisy half of the run, and the model is left to itself
afterwards: guided to the end, images please the features and no longer the eye. The silhouette, like inpainting, takes
its inner steps in the second half. `tab18_guidance.py` measures 60 samples of each.

`--model emoji` guides emoji, in colour, to the styles of held-out ones; the silhouette is where the image is dark. For a
model that is not bundled there is no classifier: with `--model` and `--images`, its samples are guided to the style of the
pictures alone, by CLIP's features and with the paper's settings.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.data import EMOJI_CLASSES, GARMENTS, example_images
from fcs_lab.denoisers import as_model
from fcs_lab.features import class_guidance, gram, load_clip, silhouette, style
from fcs_lab.plots import Figure, show

MODELS, SEED, SAMPLES, STEPS, INNER = ("mnist", "fashion"), 0, 4, 12, 4
PAPERS = {"num_inference_steps": 20, "inner_steps": 5, "step_size": (0.5, 0.1)}  # for style
DATA = {"mnist": ("digits", "0123456789"), "fashion": ("garments", GARMENTS), "emoji": ("emoji", EMOJI_CLASSES)}
DIRECTIONS = {"identity  e": "identity", "gradient  Jᵀe": "gradient", "newton  Je": "newton"}
FREE = "no guidance"
FEW = 0.1  # the tolerance: a mean of four images
THRESHOLDS = {"mnist": -0.8, "fashion": -0.8, "emoji": 0.7}  # between the object and its ground, which is dark, or white
TITLES = {FREE: "", "class": "to a class", "style": "to the style of", "silhouette": "to a silhouette"}
SHOWN_FIRST = {"style": ("references", "the reference"), "silhouette": ("masks", "the mask")}


def main(output: Path, asked: Options = DEFAULT) -> None:
    names = MODELS if asked.model is None else [asked.model]
    if not set(names) <= set(DATA):
        if asked.images is None:
            raise ValueError(
                f"images is None; guidance of another model than {', '.join(map(repr, DATA))} takes a folder of references"
            )
    else:
        asked.refuse("the references of a bundled model are its test images", "images")
    seed, pictures, numbers, seconds = asked.seed_or(SEED), {}, {}, {}
    for name in names:
        print(f"{name} …")
        start = time.perf_counter()
        model = asked.load(name)
        if name in DATA:
            pictures[name], numbers[name] = study(model, name, SAMPLES, seed)
        else:
            pictures[name], numbers[name] = styled(model, asked.pictures(model, SAMPLES), seed)
        seconds[name] = round(time.perf_counter() - start, 1)
    own = {"num_inference_steps": STEPS, "inner_steps": schedules(), "threshold": THRESHOLDS.get(names[0])}
    settings = {"samples": len(pictures[names[0]][FREE])} | (own if names[0] in DATA else PAPERS)
    asked.save(draw(pictures), output / "fig12_style_mask", model=MODELS, seed=seed, settings=settings,
               numbers={"Gram distance, relative": numbers}, timings={"seconds": seconds}, tolerance=FEW)  # fmt: skip


def schedules() -> dict[str, list[int]]:
    """The inner steps at each timestep."""
    first = STEPS // 2
    early, late = [INNER] * first + [0] * (STEPS - first), [0] * first + [INNER] * (STEPS - first)
    return {"class": early, "style": early, "silhouette": late}


def study(model: fcs_lab.Denoiser, name: str, samples: int, seed: int) -> tuple[dict, dict[str, float]]:
    """The images of each row, and how far their styles are from the references'."""
    images, threshold = example_images(model, 256), THRESHOLDS[name]
    classifier = load_classifier(DATA[name][0])
    brightness = images.flatten(1).mean(1).argsort()
    references = images[torch.stack([brightness[:samples], brightness.flip(0)[:samples]], 1).flatten()[:samples]]
    masks = images[-samples:].mean(1, keepdim=True) > threshold
    features = classifier.to(model.device).features[:7]

    def task(kind: str, part: Tensor) -> fcs_lab.CostConstraint:
        if kind == "class":
            return class_guidance(classifier, asked_for(samples)[part])
        return style(references[part], features) if kind == "style" else silhouette(masks[part], threshold=threshold)

    settings = {"num_inference_steps": STEPS}
    rows = {"references": references, "masks": masks * 2.0 - 1, FREE: draw_samples(model, None, samples, seed, **settings)}
    for kind, inner_steps in schedules().items():
        for label, direction in DIRECTIONS.items():
            of_kind = {"inner_steps": inner_steps, "direction": direction} | settings
            rows[kind, label] = draw_samples(model, lambda part, kind=kind: task(kind, part), samples, seed, **of_kind)
    return rows, distances(rows, references, features)


def styled(model: fcs_lab.Denoiser, references: Tensor, seed: int) -> tuple[dict, dict[str, float]]:
    """`study` of any model, for style alone, by CLIP."""
    features, count = load_clip(device=model.device), len(references)
    rows = {"references": references, FREE: draw_samples(model, None, count, seed, num_inference_steps=STEPS)}
    for label, direction in DIRECTIONS.items():
        rows["style", label] = draw_samples(
            model, lambda part: style(references[part], features), count, seed, direction=direction, **PAPERS
        )
    return rows, distances(rows, references, features)


def asked_for(samples: int) -> Tensor:
    """The class that each sample is guided to."""
    return torch.arange(samples) % 10


def draw_samples(model: fcs_lab.Denoiser, task, count: int, seed: int, **settings) -> Tensor:
    """Images from the same noise, whatever the task, which is made for the samples of these numbers."""
    numbers = torch.arange(count).reshape(-1, 1, 1, 1).expand(-1, *as_model(model).image_shape)
    made = None if task is None else lambda some: task(some[:, 0, 0, 0])
    return options.sample(model, made, numbers, seed, **settings).images


@torch.no_grad()
def distances(rows: dict, references: Tensor, features: torch.nn.Module) -> dict[str, float]:
    """‖G − G_ref‖_F / ‖G_ref‖_F of the unguided samples and of those guided to the style, the means."""
    found = {FREE: rows[FREE]} | {label: rows["style", label] for label in DIRECTIONS}
    return {label: gram_distances(images, references, features).mean().item() for label, images in found.items()}


def gram_distances(images: Tensor, references: Tensor, features: torch.nn.Module) -> Tensor:
    """‖G − G_ref‖_F / ‖G_ref‖_F, (B,)."""
    device = next(features.parameters()).device
    G, wanted = (gram(features(some.to(device))).cpu() for some in (images, references))
    return torch.linalg.matrix_norm(G - wanted) / torch.linalg.matrix_norm(wanted)


def draw(pictures: dict[str, dict]) -> Figure:
    rows = next(iter(pictures.values()))
    sections: dict[str, dict] = {FREE: {FREE: FREE}}
    for kind in ("class", "style", "silhouette"):
        if (kind, next(iter(DIRECTIONS))) in rows:
            given = [SHOWN_FIRST[kind]] if kind in SHOWN_FIRST else []
            sections[kind] = dict(given) | {(kind, label): label for label in DIRECTIONS}
    count = len(rows[FREE])
    size, label_width, gap, space = 0.62, 1.4, 0.35, 0.3
    width = label_width + len(pictures) * (count * size + gap)
    height = sum(len(some) for some in sections.values()) * size + len(sections) * space + 0.2
    figure = Figure(figsize=(width, height))
    for m, (name, rows) in enumerate(pictures.items()):
        x, y = label_width + m * (count * size + gap), height - 0.1
        figure.text((x + count * size / 2) / width, y / height, Path(name).name, ha="center", va="top", fontsize=11)
        for kind, section in sections.items():
            y -= space
            if m == 0:
                figure.text(0.01, (y + 0.04) / height, TITLES[kind], fontsize=10, fontweight="bold", va="bottom")
            for row, label in section.items():
                y -= size
                for c in range(count):
                    axes = figure.add_axes(((x + c * size) / width, y / height, 0.58 / width, 0.58 / height))
                    show(axes, rows[row][c])
                    if kind == "class" and row == next(iter(section)):
                        axes.set_title(DATA[name][1][c % 10].split()[-1], fontsize=8, pad=2)
                    if m == c == 0:
                        axes.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9, labelpad=8)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
