"""What a map of two settings asks for: its axes, their values, and the settings of all cells, checked before any work."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from fcs_lab.baselines import METHODS, WITHOUT_MODEL
from fcs_lab.checks import check_count, describe, is_int, is_number
from fcs_lab.denoisers import Denoiser, as_model, networks_of
from fcs_lab.directions import DIRECTIONS
from fcs_lab.sampler import Settings

__all__ = ["AXES", "ENDS", "PROMPTED", "Axis", "Grid", "checked_axis", "settings_taken"]


@dataclass(frozen=True)
class Axis:
    """What an axis may hold: numbers in a range, or some of a few names."""

    label: str
    least: float = 0
    most: float = math.inf
    whole: bool = False
    names: tuple[str, ...] = ()

    def checked(self, name: str, value: object) -> Any:
        """A value in Python's own type.

        Raises:
            ValueError: It is none of the axis'; `name` is what the message calls it.
        """
        if self.names:
            value = str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value
            if not isinstance(value, str) or value not in self.names:
                raise ValueError(f"{name} has {describe(value)}; expected some of {', '.join(map(repr, self.names))}")
            return str(value)
        if not (is_int if self.whole else is_number)(value) or not self.least <= value <= self.most:
            to = "" if self.most == math.inf else f" to {self.most:g}"
            kind = "whole numbers" if self.whole else "numbers"
            raise ValueError(f"{name} has {describe(value)}; expected {kind} from {self.least:g}{to}")
        return int(value) if self.whole else float(value)


AXES = {
    "step_size_first": Axis("λ, first of a timestep"),
    "step_size_last": Axis("λ, last of a timestep"),
    "inner_steps": Axis("inner steps K", 0, 10_000, whole=True),
    "num_inference_steps": Axis("timesteps T′", 1, 10_000, whole=True),
    "fd_step": Axis("difference h", 1e-12),
    "eta": Axis("η"),
    "hidden": Axis("share hidden", 0.01, 0.99),
    "noise_std": Axis("noise σ_y"),
    "guidance_scale": Axis("guidance scale"),
    "dtype": Axis("precision", names=("float32", "bfloat16", "float16")),
    "method": Axis("method", names=tuple(METHODS)),
}
"""What two axes may be chosen from; the names are those of `fcs_lab.sample` where it has one."""

PROMPTED = ("prompt", "negative_prompt", "guidance_scale")
ENDS = {"step_size_first": "step_size_last", "step_size_last": "step_size_first"}


class Grid:
    """Two axes with their values, and the settings of all cells.

    Args:
        x, y: Each a name of `AXES` and at least two values: numbers that rise, or names.
        task: A study's task with one right answer. None: "right-half", or what "hidden" says.
        settings: Of all cells; None of them on an axis. Those that are None are left out.

    Raises:
        TypeError, ValueError: One is wrong.
        ImportError: The extra 'study' is not installed.
    """

    def __init__(self, x: object, y: object, task: str | None, settings: Mapping[str, Any]):
        self.x_name, self.x = checked_axis("x", x)
        self.y_name, self.y = checked_axis("y", y)
        if self.x_name == self.y_name:
            raise ValueError(f"x and y are both {self.x_name!r}; expected two different axes")
        self.settings = _own_names(settings)
        self._check_settings()
        self.task = self._check_task(task)
        self.evaluations = {pair: self._evaluations_of(*pair) for pair in self.pairs}
        """(x, y) -> what an image takes; of "exact" and "newton-jvp", which do not tell, as much as of "newton"."""

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """(x, y) of all cells, in the order in which they are computed: one precision after the other, each being a copy."""
        if self.x_name == "dtype":
            return [(x, y) for x in self.x for y in self.y]
        return [(x, y) for y in self.y for x in self.x]

    def values_of(self, name: str) -> list[Any]:
        """The values on the axis of that name, none if there is no such axis."""
        return {self.x_name: self.x, self.y_name: self.y}.get(name, [])

    def told(self, x: Any, y: Any) -> dict[str, Any]:
        """All settings of a cell; its method is one of them."""
        return {"method": "newton"} | self.settings | {self.x_name: x, self.y_name: y}

    def task_of(self, x: Any, y: Any) -> str:
        """A cell's task."""
        return self.task or f"region-{round(100 * self.told(x, y)['hidden'])}"

    def call_of(self, x: Any, y: Any) -> dict[str, Any]:
        """The arguments of a cell's method in `fcs_lab.baselines.METHODS`."""
        told = self.told(x, y)
        call = {name: told[name] for name in _arguments(told["method"]) & told.keys()}
        if told["method"] in DIRECTIONS and told.keys() & ENDS.keys():
            first, last = Settings.step_size
            call["step_size"] = (told.get("step_size_first", first), told.get("step_size_last", last))
        return call

    def check_model(self, model: Denoiser) -> None:
        """That a model has what the settings speak of.

        Raises:
            TypeError: It is no denoiser.
            ValueError: It has not.
        """
        told, plain = self.settings.keys() | {self.x_name, self.y_name}, as_model(model)
        for name in [name for name in PROMPTED if name in told]:
            if plain.num_prompts is None or not hasattr(model, "with_prompt"):
                raise ValueError(f"{name} is given, and the model takes no prompt; expected a text-conditional model")
            if not self.settings.get("prompt", getattr(model, "prompt", "")):
                raise ValueError(f"prompt is missing, without which {name} does nothing; expected a text")
        if "dtype" in told and not networks_of(model):
            raise ValueError(f"dtype is given, and the model, which is in {model.dtype}, has no network to convert")
        for T in (*self.values_of("num_inference_steps"), self.settings.get("num_inference_steps", 1)):
            check_count("num_inference_steps", T, 1, plain.scheduler.config.num_train_timesteps)

    def _check_settings(self) -> None:
        """That every axis is of use to each method, every setting to one of them, and that all can be written down."""
        methods = self.values_of("method") or [self.settings.get("method", "newton")]
        takes = {method: settings_taken(method) for method in methods}
        known = set().union(*takes.values())
        for axis, name in (("x", self.x_name), ("y", self.y_name)):
            if name in self.settings:
                raise ValueError(f"{name} is {self.settings[name]!r}, and {axis} is {name!r}; expected one of them")
            for method, names in takes.items():
                if name not in names:
                    raise ValueError(f"{axis} is {name!r}, which {method!r} ignores; it has {', '.join(sorted(names))}")
        if "step_size" in self.settings:
            for name in (self.settings.keys() | {self.x_name, self.y_name}) & ENDS.keys():
                raise ValueError(f"step_size is given, and {name}; expected {ENDS[name]} in its place, the other end")
        for name, value in self.settings.items():
            if name not in known:
                raise ValueError(f"{name} is no setting of {', '.join(takes)}; expected some of {', '.join(sorted(known))}")
            try:
                json.dumps(value)
            except TypeError as error:
                raise TypeError(f"{name} is {describe(value)}; expected numbers or text, which can be kept") from error

    def _check_task(self, task: object) -> str | None:
        from fcs_lab.study.tasks import check_task_name

        shares = [*self.values_of("hidden"), *([self.settings["hidden"]] if "hidden" in self.settings else [])]
        if shares and task is not None:
            raise ValueError(f"task is {describe(task)}, and hidden makes a task of its own; expected one of them")
        for share in shares:
            if abs(100 * share - round(100 * share)) > 1e-6:
                raise ValueError(f"hidden has {share!r}; expected shares of whole per cents, such as 0.25")
        if shares or task is None:
            return None if shares else "right-half"
        if not isinstance(task, str) or task == "style":
            raise ValueError(f"task is {describe(task)}; expected a study's task that has one right answer, such as 'box'")
        try:
            return check_task_name(task)
        except ValueError as error:
            raise ValueError(f"task: {error}") from error

    def _evaluations_of(self, x: Any, y: Any) -> int:
        """Of a cell whose settings are looked at by whoever will take them."""
        from fcs_lab.study.config import Entry, evaluations_of

        method, call = self.told(x, y)["method"], self.call_of(x, y)
        if method in DIRECTIONS:
            settings = Settings(direction=method, **call)
            if "step_size" in self.settings:  # the ends on an axis have been looked at
                settings.λ(range(settings.num_inference_steps))
            method = method if method in ("identity", "gradient") else "newton"
        K = call.get("inner_steps")
        return evaluations_of(
            Entry(method, call if K is None or is_int(K) else call | {"inner_steps": list(K)}, None, None, "")
        )


@cache
def _arguments(method: str) -> frozenset[str]:
    """Of a method's call, those that it does not ignore."""
    from fcs_lab.study.config import settings_of

    ignored = {"preset"}
    if method in WITHOUT_MODEL:
        ignored = {"num_inference_steps"}  # which are no timesteps
    if method in DIRECTIONS:
        ignored |= {"fd_step"} if method != "newton" else set()
        ignored |= {"regularization"} if method != "exact" else set()
    return frozenset(settings_of(method).keys() - ignored)


def settings_taken(method: str) -> set[str]:
    """The names, of axes and others, that a method does not ignore."""
    names = {"method", "hidden", "noise_std"} | _arguments(method)
    names |= ENDS.keys() if method in DIRECTIONS else set()
    return names | ({"dtype", *PROMPTED} if method not in WITHOUT_MODEL else set())


def checked_axis(name: str, told: object) -> tuple[str, list[Any]]:
    """An axis' name and its values, checked; `name` is what a message calls them.

    Raises:
        TypeError, ValueError: It is no axis, or has not at least two values of its kind: different ones, numbers that rise.
    """
    if not isinstance(told, tuple | list) or len(told) != 2 or not isinstance(told[0], str):
        raise TypeError(f"{name} is {describe(told)}; expected a pair, such as ('inner_steps', [1, 3, 5])")
    axis, values = told
    if axis not in AXES:
        raise ValueError(f"{name} is {axis!r}; expected one of {', '.join(map(repr, AXES))}")
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray) or getattr(values, "ndim", 1) != 1:
        raise TypeError(f"{name} has {describe(values)} for {axis}; expected a list of values")
    values = [AXES[axis].checked(f"{name} ({axis})", value) for value in values]
    if len(values) < 2:
        raise ValueError(f"{name} has {len(values)} value of {axis}; expected at least two")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ValueError(f"{name} has {twice!r} of {axis} more than once; expected different values")
    if not AXES[axis].names and values != sorted(values):
        fall = next(i for i in range(1, len(values)) if values[i] < values[i - 1])
        raise ValueError(f"{name} has {values[fall - 1]!r} before {values[fall]!r} of {axis}; expected numbers that rise")
    return axis, values


def _own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the axes' names, in Python's own types, without those that are None."""
    own = {name: value for name, value in settings.items() if value is not None}
    for name in ("direction", "preset"):  # what `sample` calls a method
        if name in own:
            if "method" in own:
                raise ValueError(f"{name} is {own[name]!r}, and method {own['method']!r}; expected one of them")
            own["method"] = own.pop(name)
    for name in own.keys() & AXES.keys():
        if name != "inner_steps" or not isinstance(own[name], list | tuple):  # which may be one for each timestep
            own[name] = AXES[name].checked(name, own[name])
    return own
