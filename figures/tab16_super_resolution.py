"""Super-resolution ×2, ×4 and ×8 of 64 digits and 64 garments (fig09_super_resolution.py): against bicubic interpolation.

"newton" has the authors' K and λ for inpainting. At ×8 theirs for super-resolution stand beside it, and for the latent model
e through the encoder in place of the decoder's derivative. Means and standard errors.
"""

import argparse
import time
from pathlib import Path

import torch
from options import mean, sample
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.latent import LatentDenoiser
from fcs_lab.latent_space import Decoded
from fcs_lab.metrics import data_consistency, psnr
from fcs_lab.records import save_record

MODELS = {"mnist": ("digits", fcs_lab.load_digits), "fashion": ("garments", fcs_lab.load_garments)}
SEED, DIGITS, STEPS, FACTORS = 0, 64, 10, (2, 4, 8)
INNER, STEP_SIZE = 5, (0.5, 0.1)
DOUBLED, ENCODER = "newton, K doubled, λ = 0.1", "newton, e through the encoder"


def main(output: Path) -> None:
    numbers, seconds = {}, {}
    for name, (kind, load_images) in MODELS.items():
        model, judge = fcs_lab.load(name, device="cpu"), load_classifier(kind)
        truth, labels = load_images(DIGITS)
        numbers[name], seconds[name] = {}, {}
        with torch.no_grad():
            coded = model.decode(model.encode(truth)).clamp(-1, 1) if isinstance(model, LatentDenoiser) else None
        for factor in FACTORS:
            task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, factor), factor)
            images = {"the truth": truth, "bicubic": fcs_lab.upsample(task.y, factor)}
            if coded is not None:
                images["the truth, coded and decoded"] = coded  # what the decoder can do at best
            for label in runs(model, factor):
                print(f"{name} ×{factor}, {label} …")
                start = time.perf_counter()
                images[label] = restore(model, label, truth, factor)
                seconds[name][f"×{factor}, {label}"] = round((time.perf_counter() - start) / DIGITS, 3)
            numbers[name][f"×{factor}"] = {label: measure(task, judge, one, truth, labels) for label, one in images.items()}
    settings = {"images": DIGITS, "num_inference_steps": STEPS, "inner_steps": INNER, "step_size": STEP_SIZE,
                DOUBLED: {"inner_steps": 2 * INNER, "step_size": 0.1}, "kernel": "bicubic"}  # fmt: skip
    save_record(output / "tab16_super_resolution.json", model=list(MODELS), seed=SEED, settings=settings, numbers=numbers,
                timings={"seconds_per_image": seconds})  # fmt: skip
    table = as_markdown(numbers)
    (output / "tab16_super_resolution.md").write_text(table)
    print(table)


def runs(model: fcs_lab.Denoiser, factor: int) -> list[str]:
    """The variants that are measured at this factor."""
    if factor != max(FACTORS):
        return ["newton"]
    return ["newton", DOUBLED, *([ENCODER] if isinstance(model, LatentDenoiser) else [])]


def restore(model: fcs_lab.Denoiser, label: str, truth: Tensor, factor: int) -> Tensor:
    def task(images: Tensor) -> fcs_lab.SuperResolution | Decoded:
        found = fcs_lab.SuperResolution(fcs_lab.downsample(images, factor), factor)
        return Decoded(found, model, derivative="forward") if label == ENCODER else found

    chosen = {"inner_steps": 2 * INNER, "step_size": 0.1} if label == DOUBLED else {}
    given = {"inner_steps": INNER, "step_size": STEP_SIZE} | chosen
    return sample(model, task, truth, SEED, num_inference_steps=STEPS, **given).images


def measure(task: fcs_lab.SuperResolution, judge: torch.nn.Module, images: Tensor, truth: Tensor, labels: Tensor) -> dict:
    with torch.no_grad():
        right = (judge(images).argmax(1) == labels).float()
    measures = {"psnr": psnr(images, truth), "data_consistency": data_consistency(task, images), "accuracy": right}
    return {
        name: mean(values)
        for name, values in measures.items()
        if bool(values.isfinite().all())  # the truth's own PSNR is not
    }


def as_markdown(numbers: dict) -> str:
    lines = ["| | | PSNR, dB | rms of A x − y | named as labelled |", "| --- | --- | --- | --- | --- |"]
    for name, factors in numbers.items():
        for factor, rows in factors.items():
            for label, found in rows.items():
                cells = [
                    f"{found[measure]['mean']:{form}} ± {found[measure]['error']:{form}}" if measure in found else ""
                    for measure, form in {"psnr": ".1f", "data_consistency": ".4f", "accuracy": ".0%"}.items()
                ]
                lines.append(f"| {name} {factor} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\nMeans of {DIGITS} images ± standard errors.\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
