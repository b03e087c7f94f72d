"""Pictures of a map of two settings, and of what a cell cost. Each is a matplotlib Figure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle
from torch import Tensor

from fcs_lab.checks import check_tensor, is_number, typed
from fcs_lab.plots import Figure

__all__ = ["heat", "ink_on", "plot_costs", "plot_sensitivity"]

ANNOTATED = 150
"""Up to so many cells have their number written in."""
MISSING = (0.85, 0.85, 0.85)
"""The colour of a cell without a value."""


@typed
def plot_costs(evaluations: Sequence[float], costs: Tensor) -> Figure:
    """The cost C of each image over a run.

    Args:
        evaluations: (n,), those of the denoiser so far; where there are none, as of a method without a model, the steps are
            counted in their place.
        costs: (n, B), C of each image.
    """
    check_tensor("costs", costs, len(evaluations), "B")
    if not all(map(is_number, evaluations)):
        raise ValueError(f"evaluations is {evaluations!r}; expected finite numbers")
    axes = Figure(figsize=(4.2, 2.4), layout="constrained").add_subplot()
    counted = any(evaluations)
    axes.plot(list(evaluations) if counted else range(len(costs)), costs.cpu(), lw=1)
    axes.set(xlabel="evaluations of the denoiser" if counted else "steps", ylabel="cost C of each image")
    if bool((costs > 0).any()):
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    return axes.figure


def heat(values: Tensor) -> tuple[Normalize, np.ndarray]:
    """The scale of a map, and its colours, RGB in [0, 1]: (Y, X) -> (Y, X, 3); grey where a value is NaN.

    The scale is logarithmic where all values are positive and the largest is ten times the least. viridis is told apart
    by those who do not see all colours, and in grey.
    """
    there = values[values.isfinite()].double()
    low, high = (there.min().item(), there.max().item()) if len(there) else (0.0, 1.0)
    high = high if high > low else low + (abs(low) or 1.0)
    scale = LogNorm(low, high) if low > 0 and high >= 10 * low else Normalize(low, high)
    array = values.double().cpu().numpy()
    colours = colormaps["viridis"](np.asarray(scale(np.nan_to_num(array, nan=low))))[..., :3]
    return scale, np.where(np.isnan(array)[..., None], MISSING, colours)


def ink_on(colour: Sequence[float]) -> str:
    """Black or white, whichever is easier to read on a colour, RGB in [0, 1]."""
    return "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 0.5 else "white"


@typed
def plot_sensitivity(
    values: Tensor,
    x: Sequence[str],
    y: Sequence[str],
    *,
    labels: tuple[str, str, str] = ("x", "y", "value"),
    failed: Tensor | None = None,
    title: str | None = None,
    axes: Axes | None = None,
) -> Figure:
    """A heat map of what two settings do: x to the right, y upwards, every cell with its number.

    Cells without a value are grey and hatched; those that failed have a ×. The colours are logarithmic where the values span
    a factor of ten or more.

    Args:
        values: (Y, X), NaN where a cell is missing.
        x, y: What the columns and the rows are called, X and Y of them, y from the bottom.
        labels: Of the x-axis, the y-axis and the colours.
        failed: (Y, X), True where a cell failed.
        title: Above all.
        axes: Drawn into, in place of a new figure, without a colour bar.
    """
    if values.ndim != 2 or values.shape != (len(y), len(x)) or not values.numel() or bool(values.isinf().any()):
        raise ValueError(f"values has shape {tuple(values.shape)}; expected (Y, X) = ({len(y)}, {len(x)}), none infinite")
    check_tensor("values", values.nan_to_num(), len(y), len(x))
    if isinstance(x, str) or isinstance(y, str):
        raise TypeError(f"x is {x!r}, y {y!r}; expected lists of names")
    failed = torch.zeros(values.shape, dtype=torch.bool) if failed is None else failed
    check_tensor("failed", failed, len(y), len(x), like="any")
    alone = axes is None
    if axes is None:
        width, height = (min(0.72 * len(names), 11) for names in (x, y))
        figure = Figure(figsize=(max(width, 2) + 2.2, max(0.7 * height, 1.2) + 1), layout="constrained")
        axes = figure.add_subplot()
    scale, colours = heat(values)
    axes.imshow(colours, origin="lower", aspect="auto", interpolation="nearest")
    annotated = values.numel() <= ANNOTATED
    for row, column in np.ndindex(*values.shape):
        value, colour = values[row, column].item(), colours[row, column]
        if math.isnan(value):
            hatch = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="///", ec="0.65", lw=0)
            axes.add_patch(hatch)
        if bool(failed[row, column]):
            axes.text(column, row, "×", ha="center", va="center", color="#b00020", fontsize=14)
        elif annotated and not math.isnan(value):
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=ink_on(colour), fontsize=8)
    for ticks, names, set_ticks in ((len(x), x, axes.set_xticks), (len(y), y, axes.set_yticks)):
        every = -(-ticks // 20)
        set_ticks(range(0, ticks, every), list(names)[::every], fontsize=8)
    if max(map(len, x)) * len(x) > 60:  # names that would run into one another
        axes.tick_params(axis="x", rotation=60)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.spines[:].set_visible(False)
    if alone:
        axes.figure.colorbar(ScalarMappable(scale, "viridis"), ax=axes, label=labels[2]).outline.set_visible(False)
    if title is not None:
        axes.set_title(title, fontsize=10)
    return axes.figure
