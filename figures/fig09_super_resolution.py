"""Super-resolution ×2, ×4 and ×8: digits in pixels, and garments through a decoder, against bicubic interpolation."""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.latent import Decoded, LatentDenoiser
from fcs_lab.metrics import accuracy, data_consistency, psnr
from fcs_lab.plots import image_grid
from fcs_lab.records import save_figure

MODELS = {"mnist": ("digits", fcs_lab.load_digits), "fashion": ("garments", fcs_lab.load_garments)}
SEED, DIGITS, SHOWN, STEPS, FACTORS = 0, 16, 6, 20, (2, 4, 8)
INNER, STEP_SIZE = 5, (0.5, 0.1)  # the authors' for inpainting; theirs for super-resolution are measured, too


def main(output: Path) -> None:
    numbers, seconds, pictures = {}, {}, {}
    for name, (kind, load_images) in MODELS.items():
        model, judge = fcs_lab.load(name, device="cpu"), load_classifier(kind)
        truth, labels = load_images(DIGITS)

        def judged(task: fcs_lab.SuperResolution, images: Tensor, truth=truth, labels=labels, judge=judge) -> dict:
            return {
                "psnr": psnr(images, truth).mean().item(),
                "data_consistency": data_consistency(task, images).mean().item(),
                "accuracy": accuracy(judge, images, labels),
            }

        numbers[name], seconds[name] = {"accuracy_on_truth": accuracy(judge, truth, labels)}, {}
        if isinstance(model, LatentDenoiser):  # what the decoder can do at best
            with torch.no_grad():
                coded = model.decode(model.encode(truth)).clamp(-1, 1)
            numbers[name]["psnr_of_the_vae"] = psnr(coded, truth).mean().item()
        for factor in FACTORS:
            task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, factor), factor)
            bicubic = fcs_lab.upsample(task.y, factor)
            found = {"bicubic": judged(task, bicubic)}
            runs = {"newton": (task, INNER, STEP_SIZE), "newton, K doubled, λ = 0.1": (task, 2 * INNER, 0.1)}
            if isinstance(model, LatentDenoiser):
                found["decoded truth"] = judged(task, coded)
                runs["newton, e through the encoder"] = (Decoded(task, model, derivative="forward"), INNER, STEP_SIZE)
            for label, (constraint, inner_steps, step_size) in runs.items():
                print(f"{name} ×{factor}, {label} …")
                start = time.perf_counter()
                result = fcs_lab.sample(
                    model,
                    constraint,
                    num_inference_steps=STEPS,
                    inner_steps=inner_steps,
                    step_size=step_size,
                    generator=[torch.Generator().manual_seed(SEED + i) for i in range(DIGITS)],
                )
                seconds[name][f"×{factor}, {label}"] = round((time.perf_counter() - start) / DIGITS, 3)
                found[label] = judged(task, result.images) | {"nfe": result.nfe}
                if label == "newton":
                    pictures[name, factor] = (task.y, bicubic, result.images)
            numbers[name][f"×{factor}"] = found
        pictures[name] = truth

    rows = {}
    for factor in FACTORS:
        for i, label in enumerate(("given", "bicubic", "newton")):
            text = [f"×{factor}: {label}"]
            if label != "given":
                text += [f"{name} {_short(numbers[name][f'×{factor}'][label])}" for name in MODELS]
            rows["\n".join(text)] = _side_by_side([pictures[name, factor][i] for name in MODELS])
    rows["truth"] = _side_by_side([pictures[name] for name in MODELS])
    figure = image_grid(
        rows,
        title=f"Super-resolution: PSNR, rms of A x − y, classified as labelled; means of {DIGITS} images "
        f"(K = {INNER}, λ = {STEP_SIZE[0]:g} → {STEP_SIZE[1]:g})",
    )
    settings = {
        "images": DIGITS,
        "num_inference_steps": STEPS,
        "inner_steps": INNER,
        "step_size": STEP_SIZE,
        "the authors' for super-resolution": {"inner_steps": 2 * INNER, "step_size": 0.1},
        "kernel": "bicubic",
    }
    save_figure(figure, output / "fig09_super_resolution", model=list(MODELS), seed=SEED, settings=settings, numbers=numbers,
                timings={"seconds_per_image": seconds})  # fmt: skip


def _short(found: dict) -> str:
    return f"{found['psnr']:.1f} dB, {found['data_consistency']:.3f}, {found['accuracy']:.0%}"


def _side_by_side(images: list[Tensor]) -> Tensor:
    """The first images of each model, in one row."""
    return torch.cat([one[:SHOWN] for one in images])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
