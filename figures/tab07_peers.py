"""The peers and the preset "fast" beside Algorithm 1: 64 test digits, about 60 and about 220 evaluations an image.

The digits are numbers 1000 to 1063 of MNIST's test set, on which no setting was chosen; the generator of image i is seeded
with i. Then the same, of fewer methods, in latent space, on the first 64 bundled test garments. Each cell that is finished
is kept in runs/tab07, and is not run again while its settings are the same.
"""

import argparse
import inspect
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cells import kept
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

import fcs_lab
from fcs_lab.algorithm import algorithm_1
from fcs_lab.baselines import METHODS, PEERS, WITHOUT_MODEL, budget
from fcs_lab.classifier import Classifier, load_classifier
from fcs_lab.constraints import Constraint
from fcs_lab.data import GARMENTS as GARMENT_NAMES
from fcs_lab.data import read_mnist, scale
from fcs_lab.fast import fast
from fcs_lab.metrics import masked_mse, mean_and_error
from fcs_lab.records import save_figure
from fcs_lab.sampler import Settings, drive
from fcs_lab.zoo import WEIGHTS

MODEL, FIRST, DIGITS, SEED = "mnist", 1000, 64, 0
OURS = ("newton", "gradient", "identity")
ASKING = [name for name in PEERS if name != "psld"]  # PSLD is for latent models
BUDGETS = (60, 220)
ON_ALL_TASKS = ("newton", "fast", "ddnm", "diffpir", "red_diff")
"""Besides the right half, at 60 evaluations, also on a box in the middle and on super-resolution."""
TASKS = ("right half", "box", "SR ×4")
GARMENTS = ("right half of garments", "right half of garments, prompted", "SR ×4 of garments")
NOISY = "right half, σ_y = 0.2"
ON_GARMENTS = {
    GARMENTS[0]: [("newton", 220), ("newton 10×3", 70), ("newton, all noise fresh", 220), ("identity", 60), ("fast", 60)],
    GARMENTS[1]: [("newton", 220), ("fast", 60)],
    GARMENTS[2]: [("newton", 220), ("newton 10×3", 70), ("newton, all noise fresh", 220), ("identity", 60)],
}
CACHE = Path(__file__).parents[1] / "runs" / "tab07"


def main(output: Path, read: Callable[[], tuple[Tensor, Tensor]], cache: Path = CACHE) -> None:
    images, labels = read()
    truth, labels = scale(images[FIRST : FIRST + DIGITS]), labels[FIRST : FIRST + DIGITS].long()
    digits = Subject(fcs_lab.load(MODEL), load_classifier("digits"), truth, labels)
    garments = Subject(fcs_lab.load("fashion"), load_classifier("garments"), *fcs_lab.load_garments(DIGITS))
    rows, seconds = [], {}
    for method, evaluations, name in cells():
        settings = settings_of(method, evaluations)
        cell = {"method": method, "task": name, "budget": evaluations, "settings": defaults_of(method) | settings}

        def compute(method=method, settings=settings, name=name, cell=cell):
            print(f"{method}, {name}, {cell['budget']} evaluations")
            return cell | measure(method, settings, garments if name in GARMENTS else digits, name)

        row = kept(cache, f"{method}-{evaluations}", told(cell), compute)
        seconds[f"{method}, {name}, {evaluations}"] = row.pop("seconds")
        rows.append(row)
    numbers = {"rows": [row | summary(row, rows) for row in rows]}
    save_figure(
        draw(numbers["rows"]),
        output / "tab07_peers",
        model=[MODEL, "mnist-inpainting", "fashion"],
        seed=SEED,
        settings={"digits": f"{FIRST} to {FIRST + DIGITS - 1} of MNIST's test set"},
        numbers={"rows": [{k: v for k, v in row.items() if k != "named_each"} for row in numbers["rows"]]},
        timings={"seconds": seconds},
    )
    table = as_markdown(numbers["rows"])
    (output / "tab07_peers.md").write_text(table)
    (output / "tab07_short.md").write_text(in_short(numbers["rows"]))
    print(table)


def cells() -> list[tuple[str, int, str]]:
    """(method, evaluations, task)"""
    low = [(method, 60, "right half") for method in (*OURS, "fast", *ASKING)]
    # With as many backward passes 220 evaluations are no budget any more but Algorithm 1's own, on its gradient.
    high = [(method, 220, "right half") for method in (*OURS, "fast", *(m for m in ASKING if not PEERS[m]().differentiates))]
    others = [(method, 60, name) for name in ("box", "SR ×4") for method in ON_ALL_TASKS]
    others += [(method, n, name) for name, methods in ON_GARMENTS.items() for method, n in methods]
    others += [(method, 60, NOISY) for method in ("fast", "ddnm", "ddrm", "diffpir")] + [("newton", 220, NOISY)]
    tuned = [("tuned", n, name) for name in ("right half", "box") for n in (20, 60)]
    none = [(method, 0, "right half") for method in ("biharmonic", "total_variation", "deep_image_prior")]
    none += [("biharmonic", 0, "box"), ("bicubic", 0, "SR ×4"), ("total_variation", 0, "SR ×4")]
    fresh = [("newton, all noise fresh", 220, name) for name in TASKS]
    ours = [("newton", 220, name) for name in TASKS] + [("fast", 60, name) for name in TASKS]
    return list(dict.fromkeys(ours + fresh + low + others + none + tuned + high))


@dataclass
class Subject:
    """A model, who judges its images, and the images."""

    model: fcs_lab.Denoiser
    judge: Classifier
    truth: Tensor
    labels: Tensor


def settings_of(method: str, evaluations: int) -> dict:
    """Arguments for so many evaluations."""
    if method in WITHOUT_MODEL:
        return {}
    if method == "newton 10×3":
        return {"num_inference_steps": 10, "inner_steps": 3}
    return budget("newton" if method in VARIANTS else method, evaluations)


def defaults_of(method: str) -> dict:
    """Its own arguments where nothing is given, which are part of what a cell is."""
    call = fast if method == "fast" else (METHODS | VARIANTS)[method]
    parameters = inspect.signature(call).parameters.values()
    return {p.name: p.default for p in parameters if isinstance(p.default, int | float) and not isinstance(p.default, bool)}


def newton_all_fresh(model, task, *, num_inference_steps: int, inner_steps: int, **options) -> fcs_lab.Result:
    """Algorithm 1 as `sample` runs it, but with all of a step's noise fresh: σ = s' in place of DDPM's."""
    settings = Settings(num_inference_steps=num_inference_steps, inner_steps=inner_steps)

    def method(x, watch):
        schedule = watch.schedule
        watch.λ, watch.along = settings.λ(schedule.timesteps), settings.direction_of(watch.f.dtype)

        def step(i, x, x0):
            return watch.step(i, x, x0, sigma=schedule.levels[i + 1][1])

        return algorithm_1(x, schedule.timesteps, watch.λ, watch.error, watch.direction, step)

    return drive(model, task, method, num_inference_steps=num_inference_steps, **options)


VARIANTS = {"newton, all noise fresh": newton_all_fresh, "newton 10×3": METHODS["newton"]}
"""Of Algorithm 1, by the names that rows have."""


def make_task(name: str, truth: Tensor) -> tuple[Constraint, Tensor]:
    """The task, and what of the image it is judged by."""
    where = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    if name.startswith("SR ×4"):
        return fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4), ~where
    middle = slice(where.shape[0] // 4, 3 * where.shape[0] // 4)
    where[(middle, middle) if name == "box" else (slice(None), slice(where.shape[1] // 2, None))] = True
    if name == NOISY:
        noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(SEED))
        return fcs_lab.Inpainting((truth + 0.2 * noise).clamp(-1, 1), where, noise_std=0.2), where
    return fcs_lab.Inpainting(truth, where), where


def measure(method: str, settings: dict, subject: Subject, name: str) -> dict:
    """Of each image the mean squared error where it is judged, and whether it is named as the truth is labelled."""
    truth, labels = subject.truth, subject.labels
    model = fcs_lab.load("mnist-inpainting") if method == "tuned" else subject.model
    if "prompted" in name:
        model = model.with_prompt([f"a photo of {GARMENT_NAMES[label]}" for label in labels], guidance_scale=2.0)
    task, where = make_task(name, truth)
    drawn = method not in WITHOUT_MODEL or method == "deep_image_prior"
    options = {"generator": [torch.Generator().manual_seed(SEED + i) for i in range(len(truth))]} if drawn else {}
    start = time.perf_counter()
    result = (METHODS | VARIANTS)[method](model, task, progress=False, **options, **settings)
    seconds = time.perf_counter() - start
    images = result.images.cpu()
    return {
        "nfe": result.nfe,
        "backward": result.n_backward,
        "mse_each": [round(value, 5) for value in masked_mse(images, truth, where).tolist()],
        "known_mse": masked_mse(images, truth, ~where).mean().item() if bool((~where).any()) else None,
        "named_each": (subject.judge(images).argmax(1) == labels).float().tolist(),
        "seconds": round(seconds, 1),
    }


def summary(row: dict, rows: list[dict]) -> dict:
    """Means and standard errors; and the difference to newton at 220 evaluations, paired by image."""
    error, named = torch.tensor(row["mse_each"]), torch.tensor(row["named_each"])
    if row["task"].startswith("SR ×4"):
        error = 10 * torch.log10(4 / error)
    (newton,) = [one for one in rows if (one["method"], one["task"], one["budget"]) == ("newton", row["task"], max(BUDGETS))]
    reference = torch.tensor(newton["mse_each"])
    difference = torch.tensor(row["mse_each"]) - reference
    return {
        "value": mean_and_error(error),
        "named": mean_and_error(named),
        "to_newton": mean_and_error(difference),
        "ratio_to_newton": (torch.tensor(row["mse_each"]).mean() / reference.mean()).item(),
    }


def told(cell: dict) -> list:
    """All that a cell depends on: its settings, the digits and the weights."""
    sums = json.loads((WEIGHTS / "checksums.json").read_text())
    weights = sums["mnist-inpainting" if cell["method"] == "tuned" else "fashion" if cell["task"] in GARMENTS else MODEL]
    return [cell, FIRST, DIGITS, SEED, weights]


KINDS = {
    "Algorithm 1 and its preset": ("#d55e00", (*OURS, "fast")),
    "evaluations only": ("#0072b2", [name for name in ASKING if not PEERS[name]().differentiates]),
    "with backward passes": ("#009e73", [name for name in ASKING if PEERS[name]().differentiates]),
    "a trained network": ("#666666", ("tuned",)),
}


def draw(rows: list[dict]) -> Figure:
    """Each method on the right half, at both budgets, the best at the lower one on top."""
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.add_subplot()
    colour = {method: c for c, methods in KINDS.values() for method in methods}
    shown = [row for row in rows if row["task"] == "right half" and row["method"] in colour and row["budget"] != 20]
    lowest = {row["method"]: row["value"][0] for row in sorted(shown, key=lambda row: -row["budget"])}
    order = sorted(lowest, key=lambda method: -lowest[method])
    for row in shown:
        low, (value, error) = row["budget"] == min(BUDGETS), row["value"]
        y = order.index(row["method"]) + (0.14 if low else -0.14)
        axes.errorbar(value, y, xerr=error, fmt="o", ms=5.5, capsize=2, lw=1.2, color=colour[row["method"]],
                      mfc="white" if low else colour[row["method"]])  # fmt: skip
    axes.set_yticks(range(len(order)), order)
    for label in axes.get_yticklabels():
        label.set_color(colour[label.get_text()])
    axes.set(xlabel=f"MSE of the hidden half, {DIGITS} digits; bars are a standard error", ylim=(-0.6, len(order) - 0.4))
    handles = [Line2D([], [], color=c, lw=3, label=kind) for kind, (c, _) in KINDS.items()]
    handles += [
        Line2D([], [], marker="o", ls="", color="#333333", mfc=face, label=f"about {n} evaluations")
        for n, face in zip(BUDGETS, ("white", "#333333"), strict=True)
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    return figure


def as_markdown(rows: list[dict]) -> str:
    lines = [
        f"± is a standard error over {DIGITS} images, and so in the difference to newton at {max(BUDGETS)} evaluations, "
        "which is paired by image.\n"
    ]
    for name in dict.fromkeys([*TASKS, NOISY, *GARMENTS]):
        unit = "dB" if name.startswith("SR ×4") else "MSE"
        lines += [
            f"**{name}**\n",
            f"| method | evaluations | backward | {unit} | named as labelled | MSE less newton's |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        of_task = [row for row in rows if row["task"] == name]
        digits = 1 if unit == "dB" else 3
        for row in sorted(of_task, key=lambda row: (row["budget"], row["to_newton"][0])):
            (value, error), (named, _), (less, uncertain) = row["value"], row["named"], row["to_newton"]
            lines.append(
                f"| {row['method']} | {row['nfe']:g} | {row['backward']:g} | {value:.{digits}f} ± {error:.{digits}f} "
                f"| {named:.0%} | {less:+.4f} ± {uncertain:.4f} |"
            )
        lines.append("")
    return "\n".join(lines)


def in_short(rows: list[dict]) -> str:
    """For the README: on the right half, the methods by their error at the lower budget."""

    def entry(method: str, n: int) -> str:
        found = [row for row in rows if (row["method"], row["task"], row["budget"]) == (method, "right half", n)]
        if not found:
            return ""
        ((row,), backward) = found, found[0]["backward"]
        more = f", {backward:g} backward" if backward else ""
        return f"{row['value'][0]:.3f} ± {row['value'][1]:.3f}, {row['named'][0]:.0%} ({row['nfe']:g}{more})"

    lower, higher = BUDGETS
    named = [row for row in rows if row["task"] == "right half" and row["budget"] in BUDGETS and row["method"] != "tuned"]
    error = {method: [r["value"][0] for r in named if (r["method"], r["budget"]) == (method, lower)] for method in METHODS}
    order = sorted((method for method, values in error.items() if values), key=lambda method: error[method])
    lines = [f"| right half hidden, {DIGITS} digits | about {lower} evaluations | about {higher} |", "| --- | --- | --- |"]
    lines += [f"| `{method}` | {entry(method, lower)} | {entry(method, higher)} |" for method in order]
    lines += [f"| `tuned`, a trained network | {entry('tuned', 20)}; {entry('tuned', 60)} | |"]
    lines += [
        f"| `{row['method']}` | {entry(row['method'], 0)} | |"
        for row in rows
        if row["task"] == "right half" and not row["budget"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with MNIST's idx files; without it they are downloaded, once")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    options = parser.parse_args()
    main(options.output, lambda: read_mnist(options.data, "test"))
