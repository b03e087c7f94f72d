"""A heat map whose cells are buttons: a click, or the arrow keys and Enter, choose one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets
from matplotlib.colors import LogNorm, to_hex

from fcs_lab.sensitivity import AXES, MEASURES, SensitivityMap
from fcs_lab.sensitivity.map import written
from fcs_lab.sensitivity.plots import heat, ink_on

__all__ = ["HeatMap"]


class HeatMap(anywidget.AnyWidget):
    """A `SensitivityMap` as it is at the moment; `selected` is the cell that was chosen, counted from the first value of y.

    x goes to the right, y upwards. A missing cell is hatched, and one that failed has a ×; what each holds is its tooltip.
    """

    _esm = Path(__file__).parent / "heatmap.js"
    x_label = traitlets.Unicode().tag(sync=True)
    y_label = traitlets.Unicode().tag(sync=True)
    columns = traitlets.List(help="the names of x").tag(sync=True)
    rows = traitlets.List(help="the names of y, from the bottom").tag(sync=True)
    cells = traitlets.List(help="{text, colour, ink, title} of each, row by row").tag(sync=True)
    legend = traitlets.Unicode(help="what the colours mean; changes before the cells").tag(sync=True)
    shape = traitlets.Unicode(help="changes where the axes do, after them").tag(sync=True)
    selected = traitlets.Int(-1, help="−1: none").tag(sync=True)

    def show(self, sensitivity: SensitivityMap, measure: str = "mse") -> None:
        """Draw the cells as they are.

        Args:
            sensitivity: Whose.
            measure: One of `fcs_lab.sensitivity.MEASURES`.
        """
        grid, found = sensitivity.grid, sensitivity.cells
        labels = AXES[grid.x_name].label, AXES[grid.y_name].label
        values = sensitivity.values(measure)
        scale, colours = heat(values)
        cells: list[dict[str, Any]] = []
        for row, y in enumerate(grid.y):
            for column, x in enumerate(grid.x):
                at, cell = f"{labels[0]} {written([x])[0]}, {labels[1]} {written([y])[0]}", found.get((x, y))
                if cell is None:
                    told = {"text": "", "colour": "", "ink": "black", "title": f"{at}: not computed"}
                elif cell.error is not None:
                    told = {"text": "×", "colour": "#e8e8e8", "ink": "#b00020", "title": f"{at}: {cell.error}"}
                else:
                    value, colour = f"{values[row, column]:.3g}", colours[row, column]
                    title = f"{at}: {MEASURES[measure]} {value}"
                    told = {"text": value, "colour": to_hex(colour), "ink": ink_on(colour), "title": title}
                cells.append(told)
        self.x_label, self.y_label = labels
        self.columns, self.rows = written(grid.x), written(grid.y)
        steps = ", in equal ratios" if isinstance(scale, LogNorm) else ""
        there = bool(values.isfinite().any())
        self.legend = f"dark {scale.vmin:.3g}, bright {scale.vmax:.3g}{steps}" if there else ""
        self.cells = cells
        self.shape = repr((self.columns, self.rows, labels))
