"""Does J e earn anything in this latent space? `emoji`, pictures of concepts that it was not trained on.

The right half, a box, and ×4 super-resolution, along e, J e and Jᵀ e and by the preset "fast", with 10 timesteps and K = 3
on 128 pictures; on 32 of them with 20 and K = 5, and with the pictures' own prompts, guided, with 10 and K = 3. J⁻¹ e
("exact", some 100 evaluations and backward passes an inner step) completes the right half of four, with K = 1, beside the
others at the same. Means, and differences picture by picture; standard errors are clustered by concept, since six styles
draw the same.

Below, J itself beside `mnist`'s and `fashion`'s, at noisy versions of four pictures: how asymmetric it is, its spectral
radius μ_max, how far a step along J e goes before the line that J draws is off by a tenth, and the best h of a finite
difference.

Last, super-resolution's e without any backward pass: through the encoder, J_E e_pixels, in place of J_Dᵀ e_pixels through
the decoder. Samples by both, and what becomes of C at noisy versions of the pictures, over the best of some step lengths: if
x̂_0 could be moved along e itself, and if x_t is moved along J e, as it has to be.

Cells that are done are kept under runs/tab10, and skipped when the command is run again.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cells import kept
from options import mean, mean_of_emoji, noisy
from scipy.sparse.linalg import eigs
from torch import Tensor

import fcs_lab
from fcs_lab.data import example_images
from fcs_lab.directions import FD_STEP, norm_inf
from fcs_lab.latent import in_latents
from fcs_lab.latent_space import Decoded
from fcs_lab.metrics import masked_mse, psnr
from fcs_lab.probes import JacobianOperator, measure_fd_error, measure_linear_reach, measure_symmetry
from fcs_lab.records import save_record
from fcs_lab.zoo import WEIGHTS

SEED, PICTURES, EXACT, BATCH, GUIDANCE, FACTOR = 0, 128, 4, 32, 2.5, 4
TASKS = ("right half", "box", "×4")
DIRECTIONS = {"e": "identity", "J e": "newton", "Jᵀ e": "gradient", "J⁻¹ e": "exact"}
MODELS, LATENT = ("mnist", "fashion", "emoji"), ("fashion", "emoji")
TIMESTEPS, PROBED, PROBES = (900, 700, 500, 300), 4, 16
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
H_STEPS = np.geomspace(1e-3, 3, 8)
CODED, CODED_FACTORS, DERIVATIVES = 16, (2, 4, 8), {"J_Dᵀ e": "backward", "J_E e": "forward"}
CODED_RUN = {"num_inference_steps": 10, "inner_steps": 5}
LENGTHS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # ‖·‖_∞ of a step
CACHE = Path(__file__).parents[1] / "runs" / "tab10"


@dataclass(frozen=True)
class Setting:
    """A block of the table."""

    num_inference_steps: int
    inner_steps: int
    prompted: bool
    directions: tuple[str, ...]
    tasks: tuple[str, ...] = TASKS
    pictures: int | None = None
    """How many. None: `PICTURES`."""

    def __str__(self) -> str:
        guided = f", prompts, guidance {GUIDANCE:g}" if self.prompted else ""
        return f"T′ = {self.num_inference_steps}, K = {self.inner_steps}{guided}"


SETTINGS = (
    Setting(10, 3, False, ("e", "J e", "Jᵀ e", "fast")),
    Setting(20, 5, False, ("e", "J e", "Jᵀ e"), pictures=32),
    Setting(10, 3, True, ("e", "J e", "Jᵀ e"), pictures=32),
    Setting(10, 1, False, ("e", "J e", "Jᵀ e", "J⁻¹ e"), ("right half",), EXACT),
)


def constraint(task: str, truth: Tensor) -> tuple[fcs_lab.Inpainting | fcs_lab.SuperResolution, Tensor]:
    """The task, and where the pictures are judged: what is hidden, or everywhere."""
    H, W = truth.shape[-2:]
    where = torch.zeros(1, 1, H, W, dtype=torch.bool)
    if task == "×4":
        return fcs_lab.SuperResolution(fcs_lab.downsample(truth, FACTOR), FACTOR), ~where
    if task == "box":
        where[..., H // 4 : 3 * H // 4, W // 4 : 3 * W // 4] = True
    else:
        where[..., W // 2 :] = True
    return fcs_lab.Inpainting(truth, where), where


def runnable(method: str, task: str) -> bool:
    """The preset needs A⁺, which a task through the decoder does not have."""
    return method != "fast" or task != "×4"


def complete(model: fcs_lab.Denoiser, setting: Setting, task: str, method: str, first: int, last: int) -> dict[str, list]:
    """The squared error of each of these pictures, and the evaluations of all."""
    pictures, _, names = fcs_lab.load_emoji(last)
    truth = pictures[first:last]
    asked, where = constraint(task, truth)
    chosen = {"preset": "fast"} if method == "fast" else {
        "direction": DIRECTIONS[method],
        "num_inference_steps": setting.num_inference_steps,
        "inner_steps": setting.inner_steps,
    }  # fmt: skip
    result = fcs_lab.sample(
        model.with_prompt(names[first:last], guidance_scale=GUIDANCE) if setting.prompted else model,
        asked,
        generator=[torch.Generator().manual_seed(SEED + i) for i in range(first, last)],
        progress=False,
        **chosen,
    )
    error = masked_mse(result.images.cpu(), truth, where)
    return {"mse": error.tolist(), "evaluations": result.nfe, "backward_passes": result.n_backward}


def jacobian(name: str, t: int) -> dict[str, list]:
    """What is measured of a model's J at this timestep, at noisy versions of its first pictures."""
    model = fcs_lab.load(name, device="cpu")
    found: dict[str, list] = {"relative_skew": [], "cosine": [], "mu_max": [], "linear_step": []}
    for i, truth in enumerate(example_images(model, PROBED).split(1)):
        x_t = noisy(model, truth, t, SEED + i)
        e = error_at(model, truth, x_t, t)
        J = JacobianOperator(model, x_t, t, "fd")
        symmetry = measure_symmetry(J, e, probes=PROBES)
        found["relative_skew"].append(symmetry.relative_skew)
        found["cosine"].append(symmetry.cosine)
        found["mu_max"].append(
            float(abs(eigs(J, k=1, ncv=20, tol=1e-2, v0=np.ones(J.shape[0]), return_eigenvectors=False)[0]))
        )
        found["linear_step"].append(measure_linear_reach(model, x_t, t, e).step_size)
    return found


def best_h(name: str) -> dict[str, dict]:
    """For each precision the h of least error of J e, at t = 500 and the first picture, and that error."""
    model, t = fcs_lab.load(name, device="cpu"), 500
    truth = example_images(model, 1)
    x_t = noisy(model, truth, t, SEED)
    e = error_at(model, truth, x_t, t)
    found = measure_fd_error(model, x_t, t, e, h=H_STEPS, dtypes=list(DTYPES.values()), schemes=["forward"])
    best = {}
    for label, dtype in DTYPES.items():
        curve = found.curves[dtype, "forward"]
        least = int(np.nanargmin(curve.error))
        best[label] = {"h": float(curve.h[least]), "error": float(curve.error[least])}
    return best


def through_the_encoder(name: str, factor: int) -> dict[str, list]:
    """Picture by picture: the samples' PSNR, the cosine of both e, how much J makes of each, and what is left of C."""
    model = fcs_lab.load(name, device="cpu")
    truth = example_images(model, CODED)
    pixels = fcs_lab.SuperResolution(fcs_lab.downsample(truth, factor), factor)
    tasks = {label: Decoded(pixels, model, derivative=derivative) for label, derivative in DERIVATIVES.items()}
    found: dict[str, list] = {}
    for label, task in tasks.items():
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(CODED)]
        result = fcs_lab.sample(model, task, **CODED_RUN, generator=generators, progress=False)
        found[f"psnr {label}"] = psnr(result.images, truth).tolist()
    h, rows = FD_STEP[torch.float32], {}
    with torch.no_grad():
        for t in TIMESTEPS:
            x_t = torch.cat([noisy(model, truth[i : i + 1], t, SEED + i) for i in range(CODED)])
            x0 = model(x_t, t)
            before = pixels.cost_and_error(model.decode(x0))[0]
            both = {label: task.error(x0) for label, task in tasks.items()}
            both = {label: e / norm_inf(e) for label, e in both.items()}
            rows.setdefault("cosine", []).append(torch.cosine_similarity(*(e.flatten(1) for e in both.values())))
            for label, e in both.items():
                d = (model(x_t + h * e, t) - x0) / h
                left = {"x̂_0": [], "x_t": []}
                for length in LENGTHS:
                    moved = {"x̂_0": x0 + length * e, "x_t": model(x_t + length * d / norm_inf(d), t)}
                    for what, one in moved.items():
                        left[what].append(pixels.cost_and_error(model.decode(one))[0] / before)
                rows.setdefault(f"gain {label}", []).append(d.flatten(1).norm(dim=1) / e.flatten(1).norm(dim=1))
                for what, some in left.items():
                    rows.setdefault(f"left, {what}, {label}", []).append(torch.stack(some).amin(0))
    return found | {key: torch.stack(some).mean(0).tolist() for key, some in rows.items()}


def error_at(model: fcs_lab.Denoiser, truth: Tensor, x_t: Tensor, t: int) -> Tensor:
    """e of the hidden right half."""
    asked, _ = constraint("right half", truth)
    task = in_latents(asked, model).to(x_t.device, x_t.dtype)
    with torch.no_grad():
        return task.error(model(x_t, t))


def main(output: Path, cache: Path = CACHE) -> None:
    weights = json.loads((WEIGHTS / "checksums.json").read_text())
    numbers = {"sampling": sampling(cache, weights["emoji"]), "J": {}}
    for name in MODELS:
        told = [SEED, PROBED, PROBES, H_STEPS.tolist(), weights[name]]
        rows = {t: kept(cache, f"{name}-{t}", [*told, t], lambda name=name, t=t: jacobian(name, t)) for t in TIMESTEPS}
        print(f"{name}: J …", flush=True)
        numbers["J"][name] = {
            "timesteps": {
                str(t): {key: mean(torch.tensor(values)) for key, values in row.items()} for t, row in rows.items()
            },
            "best_h": kept(cache, f"{name}-h", told, lambda name=name: best_h(name)),
        }
    numbers["through the encoder"] = {}
    for name in LATENT:
        for factor in CODED_FACTORS:
            print(f"{name}: ×{factor}, through the encoder …", flush=True)
            told = [SEED, CODED, CODED_RUN, TIMESTEPS, LENGTHS, factor, weights[name]]
            row = kept(cache, f"{name}-coded-{factor}", told, lambda name=name, f=factor: through_the_encoder(name, f))
            values = {key: torch.tensor(some) for key, some in row.items()}
            values["psnr, J_E e less J_Dᵀ e"] = values["psnr J_E e"] - values["psnr J_Dᵀ e"]
            numbers["through the encoder"][f"{name} ×{factor}"] = {key: mean(some) for key, some in values.items()}
    settings = {"pictures": PICTURES, "pictures of J⁻¹ e": EXACT, "guidance_scale": GUIDANCE, "factor": FACTOR,
                "blocks": [str(setting) for setting in SETTINGS], "pictures probed": PROBED, "probes": PROBES}  # fmt: skip
    save_record(output / "tab10_emoji.json", model=list(MODELS), seed=SEED, settings=settings, numbers=numbers)
    table = as_markdown(numbers)
    (output / "tab10_emoji.md").write_text(table)
    print(table)


def sampling(cache: Path, weights: dict[str, str]) -> dict[str, dict]:
    """By block, task and method: the mean error, evaluations, and what J e has less than each other."""
    model = fcs_lab.load("emoji", device="cpu")
    numbers: dict[str, dict] = {}
    for setting in SETTINGS:
        count = setting.pictures or PICTURES
        names = fcs_lab.load_emoji(count)[2]
        for task in setting.tasks:
            values, rows = {}, numbers.setdefault(str(setting), {}).setdefault(task, {})
            for method in setting.directions:
                if not runnable(method, task):
                    continue
                cells = []
                for first in range(0, count, BATCH):
                    last = min(first + BATCH, count)

                    def compute(setting=setting, task=task, method=method, first=first, last=last):
                        print(f"{setting}, {task}, {method}: pictures {first} to {last - 1} …", flush=True)
                        return complete(model, setting, task, method, first, last)

                    told = [SEED, GUIDANCE, FACTOR, str(setting), task, method, first, last, weights]
                    cells.append(kept(cache, f"{task}-{method}-{first}".replace(" ", "-"), told, compute))
                values[method] = torch.tensor([value for cell in cells for value in cell["mse"]])
                rows[method] = {"n": count, "mse": mean_of_emoji(values[method], names)}
                rows[method] |= {key: cells[0][key] for key in ("evaluations", "backward_passes")}
            for method in values.keys() - {"J e"}:
                rows[method]["J e less it"] = mean_of_emoji(values["J e"] - values[method], names)
    return numbers


def as_markdown(numbers: dict) -> str:
    head = ["", "task", "along", "n", "squared error", "J e less it", "evaluations", "backward passes"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for setting, tasks in numbers["sampling"].items():
        for task, rows in tasks.items():
            for method, row in rows.items():
                less = row.get("J e less it")
                difference = "" if less is None else f"{less['mean']:+.4f} ± {less['error']:.4f}"
                mse = f"{row['mse']['mean']:.4f} ± {row['mse']['error']:.4f}"
                counts = f"{row['evaluations']:g} | {row['backward_passes']:g}"
                lines.append(f"| {setting} | {task} | {method} | {row['n']} | {mse} | {difference} | {counts} |")
    columns = {"relative_skew": "‖J − Jᵀ‖/‖J + Jᵀ‖", "cosine": "cos(J e, Jᵀ e)", "mu_max": "μ_max", "linear_step": "step"}
    lines += ["", "| model | t | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 2) + "|"]
    for name, found in numbers["J"].items():
        for t, row in found["timesteps"].items():
            cells = [f"{row[key]['mean']:.3g} ± {row[key]['error']:.2g}" for key in columns]
            lines.append(f"| {name} | {t} | " + " | ".join(cells) + " |")
    lines += ["", "| model | best h (relative error) in " + " | ".join(DTYPES) + " |", "| --- " * (len(DTYPES) + 1) + "|"]
    for name, found in numbers["J"].items():
        cells = [f"{one['h']:.2g} ({one['error']:.1g})" for one in found["best_h"].values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    columns = {
        "psnr J_Dᵀ e": "PSNR, dB: J_Dᵀ e",
        "psnr J_E e": "J_E e",
        "psnr, J_E e less J_Dᵀ e": "difference",
        "cosine": "cosine",
    }
    for what, title in {"gain": "‖J e‖/‖e‖", "left, x̂_0,": "C left, x̂_0 moved", "left, x_t,": "C left, x_t moved"}.items():
        columns |= {f"{what} J_Dᵀ e": f"{title}: J_Dᵀ e", f"{what} J_E e": "J_E e"}
    lines += ["", "| through the encoder | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 1) + "|"]
    for label, row in numbers["through the encoder"].items():
        forms = {key: ".1f" if "psnr" in key else ".2f" for key in columns}
        cells = [f"{row[key]['mean']:{form}} ± {row[key]['error']:{form}}" for key, form in forms.items()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        "\n\nThe squared error is of what was hidden; of ×4, of all pixels, in units of [−1, 1]. ± is a standard error, "
        f"clustered by concept; of J, over {PROBED} pictures, and through the encoder over {CODED}, what is not PSNR at t = "
        f"{', '.join(map(str, TIMESTEPS))} together. Step: ‖Δx_t‖_∞ along J e where the line is off by a tenth.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
