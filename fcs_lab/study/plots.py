"""A study as pictures: its two files, and its table (`table.csv`, or the figures' `tab12_choosing.csv`) to choose by."""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from fcs_lab.checks import typed
from fcs_lab.plots import Figure, show
from fcs_lab.study.config import Study
from fcs_lab.study.store import Store, cells_of

__all__ = ["plot_differences", "plot_trade_off", "values_of"]

SHEET = 6
"""The images of a sheet."""
LOWER = {"mse", "consistency", "cost", "seam", "realism", "lpips", "fid", "kid"}
"""Metrics of which less is better; of the others (PSNR, SSIM, named, diversity) more is."""


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


@typed
def values_of(table: pd.DataFrame, task: str, metric: str, part: str | None = None) -> pd.DataFrame:
    """The rows of one metric on one task.

    Args:
        table: Long form: columns method, task, budget, metric, part, n, mean, se, diff, diff_se.
        task: One of the table's.
        metric: One that the task has.
        part: "hidden", "known", "all", or "" of costs. None: "hidden" where there is one, or else the only one.

    Returns:
        The table's rows, the best first.

    Raises:
        ValueError: The table has no such task, metric or part, with those that there are.
    """
    columns = {"method", "task", "budget", "metric", "part", "n", "mean", "se", "diff", "diff_se"}
    if not columns <= set(table.columns):
        raise ValueError(
            f"table has no columns {sorted(columns - set(table.columns))}; expected a study's table in long form"
        )
    for name, value in (("task", task), ("metric", metric)):
        known = list(dict.fromkeys(table[name]))
        if value not in known:
            raise ValueError(f"{name} is {value!r}; the table has {', '.join(map(str, known))}")
        table = table[table[name] == value]
    table = table.assign(part=table.part.fillna(""))  # "" of costs, which a CSV reads as nothing
    parts = list(dict.fromkeys(table.part))
    part = part if part is not None else "hidden" if "hidden" in parts else parts[0]
    if part not in parts:
        raise ValueError(f"part is {part!r}; {metric} on {task} has {', '.join(map(repr, parts))}")
    return table[table.part == part].sort_values("mean", ascending=metric in LOWER)


@typed
def plot_differences(table: pd.DataFrame, task: str, metric: str, part: str | None = None) -> Figure:
    """What every method differs by from the one that the table compares with, ± two standard errors; the best on top.

    Args:
        table: As for `values_of`; of one study.
        task, metric, part: As for `values_of`.

    Raises:
        ValueError: As for `values_of`.
    """
    rows = values_of(table, task, metric, part).iloc[::-1]
    part = rows.part.iloc[0]
    figure = Figure(figsize=(7.5, 1.2 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    compared = rows["diff"].notna()
    y = pd.Series(range(len(rows)), rows.index)
    good = (rows["diff"] < 0) == (metric in LOWER)
    clear = rows["diff"].abs() > 2 * rows.diff_se
    for which, colour, marker, label in (
        (compared & clear & good, "#0072B2", "o", "better by more than two standard errors"),
        (compared & ~clear, "0.5", "s", "not told apart"),
        (compared & clear & ~good, "#D55E00", "v", "worse by more than two"),
    ):
        if which.any():
            axes.errorbar(
                rows["diff"][which],
                y[which],
                xerr=2 * rows.diff_se[which],
                fmt=marker,
                ms=5,
                lw=1.2,
                color=colour,
                label=label,
            )
    axes.plot([0] * int((~compared).sum()), y[~compared], "kD", ms=5)
    axes.axvline(0, color="k", lw=0.8)
    axes.set_yticks(y, [_label(row) for row in rows.itertuples()], fontsize=8)
    better = "left" if metric in LOWER else "right"
    axes.set_xlabel(f"{metric}{f', {part}' if part else ''}: less that of ◆ ({better} is better)")
    axes.set_title(f"{task}, n = {int(rows.n.max())}")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


@typed
def plot_trade_off(
    table: pd.DataFrame,
    task: str,
    metric: str,
    against: dict[str, pd.Series],
    part: str | None = None,
    high: Collection[str] = (),
) -> Figure:
    """A metric against what it costs, a panel for each kind of cost; who is not beaten in both is named and joined.

    Args:
        table: As for `values_of`.
        task, metric, part: As for `values_of`.
        against: The label of a panel -> values indexed by (method, budget), a method's rows without a value are left out.
        high: The labels of which a high value is the good one: no cost, but diversity, say.

    Raises:
        ValueError: As for `values_of`.
    """
    rows = values_of(table, task, metric, part)
    figure = Figure(figsize=(4.6 * len(against), 4.2), layout="constrained")
    for axes, (label, costs) in zip(figure.subplots(1, len(against), squeeze=False)[0], against.items(), strict=True):
        key = pd.MultiIndex.from_arrays([rows.method, rows.budget.astype("Int64")])
        known = rows.assign(price=costs.reindex(key).to_numpy()).dropna(subset=["price"])
        axes.errorbar(known.price, known["mean"], yerr=known.se, fmt="o", ms=4, lw=0.8, color="0.6")
        best, front = None, []
        for row in known.sort_values(["price", "mean"], ascending=[label not in high, metric in LOWER]).itertuples():
            if best is None or ((row.mean < best) if metric in LOWER else (row.mean > best)):
                best = row.mean
                front.append(row)
        axes.plot([row.price for row in front], [row.mean for row in front], "o-", ms=5, color="#0072B2")
        axes.set(xlabel=label, title=task)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        for i, row in enumerate(front):  # above and below in turn, and to the left at the right: neighbours lie close
            across, _ = (axes.transData - axes.transAxes).transform((row.price, row.mean))
            side = {"xytext": (-5 if across > 0.6 else 4, -11 if i % 2 else 5), "ha": "right" if across > 0.6 else "left"}
            axes.annotate(_label(row), (row.price, row.mean), textcoords="offset points", fontsize=8, **side)
    figure.axes[0].set_ylabel(f"{metric}, {rows.part.iloc[0]} ± a standard error")
    return figure


def _label(row: Any) -> str:
    return row.method + ("" if pd.isna(row.budget) else f", {int(row.budget)}")
