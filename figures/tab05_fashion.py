"""The bundled latent model `fashion`: its autoencoder's error, and whether its garments are what was asked for."""

import argparse
import time
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.data import GARMENTS
from fcs_lab.metrics import accuracy
from fcs_lab.records import save_record

MODEL, SEED, IMAGES, SAMPLES, STEPS = "fashion", 0, 256, 32, 25
GUIDANCE_SCALES = (1.0, 2.0, 3.0, 5.0, 7.5)


def main(output: Path) -> None:
    start = time.perf_counter()
    model, judge = fcs_lab.load(MODEL), load_classifier("garments")
    truth, labels = fcs_lab.load_garments(IMAGES)
    with torch.no_grad():
        decoded = model.decode(model.encode(truth)).clamp(-1, 1).cpu()
    error = (decoded - truth).square().flatten(1).mean(1)
    numbers = {
        "autoencoder": {
            "mse": error.mean().item(),
            "psnr": (10 * torch.log10(4 / error)).mean().item(),
            "accuracy_on_truth": accuracy(judge, truth, labels),
            "accuracy_on_decoded": accuracy(judge, decoded, labels),
        },
        "accuracy": {},
    }
    asked = torch.arange(len(GARMENTS)).repeat_interleave(SAMPLES)
    prompts = [f"a photo of {GARMENTS[label]}" for label in asked]
    for scale in GUIDANCE_SCALES:
        print(f"guidance scale {scale:g}")
        result = fcs_lab.sample(
            model.with_prompt(prompts, guidance_scale=scale),
            num_inference_steps=STEPS,
            eta=0.0,
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(prompts))],
        )
        guesses = judge(result.images.cpu()).argmax(1)
        right = (guesses == asked).float().reshape(len(GARMENTS), SAMPLES).mean(1)
        numbers["accuracy"][f"{scale:g}"] = {"all": right.mean().item()} | {
            garment: share.item() for garment, share in zip(GARMENTS, right, strict=True)
        }
    save_record(
        output / "tab05_fashion.json",
        model=MODEL,
        seed=SEED,
        settings={"images": IMAGES, "samples": SAMPLES, "num_inference_steps": STEPS, "eta": 0.0},
        numbers=numbers,
        timings={"seconds": round(time.perf_counter() - start, 1)},
    )
    table = as_markdown(numbers)
    (output / "tab05_fashion.md").write_text(table)
    print(table)


def as_markdown(numbers: dict) -> str:
    scales = list(numbers["accuracy"])
    lines = [
        "| prompt: a photo of … | " + " | ".join(f"s = {scale}" for scale in scales) + " |",
        "| --- |" + " --- |" * len(scales),
    ]
    for row in ("all", *GARMENTS):
        lines.append(f"| {row} | " + " | ".join(f"{numbers['accuracy'][scale][row]:.0%}" for scale in scales) + " |")
    auto = numbers["autoencoder"]
    lines.append(
        f"\nAutoencoder on test garments: mean squared error {auto['mse']:.4f}, PSNR {auto['psnr']:.1f} dB. The classifier "
        f"names {auto['accuracy_on_truth']:.1%} of the test garments rightly, {auto['accuracy_on_decoded']:.1%} once coded "
        "and decoded."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
