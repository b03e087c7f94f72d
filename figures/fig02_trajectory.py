"""x̂_0 over the timesteps, with and without the constraint, from the same noise."""

import argparse
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.plots import trajectory
from fcs_lab.records import save_figure

MODEL, SEED, DIGIT, STEPS, INNER = "mnist", 0, 7, 20, 5


def main(output: Path) -> None:
    model = fcs_lab.load(MODEL)
    truth = fcs_lab.load_digits(DIGIT + 1)[0][DIGIT:]
    mask = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    mask[:, mask.shape[-1] // 2 :] = True
    tasks = {"unconditional": None, "right half hidden\nnewton  Je": fcs_lab.Inpainting(truth, mask)}
    results = {
        label: fcs_lab.sample(
            model,
            task,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            generator=torch.Generator().manual_seed(SEED),
            trace_x0=True,
        )
        for label, task in tasks.items()
    }
    numbers = {
        label: {"t": [entry.t for entry in ends], "error_norm": [entry.error_norm.item() for entry in ends]}
        for label, result in results.items()
        if (ends := [entry for entry in result.trace if entry.x0 is not None])
    }
    settings = {"digit": DIGIT, "num_inference_steps": STEPS, "inner_steps": INNER, "mask": "right half"}
    save_figure(trajectory(results), output / "fig02_trajectory", model=MODEL, seed=SEED, settings=settings, numbers=numbers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
