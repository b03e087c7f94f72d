"""The peers beside Algorithm 1: 64 test digits, about 60 and about 220 evaluations an image, by method.

The digits are numbers 1000 to 1063 of MNIST's test set, on which no setting was chosen; the generator of image i is seeded
with i. Each cell that is finished is kept in runs/tab07, and is not run again while its settings are the same.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import fcs_lab
from fcs_lab.baselines import METHODS, PEERS, WITHOUT_MODEL, budget
from fcs_lab.classifier import load_classifier
from fcs_lab.data import read_mnist, scale
from fcs_lab.metrics import masked_mse
from fcs_lab.records import save_figure
from fcs_lab.zoo import WEIGHTS

MODEL, FIRST, DIGITS, SEED = "mnist", 1000, 64, 0
OURS = ("newton", "gradient", "identity")
ASKING = [name for name in PEERS if name != "psld"]  # PSLD is for latent models
BUDGETS = (60, 220)
ON_ALL_TASKS = ("newton", "fast", "ddnm", "diffpir", "mpgd", "red_diff")
"""Besides the right half also on a box in the middle and on super-resolution."""
TASKS = {"right half": "MSE", "box": "MSE", "SR ×4": "dB"}
CACHE = Path(__file__).parents[1] / "runs" / "tab07"


def main(output: Path, read: Callable[[], tuple[Tensor, Tensor]], cache: Path = CACHE) -> None:
    images, labels = read()
    truth, labels = scale(images[FIRST : FIRST + DIGITS]), labels[FIRST : FIRST + DIGITS].long()
    models = {"tuned": fcs_lab.load("mnist-inpainting")}
    model, judge = fcs_lab.load(MODEL), load_classifier("digits")
    rows, seconds = [], {}
    for method, evaluations, name in cells():
        settings = {} if method in WITHOUT_MODEL else budget(method, evaluations)
        cell = {"method": method, "task": name, "budget": evaluations, "settings": settings}
        stored = cache / f"{_key(cell)}.json"
        if not stored.exists():
            print(f"{method}, {name}, {evaluations} evaluations")
            row = cell | measure(method, settings, models.get(method, model), truth, labels, judge, name)
            stored.parent.mkdir(parents=True, exist_ok=True)
            partial = stored.with_suffix(".part")
            partial.write_text(json.dumps(row))
            partial.replace(stored)
        row = json.loads(stored.read_text())
        seconds[f"{method}, {name}, {evaluations}"] = row.pop("seconds")
        rows.append(row)
    numbers = {"rows": [row | summary(row, rows) for row in rows]}
    save_figure(
        draw(numbers["rows"]),
        output / "tab07_peers",
        model=[MODEL, "mnist-inpainting"],
        seed=SEED,
        settings={"digits": f"{FIRST} to {FIRST + DIGITS - 1} of MNIST's test set"},
        numbers={"rows": [{k: v for k, v in row.items() if k != "named_each"} for row in numbers["rows"]]},
        timings={"seconds": seconds},
    )
    table = as_markdown(numbers["rows"])
    (output / "tab07_peers.md").write_text(table)
    print(table)


def cells() -> list[tuple[str, int, str]]:
    """(method, evaluations, task)"""
    on_halves = [(method, n, "right half") for n in BUDGETS for method in (*OURS, "fast", *ASKING)]
    others = [(method, n, name) for name in ("box", "SR ×4") for n in BUDGETS for method in ON_ALL_TASKS]
    tuned = [("tuned", n, name) for name in ("right half", "box") for n in (20, 60)]
    none = [(method, 0, "right half") for method in ("biharmonic", "total_variation", "deep_image_prior")]
    none += [("biharmonic", 0, "box"), ("bicubic", 0, "SR ×4"), ("total_variation", 0, "SR ×4")]
    return on_halves + others + tuned + none


def make_task(name: str, truth: Tensor) -> tuple[fcs_lab.Constraint, Tensor]:
    """The task, and what of the image it is judged by."""
    where = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    if name == "SR ×4":
        return fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4), ~where
    middle = slice(where.shape[0] // 4, 3 * where.shape[0] // 4)
    where[(middle, middle) if name == "box" else (slice(None), slice(where.shape[1] // 2, None))] = True
    return fcs_lab.Inpainting(truth, where), where


def measure(method: str, settings: dict, model, truth: Tensor, labels: Tensor, judge, name: str) -> dict:
    """Of each image the mean squared error where it is judged, and whether it is named as the truth is labelled."""
    task, where = make_task(name, truth)
    drawn = method not in WITHOUT_MODEL or method == "deep_image_prior"
    options = {"generator": [torch.Generator().manual_seed(SEED + i) for i in range(len(truth))]} if drawn else {}
    start = time.perf_counter()
    result = METHODS[method](model, task, progress=False, **options, **settings)
    seconds = time.perf_counter() - start
    images = result.images.cpu()
    return {
        "nfe": result.nfe,
        "backward": result.n_backward,
        "mse_each": [round(value, 5) for value in masked_mse(images, truth, where).tolist()],
        "known_mse": masked_mse(images, truth, ~where).mean().item() if bool((~where).any()) else None,
        "named_each": (judge(images).argmax(1) == labels).float().tolist(),
        "seconds": round(seconds, 1),
    }


def summary(row: dict, rows: list[dict]) -> dict:
    """Means and standard errors; and the difference to newton at 220 evaluations, paired by image."""
    error, named = torch.tensor(row["mse_each"]), torch.tensor(row["named_each"])
    if row["task"] == "SR ×4":
        error = 10 * torch.log10(4 / error)
    (newton,) = [one for one in rows if (one["method"], one["task"], one["budget"]) == ("newton", row["task"], max(BUDGETS))]
    reference = torch.tensor(newton["mse_each"])
    difference = torch.tensor(row["mse_each"]) - reference
    return {
        "value": _mean(error),
        "named": _mean(named),
        "to_newton": _mean(difference),
        "ratio_to_newton": (torch.tensor(row["mse_each"]).mean() / reference.mean()).item(),
    }


def _mean(values: Tensor) -> list[float]:
    """The mean and its standard error."""
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def _key(cell: dict) -> str:
    """A file's name for a cell: its settings, the digits and the weights in it."""
    sums = json.loads((WEIGHTS / "checksums.json").read_text())
    weights = sums["mnist-inpainting" if cell["method"] == "tuned" else MODEL]
    told = json.dumps([cell, FIRST, DIGITS, SEED, weights], sort_keys=True)
    return f"{cell['method']}-{cell['budget']}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def draw(rows: list[dict]) -> Figure:
    """Quality against evaluations, backward passes counted beside them, on the right half."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method and row["task"] == "right half" and row["nfe"]]
        if not mine:
            continue
        ours = method in (*OURS, "fast")
        at = [row["nfe"] + row["backward"] for row in mine]
        style = {"lw": 2.4, "marker": "o"} if ours else {"lw": 1, "marker": "s", "ms": 4, "alpha": 0.8}
        line, *_ = axes.errorbar(
            at, [row["value"][0] for row in mine], [row["value"][1] for row in mine], capsize=2, **style
        )
        axes.annotate(method, (at[-1], mine[-1]["value"][0]), xytext=(6, -3), textcoords="offset points", fontsize=7.5,
                      color=line.get_color(), weight="bold" if ours else "normal")  # fmt: skip
    axes.set(xscale="log", xlabel="evaluations and backward passes an image", ylabel="MSE of the hidden half")
    axes.set_title(f"{DIGITS} digits, right half hidden; bars are a standard error", fontsize=10)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure


def as_markdown(rows: list[dict]) -> str:
    lines = []
    for name, unit in TASKS.items():
        lines += [
            f"**{name}**, {DIGITS} digits; ± is a standard error, and so in the paired difference to newton at "
            f"{max(BUDGETS)} evaluations.\n",
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with MNIST's idx files; without it they are downloaded, once")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    options = parser.parse_args()
    main(options.output, lambda: read_mnist(options.data, "test"))
