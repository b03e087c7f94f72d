"""J⁻¹ e, which Newton's method would take, beside J e, Jᵀ e and e: in samples, and where one step of each leads.

Above, digits whose right half was hidden, from the same noise. J⁻¹ e is regularised ("exact"), and is had by an iteration,
which costs some 54 evaluations and as many backward passes an inner step where J e takes two evaluations: so the digits,
timesteps and inner steps are few.
Below, x̂_0 of the first digit at several timesteps, before and after one step of the same length ‖·‖_∞ along each direction;
the numbers are what is left of the error in the given half.
"""

import time
from pathlib import Path

import options
import torch
from options import DEFAULT, SOLVED, Options
from torch import Tensor

import fcs_lab
from fcs_lab.denoisers import as_model
from fcs_lab.latent import in_latents
from fcs_lab.metrics import masked_mse
from fcs_lab.plots import Figure, show
from fcs_lab.probes import compare_directions

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 3, 5, 1
TIMESTEPS = (900, 600, 300, 100)
STEP_SIZE, REGULARIZATION, ITERATIONS = 0.5, 0.1, 50
DIRECTIONS = {"J⁻¹ e": "exact", "J e": "newton", "Jᵀ e": "gradient", "e": "identity"}


def main(output: Path, asked: Options = DEFAULT) -> None:
    model, seed = asked.load(MODEL), asked.seed_or(SEED)
    truth, mask = asked.pictures(model, DIGITS), options.right_half(model)
    samples, numbers, seconds = {"truth": truth, "given": truth}, {"samples": {}, "steps": {}}, {}
    for label, direction in DIRECTIONS.items():
        print(f"{label} …")
        start = time.perf_counter()
        result = options.complete(
            model,
            truth,
            seed,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            step_size=STEP_SIZE,
            direction=direction,
            regularization=REGULARIZATION if direction == "exact" else None,
        )
        samples[label] = result.images
        seconds[label] = round((time.perf_counter() - start) / len(truth), 2)
        numbers["samples"][label] = {
            "mse_known": options.mean(masked_mse(result.images, truth, ~mask)),
            "mse_hidden": options.mean(masked_mse(result.images, truth, mask)),
            "evaluations": result.nfe,
            "backward_passes": result.n_backward,
        }
    steps = {}
    for t in TIMESTEPS:
        print(f"t = {t} …")
        steps[t], numbers["steps"][str(t)] = one_step(model, truth[:1], mask, t, seed)
    settings = {"images": len(truth), "num_inference_steps": STEPS, "inner_steps": INNER, "step_size": STEP_SIZE,
                "regularization": REGULARIZATION, "mask": "right half", "solve_iterations": ITERATIONS}  # fmt: skip
    asked.save(draw(samples, steps, numbers, mask), output / "fig13_inverse", model=MODEL, seed=seed, settings=settings,
               numbers=numbers, timings={"seconds_per_image": seconds}, tolerance=SOLVED)  # fmt: skip


def one_step(model: fcs_lab.Denoiser, truth: Tensor, mask: Tensor, t: int, seed: int) -> tuple[dict, dict]:
    """x̂_0 before and after a step along each direction, as images, and what was measured."""
    x_t = options.noisy(model, truth, t, seed)
    task = in_latents(fcs_lab.Inpainting(truth, mask), model).to(x_t.device, x_t.dtype)
    with torch.no_grad():
        x0 = model(x_t, t)
    compared = compare_directions(
        model,
        x_t,
        t,
        task.error(x0),
        regularization=REGULARIZATION,
        step_size=STEP_SIZE,
        max_iterations=ITERATIONS,
    )
    with torch.no_grad():
        images = {label: as_model(model).decode(x0 + compared[label].change).cpu() for label in DIRECTIONS}
        images = {"x̂_0 before": as_model(model).decode(x0).cpu()} | images
    return images, {label: {"left": compared[label].left, "cosine_with_Je": compared[label].cosine} for label in DIRECTIONS}


def draw(samples: dict[str, Tensor], steps: dict[int, dict[str, Tensor]], numbers: dict, mask: Tensor) -> Figure:
    size, gap, label_width, under = 0.72, 0.05, 1.95, 0.17
    after = next(iter(steps.values()))
    columns = max(len(samples["truth"]), len(steps))
    width = label_width + columns * (size + gap) + 0.1
    middle = 0.45 + len(samples) * (size + gap)
    height = middle + 0.7 + len(after) * (size + under)
    figure = Figure(figsize=(width, height))

    def panel(x: int, top: float, image: Tensor, hidden: Tensor | None = None):
        place = ((label_width + x * (size + gap)) / width, 1 - (top + size) / height, size / width, size / height)
        axes = figure.add_axes(place)
        show(axes, image, hidden)
        return axes

    def label(top: float, text: str) -> None:
        x, y = (label_width - 0.12) / width, 1 - (top + size / 2) / height
        figure.text(x, y, text, ha="right", va="center", fontsize=8.5)

    n = len(samples["truth"])
    title = f"{n} images, right half hidden ({STEPS} timesteps, K = {INNER}, λ = {STEP_SIZE:g})"
    figure.text(0.02, 1 - 0.08 / height, title, fontsize=9, va="top", weight="bold")
    for r, (name, images) in enumerate(samples.items()):
        top, found = 0.4 + r * (size + gap), numbers["samples"].get(name)
        lines = [name if found is None else f"d = {name}"]
        for half, measured in (("hidden", "mse_hidden"), ("given", "mse_known")) if found is not None else ():
            error = "" if found[measured]["error"] is None else f" ± {found[measured]['error']:.2g}"
            lines.append(f"MSE {half} {found[measured]['mean']:.2g}{error}")
        label(top, "\n".join(lines))
        for c, image in enumerate(images):
            panel(c, top, image, mask[0] if name == "given" else None)
    title = f"One step of length {STEP_SIZE:g} along d: x̂_0, what is left of e"
    figure.text(0.02, 1 - (middle + 0.12) / height, title, fontsize=9, va="top", weight="bold")
    for r, name in enumerate(after):
        top = middle + 0.55 + r * (size + under)
        label(top, name if r == 0 else f"d = {name}")
        for c, (t, images) in enumerate(steps.items()):
            axes = panel(c, top, images[name][0])
            if r == 0:
                axes.set_title(f"t = {t}", fontsize=8, pad=3)
            else:
                axes.set_xlabel(f"{numbers['steps'][str(t)][name]['left']:.2f}", fontsize=7, labelpad=1.5)
    return figure


if __name__ == "__main__":
    main(*options.parse(__doc__))
