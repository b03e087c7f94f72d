"""What the notebooks say in words, in numbers: every comparison on 64 digits, with standard errors and paired differences.

A notebook shows a handful of images in seconds; what it says of the method in general is measured here. A section that is
finished is kept in runs/tab13 and not run again.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from cells import kept
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.composites import make_composites
from fcs_lab.features import class_guidance, gram, silhouette, style
from fcs_lab.metrics import data_consistency, denoising_loss, mask_iou, masked_mse, mean_and_error, psnr
from fcs_lab.records import save_record
from fcs_lab.zoo import WEIGHTS

MODEL, SEED, DIGITS, STEPS = "mnist", 0, 64, 10
EARLY, LATE = 12, 12  # the timesteps of notebook 08, half of which have inner steps
CACHE = Path(__file__).parents[1] / "runs" / "tab13"
Row = dict[str, list[float]]
"""A row's name -> metric -> a value for each image."""


@cache
def material() -> tuple:
    """The model, its first digits, their labels and the judge."""
    truth, labels = fcs_lab.load_digits(DIGITS)
    return fcs_lab.load(MODEL, device="cpu"), truth, labels, load_classifier("digits")


def sample(task=None, **settings) -> fcs_lab.Result:
    """One sample of each digit's task, the i-th from seed SEED + i."""
    generator = [torch.Generator().manual_seed(SEED + i) for i in range(DIGITS)]
    settings = {"num_inference_steps": STEPS} | settings
    return fcs_lab.sample(material()[0], task, batch_size=DIGITS, generator=generator, progress=False, **settings)


def named(images: Tensor, labels: Tensor) -> list[float]:
    with torch.no_grad():
        return (material()[3](images).argmax(1) == labels).float().tolist()


def half() -> Tensor:
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 16:] = True
    return mask


def completed(mask: Tensor, **settings) -> Row:
    """Inpainting, judged on both parts."""
    _, truth, labels, _ = material()
    result = sample(fcs_lab.Inpainting(truth, mask), **settings)
    return {
        "evaluations": [result.nfe],
        "known MSE": masked_mse(result.images, truth, ~mask).tolist(),
        "hidden MSE": masked_mse(result.images, truth, mask).tolist(),
        "named": named(result.images, labels),
        "last ‖e‖": result.trace[-1].error_norm.tolist(),
    }


def inner_steps() -> dict[str, Row]:
    """Where inner steps pay: notebooks 00 and 08."""
    half_of_them = STEPS // 2
    schedules = {
        "5 at every timestep": 5,
        "5 at the late ones": [0] * half_of_them + [5] * half_of_them,
        "5 at the early ones": [5] * half_of_them + [0] * half_of_them,
        "2 at every timestep": 2,
    }
    return {name: completed(half(), inner_steps=K) for name, K in schedules.items()}


def settings() -> dict[str, Row]:
    """What the settings of the canvas do: notebook 01."""
    rows = {
        "J e, K = 5, η = 1": {},
        "J e, K = 1": {"inner_steps": 1},
        "J e, η = 0": {"eta": 0.0},
        "J e, h = 0.0005": {"fd_step": 0.0005},
        "e in place of J e": {"direction": "identity"},
        "5 timesteps, K = 2": {"num_inference_steps": max(2, STEPS // 2), "inner_steps": 2},
        "20 timesteps, K = 5": {"num_inference_steps": 2 * STEPS},
    }
    found = {name: completed(half(), **row) for name, row in rows.items()}
    dots = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(SEED)) < 0.3
    found["one pixel in three hidden, J e"] = completed(dots)
    found["one pixel in three hidden, e"] = completed(dots, direction="identity")
    return found


def enlarged(
    task: fcs_lab.SuperResolution, images: Tensor, nfe: int = 0, right: fcs_lab.SuperResolution | None = None
) -> Row:
    _, truth, labels, _ = material()
    row = {
        "evaluations": [nfe],
        "PSNR": psnr(images, truth).tolist(),
        "rms of A x − y": data_consistency(task, images).tolist(),
        "named": named(images, labels),
    }
    return row | ({"rms by the right A": data_consistency(right, images).tolist()} if right else {})


def super_resolution() -> dict[str, Row]:
    """Directions, factors, λ and the wrong A: notebook 06."""
    truth = material()[1]
    paper = {"step_size": (0.5, 0.1), "inner_steps": 5}
    found = {}
    for factor in (2, 4, 8):
        small = fcs_lab.downsample(truth, factor)
        task = fcs_lab.SuperResolution(small, factor)
        found[f"×{factor}, bicubic enlargement"] = enlarged(task, fcs_lab.upsample(small, factor).clamp(-1, 1))
        for direction in ("newton", "gradient", "identity") if factor == 4 else ("newton",):
            result = sample(task, direction=direction, **paper)
            found[f"×{factor}, {direction}"] = enlarged(task, result.images, result.nfe)
    task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4)
    for name, setting in {
        "×4, K = 10, λ = 0.1": {"inner_steps": 10, "step_size": 0.1},
        "×4, K = 5, λ = 0.02 + 0.3 t/1000": {"inner_steps": 5, "step_size": lambda t, k: 0.02 + 0.3 * t / 1000},
    }.items():
        result = sample(task, **setting)
        found[name] = enlarged(task, result.images, result.nfe)
    small = fcs_lab.downsample(truth, 4, "box")
    right = fcs_lab.SuperResolution(small, 4, "box")
    for name, assumed in {"box": right, "bicubic": fcs_lab.SuperResolution(small, 4, "bicubic")}.items():
        result = sample(assumed, **paper)
        found[f"×4 by block means, A = {name}"] = enlarged(assumed, result.images, result.nfe, right)
    return found


def noise() -> dict[str, Row]:
    """Noise in y, fitted or not: exercise 1 of notebook 06."""
    truth = material()[1]
    clean = fcs_lab.downsample(truth, 4)
    y = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(SEED))
    task, last = fcs_lab.SuperResolution(y, 4), STEPS - STEPS // 4
    found = {}
    for name, K in {"5 at every timestep": 5, "none in the last quarter": [5] * last + [0] * (STEPS - last)}.items():
        result = sample(task, step_size=(0.5, 0.1), inner_steps=K)
        found[name] = enlarged(task, result.images, result.nfe)
    return found


def layers() -> dict[str, Row]:
    """Two layers that look alike, and any two: notebook 07."""
    model = material()[0]
    images, labels = fcs_lab.load_digits()
    alike = torch.isin(labels, torch.tensor([6, 7]))
    kinds = {"any two digits": torch.ones_like(alike), "a 6 or 7 over a 6 or 7": alike}
    found = {}
    for name, chosen in kinds.items():
        made = make_composites(images[chosen], labels[chosen], DIGITS, 2, kind="stroke", min_visible=0.3)
        generator = [torch.Generator().manual_seed(SEED + i) for i in range(DIGITS)]
        run = fcs_lab.infer_layers(model, made.images, 2, num_inference_steps=STEPS, generator=generator, progress=False)
        found[name] = {"evaluations": [run.nfe], "IoU": mask_iou(run.masks, made.masks, made.layers).tolist()}
    return found


def guided(task, asked: Tensor | None = None, **settings) -> tuple[Row, Tensor]:
    result = sample(task, num_inference_steps=EARLY, **settings)
    row = {"evaluations": [result.nfe], "denoising loss": denoising_loss(material()[0], result.images).tolist()}
    return row | ({"asked class": named(result.images, asked)} if asked is not None else {}), result.images


def costs() -> dict[str, Row]:
    """Classes, styles and silhouettes: notebook 08. The judge of the class is the classifier that guided."""
    _, truth, _, judge = material()
    early, late = ([4] * (EARLY // 2) + [0] * (EARLY // 2))[:EARLY], ([0] * (EARLY // 2) + [4] * (EARLY // 2))[:EARLY]
    asked = torch.arange(DIGITS) % 10
    task, found = class_guidance(judge, asked), {}
    found["class, none asked"], free = guided(None, asked)
    for direction in ("identity", "newton", "gradient"):
        found[f"class, early, {direction}"], _ = guided(task, asked, inner_steps=early, direction=direction)
    found["class, late, newton"], _ = guided(task, asked, inner_steps=late)
    features = judge.features[:7]
    order = truth.flatten(1).mean(1).argsort()
    references = truth[torch.stack([order, order.flip(0)], 1).flatten()[:DIGITS]]  # the darkest and the brightest in turn
    with torch.no_grad():
        wanted = gram(features(references))

    def distance(images: Tensor) -> list[float]:
        with torch.no_grad():
            off = torch.linalg.matrix_norm(gram(features(images)) - wanted)
        return (off / torch.linalg.matrix_norm(wanted)).tolist()

    found["style, none asked"] = found["class, none asked"] | {"Gram distance": distance(free)}
    del found["style, none asked"]["asked class"]
    for name, K in {"early": early, "throughout": 4}.items():
        row, images = guided(style(references, features), inner_steps=K)
        found[f"style, {name}, newton"] = row | {"Gram distance": distance(images)}
    masks = truth > -0.8
    for name, K in {"early": early, "late": late}.items():
        row, images = guided(silhouette(masks, threshold=-0.8), inner_steps=K)
        shape = images > -0.8
        iou = (shape & masks).flatten(1).sum(1) / (shape | masks).flatten(1).sum(1)
        found[f"silhouette of a digit, {name}, newton"] = row | {"IoU": iou.tolist()}
    return found


def blur_and_join() -> dict[str, Row]:
    """Deblurring, and two images joined: notebook 08."""
    model, truth, labels, _ = material()
    K = ([1] * (EARLY // 2) + [4] * (EARLY // 2))[:EARLY]
    kernel = torch.full((1, 9), 1 / 9)
    blurred = fcs_lab.blur(truth, kernel)
    found = {"blurred": {"MSE": (blurred - truth).square().flatten(1).mean(1).tolist(), "named": named(blurred, labels)}}
    row, sharp = guided(fcs_lab.Blur(blurred, kernel), inner_steps=K)
    found["deblurred"] = row | {"MSE": (sharp - truth).square().flatten(1).mean(1).tolist(), "named": named(sharp, labels)}
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 12:20] = True
    found["whole digits"] = {"denoising loss": denoising_loss(model, truth).tolist()}
    other = truth.roll(-1, 0)  # the next digit
    same = torch.stack(
        [truth[(labels == label).nonzero()[:, 0].roll(-1)[(labels == label)[:i].sum()]] for i, label in enumerate(labels)]
    )
    for name, right in {"sides of one digit": truth, "sides of one class": same, "sides of two digits": other}.items():
        given = torch.cat([truth[..., :20], right[..., 20:]], -1)
        found[f"joined, {name}"], _ = guided(fcs_lab.Inpainting(given, mask), inner_steps=K)
    return found


SECTIONS: dict[str, tuple[str, Callable[[], dict[str, Row]]]] = {
    "inner steps": ("right half hidden, J e: where the inner steps are", inner_steps),
    "settings": ("right half hidden: the settings of notebook 01", settings),
    "super-resolution": ("super-resolution", super_resolution),
    "noise": ("super-resolution ×4, noise of 0.2 in y", noise),
    "layers": ("layer inference, two layers", layers),
    "costs": ("costs: a class, a style, a silhouette", costs),
    "blur and join": ("deblurring (9 pixels sideways), and two sides joined by a middle of 8 columns", blur_and_join),
}


def main(output: Path, cache: Path = CACHE) -> None:
    found, seconds = {}, {}
    for name, (_, measure) in SECTIONS.items():

        def compute(name=name, measure=measure):
            print(f"{name} …", flush=True)
            start = time.perf_counter()
            return {"rows": measure(), "seconds": round(time.perf_counter() - start, 1)}

        sums = json.loads((WEIGHTS / "checksums.json").read_text())
        told = [name, SEED, DIGITS, STEPS, EARLY, sums[MODEL], sums["classifier"]]
        cell = kept(cache, name.replace(" ", "-"), told, compute)
        found[name] = {row: {m: mean(v) for m, v in metrics.items()} for row, metrics in cell["rows"].items()}
        for row, metrics in cell["rows"].items():
            base = cell["rows"][reference(row, list(cell["rows"]))]
            found[name][row]["less the reference"] = {
                m: mean([a - b for a, b in zip(v, base[m], strict=True)])
                for m, v in metrics.items()
                if base is not metrics and len(v) == len(base.get(m, ())) > 1
            }
        seconds[name] = cell["seconds"]
    save_record(
        output / "tab13_texts.json",
        model=MODEL,
        seed=SEED,
        settings={"digits": f"the first {DIGITS} bundled", "num_inference_steps": STEPS, "of_costs": EARLY},
        numbers=found,
        timings={"seconds": seconds},
    )
    table = as_markdown(found)
    (output / "tab13_texts.md").write_text(table)
    print(table)


def reference(row: str, rows: list[str]) -> str:
    """The row that a row is compared with: the first of those that begin alike, up to a comma, or the first of all."""
    return next(one for one in rows if one.split(",")[0] == row.split(",")[0]) if "," in row else rows[0]


def mean(values: list[float]) -> tuple[float, float]:
    """The mean and its standard error; a count, which is one for all images, has none."""
    return mean_and_error(torch.tensor(values, dtype=torch.float64)) if len(values) > 1 else (values[0], 0.0)


def as_markdown(found: dict) -> str:
    lines = [
        f"`{MODEL}`, the first {DIGITS} bundled digits, seeds {SEED} to {SEED + DIGITS - 1}; {STEPS} timesteps, K = 5 and "
        f"λ from 0.5 to 0.1 where the row does not say otherwise ({EARLY} timesteps for costs, blur and joining). ± is a "
        "standard error; in parentheses the difference to the first "
        "row that begins alike up to a comma, or to the first of all, paired by image (of layers, of other composites).\n"
    ]
    for name, rows in found.items():
        metrics = list(dict.fromkeys(m for row in rows.values() for m in row if m != "less the reference"))
        lines += [f"**{SECTIONS[name][0]}**\n", f"| | {' | '.join(metrics)} |", "| --- " * (len(metrics) + 1) + "|"]
        lines += [f"| {row} | {' | '.join(_entry(m, values) for m in metrics)} |" for row, values in rows.items()]
        lines.append("")
    return "\n".join(lines)


def _entry(metric: str, values: dict) -> str:
    if metric not in values:
        return ""
    value, error = values[metric]
    if metric == "evaluations":
        return f"{value:g}"
    percent = metric in ("named", "asked class")
    form, of_error = (".0%", ".0%") if percent else (".3g", ".2g")
    less = values["less the reference"].get(metric)
    beside = f" ({less[0]:+{form}} ± {less[1]:{of_error}})" if less else ""
    return f"{value:{form}} ± {error:{of_error}}{beside}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
