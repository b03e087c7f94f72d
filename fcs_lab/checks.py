"""What counts as a number, and how a wrong argument is described, wherever one is checked."""

from __future__ import annotations

import math
import numbers

from torch import Tensor

__all__ = ["check_count", "describe", "is_int", "is_number", "refuse_meta"]


def is_int(value: object) -> bool:
    """A whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite real number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def check_count(name: str, value: object, least: int) -> int:
    """The value as an int, once it is a whole number of at least `least`.

    Raises:
        ValueError: It is not; the message names it.
    """
    if not is_int(value) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value)


def describe(value: object) -> str:
    """What was found, for an error message: a tensor by its shape and dtype."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}"
    shown = repr(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}…, a {type(value).__name__}"


def refuse_meta(name: str, x: Tensor) -> None:
    """That a tensor has values.

    Raises:
        ValueError: It is on the device "meta".
    """
    if x.is_meta:
        raise ValueError(f"{name} is on the device 'meta', where tensors have no values; expected one that has")
