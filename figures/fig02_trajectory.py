"""x̂_0 over the timesteps, with and without the constraint, from the same noise."""

from pathlib import Path

import options
import torch
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.denoisers import as_model
from fcs_lab.plots import trajectory

MODEL, SEED, DIGIT, STEPS, INNER = "mnist", 0, 7, 20, 5


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    truth = asked.picture(model, DIGIT)
    task = fcs_lab.Inpainting(truth, options.right_half(model))
    tasks = {"unconditional": None, "right half hidden\nnewton  Je": task}
    results = {
        label: fcs_lab.sample(
            model,
            task,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            generator=torch.Generator().manual_seed(seed),
            trace_x0=True,
        )
        for label, task in tasks.items()
    }
    numbers = {
        label: {"t": [entry.t for entry in ends], "error_norm": [entry.error_norm.item() for entry in ends]}
        for label, result in results.items()
        if (ends := [entry for entry in result.trace if entry.x0 is not None])
    }
    for result in results.values():  # of a latent model, as the images that they are decoded to
        for entry in result.trace:
            if entry.x0 is not None:
                with torch.no_grad():
                    entry.x0 = as_model(model).decode(entry.x0.to(model.device)).cpu()
    settings = {"image": DIGIT, "num_inference_steps": STEPS, "inner_steps": INNER, "mask": "right half"}
    asked.save(trajectory(results), output / "fig02_trajectory", model=MODEL, seed=seed,
                settings=settings, numbers=numbers)  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
