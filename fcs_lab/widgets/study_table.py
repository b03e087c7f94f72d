"""A study's table, or several in one, as a picture: choose the study, the task and the metric."""

from __future__ import annotations

import ipywidgets as widgets
import pandas as pd

from fcs_lab.checks import typed
from fcs_lab.plots import Figure
from fcs_lab.study.plots import plot_differences

__all__ = ["StudyTable"]


class StudyTable(widgets.VBox):
    """What every method of a study differs by from the first, by task and metric: `plot_differences` with menus.

    Args:
        table: A study's `table.csv` as a frame, or several with a column `study` that tells them apart.

    Attributes:
        study, task, metric: The menus; a choice keeps what it can of the others'.
        figure: What is shown.

    Raises:
        ValueError: The table has no differences, or lacks a column of a study's.
    """

    @typed
    def __init__(self, table: pd.DataFrame) -> None:
        compared = table[table["diff"].notna()] if "diff" in table else table[:0]
        if compared.empty:
            raise ValueError(f"table has no differences in its columns {list(table)}; expected a study's table in long form")
        super().__init__()
        self._table = table if "study" in table else table.assign(study="")
        self._compared = self._table.loc[compared.index]
        studies = list(dict.fromkeys(self._compared.study))
        self.study = widgets.Dropdown(options=studies, value=studies[0], description="study")
        self.task, self.metric = (widgets.Dropdown(description=name) for name in ("task", "metric"))
        self._picture = widgets.Image(format="png", layout=widgets.Layout(align_self="flex-start", max_width="100%"))
        self.figure: Figure
        self._offering = False
        for menu in (self.study, self.task, self.metric):
            menu.observe(self._chosen, "value")
        menus = [self.task, self.metric] if len(studies) == 1 else [self.study, self.task, self.metric]
        self.children = [widgets.HBox(menus), self._picture]
        self._chosen()

    def _chosen(self, _: object = None) -> None:
        if self._offering:  # a menu that is filled changes its value, perhaps twice
            return
        self._offering = True
        try:
            ours = self._compared[self._compared.study == self.study.value]
            _offer(self.task, ours.task)
            _offer(self.metric, ours[ours.task == self.task.value].metric)
        finally:
            self._offering = False
        shown = self._table[self._table.study == self.study.value]
        self.figure = plot_differences(shown, self.task.value, self.metric.value)
        self._picture.value = self.figure.png()


def _offer(menu: widgets.Dropdown, values: pd.Series) -> None:
    """Give a menu its options; its value stays if it is one of them."""
    before, options = menu.value, list(dict.fromkeys(values))
    menu.options = options
    menu.value = before if before in options else options[0]
