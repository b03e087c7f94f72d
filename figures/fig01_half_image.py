"""Half an image completed: what each update of x_t makes of the same digits, from the same noise."""

import time
from pathlib import Path

import options
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.metrics import masked_mse
from fcs_lab.plots import image_grid

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 10, 20, 5
ROWS = {"unconditional": None, "identity  e": "identity", "gradient  Jᵀe": "gradient", "newton  Je": "newton"}


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    truth, mask = asked.pictures(model, DIGITS), options.right_half(model)

    rows, numbers, seconds = {"truth": truth, "constraint": truth}, {}, {}
    for label, direction in ROWS.items():
        print(f"{label} …")
        start = time.perf_counter()
        result = options.sample(
            model,
            None if direction is None else lambda images: fcs_lab.Inpainting(images, mask),
            truth,
            seed,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            direction=direction or "newton",
        )
        seconds[label] = round((time.perf_counter() - start) / len(truth), 3)
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
    settings = {"images": len(truth), "num_inference_steps": STEPS, "inner_steps": INNER, "mask": "right half"}
    asked.save(figure, output / "fig01_half_image", model=MODEL, seed=seed, settings=settings,
                numbers=numbers, timings={"seconds_per_image": seconds})  # fmt: skip


if __name__ == "__main__":
    main(*options.parse(__doc__))
