"""Half an image completed: what each update of x_t makes of the same digits, from the same noise."""

import argparse
import time
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.metrics import masked_mse
from fcs_lab.plots import image_grid
from fcs_lab.records import save_figure

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 10, 20, 5
ROWS = {"unconditional": None, "identity  e": "identity", "gradient  Jᵀe": "gradient", "newton  Je": "newton"}


def main(output: Path) -> None:
    model = fcs_lab.load(MODEL)
    truth, _ = fcs_lab.load_digits(DIGITS)
    mask = torch.zeros(1, 1, *truth.shape[-2:], dtype=torch.bool)
    mask[..., mask.shape[-1] // 2 :] = True
    task = fcs_lab.Inpainting(truth, mask)

    rows, numbers, seconds = {"truth": truth, "constraint": truth}, {}, {}
    for label, direction in ROWS.items():
        print(f"{label} …")
        start = time.perf_counter()
        result = fcs_lab.sample(
            model,
            None if direction is None else task,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            direction=direction or "newton",
            batch_size=DIGITS,
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(DIGITS)],
        )
        seconds[label] = round((time.perf_counter() - start) / DIGITS, 3)
        numbers[label] = {
            "nfe": result.nfe,
            "n_backward": result.n_backward,
            "mse_known": masked_mse(result.images, truth, ~mask).mean().item(),
            "mse_hidden": masked_mse(result.images, truth, mask).mean().item(),
        }
        backward = f"\n+ {result.n_backward} backward passes" if result.n_backward else ""
        rows[f"{label}\n{result.nfe} evaluations{backward}\n{seconds[label]:.2f} s an image"] = result.images

    figure = image_grid(
        rows,
        masks={"constraint": mask},
        title=f"Half an image completed ({STEPS} timesteps, K = {INNER}, η = 1)",
    )
    settings = {"digits": DIGITS, "num_inference_steps": STEPS, "inner_steps": INNER, "mask": "right half"}
    save_figure(figure, output / "fig01_half_image", model=MODEL, seed=SEED, settings=settings, numbers=numbers,
                timings={"seconds_per_image": seconds})  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
