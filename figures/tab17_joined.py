"""Two images joined (fig11_joined.py): does it come out convincing? 64 pairs of digits, and of garments.

Measured: the mean step |∂x| across the two seams, over that of real images at the same columns; how sure a classifier is
of what it sees; and how plausible the model itself finds the result, by the loss that it was trained with. What stands in
the table is a mean and its standard error, over what is usual.
"""

import argparse
import time
from pathlib import Path

import fig11_joined as fig11
import torch
from fig11_joined import ONE_CLASS, ONE_IMAGE
from options import mean
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import Classifier, load_classifier
from fcs_lab.metrics import denoising_loss
from fcs_lab.records import save_record

SEED, PAIRS = 0, 64
JUDGES = {"mnist": "digits", "fashion": "garments"}
ROWS = ("real images", ONE_IMAGE, ONE_CLASS, *fig11.DIRECTIONS, "naive blend")
MEASURES = {"seam": "step across the seams", "confidence": "the classifier's confidence", "loss": "denoising loss"}


def main(output: Path) -> None:
    numbers, seconds = {}, {}
    for name, kind in JUDGES.items():
        print(f"{name} …")
        start = time.perf_counter()
        model, classifier = fcs_lab.load(name, device="cpu"), load_classifier(kind)
        images, labels = fig11.DATA[name]()
        rows = fig11.study(model, images, labels, PAIRS, SEED)
        rows["real images"] = rows["left"]
        usual = {
            "seam": fig11.seam_step(images).mean(),
            "confidence": 1.0,
            "loss": denoising_loss(model, rows["left"]).mean(),
        }
        numbers[name] = {" ".join(row.split()): measure(model, classifier, rows[row], usual) for row in ROWS}
        seconds[name] = round(time.perf_counter() - start, 1)
    settings = {"pairs": PAIRS, "num_inference_steps": fig11.STEPS, "inner_steps": fig11.inner_steps()}
    save_record(output / "tab17_joined.json", model=list(JUDGES), seed=SEED, settings=settings, numbers=numbers,
                timings={"seconds": seconds})  # fmt: skip
    table = as_markdown(numbers)
    (output / "tab17_joined.md").write_text(table)
    print(table)


@torch.no_grad()
def measure(model: fcs_lab.Denoiser, classifier: Classifier, images: Tensor, usual: dict) -> dict:
    """The mean of each measure over the images, and its standard error, both over what is usual."""
    measures = {
        "seam": fig11.seam_step(images),
        "confidence": classifier(images).softmax(1).amax(1),
        "loss": denoising_loss(model, images),
    }
    return {name: mean(x / usual[name]) for name, x in measures.items()}


def as_markdown(numbers: dict) -> str:
    heads = [f"{name}: {title}" for name in numbers for title in MEASURES.values()]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for row in numbers["mnist"]:
        cells = [numbers[name][row][measure] for name in numbers for measure in MEASURES]
        lines.append(f"| {row} | " + " | ".join(f"{cell['mean']:.3f} ± {cell['error']:.3f}" for cell in cells) + " |")
    return "\n".join(lines) + f"\n\nMeans of {PAIRS} pairs ± standard errors; steps and losses over those of real images.\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
