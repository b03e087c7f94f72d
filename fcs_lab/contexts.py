"""What torch may have been set to where the lab is called from: results do not depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

__all__ = ["computes_in", "ordinary", "own_copy"]


@contextmanager
def ordinary() -> Iterator[None]:
    """While this lasts, or around a function as `@ordinary()`: no inference mode, no autocast, new tensors on the CPU.

    A backward pass needs the first, exact transposes and differences the second, and `set_default_device` would put tensors
    where they are not looked for. `no_grad` needs no help: what has to be differentiated says so.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def computes_in(dtype: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype that a network of this dtype really computes in there: autocast's, where that is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def own_copy(x: Tensor) -> Tensor:
    """x, or a copy of it that can be differentiated where it was made in inference mode."""
    return x.clone() if x.is_inference() else x
