"""Algorithm 1 of the paper, as a coroutine.

It needs nothing of a model but estimates at points that it chooses: it *yields* a point (x, t) where it wants x̂_0(x, t),
*is sent* x̂_0, and *returns* the sample. Who drives it has the model: `fcs_lab.sample` with a `Denoiser`. Any other method of
this kind can be driven the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from fcs_lab.directions import Direction, Question, unit

__all__ = ["Method", "algorithm_1", "plan"]

Method = Generator[Question, Tensor, Tensor]
"""What a driver runs. The first point is (x_T, the plan's first timestep). A driver may write another x into the tensor of a
timestep's first point before it evaluates it: so a callback replaces x_t."""


def algorithm_1(
    x: Tensor,
    timesteps: Sequence[float],
    λ: Sequence[Sequence[float]],
    error: Callable[[Tensor], Tensor],
    direction: Direction,
    step: Callable[[int, Tensor, Tensor], Tensor],
) -> Method:
    """Sample under a constraint (paper, Algorithm 1).

    Args:
        x: x_T, (B, C, H, W).
        timesteps: T' timesteps, from the noisiest.
        λ: For each timestep λ_1 … λ_K.
        error: x̂_0 -> e, where x̂_0 has to move; all that depends on the task.
        direction: (x_t, t, x̂_0, e) -> d, as a coroutine: J e by a finite difference, or another of `fcs_lab.directions`.
        step: (i, x_t, x̂_0) -> x of the timestep after the i-th: DDIM's.

    Example:
        >>> def along_e(x, t, x0, e):  # a direction that asks for nothing
        ...     return e
        ...     yield
        >>> told = fcs_lab.algorithm.algorithm_1(
        ...     torch.zeros(1, 1, 1, 1), [500.0], [[0.5]], lambda x0: 1 - x0, along_e, lambda i, x, x0: x0
        ... )
        >>> x, t = next(told)  # where it wants x̂_0
        >>> x, t = told.send(0.8 * x)  # it is sent x̂_0, and wants it half a unit on
        >>> x.item(), t
        (0.5, 500.0)
    """
    for i, t in enumerate(timesteps):
        x0 = yield x, t  # x̂_0(x_t, t)
        for λ_k in λ[i]:
            e = error(x0)
            d = yield from direction(x, t, x0, e)  # J e ≈ (x̂_0(x_t + h' e) − x̂_0(x_t)) / h'
            x = x + λ_k * unit(d, e)  # x_t ← x_t + λ_k d/‖d‖_∞
            x0 = yield x, t
        x = step(i, x, x0)
    return x


def plan(timesteps: Sequence[float], λ: Sequence[Sequence[float]], evaluations: int = 1) -> list[float]:
    """The timesteps of all of Algorithm 1's estimates, in order, known before it starts.

    Args:
        timesteps, λ: As for `algorithm_1`.
        evaluations: What the direction needs for itself: 1 for J e by a finite difference, 0 for e.

    Example:
        >>> fcs_lab.algorithm.plan([900.0, 500.0], [[0.5, 0.1], [0.5]])  # 1 + 2 K each
        [900.0, 900.0, 900.0, 900.0, 900.0, 500.0, 500.0, 500.0]
    """
    return [t for t, λ_t in zip(timesteps, λ, strict=True) for _ in range(1 + (1 + evaluations) * len(λ_t))]
