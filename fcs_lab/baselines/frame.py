"""What the peers have in common: the arguments of their calls, and what of a task they need."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.checks import check_flag, describe
from fcs_lab.constraints import Constraint, LinearConstraint, for_channels, needs
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.sampler import Result, check_task, drive
from fcs_lab.trace import Callback, Watch

__all__ = [
    "Peer",
    "RunOptions",
    "Settings",
    "clipped",
    "noised_back",
    "on_images",
    "one_a_timestep",
    "per_image_norm",
    "repeated",
    "run",
]

Settings = dict[str, Any]
"""Arguments of a peer's call: num_inference_steps and its own."""


class RunOptions(TypedDict, total=False):
    """What every method takes, as `fcs_lab.sample` does."""

    scheduler: SchedulerMixin | None
    batch_size: int | None
    generator: torch.Generator | list[torch.Generator] | None
    x_T: Tensor | None
    trace_x0: bool
    callback_on_step_end: Callback | None
    progress: bool


def repeated(evaluations: int) -> Callable[[int], list[int]]:
    """The plan of a method that evaluates the network so many times at each timestep.

    Example:
        >>> fcs_lab.baselines.repeated(2)(3)  # T' = 3: each timestep's place, twice
        [0, 0, 1, 1, 2, 2]
    """
    return lambda T: [i for i in range(T) for _ in range(evaluations)]


ONCE = repeated(1)


def one_a_timestep(evaluations: int) -> Settings:
    """The budget of a method with one evaluation a timestep."""
    return {"num_inference_steps": evaluations}


@dataclass(frozen=True)
class Peer:
    """A method with its settings, for whoever drives it: `run` with a denoiser, `fcs_lab.constrained` with a pipeline.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> def replaced(x, watch):  # what is known is written into each x̂_0
        ...     for i, t in enumerate(watch.schedule.timesteps):
        ...         x0 = yield x, t
        ...         kept = torch.where(mask, x0, watch.task.y)
        ...         x = watch.step(i, x, x0, moved=kept, sigma=watch.schedule.levels[i + 1][1])
        ...     return x
        >>> peer = fcs_lab.baselines.Peer("replaced", replaced, needs=("y",))
        >>> fcs_lab.baselines.run(fcs_lab.load("mnist"), task, peer, 4, progress=False).nfe
        4
    """

    name: str
    method: Callable[[Tensor, Watch], Method]
    """(x_T, watch) -> the coroutine. Its first question is (x_T, the schedule's first timestep), and all of them are at
    timesteps of the schedule."""
    needs: tuple[str, ...] = ()
    """What of a task it uses besides the error."""
    plan: Callable[[int], list[int]] = ONCE
    """T' -> of each of its evaluations, in order, the timestep's place in the schedule."""
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
        TypeError: The task has no A⁺, say, or there is an argument that the method has not, which the message names; and as
            for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> peer = fcs_lab.baselines.PEERS["ddnm"](eta=0.5)
        >>> fcs_lab.baselines.run(fcs_lab.load("mnist"), task, peer, 4, progress=False).nfe
        4
    """
    for name in options.keys() - RunOptions.__annotations__.keys():
        raise TypeError(
            f"{peer.name} has no argument {name}; besides its own it takes {', '.join(RunOptions.__annotations__)}"
        )
    return drive(
        model,
        task,
        peer.start,
        num_inference_steps=num_inference_steps,
        keep_graph=peer.differentiates,
        **options,
    )


def on_images(model: Denoiser | None, task: Any, kind: type[LinearConstraint], progress: bool) -> Any:
    """The task of a method that asks no model, with the channels of the model's images, if there is one.

    Raises:
        TypeError: It is not of the kind, or `progress` is no flag.
    """
    check_flag("progress", progress)
    check_task(task)
    if not isinstance(task, kind):
        raise TypeError(f"task is {describe(task)}; this method takes fcs_lab.{kind.__name__}")
    return task if model is None else for_channels(task, as_model(model).image_shape[0])


def clipped(x0: Tensor, watch: Watch) -> Tensor:
    """x̂_0 within [-1, 1], where it is an image: before it is projected, and not after."""
    return x0.clamp(-1, 1) if watch.bounded else x0


def noised_back(i: int, x: Tensor, watch: Watch) -> Tensor:
    """x of the timestep after the i-th, noised until it is of the i-th again, as the forward process does it."""
    (a, s), (a_next, s_next) = watch.schedule.levels[i], watch.schedule.levels[i + 1]
    spread = math.sqrt(max(s**2 - (a / a_next * s_next) ** 2, 0.0))
    return a / a_next * x + spread * watch.noise(x)


def per_image_norm(cost: Tensor, x: Tensor) -> Tensor:
    """‖r‖ = √(2C) of each image, (B,) -> (B, 1, 1, 1), never 0."""
    return (2 * cost).sqrt().clamp_min(1e-8).reshape(-1, *[1] * (x.ndim - 1))
