"""A study's records as tables and figures: what the methods do, at what cost, and how they differ."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from fcs_lab.metrics import clustered
from fcs_lab.study.config import Study
from fcs_lab.study.measures import METRICS, SETS
from fcs_lab.study.plots import pareto, png, sheet
from fcs_lab.study.store import Cell, Store, cells_of

COSTS = ("evaluations", "backward", "flops")


def frame(store: Store) -> pd.DataFrame:
    """All records of a folder in long form.

    Returns:
        Columns model, method, row, budget, task, seed, image, name, group, metric, part, value; the part of costs is "".

    Raises:
        FileNotFoundError: There is no study in the folder.
    """
    if not (store.folder / "study.json").exists():
        raise FileNotFoundError(f"{store.folder} has no study.json; expected a study's results folder")
    model, rows = json.loads((store.folder / "study.json").read_text())["model"], []
    for file in sorted((store.folder / "records").glob("*/*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            told = {"model": model} | {
                key: record[key] for key in ("method", "row", "budget", "task", "seed", "image", "name", "group")
            }
            if "error" in record:
                continue
            rows += [told | {"metric": cost, "part": "", "value": record[cost]} for cost in COSTS
                     if record[cost] is not None]  # fmt: skip
            rows += [told | {"metric": metric, "part": part, "value": value}
                     for metric, parts in record["metrics"].items() for part, value in parts.items()]  # fmt: skip
    columns = ["model", "method", "row", "budget", "task", "seed", "image", "name", "group", "metric", "part", "value"]
    return pd.DataFrame(rows, columns=columns)


def summary(store: Store, study: Study) -> pd.DataFrame:
    """Means over the images with standard errors, and differences image by image to the row that is compared with.

    Of several seeds an image counts once, with their mean; images of a group (six drawings of one concept) are no
    independent ones, and the errors are clustered by it.

    Returns:
        Columns method, task, budget, metric, part, n, mean, se, diff, diff_se. Rows whose metric has "wall", "time" or
        "memory" in its name depend on the machine.
    """
    rows, reference = [], study.compare or study.methods[0].told
    for task in study.tasks:
        means: dict[tuple, pd.Series] = {}
        for entry in study.methods:
            cells = [cell for cell in cells_of(study) if cell.task == task and cell.entry == entry]
            values = pd.DataFrame(_values(store, study, cells), columns=["image", "group", "metric", "part", "value"])
            for (metric, part), some in values.groupby(["metric", "part"]):
                means[entry.told, entry.budget, metric, part] = some.groupby(["image", "group"]).value.mean()
            rows += _of_cells(store, study, cells)
        for (told, budget, metric, part), values in means.items():
            row = {"method": told, "task": task, "budget": budget, "metric": metric, "part": part} | _mean(values)
            rows.append(row | _less(values, _compared(means, reference, budget, metric, part, told)))
    columns = ["method", "task", "budget", "metric", "part", "n", "mean", "se", "diff", "diff_se"]
    return pd.DataFrame(rows, columns=columns).astype({"budget": "Int64", "n": "Int64"})


def _values(store: Store, study: Study, cells: Sequence[Cell]) -> Iterator[tuple[int, str, str, str, float]]:
    """Image, group, metric, part and value of what a method has on a task, of all seeds."""
    records = [record for cell in cells for record in store.of(cell) if "error" not in record and record["image"] < study.n]
    for record in records:
        told = record["image"], str(record["group"])
        yield from ((*told, cost, "", record[cost]) for cost in COSTS if record[cost] is not None)
        yield from (
            (*told, metric, part, value) for metric, parts in record["metrics"].items() for part, value in parts.items()
        )
    if "diversity" in study.metrics and len(cells) > 1:
        groups = {record["image"]: str(record["group"]) for record in records}
        yield from ((i, group, "diversity", "all", value) for i, group in groups.items()
                    if (value := _diversity([store.image(cell, i) for cell in cells])) is not None)  # fmt: skip


def _diversity(paths: Sequence[Path]) -> float | None:
    """Root mean square between every two images, of values in [-1, 1]; None if one is not there."""
    if not all(path.exists() for path in paths):
        return None
    images = [np.asarray(Image.open(path), dtype=np.float64) / 127.5 for path in paths]
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for i, a in enumerate(images) for b in images[:i]]))


def _mean(values: pd.Series) -> dict[str, Any]:
    mean, se = clustered(torch.tensor(values.to_numpy(float)), values.index.get_level_values("group").tolist())
    return {"n": len(values), "mean": mean, "se": se}


def _compared(means: dict, reference: str, budget: int | None, metric: str, part: str, told: str) -> pd.Series | None:
    """The values to compare with: of the reference at the same budget, or else its own; None for itself."""
    if metric in COSTS:
        return None
    measured = {key: value for key, value in means.items() if key[2:] == (metric, part)}
    known = {key: value for key, value in measured.items() if key[0] == reference}
    known = known or {key: value for key, value in measured.items() if key[0].split(" (")[0] == reference}
    same = [value for key, value in known.items() if key[1] == budget] or list(known.values())
    own = (told, budget, metric, part)
    return None if not same or own in known else same[-1]


def _less(values: pd.Series, other: pd.Series | None) -> dict[str, Any]:
    both = None if other is None else (values - other).dropna()
    if both is None or both.empty:
        return {"diff": math.nan, "diff_se": math.nan}
    told = _mean(both)
    return {"diff": told["mean"], "diff_se": told["se"]}


def _of_cells(store: Store, study: Study, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """What is not of single images: FID and KID, time, memory, the largest batch."""
    rows: list[dict[str, Any]] = []

    def row(metric: str, n: int, mean: float, se: float = math.nan) -> None:
        entry, task = cells[0].entry, cells[0].task
        rows.append({"method": entry.told, "task": task, "budget": entry.budget, "metric": metric, "part": "all",
                     "n": n, "mean": mean, "se": se, "diff": math.nan, "diff_se": math.nan})  # fmt: skip

    sets = [known for cell in cells if (known := store.sets(cell))]
    for name in SETS:
        values = [known[name] for known in sets if name in known]
        if values:
            error = values[0][1]
            row(name, sets[0]["n"], float(np.mean([value for value, _ in values])), math.nan if error is None else error)
    machine = [one for cell in cells for one in store.machine(cell) if one]
    if machine:
        # Of the batches the median: one that another process, or a machine put to sleep, held up is no mean's business.
        row("wall seconds an image", sum(one["batch"] for one in machine), median(one["seconds"] for one in machine))
        known = [one for one in machine if one["memory"] is not None]
        if known:
            most = max(known, key=lambda one: one["memory"])
            row("peak memory, GiB", most["batch"], (most["memory"] + most["weights"]) / 2**30)
            each = most["memory"] / most["batch"]
            row(f"largest batch in {study.memory:g} GiB of memory", most["batch"],
                max(0, math.floor((study.memory * 2**30 - most["weights"]) / each)))  # fmt: skip
    return rows


def report(store: Store, study: Study, *, command: Sequence[str] = ()) -> pd.DataFrame:
    """Write `table.csv`, `table.md`, `pareto.png` and `sheet.png` from what is in the folder; nothing is computed.

    Args:
        store: The results.
        study: The study.
        command: What made them, for the record.

    Returns:
        The table, as `summary`.
    """
    table = summary(store, study)
    told = _made_by(store, study, command)
    comment = "".join(f"# {line}\n" for line in told.splitlines())
    store.put("table.csv", comment + table.to_csv(index=False, float_format="%.6g"))
    store.put("table.md", _markdown(table, study) + "\n" + told + "\n")
    store.put("pareto.png", png(pareto(table, study), told))
    store.put("sheet.png", png(sheet(store, study), told))
    return table


def _made_by(store: Store, study: Study, command: Sequence[str]) -> str:
    known = json.loads((store.folder / "study.json").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("fcs_lab", "torch", "diffusers"))
    weights = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(known["weights"].items())) or "of the hub"
    words = shlex.join(["python", "-m", "fcs_lab.study", *command[1:]]) if command else "fcs_lab.study"
    return f"{words}; model {study.model} ({weights}); seeds {', '.join(map(str, study.seeds))}; {versions}"


def _markdown(table: pd.DataFrame, study: Study) -> str:
    """A table for each task: a row per method and budget, a column per metric and part."""
    reference = study.compare or study.methods[0].told
    blocks = [f"# {study.model}: {study.n} images"]
    for task in study.tasks:
        ours = table[table.task == task]
        if ours.empty:
            continue
        hidden = (ours.part == "hidden").any()
        parts = {"mse": ("hidden", "known"), "psnr": ("hidden",), "ssim": ("hidden",)} if hidden else {}
        every = dict.fromkeys(zip(ours.metric, ours.part, strict=True))
        columns = sorted((key for key in every if key[1] in parts.get(key[0], (key[1],))), key=_order)
        named = [metric if part in ("", "all") else f"{metric}, {part}" for metric, part in columns]
        lines = [
            "",
            f"## {task}",
            "",
            "| method | budget | n | " + " | ".join(named) + " |",
            "| --- " * (len(named) + 3) + "|",
        ]
        for (method, budget), rows in ours.groupby(["method", "budget"], sort=False, dropna=False):
            cells = {(row.metric, row.part): row for row in rows.itertuples()}
            shown = [_cell(cells.get(key)) for key in columns]
            n = max(int(row.n) for key, row in cells.items() if key[0] in COSTS)
            lines.append(f"| {method} | {'' if pd.isna(budget) else budget} | {n} | " + " | ".join(shown) + " |")
        blocks.append("\n".join(lines))
    blocks.append(f"\nMeans ± standard errors over the images, clustered by what they show. In brackets: less {reference}'s "
                  "at the same budget (or its own), image by image.")  # fmt: skip
    return "\n".join(blocks) + "\n"


def _order(column: tuple[str, str]) -> tuple[int, int]:
    """What is hidden before what is known; the measures in their own order, then time and memory, then the evaluations."""
    metric, part = column
    order = [*METRICS, "", *COSTS]
    return order.index(metric if metric in order else ""), ("hidden", "all", "known", "").index(part)


def _cell(row: Any) -> str:
    if row is None:
        return ""
    if row.metric in COSTS:
        return f"{row.mean:.4g}"
    mean = f"{row.mean:.4g}" + ("" if math.isnan(row.se) else f" ± {row.se:.2g}")
    return mean if math.isnan(row.diff) else f"{mean} ({row.diff:+.2g} ± {row.diff_se:.2g})"
