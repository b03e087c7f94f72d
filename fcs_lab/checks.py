"""What counts as a number, and how a wrong argument is described, wherever one is checked."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from contextlib import suppress
from types import NoneType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from beartype import BeartypeConf, FrozenDict
from beartype.door import is_bearable
from torch import Tensor

__all__ = [
    "check_count",
    "check_flag",
    "check_function",
    "check_generator",
    "check_number",
    "check_seed",
    "check_tensor",
    "describe",
    "is_int",
    "is_number",
    "refuse_meta",
    "typed",
]

P, R = ParamSpec("P"), TypeVar("R")

NUMBERS = BeartypeConf(hint_overrides=FrozenDict({int: int | np.integer, float: float | int | np.integer | np.floating}))
"""NumPy's numbers are numbers, and an int is a float."""


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function: an argument of another type than its hint is an error that names it, found and expected.

    A ValueError where a number or one of a few names was wanted, else a TypeError. An array will do for a sequence.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> R:
        if not hints:  # by now all that they name has been imported
            hints.update(get_type_hints(function))
        for name, value in signature.bind(*arguments, **options).arguments.items():
            hint = hints.get(name, Any)
            one = value.tolist() if isinstance(value, np.ndarray) and value.ndim == 1 else value
            if isinstance(value, bytes) and "bytes" not in str(hint):
                raise TypeError(f"{name} is {describe(value)}; expected no bytes")  # which are a sequence of numbers, too
            if not is_bearable(value, hint, conf=NUMBERS) and not is_bearable(one, hint, conf=NUMBERS):
                plain = get_origin(hint) is Literal or all(
                    kind in (int, float, NoneType) for kind in get_args(hint) or [hint]
                )
                expected = str(getattr(hint, "__name__", hint)).replace("typing.", "")
                if get_origin(hint) is Literal:
                    expected = "one of " + ", ".join(map(repr, get_args(hint)))
                raise (ValueError if plain else TypeError)(f"{name} is {describe(value)}; expected {expected}")
        return function(*arguments, **options)

    return checked


def is_int(value: object) -> bool:
    """A whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite real number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: object, least: int, most: int | None = None) -> int:
    """The value as an int, once it is a whole number of at least `least`, and at most `most`.

    Raises:
        ValueError: It is not; the message names it.
    """
    if not is_int(value) or value < least or (most is not None and value > most):
        up_to = "" if most is None else f", and at most {most}"
        raise ValueError(f"{name} is {describe(value)}; expected a whole number of at least {least}{up_to}")
    return int(value)


def check_number(name: str, value: object, least: float, most: float = math.inf) -> float:
    """The value as a float, once it is a finite number from `least` to `most`.

    Raises:
        ValueError: It is not; the message names it.
    """
    if not is_number(value) or not least <= value <= most:
        up_to = "of at least" if most == math.inf else "from"
        to = "" if most == math.inf else f" to {most:g}"
        raise ValueError(f"{name} is {describe(value)}; expected a number {up_to} {least:g}{to}")
    return float(value)


def describe(value: object) -> str:
    """What was found, for an error message: a tensor by its shape and dtype."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}…, a {type(value).__name__}"


def check_function(name: str, function: object, arguments: int) -> None:
    """That it is a function (no type) that can be called with so many arguments.

    Raises:
        TypeError: It is not.
    """
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"{name} is {describe(function)}; expected a function of {arguments} arguments")
    with suppress(ValueError):  # a built-in one does not tell what it takes
        signature = inspect.signature(function)
        try:
            signature.bind(*range(arguments))
        except TypeError as error:
            raise TypeError(
                f"{name} is {describe(function)}; expected a function of {arguments} arguments: {error}"
            ) from error


def check_flag(name: str, value: object) -> None:
    """That it is True or False.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {describe(value)}; expected True or False")


def check_generator(generator: object) -> None:
    """That it is a generator, a list of them, or None.

    Raises:
        TypeError: It is not.
        ValueError: The list is empty.
    """
    if isinstance(generator, list) and not generator:
        raise ValueError("generator is an empty list; expected one for each image")
    for one in generator if isinstance(generator, list) else [] if generator is None else [generator]:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"generator holds {describe(one)}; expected a torch.Generator, or a list with one an image")


def check_seed(seed: object) -> int:
    """The seed as an int, once it is a whole number from 0 to 2³² − 1, which every generator here takes.

    Raises:
        ValueError: It is not.
    """
    if not is_int(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to 2³² − 1")
    return int(seed)


def check_tensor(name: str, x: Tensor, *shape: int | str, like: str = "floating point") -> Tensor:
    """x, once it has values, all of them finite, and the shape.

    Args:
        name: What an error message calls it.
        x: The tensor.
        shape: Its sizes: a number where only that will do, a letter where any will.
        like: "floating point", or "any" for Booleans and whole numbers, too.

    Raises:
        TypeError: Not a tensor, or of another dtype.
        ValueError: Another shape, no values, or NaN or infinite ones.
    """
    if not isinstance(x, Tensor) or x.is_complex() or (like != "any" and not x.is_floating_point()):
        raise TypeError(f"{name} is {describe(x)}; expected a {'real' if like == 'any' else 'floating-point'} tensor")
    refuse_meta(name, x)
    fits = x.ndim == len(shape) and all(isinstance(n, str) or n == m for n, m in zip(shape, x.shape, strict=True))
    if not fits or 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected ({', '.join(map(str, shape))})")
    if not bool(x.isfinite().all()):
        raise ValueError(f"{name} has NaN or infinite values; expected finite ones")
    return x


def refuse_meta(name: str, x: Tensor) -> None:
    """That a tensor has values, each in its place.

    Raises:
        ValueError: It is on the device "meta", or sparse.
    """
    if x.is_meta:
        raise ValueError(f"{name} is on the device 'meta', where tensors have no values; expected one that has")
    if x.layout is not torch.strided:
        raise ValueError(f"{name} is {x.layout}; expected a dense tensor")
