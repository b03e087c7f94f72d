"""Super-resolution ×2, ×4 and ×8: digits in pixels, and garments through a decoder, against bicubic interpolation.

How well y is fitted in the end, the overshooting last steps decide, and so rounding: the record has it under "chaotic".
A few images; `tab16_super_resolution.py` measures 64, with the authors' settings for this task and e through the encoder.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, Options
from torch import Tensor

import fcs_lab
from fcs_lab.metrics import data_consistency, psnr
from fcs_lab.plots import image_grid

MODELS = ("mnist", "fashion")
SEED, DIGITS, STEPS, FACTORS = 0, 4, 20, (2, 4, 8)
INNER, STEP_SIZE = 5, (0.5, 0.1)  # the authors' for inpainting


def main(output: Path, asked: Options = DEFAULT) -> None:
    seed = asked.seed_or(SEED)
    numbers, evaluations, consistency, seconds, rows = {}, {}, {}, {}, {}
    for name in MODELS if asked.model is None else [asked.model]:
        model = asked.load(name)
        truth = asked.pictures(model, DIGITS)
        name = Path(name).name
        numbers[name], evaluations[name], consistency[name], seconds[name] = {}, {}, {}, {}
        for factor in FACTORS:
            print(f"{name} ×{factor} …")
            start = time.perf_counter()
            given = fcs_lab.downsample(truth, factor)
            images, nfe = restore(model, truth, factor, seed)
            seconds[name][f"×{factor}"] = round((time.perf_counter() - start) / len(truth), 3)
            found = {"bicubic": fcs_lab.upsample(given, factor), "newton": images}
            task = fcs_lab.SuperResolution(given, factor)
            numbers[name][f"×{factor}"] = {label: psnr(one, truth).mean().item() for label, one in found.items()}
            evaluations[name][f"×{factor}"] = nfe
            consistency[name][f"×{factor}"] = {
                label: data_consistency(task, one).mean().item() for label, one in found.items()
            }
            for label, one in {"given": given, **found}.items():
                rows.setdefault((factor, label), []).append(one)
        rows.setdefault("truth", []).append(truth)

    named = {label if label == "truth" else describe(*label, numbers, consistency): rows[label] for label in rows}
    figure = image_grid(
        {label: torch.cat(images) for label, images in named.items()},
        title=f"Super-resolution: PSNR, rms of A x − y; means of {len(truth)} images "
        f"(K = {INNER}, λ = {STEP_SIZE[0]:g} → {STEP_SIZE[1]:g})",
    )  # fmt: skip
    settings = {
        "images": len(truth),
        "num_inference_steps": STEPS,
        "inner_steps": INNER,
        "step_size": STEP_SIZE,
        "kernel": "bicubic",
    }
    asked.save(figure, output / "fig09_super_resolution", model=MODELS, seed=seed,
               settings=settings, numbers={"psnr": numbers, "evaluations": evaluations},
               chaotic={"data_consistency": consistency}, timings={"seconds_per_image": seconds})  # fmt: skip


def restore(model: fcs_lab.Denoiser, truth: Tensor, factor: int, seed: int) -> tuple[Tensor, float]:
    """The images from what is left of them, and the evaluations of each."""
    result = options.sample(
        model,
        lambda images: fcs_lab.SuperResolution(fcs_lab.downsample(images, factor), factor),
        truth,
        seed,
        num_inference_steps=STEPS,
        inner_steps=INNER,
        step_size=STEP_SIZE,
    )
    return result.images, result.nfe


def describe(factor: int, label: str, numbers: dict, consistency: dict) -> str:
    """A row's label, with what was measured for each model."""
    lines = [f"×{factor}: {label}"]
    for name, of in numbers.items() if label != "given" else ():
        lines.append(f"{name} {of[f'×{factor}'][label]:.1f} dB, {consistency[name][f'×{factor}'][label]:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*options.parse(__doc__))
