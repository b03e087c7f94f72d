"""64 digits and 64 garments, half of each hidden: errors on both halves, and whether it is still the same thing."""

import argparse
import time
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.latent import LatentDenoiser
from fcs_lab.metrics import accuracy, masked_mse
from fcs_lab.records import save_record

SEED, DIGITS, STEPS, INNER = 0, 64, 20, 5
MODELS = {"mnist": (fcs_lab.load_digits, "digits"), "fashion": (fcs_lab.load_garments, "garments")}
METHODS = {"unconditional": None, "identity": "identity", "gradient": "gradient", "newton": "newton"}


def main(output: Path) -> None:
    masks = {
        "right half": torch.zeros(1, 1, 32, 32, dtype=torch.bool),
        "top half": torch.zeros(1, 1, 32, 32, dtype=torch.bool),
    }
    masks["right half"][..., 16:] = True
    masks["top half"][..., :16, :] = True

    numbers, seconds, table = {}, {}, ""
    for name, (load_images, kind) in MODELS.items():
        numbers[name], seconds[name] = measure(name, *load_images(DIGITS), load_classifier(kind), masks)
        table += f"**{name}**, {DIGITS} {kind}:\n\n{as_markdown(numbers[name], kind)}\n"
    save_record(
        output / "tab01_half_image.json",
        model=tuple(MODELS),
        seed=SEED,
        settings={"images": DIGITS, "num_inference_steps": STEPS, "inner_steps": INNER, "eta": 1.0},
        numbers=numbers,
        timings={"seconds": seconds},
    )
    (output / "tab01_half_image.md").write_text(table)
    print(table)


def measure(name: str, truth: torch.Tensor, labels: torch.Tensor, judge: torch.nn.Module, masks: dict) -> tuple[dict, dict]:
    """What each method makes of each mask, in numbers and in seconds."""
    model = fcs_lab.load(name)
    numbers, seconds = {"accuracy_on_truth": accuracy(judge, truth, labels)}, {}
    if isinstance(model, LatentDenoiser):  # the best that any method can do: what the autoencoder makes of the truth
        with torch.no_grad():
            decoded = model.decode(model.encode(truth)).clamp(-1, 1).cpu()
        numbers["mse_autoencoder"] = (decoded - truth).square().mean().item()
    for hidden, mask in masks.items():
        task, numbers[hidden], seconds[hidden] = fcs_lab.Inpainting(truth, mask), {}, {}
        for method, direction in METHODS.items():
            print(f"{name}, {hidden} hidden, {method}")
            start = time.perf_counter()
            result = fcs_lab.sample(
                model,
                None if direction is None else task,
                num_inference_steps=STEPS,
                inner_steps=INNER,
                direction=direction or "newton",
                batch_size=DIGITS,
                generator=torch.Generator().manual_seed(SEED),
            )
            seconds[hidden][method] = round(time.perf_counter() - start, 2)
            images = result.images.cpu()
            numbers[hidden][method] = {
                "nfe": result.nfe,
                "n_backward": result.n_backward,
                "mse_known": masked_mse(images, truth, ~mask).mean().item(),
                "mse_hidden": (error := masked_mse(images, truth, mask)).mean().item(),
                "mse_hidden_standard_error": error.std().item() / DIGITS**0.5,
                "accuracy": accuracy(judge, images, labels),
            }
    return numbers, seconds


def as_markdown(numbers: dict, kind: str) -> str:
    lines = [
        "| hidden | update | evaluations | backward passes | MSE, known half | MSE, hidden half | still named the same |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for hidden in ("right half", "top half"):
        for method, n in numbers[hidden].items():
            error = f"{n['mse_hidden']:.3f} ± {n['mse_hidden_standard_error']:.3f}"
            counts = f"{n['nfe']} | {n['n_backward']}"
            lines.append(f"| {hidden} | {method} | {counts} | {n['mse_known']:.5f} | {error} | {n['accuracy']:.1%} |")
    lines.append(
        f"\n± is a standard error. The classifier names {numbers['accuracy_on_truth']:.1%} of the whole {kind} rightly."
    )
    if "mse_autoencoder" in numbers:
        lines.append(f"The autoencoder alone leaves a mean squared error of {numbers['mse_autoencoder']:.4f}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
