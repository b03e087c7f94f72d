"""Which method, for which task, at which budget: the studies `search` and `bundled`, run, or gone on with, and read.

`search` is the grid that settings are chosen from, on images 192 to 207; `bundled` has all methods on images that the
grid did not see. What they have is kept in records/, which is read back first: the table goes on where it stopped, on
this machine or on another, and says before what is left. Ctrl-C ends it after a batch, with the table of what is there.

Beside them stand each method's peak memory, which a study has of a GPU alone, and what FID and KID are between
pictures that are all real, by how many there are.
"""

import argparse
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import memory
import numpy as np
import pandas as pd
import torch
from cells import kept
from tab02_speed import MODELS, bare_evaluations, half_hidden, seconds, seeds
from tqdm.auto import tqdm

import fcs_lab
from fcs_lab.baselines import BUDGETS, METHODS, budget
from fcs_lab.classifier import JUDGES, load_classifier
from fcs_lab.records import save_record
from fcs_lab.study import records
from fcs_lab.study.config import Entry, Study, evaluations_of, read_studies
from fcs_lab.study.measures import set_distances
from fcs_lab.study.run import dry_run, outcome
from fcs_lab.study.store import Store
from fcs_lab.study.tables import summary

STUDIES = {"search": "search", "bundled": "bundled"}
SEED = 0
COLUMNS = {  # of the written table: metric and part, what it is called
    ("mse", "hidden"): "MSE, hidden", ("mse", "all"): "MSE", ("mse", "known"): "MSE, known",
    ("consistency", "all"): "rms A x − y", ("ssim", "hidden"): "SSIM, hidden", ("ssim", "all"): "SSIM",
    ("named", "all"): "named", ("realism", "all"): "loss",
    ("seam", "hidden"): "seam", ("diversity", "all"): "diversity", ("fid", "all"): "FID", ("kid", "all"): "KID",
}  # fmt: skip
WITH_HIDDEN = {("mse", "all"), ("ssim", "all"), ("consistency", "all")}
"""What is left out where there is a hidden part."""
COSTED = ("mnist", "fashion")
BATCHES, EVALUATIONS, ROUNDS, BUDGET = (8, 24), 8, 3, 1024
"""Of the costs: two batches, whose difference in memory is what an image takes; MiB."""
REAL, REAL_OF, DRAWS = (16, 32, 64, 128), tuple(MODELS), 20
FIGURES = Path(__file__).parent
RUNS, ARCHIVES = FIGURES.parent / "runs" / "tab12", FIGURES / "records"


def left(runs: Path = RUNS, archives: Path = ARCHIVES) -> None:
    """Read back what is kept, and say what it leaves to do."""
    for name, study in STUDIES.items():
        unpack(archives / f"{name}.tar.xz", runs / name)
        print(f"{name}: {dry_run(study, runs / name)}", flush=True)


def main(output: Path, runs: Path = RUNS, archives: Path = ARCHIVES, run: bool = True) -> None:
    left(runs, archives)
    interrupted = not run
    for name, study in STUDIES.items():
        try:
            if not interrupted:
                ended = outcome(study, runs / name)
                interrupted = ended.interrupted
                print("\n".join(ended.failures))
        finally:
            pack(runs / name, archives / f"{name}.tar.xz")
    tables = {
        name: begun(study, runs / "bundled" / name)
        for name, study in read_studies(STUDIES["bundled"]).items()
        if (runs / "bundled" / name / "study.json").exists()
    }
    tried = choose(records(runs / "search"))
    cells, told = runs / "bundled" / "cells", [BATCHES, EVALUATIONS, ROUNDS, list(METHODS)]
    numbers = {
        "settings": tried,
        "costs": {name: kept(cells, f"costs-{name}", told, lambda m=name: costs(m)) for name in COSTED},
        "real pictures": kept(cells, "real", [REAL, DRAWS, SEED], between_real),
    }
    pack(runs / "bundled", archives / "bundled.tar.xz")
    output.mkdir(parents=True, exist_ok=True)
    long = pd.concat([table.assign(study=name) for name, table in tables.items()], ignore_index=True)
    long.to_csv(output / "tab12_choosing.csv", index=False, float_format="%.4g")
    save_record(output / "tab12_choosing.json", model=["mnist", "mnist-inpainting", "fashion", "emoji"], seed=SEED,
                settings={"studies": STUDIES, "costs": {"batches": BATCHES, "evaluations": EVALUATIONS, "rounds": ROUNDS}},
                numbers=numbers)  # fmt: skip
    (output / "tab12_choosing.md").write_text(markdown(tables, numbers))
    if interrupted and run:
        sys.exit("interrupted: the table is of what was finished, which is in figures/records; the same command goes on")


def unpack(archive: Path, folder: Path) -> None:
    """The files of an archive that a folder has not."""
    if archive.exists():
        with tarfile.open(archive) as tar:
            for member in tar:
                if not (folder / member.name).exists():
                    tar.extract(member, folder, filter="data")


def pack(folder: Path, archive: Path) -> None:
    """What a results folder has measured, without its pictures; the same bytes for the same files."""
    unfinished = archive.with_suffix(".part")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(unfinished, "w:xz", preset=9) as tar:
        for path in sorted(folder.rglob("*.json*")):
            told = tar.gettarinfo(path, path.relative_to(folder))
            told.mtime = told.uid = told.gid = 0
            told.uname = told.gname = ""
            with path.open("rb") as file:
                tar.addfile(told, file)
    unfinished.replace(archive)


def begun(study: Study, folder: Path) -> pd.DataFrame:
    """A study's rows as far as they are there; without the times, since a machine has other work meanwhile (see `costs`)."""
    table = summary(Store(folder), study)
    table.insert(0, "model", study.model)
    return table[~table.metric.str.contains("wall")]


def choose(tried: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each method, on inpainting and on the other tasks, its own settings, or those that the grid was better with.

    The measure is the squared error (of what is hidden, where something is) over the mean that the method has by itself on
    the task, image by image, averaged over the tasks. The setting with the lowest is taken if it is lower than the method's
    own by more than two standard errors, and if no image failed.
    """
    errors, rows = tried[(tried.metric == "mse") & (tried.part.isin(("hidden", "all")))], []
    kind = np.where(errors.task.isin(errors[errors.part == "hidden"].task.unique()), "inpainting", "others")
    errors = errors.assign(kind=kind)[(kind == "others") | (errors.part == "hidden")]
    for (model, method, tasks), ours in errors.groupby(["model", "method", "kind"], sort=False):
        table = ours.pivot_table(index=["task", "image"], columns="row", values="value")
        if table.shape[1] < 2 or method not in table:
            continue
        relative = table.div(table[method].groupby("task").transform("mean"), axis=0)
        found = []
        for name in relative:
            less = (relative[name] - relative[method]).groupby("task").agg(["mean", "var", "count"])
            means = {task: float(values.mean()) for task, values in table[name].groupby("task") if values.notna().any()}
            found.append({"model": model, "method": method, "tasks": tasks, "setting": name, "mse": means,
                          "n": int(less["count"].min()), "less its own": float(less["mean"].mean()),
                          "error": float((less["var"] / less["count"]).sum() ** 0.5 / len(less))})  # fmt: skip
        own = next(one for one in found if one["setting"] == method)
        best = min((one for one in found if one["n"] == own["n"]), key=lambda one: one["less its own"])
        taken = best if best["less its own"] < -2 * best["error"] else own
        rows += [one | {"taken": one is taken} for one in found]
    return rows


def methods_of(name: str) -> list[str]:
    """Those of the study that inpaint with the model itself."""
    names = (entry.name for entry in read_studies(STUDIES["bundled"])[name].methods)
    return [method for method in dict.fromkeys(names) if method in BUDGETS and method != "tuned"]


def inpainting(name: str, batch: int) -> tuple[fcs_lab.Denoiser, Callable[[str], fcs_lab.Result]]:
    """A model, and what inpaints so many pictures with `EVALUATIONS`: method -> result."""
    model, task = fcs_lab.load(name), half_hidden(name, batch)

    def run(method: str) -> fcs_lab.Result:
        settings = budget(method, EVALUATIONS)
        return METHODS[method](model, task, batch_size=batch, generator=seeds(batch), progress=False, **settings)

    return model, run


def costs(name: str) -> dict[str, dict[str, float]]:
    """Of each method the time, over as many bare evaluations; MiB above the model for an image more; the largest batch."""
    model, run = inpainting(name, BATCHES[0])
    ratios: dict[str, list[float]] = {method: [] for method in methods_of(name)}
    for _ in tqdm(range(ROUNDS), desc=f"times, {name}"):
        for method, own in ratios.items():
            made = evaluations_of(Entry(method, budget(method, EVALUATIONS), EVALUATIONS, None, method))
            own.append(seconds(run, method) / seconds(bare_evaluations, model, BATCHES[0], made))
    found = {}
    for method, own in tqdm(ratios.items(), desc=f"memory, {name}"):
        least, most = memory.in_a_process(__file__, name, method)
        each = (most - least) / (BATCHES[1] - BATCHES[0])
        largest = (BUDGET * 2**20 - least) // each + BATCHES[0]
        found[method] = {"time": median(own), "MiB an image": each / 2**20, "largest batch": largest}
    return found


def measure_peaks(name: str, method: str) -> list[int]:
    """What a run of each of `BATCHES` adds to the memory at its peak, above the loaded model."""
    peaks = []
    for batch in BATCHES:  # the small one first
        model, run = inpainting(name, batch)
        bare_evaluations(model, 1, 1)
        peaks.append(memory.peak(model.device, partial(run, method)))
    return peaks


def between_real() -> dict[str, dict[str, dict[str, float]]]:
    """FID and KID of n pictures against n others, all real: mean and standard deviation over the draws."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in REAL_OF:
        truth, features = MODELS[model](256)[0], load_classifier(JUDGES[model]).features
        rng = np.random.default_rng(SEED)
        found[model] = {}
        for n in REAL:
            values = []
            for _ in range(DRAWS):
                order = torch.from_numpy(rng.permutation(256))
                told = set_distances(["fid", "kid"], truth[order[:n]], truth[order[n : 2 * n]], features)
                values.append([told["fid"][0], told["kid"][0]])
            mean, spread = np.mean(values, 0), np.std(values, 0, ddof=1)
            found[model][str(n)] = {"FID": mean[0], "FID, spread": spread[0], "KID": mean[1], "KID, spread": spread[1]}
    return found


def markdown(tables: dict[str, pd.DataFrame], numbers: dict[str, Any]) -> str:
    studies = read_studies(STUDIES["bundled"])
    blocks = [
        "Means ± standard errors over n images (of emoji clustered by concept); in brackets the difference to "
        "newton at the same budget, image by image. Rows are sorted by the squared error. Loss: the model's own "
        "denoising loss on the image, low is plausible. Named: the share that a classifier names as it names the "
        "truth. FID and KID are of the classifier's features, to the same images' truths, so that they can be below "
        "those of other real pictures; see at the end what they are of real pictures. The settings are the methods' "
        "own where the row does not say; the grid that they were chosen from stands at the end."
    ]
    for name, table in tables.items():
        study = studies[name]
        for task in study.tasks:
            ours = table[table.task == task]
            if not ours.empty:
                which = f"images {study.first} to {study.first + int(ours.n.max()) - 1}"
                blocks.append(f"## {name}, {task}\n\n{study.model}, {which}.\n\n{rows_of(ours)}")
    blocks.append("## Time and memory\n\n" + costs_table(numbers["costs"]))
    blocks.append("## FID and KID of real pictures\n\n" + real_table(numbers["real pictures"]))
    blocks.append("## The settings, and the grid that they were chosen from\n\n" + settings_table(numbers["settings"]))
    return "\n\n".join(blocks) + "\n"


def rows_of(table: pd.DataFrame) -> str:
    there = set(zip(table.metric, table.part, strict=True))
    hidden = ("mse", "hidden") in there
    columns = [key for key in COLUMNS if key in there and not (hidden and key in WITH_HIDDEN)]
    named = [COLUMNS[key] for key in columns]
    lines = ["| method | n | evaluations | backward | " + " | ".join(named) + " |",
             "| --- " * (len(named) + 4) + "|"]  # fmt: skip
    rows = {
        key: {(row.metric, row.part): row for row in some.itertuples()}
        for key, some in table.groupby(["method", "budget"], sort=False, dropna=False)
    }
    by_error = sorted(rows.items(), key=lambda pair: pair[1][columns[0]].mean if columns[0] in pair[1] else np.inf)
    for (method, _), cells in by_error:
        cost = [f"{cells[kind, ''].mean:.4g}" for kind in ("evaluations", "backward")]
        n, shown = int(cells["evaluations", ""].n), [shown_of(cells.get(key)) for key in columns]
        lines.append(f"| {method} | {n} | " + " | ".join([*cost, *shown]) + " |")
    return "\n".join(lines)


def shown_of(row: Any) -> str:
    if row is None:
        return ""
    if row.metric == "named":
        return f"{row.mean:.0%} ± {row.se:.0%}"
    digits = 4 if abs(row.mean) < 0.1 else 3
    told = f"{row.mean:.{digits}f}" + ("" if np.isnan(row.se) else f" ± {row.se:.{digits}f}")
    if row.metric != "mse" or np.isnan(row.diff):
        return told
    return f"{told} ({row.diff:+.{digits}f} ± {row.diff_se:.{digits}f})"


def costs_table(costs: dict[str, dict[str, dict[str, float]]]) -> str:
    names = dict.fromkeys(name for rows in costs.values() for name in rows)
    head = [f"{model}: {what}" for model in costs for what in ("time", "MiB an image", f"images in {BUDGET} MiB")]
    lines = [
        f"Inpainting, {EVALUATIONS} evaluations, float32. Time: over that of as many bare evaluations, the median of "
        f"{ROUNDS} interleaved runs of {BATCHES[0]} images. Memory: the peak above the model, from batches of "
        f"{BATCHES[0]} and {BATCHES[1]}.",
        "",
        "| method | " + " | ".join(head) + " |",
        "| --- " * (len(head) + 1) + "|",
    ]
    for name in names:
        cells = [costs_of(rows.get(name)) for rows in costs.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def costs_of(row: dict[str, float] | None) -> str:
    return " | | " if row is None else f"{row['time']:.2f} | {row['MiB an image']:.1f} | {row['largest batch']:.0f}"


def real_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [
        f"n pictures against n others of the 256 bundled test pictures, mean ± standard deviation over {DRAWS} "
        "draws. Of images of one kind both should be 0: what FID has is bias, which falls with n; KID's spread is "
        "its error.",
        "",
        "| | n | FID | KID |",
        "| --- | --- | --- | --- |",
    ]
    for model, rows in found.items():
        for n, row in rows.items():
            fid, kid = f"{row['FID']:.3f} ± {row['FID, spread']:.3f}", f"{row['KID']:.4f} ± {row['KID, spread']:.4f}"
            lines.append(f"| {model} | {n} | {fid} | {kid} |")
    return "\n".join(lines)


def settings_table(tried: list[dict[str, Any]]) -> str:
    n = max((one["n"] for one in tried), default=0)
    lines = [
        f"{n} images from number 192 on, 60 evaluations. MSE of what is hidden (on ×4 and deblurring: of all), and "
        "by how much it differs from that of the method's own settings, as a part of that, averaged over the tasks. "
        "Another setting is taken if it is better by more than two standard errors and no image failed; inpainting "
        "and the other tasks choose for themselves.",
        "",
        "| model | method | setting | MSE | relative | |",
        "| --- " * 6 + "|",
    ]
    for one in tried:
        means = ", ".join(f"{task} {value:.4f}" for task, value in one["mse"].items())
        own, taken = one["setting"] == one["method"], "taken" if one["taken"] else ""
        words = "its own" if own else one["setting"].removeprefix(one["method"] + " (").removesuffix(")")
        less = "" if own else f"{one['less its own']:+.3f} ± {one['error']:.3f}"
        failed = "" if one["n"] == n else f" ({n - one['n']} images failed)"
        lines.append(f"| {one['model']} | {one['method']} | {words} | {means}{failed} | {less} | {taken} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=FIGURES / "output")
    parser.add_argument("--dry-run", action="store_true", help="only say what is left to do, and how long it takes")
    parser.add_argument("--report", action="store_true", help="only write the table, of what is there")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "METHOD"), help="only print a method's peaks, in bytes")
    asked = parser.parse_args()
    if asked.peak:
        print(measure_peaks(*asked.peak))
    elif asked.dry_run:
        left()
    else:
        main(asked.output, run=not asked.report)
