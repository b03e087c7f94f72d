"""What the peers have in common: the arguments of their calls, and what of a task they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.checks import is_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result, drive
from fcs_lab.trace import Callback, Watch

__all__ = ["RunOptions", "check_number", "clipped", "needs", "run"]


class RunOptions(TypedDict, total=False):
    """What every method takes, as `fcs_lab.sample` does."""

    scheduler: SchedulerMixin | None
    batch_size: int | None
    generator: torch.Generator | list[torch.Generator] | None
    x_T: Tensor | None
    trace_x0: bool
    callback_on_step_end: Callback | None
    progress: bool


def run(
    model: Denoiser,
    task: Constraint,
    method: Callable[[Tensor, Watch], Method],
    of_the_task: Sequence[str],
    num_inference_steps: int,
    keep_graph: bool = False,
    **options: Unpack[RunOptions],
) -> Result:
    """Run a peer with a denoiser, once the task is known to have what it needs.

    Raises:
        TypeError: The task has no A⁺, say, which the message names; and as for `fcs_lab.sample`.
    """

    def checked(x: Tensor, watch: Watch) -> Method:
        if watch.task is None:
            raise TypeError("task is None; expected a constraint")
        needs(watch.task, of_the_task)
        return method(x, watch)

    return drive(model, task, checked, num_inference_steps=num_inference_steps, keep_graph=keep_graph, **options)


def needs(task: Constraint, members: Sequence[str]) -> None:
    """That a task has what a method needs of it.

    Raises:
        TypeError: It has not; through a decoder, for example, there is no A⁺.
    """
    words = {
        "A": "A",
        "A_adjoint": "Aᵀ",
        "pinv": "A⁺",
        "prox": "proximal step",
        "y": "measurements y",
        "known": "known part",
    }
    missing = [words.get(member, member) for member in members if not hasattr(task, member)]
    if missing:
        raise TypeError(
            f"task is a {type(task).__name__}, which has no {', no '.join(missing)}; this method takes linear tasks "
            "(inpainting, super-resolution, deblurring, colourisation), and in latent space inpainting only"
        )


def clipped(x0: Tensor, watch: Watch) -> Tensor:
    """x̂_0 within [-1, 1], where it is an image: before it is projected, and not after."""
    return x0.clamp(-1, 1) if watch.bounded else x0


def check_number(name: str, value: float, least: float, most: float = float("inf")) -> float:
    """A setting, once it is a number in its range.

    Raises:
        ValueError: It is not; the message names it.
    """
    if not is_number(value) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; expected a number from {least:g} to {most:g}")
    return float(value)
