"""Guess & Guide: a first guess from one noise level, and then the same at the levels below it."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, Settings, clipped, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["guess_and_guide", "guess_and_guide_budget", "guess_and_guide_peer"]


def guess_and_guide(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    guesses: int = 20,
    start: float = 0.35,
    gradient_steps: int = 5,
    step_size: float = 0.5,
    **options: Unpack[RunOptions],
) -> Result:
    """Guess & Guide (Shtanchaev et al., arXiv 2603.07860): denoise, some gradient steps on x̂_0, noise anew; no J at all.

    From t*, the timestep at a share `start` of the schedule, this is repeated `guesses` times; then it is done once at each
    timestep that is left. x̂_0 at x_T is where the first guess comes from.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T' of the whole schedule, most of whose timesteps before t* are left out.
        guesses: How many evaluations at t*.
        start: Where t* is, from 0 (the noisiest) to 1.
        gradient_steps: How often x̂_0 ← x̂_0 + c e.
        step_size: c.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.guess_and_guide(model, task, num_inference_steps=4, guesses=3, progress=False)
        >>> result.nfe, result.n_backward
        (6, 0)
    """
    peer = guess_and_guide_peer(guesses, start, gradient_steps, step_size)
    return run(model, task, peer, num_inference_steps, **options)


def guess_and_guide_peer(guesses: int = 20, start: float = 0.35, gradient_steps: int = 5, step_size: float = 0.5) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `guess_and_guide`."""
    check_count("guesses", guesses, 1, 10_000)
    check_number("start", start, 0, 1)
    check_count("gradient_steps", gradient_steps, 1, 10_000)
    check_number("step_size", step_size, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        timesteps, levels = watch.schedule.timesteps, watch.schedule.levels

        def guided(x0: Tensor) -> Tensor:
            x0 = clipped(x0, watch)
            for _ in range(gradient_steps):
                x0 = x0 + step_size * watch.error(x0)
            return x0

        first = _first(start, len(timesteps))
        (a, s), x0 = levels[first], guided((yield x, timesteps[0]))
        for _ in range(guesses - 1):
            x0 = guided((yield a * x0 + s * watch.noise(x), timesteps[first]))
        x = a * x0 + s * watch.noise(x)
        for i in range(first, len(timesteps)):
            x0 = yield x, timesteps[i]
            x = watch.step(i, x, x0, moved=guided(x0), sigma=levels[i + 1][1])
        return x

    def plan(T: int) -> list[int]:
        first = _first(start, T)
        return [0, *[first] * (guesses - 1), *range(first, T)]

    return Peer("guess_and_guide", method, plan=plan)


def guess_and_guide_budget(evaluations: int) -> Settings:
    """Settings for so many evaluations: a third of them guesses; the others from t* on."""
    guesses = max(1, evaluations // 3)
    T = max(2, round((evaluations - guesses) / 0.65))
    while guesses + T - _first(0.35, T) > evaluations and T > 1:
        T -= 1
    return {"num_inference_steps": T, "guesses": guesses}


def _first(start: float, T: int) -> int:
    return min(round(start * T), T - 1)
