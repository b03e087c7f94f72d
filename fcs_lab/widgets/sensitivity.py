"""The sensitivity laboratory: two settings vary, and every cell of the map can be looked into."""

from __future__ import annotations

import html
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from traitlets import TraitError

from fcs_lab.baselines import METHODS
from fcs_lab.data import example_images
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.images import ImageLike, to_tensor
from fcs_lab.latent import image_shape
from fcs_lab.plots import image_grid
from fcs_lab.sensitivity import AXES, MEASURES, Cell, SensitivityMap
from fcs_lab.sensitivity.axes import ENDS, PROMPTED, checked_axis, settings_taken
from fcs_lab.sensitivity.map import written
from fcs_lab.sensitivity.plots import plot_costs
from fcs_lab.widgets.heatmap import HeatMap
from fcs_lab.widgets.lab import BUTTON, DIRECTIONS, OTHERS, SamplerLab

__all__ = ["SensitivityLab"]

ASKED_CELLS, ASKED_SECONDS = 200, 600
"""From more cells, or more time, on the laboratory asks before it begins."""

TASKS = ("right-half", "top-half", "box", "free-form", "random-90", "sr2", "sr4", "deblur")
"""Those in the menu; any other may be given."""

VALUES = {
    "step_size_first": "0.05, 0.1, 0.2, 0.5, 1, 2",
    "step_size_last": "0.02, 0.05, 0.1, 0.2, 0.5, 1",
    "inner_steps": "0, 1, 2, 5, 10",
    "num_inference_steps": "5, 10, 20, 50",
    "fd_step": "0.005, 0.05, 0.2, 1",
    "eta": "0, 0.25, 0.5, 0.75, 1",
    "hidden": "0.1, 0.25, 0.5, 0.75, 0.9",
    "noise_std": "0, 0.05, 0.1, 0.2, 0.4",
    "guidance_scale": "1, 2, 4, 7.5",
    "dtype": "float32, bfloat16",
    "method": "newton, gradient, identity",
}
"""What an axis begins with."""


class SensitivityLab(SamplerLab):
    """Choose two axes and their values, press Run, and click on a cell to see its images, its cost and what it took.

    The map fills while it is computed; Stop ends within a cell, and Run goes on, with cells that failed, too. Above 200
    cells or ten minutes it asks first. `run`, `stop`, `wait`, `select` and `save` do from code what the buttons do;
    `sensitivity` is the map that they left. It takes the extra 'study'.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.
        images: Images of the model's size to take the first of, in any form that `to_tensor` takes. None: `example_images`.
        folder: Where maps are kept, each in a folder of its own, so that another session goes on with them. None: for as
            long as the laboratory lives.
        x, y: The axes that it begins with, as for `SensitivityMap`.
        **settings: Of all cells, as for `SensitivityMap`. Where there is a control that has the value, it begins there.

    Raises:
        TypeError, ValueError: The images do not fit the model; x or y is no axis; as for `fcs_lab.load`.

    Example:
        >>> import tempfile
        >>> asked = {"x": ("inner_steps", [0, 1]), "y": ("step_size_first", [0.1, 0.5]), "num_inference_steps": 2}
        >>> lab = fcs_lab.widgets.SensitivityLab("mnist", fcs_lab.load_digits(1)[0], tempfile.mkdtemp(), **asked)
        >>> lab.run()
        >>> lab.wait()
        >>> len(lab.sensitivity.grid.pairs), len(lab.sensitivity.missing())
        (4, 0)
    """

    def __init__(
        self,
        model: Denoiser | str = "mnist",
        images: ImageLike | None = None,
        folder: str | Path | None = None,
        *,
        x: tuple[str, Sequence[Any]] = ("step_size_first", (0.1, 0.2, 0.5, 1.0, 2.0)),
        y: tuple[str, Sequence[Any]] = ("inner_steps", (0, 1, 2, 5)),
        **settings: Any,
    ) -> None:
        super().__init__(model)
        self.images = example_images(self.model) if images is None else to_tensor(images, "images")
        shape = tuple(image_shape(self.model))
        if tuple(self.images.shape[1:]) != shape:
            raise ValueError(f"images has shape {tuple(self.images.shape)}; expected (N, {', '.join(map(str, shape))})")
        self._bundled, self._name = images is None, model if isinstance(model, str) else None
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(folder if self._temporary is None else self._temporary.name)
        self.sensitivity: SensitivityMap | None = None
        """The map of the last run."""
        self._settings = settings
        self._followed = -1  # the cell that is shown because it was finished last; −1 as long as there is none
        self._build()
        for name in self._controls.keys() & settings.keys() - {"step_size"}:  # whose control has (last, first)
            if _set(self._controls[name], settings[name]):
                del settings[name]
        for (axis, values), name, told in zip(self._axes, "xy", (x, y), strict=True):
            axis.value, given = checked_axis(name, told)
            values.value = ", ".join(map(str, given))
        self._show_what_applies()

    # What it looks like

    def _build(self) -> None:
        control = self._control
        axes = [(axis.label, name) for name, axis in AXES.items()]
        self.x_axis, self.y_axis = (control(widgets.Dropdown, options=axes, description=name) for name in "xy")
        self.x_values, self.y_values = (control(widgets.Text, description="its values") for _ in "xy")
        self._axes = ((self.x_axis, self.x_values), (self.y_axis, self.y_values))
        most = len(self.images)
        self.count = control(widgets.BoundedIntText, min(4, most), 1, most, description="images")
        colour = ["colorization"] if image_shape(self.model)[0] == 3 else []
        given = [self._settings["task"]] if isinstance(self._settings.get("task"), str) else []
        self.task = control(widgets.Dropdown, options=list(dict.fromkeys([*TASKS, *colour, *given])), description="task")
        latent = as_model(self.model).num_prompts is not None
        methods = [name for name in OTHERS if name != "tuned" and (latent or name != "psld")]
        self.method = self._direction_menu(*DIRECTIONS, *methods, description="method")
        self._algorithm_controls(inner_steps=5, step_size=(0.1, 0.5), max=2, step=0.05)
        self.prompt = control(widgets.Text, description="prompt")
        self.guidance_scale = self._guidance_slider()
        names = ("task", "method", "num_inference_steps", "inner_steps", "step_size", "fd_step", "eta")
        names += ("prompt", "guidance_scale") if latent else ()
        self._controls = {name: getattr(self, name) for name in (*names, "seed")}
        self.confirm_button = widgets.Button(
            description="Run all the same", button_style="warning", layout=widgets.Layout(width="150px", display="none")
        )
        self._starters.append(self.confirm_button)
        self.measure = control(
            widgets.Dropdown, options=[(told, name) for name, told in MEASURES.items()], description="shown"
        )
        self.heat_map = HeatMap()
        self.detail = widgets.HTML()
        self.cell_picture, self.cost_picture = (
            widgets.Image(format="png", layout=widgets.Layout(width="auto", max_width="620px", display="none"))
            for _ in range(2)
        )
        self.path = control(widgets.Text, value="sensitivity.png", description="file")
        self.save_button = widgets.Button(
            description="Save", icon="save", disabled=True, layout=BUTTON, tooltip="the picture, its table, and the call"
        )
        self.call = widgets.Textarea(
            placeholder="the call that makes the map again", rows=14, layout=widgets.Layout(width="560px")
        )

        for axis, values in self._axes:
            axis.observe(lambda change, values=values: setattr(values, "value", VALUES[change["new"]]), "value")
        for chooser in (self.x_axis, self.y_axis, self.method):
            chooser.observe(self._show_what_applies, "value")
        self.measure.observe(self._show_map, "value")
        self.heat_map.observe(self._show_cell, "selected")
        self.confirm_button.on_click(lambda _: self.run(confirmed=True))
        self.save_button.on_click(lambda _: self.save())
        left = widgets.VBox([self.x_axis, self.x_values, self.y_axis, self.y_values, self.count, self.seed])
        right = widgets.VBox([self._controls[name] for name in names])
        map_box = self._titled("the map", self.measure, self.heat_map)
        cell_box = self._titled("a cell: click on it", self.detail, self.cell_picture, self.cost_picture)
        self.children = [
            widgets.HBox([left, right]),
            widgets.HBox([self.run_button, self.stop_button, self.confirm_button, self.progress]),
            self.status,
            self.message,
            widgets.HBox([map_box, cell_box], layout=widgets.Layout(flex_flow="row wrap")),
            widgets.HBox([self.path, self.save_button]),
            self.call,
        ]

    def _show_what_applies(self, _: object = None) -> None:
        axes = {self.x_axis.value, self.y_axis.value}
        takes = {"seed", "task"} | self._asks(["newton", "fast"] if "method" in axes else [self.method.value])
        takes |= {"step_size"} if takes & ENDS.keys() - axes - self._settings.keys() else set()
        takes -= {"task"} if "hidden" in axes else set()
        for name, control in self._controls.items():
            self._shown(control, name in takes - axes - self._settings.keys())

    @staticmethod
    def _shown(control: widgets.Widget, shown: bool) -> None:
        control.layout.display = "" if shown else "none"

    # What is asked for

    @staticmethod
    def _asks(methods: Sequence[str]) -> set[str]:
        """The settings of some methods that there are controls for: all of Algorithm 1's, and of a peer the timesteps."""
        own = {"method", *PROMPTED, "num_inference_steps"}
        return set().union(
            *(settings_taken(name) & (settings_taken(name) if name in (*DIRECTIONS, "fast") else own) for name in methods)
        )

    def _asked(self) -> dict[str, Any]:
        """The arguments of `SensitivityMap` that the controls say."""
        x, y = ((axis.value, _values(values.value, axis.value)) for axis, values in self._axes)
        axes = dict((x, y))
        told = {"num_inference_steps": self.num_inference_steps.value} | self._algorithm_settings()
        told["step_size_first"], told["step_size_last"] = told.pop("step_size")
        if "prompt" in self._controls and self.prompt.value:
            told |= {"prompt": self.prompt.value, "guidance_scale": self.guidance_scale.value}
        methods = axes.get("method", [self.method.value])
        takes = self._asks([name for name in methods if name in METHODS]) - axes.keys()
        takes -= ENDS.keys() if "step_size" in self._settings else set()
        told = {name: value for name, value in told.items() if name in takes}
        if "method" not in axes:
            told["method"] = self.method.value
        if not {"hidden"} & (axes.keys() | self._settings.keys()):
            told["task"] = self.task.value
        images = self.count.value if self._bundled else self.images[: self.count.value]
        return {"images": images, "x": x, "y": y, "seed": self.seed.value} | told | self._settings

    # Running

    def run(self, confirmed: bool = False) -> None:
        """Fill the map, or go on with it. Returns at once; `wait` waits for the end.

        Args:
            confirmed: Begin although there are many cells, or it takes long.
        """
        if self._running:
            return
        self._say("")
        self._shown(self.confirm_button, False)
        self.status.value = "looking at what there is …"
        self._start(lambda: self._work(confirmed), 1)

    def _work(self, confirmed: bool) -> None:
        """In the thread."""
        from fcs_lab.study.config import digest

        sensitivity = SensitivityMap(self.model, **self._asked(), many=True)
        sensitivity.name = self._name
        grid, identity = sensitivity.grid, sensitivity.identity()
        sensitivity.open(self.folder / f"{grid.x_name}-{grid.y_name}-{digest(identity)}")
        before, self.sensitivity = self.sensitivity, sensitivity
        if before is None or (before.grid.pairs, before.identity()) != (grid.pairs, identity):
            self.heat_map.selected = self._followed = -1
        missing, left = len(sensitivity.missing(failed=True)), sensitivity.seconds_left()
        self.progress.max, self.progress.value = len(grid.pairs), len(grid.pairs) - missing
        self.call.value, self.save_button.disabled = sensitivity.call(), False
        self._show_map()
        if not confirmed and (missing > ASKED_CELLS or left > ASKED_SECONDS):
            self.status.value = "not begun"
            evaluations = sensitivity.evaluations()[1]
            self._say(f"{missing:,} cells, {evaluations:,} evaluations: {_time(left)}. Run all the same?", "#555")
            self._shown(self.confirm_button, True)
            return
        self.status.value = self._so_far()
        drawn, last = time.monotonic(), None
        for last in sensitivity.computing(retry=True, stop=self._stopping.is_set):
            self.progress.value += 1
            self.status.value = self._so_far()
            if time.monotonic() > drawn + 1:  # the browser has to keep up
                self._show_map()
                self._follow(last)
                drawn = time.monotonic()
        self._show_map()
        chosen = self.heat_map.selected
        if last is not None:
            self._follow(last)
        if self.heat_map.selected == chosen:  # else it has been shown
            self._show_cell()
        self.status.value = f"stopped: {self._so_far()}; Run goes on" if sensitivity.missing() else f"done: {self._so_far()}"

    def _follow(self, cell: Cell) -> None:
        """Show the cell that was finished last, unless somebody chose another."""
        if self.heat_map.selected == self._followed:
            self._followed = self._index(cell.x, cell.y)
            self.heat_map.selected = self._followed

    def _so_far(self) -> str:
        cells = self.sensitivity.cells.values()
        failed = sum(cell.error is not None for cell in cells)
        left = f", {_time(self.sensitivity.seconds_left())} left" if len(cells) < self.progress.max else ""
        return f"{len(cells)} of {self.progress.max} cells" + (f", {failed} failed" if failed else "") + left

    # Looking

    def select(self, x: Any, y: Any) -> None:
        """Choose the cell of these values, as a click on it does.

        Raises:
            ValueError: There is no such cell.
        """
        if self.sensitivity is None or (x, y) not in self.sensitivity.grid.pairs:
            raise ValueError(f"x is {x!r} and y {y!r}; expected values of the axes, after a run")
        self.heat_map.selected = self._index(x, y)

    def _index(self, x: Any, y: Any) -> int:
        grid = self.sensitivity.grid
        return grid.y.index(y) * len(grid.x) + grid.x.index(x)

    def _show_map(self, _: object = None) -> None:
        if self.sensitivity is not None:
            self.heat_map.show(self.sensitivity, self.measure.value)

    def _show_cell(self, _: object = None) -> None:
        selected, sensitivity = self.heat_map.selected, self.sensitivity
        if sensitivity is None or selected < 0:
            self.detail.value = ""
            self._shown(self.cell_picture, False)
            self._shown(self.cost_picture, False)
            return
        grid = sensitivity.grid
        x, y = grid.x[selected % len(grid.x)], grid.y[selected // len(grid.x)]
        cell = sensitivity.cells.get((x, y))
        at = f"{AXES[grid.x_name].label}: {written([x])[0]}, {AXES[grid.y_name].label}: {written([y])[0]}"
        self.detail.value = f"<b>{html.escape(at)}</b><br>{_told(cell)}"
        there = cell is not None and cell.error is None
        if there:
            given = sensitivity.posed(x, y).given
            rows = {"truth": sensitivity.images, "given": given, "result": cell.images}
            few = {label: images[:8] for label, images in rows.items()}
            self.cell_picture.value = image_grid(few).png()
        self._shown(self.cell_picture, there)
        if there and cell.trace:
            evaluations, costs = zip(*cell.trace, strict=True)
            self.cost_picture.value = plot_costs(evaluations, torch.tensor(costs)).png()
        self._shown(self.cost_picture, there and bool(cell.trace))

    def save(self) -> None:
        """Write the picture, its table and the call where the file's name says."""
        if self.sensitivity is None:
            return
        try:
            path = self.sensitivity.save(self.path.value, self.measure.value)
            self._say(f"saved {path}, and beside it the table as .csv and the record as .json", "#555")
        except (OSError, TypeError, ValueError) as error:
            self._say(str(error))


def _set(control: widgets.Widget, value: Any) -> bool:
    """Give a control a value; whether it took it."""
    before = control.value
    try:
        control.value = value
    except (TraitError, TypeError, ValueError):
        return False
    if control.value != value:
        control.value = before
        return False
    return True


def _values(text: str, axis: str) -> list[Any]:
    """A list in text: numbers, or names."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if AXES[axis].names:
        return parts
    try:
        return [float(part) if any(c in part for c in ".eE") else int(part) for part in parts]
    except ValueError as error:
        raise ValueError(f"{axis} has {text!r}; expected numbers, such as {VALUES[axis]}") from error


def _told(cell: Cell | None) -> str:
    """What a cell tells, as HTML."""
    if cell is None:
        return "not computed"
    if cell.error is not None:
        return f'<span style="color: #b00020">{html.escape(cell.error)}</span>'
    lines = []
    for measure in ("mse", "known_mse"):
        mean, error = cell.of(measure)
        lines.append(f"{MEASURES[measure]}: {mean:.3g}" + ("" if math.isnan(error) else f" ± {error:.2g}"))
    backward = f" + {cell.backward:g} backward passes" if cell.backward else ""
    return "<br>".join([*lines, f"{cell.evaluations:g} evaluations{backward} and {cell.seconds:.2g} s an image"])


def _time(seconds: float) -> str:
    """A time in words."""
    if math.isnan(seconds):
        return "nobody knows how long"
    if seconds < 100:
        return f"about {math.ceil(seconds)} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"
