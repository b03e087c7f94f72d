"""What counts as a number, wherever an argument is checked."""

from __future__ import annotations

import math
import numbers

__all__ = ["is_int", "is_number"]


def is_int(value: object) -> bool:
    """A whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite real number, Python's or NumPy's; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
