"""What `diagnose` found, as a picture."""

from __future__ import annotations

import textwrap

from fcs_lab.checks import typed
from fcs_lab.diagnosis.checks import Diagnosis
from fcs_lab.plots import Figure

__all__ = ["plot_diagnosis"]

VERDICTS = {"ok": "#0072b2", "doubtful": "#e69f00", "bad": "#d55e00"}
"""Told apart by the colour-blind; the words stand beside."""


@typed
def plot_diagnosis(diagnosis: Diagnosis) -> Figure:
    """What `fcs_lab.diagnose` found, a line for each check: its verdict, what was measured, and the advice.

    Args:
        diagnosis: What it returned.
    """
    rows = [(finding, textwrap.wrap(finding.told, 88), textwrap.wrap(finding.advice, 88)) for finding in diagnosis]
    heights = [0.16 * (len(told) + len(advice)) + 0.14 for _, told, advice in rows]
    figure = Figure(figsize=(8.6, sum(heights) + 0.15))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 8.6), ylim=(sum(heights) + 0.15, 0))
    axes.axis("off")
    y = 0.1
    for (finding, told, advice), height in zip(rows, heights, strict=True):
        axes.text(0.1, y, f" {finding.verdict} ", color="white", va="top", fontsize=8, family="monospace",
                  bbox={"facecolor": VERDICTS[finding.verdict], "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.text(1.05, y, finding.check, va="top", fontsize=9, weight="bold")
        axes.text(2.25, y, "\n".join(told), va="top", fontsize=9, linespacing=1.15)
        below = y + 0.16 * len(told)
        axes.text(2.25, below, "\n".join(advice), va="top", fontsize=9, linespacing=1.15, style="italic", color="0.35")
        y += height
    return figure
