"""What stands around a method while it runs: its trace, its callback, and that nothing goes on that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fcs_lab.constraints import Constraint
from fcs_lab.directions import Direction, Question, moves
from fcs_lab.schedule import Schedule

__all__ = ["State", "TraceEntry", "Watch", "check_finite"]

REMEDIES = (
    "What mostly helps: bfloat16 in place of float16 (torch_dtype=torch.bfloat16), the VAE in float32 (pipe.vae.float()), "
    "or smaller steps (step_size, fd_step)"
)


@dataclass
class TraceEntry:
    """Where the sampler stood at one inner step of one timestep.

    A timestep with K inner steps has K + 1 entries: `inner_step` k < K is before update k, and k = K is where the
    scheduler took over (its `step_length` is 0).
    """

    step: int
    """Index of the timestep, from 0."""
    t: int | float
    """The timestep; of a rectified flow it need not be whole."""
    inner_step: int
    """k, from 0 to K."""
    cost: Tensor
    """C(x̂_0) of each image, (B,); 0 without a constraint."""
    error_norm: Tensor
    """‖e‖_2 of each image, (B,); 0 without a constraint."""
    step_length: Tensor
    """‖Δx_t‖_∞ of each image's update, (B,): λ_k, or 0 where there was none."""
    nfe: float
    """Forward evaluations an image so far."""
    x0: Tensor | None = None
    """x̂_0 (B, C, H, W) on the CPU, at k = K and if asked for with `trace_x0`."""


@dataclass
class State:
    """What a callback sees, after each timestep. Setting `interrupt` ends the run after this timestep."""

    x_t: Tensor
    """The noisy samples that the next timestep starts from."""
    x0: Tensor
    """The last estimate x̂_0."""
    trace: list[TraceEntry]
    nfe: float
    interrupt: bool = False


Callback = Callable[[State, int, "int | float", dict[str, Tensor]], "dict[str, Tensor] | None"]


class Counts(Protocol):
    """Who answers the method's questions, as far as the trace is concerned: `CountedDenoiser`, or a call of a pipeline."""

    forward: int
    """Images that went through the network so far."""
    dtype: torch.dtype
    """What the network computes in."""


class Watch:
    """Stands between Algorithm 1 and its task, its direction and its step, and writes down what passes.

    Args:
        f: Who answers, and counts.
        task: The constraint, on the model's device; None: there is none.
        schedule: The run's.
        generator: Draws the fresh noise of the steps: one, a list with one an image, or None.
        trace_x0: Whether to keep x̂_0 of each timestep.
        callback: Called as (state, i, t, {"x_t": …, "x0": …}) after each timestep; a dict that it returns may replace
            "x_t", and "task", the constraint.

    Attributes:
        i: The timestep's place in the schedule.
        λ, along, eta: Algorithm 1's step sizes at each timestep, its direction, and η of the steps; by default none, none,
            and DDPM's noise (0 for a rectified flow).
        bounded: Whether x̂_0 is an image, and so in [-1, 1].
        trace, state: What has been written down, and what the callback saw last.
    """

    def __init__(
        self,
        f: Counts,
        task: Constraint | None,
        schedule: Schedule,
        generator: torch.Generator | list[torch.Generator] | None,
        trace_x0: bool,
        callback: Callback | None,
    ):
        self.f, self.task, self.schedule, self.generator = f, task, schedule, generator
        self.trace_x0, self.callback = trace_x0, callback
        self.λ: list[list[float]] = [[] for _ in schedule.timesteps]
        self.along: Direction | None = None
        self.eta = 0.0 if schedule.flow else 1.0
        self.bounded = False
        self.state: State | None = None
        self.trace: list[TraceEntry] = []
        self.i = self._k = 0
        self._finite: list[tuple[str, int, Tensor]] = []

    def estimated(self, x0: Tensor) -> Tensor:
        """x̂_0, noted."""
        return self._note("the estimate x̂_0", x0)

    def error(self, x0: Tensor) -> Tensor:
        """e of the task, its cost noted."""
        self._cost, e = self.task.cost_and_error(x0)
        return self._note("the error e", e)

    def direction(self, x: Tensor, t: float, x0: Tensor, e: Tensor) -> Generator[Question, Tensor, Tensor]:
        """The direction d, noted with the length of the step that is taken along it."""
        d = self._note("the direction d", (yield from self.along(x, t, x0, e)))
        length = self.λ[self.i][self._k] * moves(d, e).flatten().to(d)
        self._enter(self._cost, e, length)
        self._k += 1
        return d

    def step(self, i: int, x: Tensor, x0: Tensor, *, moved: Tensor | None = None, sigma: float | None = None) -> Tensor:
        """x of the next timestep, after which the user is asked.

        Args:
            i, x, x0, moved, sigma: As for `Schedule.step`. sigma None: that of the run's η.
        """
        self.i = i
        shown = x0 if moved is None else moved
        if self.task is None:
            cost, e = x0.new_zeros(len(x0)), torch.zeros_like(x0)
        else:
            cost, e = self.task.cost_and_error(shown)
        self._enter(cost, e, cost.new_zeros(len(x0)), shown.cpu() if self.trace_x0 else None)
        σ = self.schedule.sigma(i, self.eta) if sigma is None else sigma
        z = self.noise(x) if (self.eta if sigma is None else sigma) > 0 else None
        x = self._note("the step to the next timestep", self.schedule.step(i, x, x0, σ, z, moved))
        self._check()
        interrupt = self.state is not None and self.state.interrupt
        self.state = State(x, shown, self.trace, per_image(self.f.forward, x), interrupt)
        if self.callback is not None:
            changed = self.callback(self.state, i, self.schedule.timesteps[i], {"x_t": x, "x0": shown}) or {}
            x = changed.get("x_t", x)
            if "task" in changed:
                self.task = changed["task"].to(x.device, x.dtype)
        self.i, self._k = i + 1, 0
        return x

    def noise(self, x: Tensor) -> Tensor:
        """Fresh noise of x's shape, each image's from its own generator."""
        return randn_tensor(x.shape, self.generator, x.device, x.dtype)

    def finished_trace(self) -> list[TraceEntry]:
        """The trace, on the CPU."""
        for entry in self.trace:
            entry.cost, entry.error_norm, entry.step_length = (
                x.cpu() for x in (entry.cost, entry.error_norm, entry.step_length)
            )
        return self.trace

    def _enter(self, cost: Tensor, e: Tensor, length: Tensor, x0: Tensor | None = None) -> None:
        i, t = self.i, self.schedule.timesteps[self.i]
        norm, nfe = e.flatten(1).norm(dim=1), per_image(self.f.forward, e)
        self.trace.append(TraceEntry(i, t, self._k, cost, norm, length, nfe, x0))

    def _note(self, what: str, value: Tensor) -> Tensor:
        self._finite.append((what, self._k, value.isfinite().all()))
        return value

    def _check(self) -> None:
        """Once a timestep, so that a GPU waits once: that all of it was finite.

        Raises:
            FloatingPointError: Something was not; the first of it is named.
        """
        if not bool(torch.stack([finite for _, _, finite in self._finite]).all()):
            what, k = next((what, k) for what, k, finite in self._finite if not bool(finite))
            raise FloatingPointError(
                f"{what} is not finite at timestep t = {self.schedule.timesteps[self.i]:g} (step {self.i + 1} of "
                f"{len(self.schedule.timesteps)}), inner step {k}, with the network in {self.f.dtype}. {REMEDIES}"
            )
        self._finite.clear()


def check_finite(images: Tensor, dtype: torch.dtype) -> None:
    """That decoded images are finite.

    Raises:
        FloatingPointError: They are not.
    """
    if not bool(images.isfinite().all()):
        raise FloatingPointError(f"the decoded image is not finite, with the decoder in {dtype}. {REMEDIES}")


def per_image(count: int, x: Tensor) -> float:
    """Evaluations an image; a whole number unless images needed different numbers (direction "exact")."""
    return count // len(x) if count % len(x) == 0 else count / len(x)
