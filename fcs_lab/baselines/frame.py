"""What the peers have in common: the arguments of their calls, and what of a task they need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

__all__ = ["Peer", "RunOptions", "check_number", "clipped", "needs", "run"]


class RunOptions(TypedDict, total=False):
    """What every method takes, as `fcs_lab.sample` does."""

    scheduler: SchedulerMixin | None
    batch_size: int | None
    generator: torch.Generator | list[torch.Generator] | None
    x_T: Tensor | None
    trace_x0: bool
    callback_on_step_end: Callback | None
    progress: bool


@dataclass(frozen=True)
class Peer:
    """A method with its settings, for whoever drives it: `run` with a denoiser, `fcs_lab.constrained` with a pipeline."""

    name: str
    method: Callable[[Tensor, Watch], Method]
    """(x_T, watch) -> the coroutine. It asks for x̂_0 at the schedule's timesteps, in their order."""
    needs: tuple[str, ...] = ()
    """What of a task it uses besides the error."""
    evaluations: int = 1
    """At each timestep."""
    differentiates: bool = False
    """Whether it takes derivatives of the network, which a pipeline has not to give."""

    def start(self, x: Tensor, watch: Watch) -> Method:
        """The coroutine, once the task is known to have what it needs.

        Raises:
            TypeError: There is no task, or it has not.
        """
        if watch.task is None:
            raise TypeError("task is None; expected a constraint")
        needs(watch.task, self.needs)
        return self.method(x, watch)


def run(
    model: Denoiser,
    task: Constraint,
    peer: Peer,
    num_inference_steps: int,
    **options: Unpack[RunOptions],
) -> Result:
    """Run a peer with a denoiser.

    Raises:
        TypeError: The task has no A⁺, say, which the message names; and as for `fcs_lab.sample`.
    """

    graph = {"keep_graph": peer.differentiates}
    return drive(model, task, peer.start, num_inference_steps=num_inference_steps, **graph, **options)


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
