"""The two pictures of a study: quality against what it costs, and the first images of every method."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from fcs_lab.plots import show
from fcs_lab.study.config import Study
from fcs_lab.study.store import Store, cells_of

SHEET = 6
"""The images of a sheet."""


def pareto(table: pd.DataFrame, study: Study) -> Figure:
    """Quality against evaluations, time and (where it was measured) memory: a row of axes a task."""
    kinds = [
        metric for metric in dict.fromkeys(table.metric) if metric == "evaluations" or "wall" in metric or "peak" in metric
    ]
    figure = Figure(figsize=(3.6 * max(1, len(kinds)) + 2.2, 3.0 * len(study.tasks)), layout="constrained")
    grid = figure.subplots(len(study.tasks), max(1, len(kinds)), squeeze=False)
    rows = list(dict.fromkeys(entry.told for entry in study.methods))
    colours = dict(zip(rows, matplotlib.colormaps["tab20"](np.linspace(0, 1, 20))[: len(rows)].tolist() * 9, strict=False))
    marks = "osD^v<>Pp*hX"
    for line, task in zip(grid, study.tasks, strict=True):
        ours = table[table.task == task]
        quality = next((key for key in (("psnr", "hidden"), ("psnr", "all"), ("cost", "all"))
                        if ((ours.metric == key[0]) & (ours.part == key[1])).any()), None)  # fmt: skip
        for axes, kind in zip(line, kinds, strict=False):
            for i, told in enumerate(rows if quality else ()):
                good = ours[(ours.method == told) & (ours.metric == quality[0]) & (ours.part == quality[1])]
                cost = ours[(ours.method == told) & (ours.metric == kind)]
                both = good.merge(cost, on="budget", suffixes=("", "_cost"))
                if not both.empty:
                    both = both.sort_values("mean_cost")
                    axes.errorbar(both.mean_cost, both["mean"], both.se, fmt=marks[i % len(marks)] + "-", ms=5, lw=1,
                                  color=colours[told], label=told)  # fmt: skip
            axes.set(xlabel=f"{kind}{' an image' if kind == 'evaluations' else ''}", title=task)
            axes.set_xscale("symlog", linthresh=1) if kind == "evaluations" else axes.set_xscale("log")
            axes.grid(alpha=0.3)
        if quality:
            line[0].set_ylabel(f"{quality[0]}{', dB' if quality[0] == 'psnr' else ''}, {quality[1]}")
    handles, labels = grid[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def sheet(store: Store, study: Study) -> Figure:
    """The first images of each task: a row for each method and budget."""
    count = min(SHEET, study.n)
    rows: list[tuple[str, Any]] = [("the image", None), ("given", None)]
    rows += [(entry.told + ("" if entry.budget is None else f", {entry.budget}"), entry) for entry in study.methods]
    size, left, top = 0.7, 2.2, 0.35
    width = left + len(study.tasks) * (count * size + 0.25)
    height = top + len(rows) * size + 0.1
    figure = Figure(figsize=(width, height))
    for c, task in enumerate(study.tasks):
        x = left + c * (count * size + 0.25)
        figure.text((x + count * size / 2) / width, 1 - 0.1 / height, task, ha="center", va="top", fontsize=10)
        for r, (label, entry) in enumerate(rows):
            y = height - top - (r + 1) * size
            if c == 0:
                where = ((left - 0.1) / width, (y + size / 2) / height)
                figure.text(*where, label, ha="right", va="center", fontsize=8)
            kept = {"the image": "truth", "given": f"given-{task}"}
            own = [cell for cell in cells_of(study) if cell.task == task and cell.entry == entry]
            for i in range(count if entry is None or own else 0):
                path = store.image(kept[label] if entry is None else own[0], i)
                if path.exists():
                    axes = figure.add_axes(((x + i * size) / width, y / height, size * 0.95 / width, size * 0.95 / height))
                    picture = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
                    show(axes, picture)
    return figure


def png(figure: Figure, told: str) -> bytes:
    """A figure as a file, with what made it inside."""
    file = BytesIO()
    figure.savefig(file, dpi=150, metadata={"Description": told}, format="png")
    return file.getvalue()
