"""FreeDoM: gradient steps along Jᵀ e, and in the middle of the schedule time travel."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, Settings, noised_back, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import gradient
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["freedom", "freedom_budget", "freedom_peer"]

MIDDLE = (0.3, 0.7)
"""Between these shares of the schedule each step is taken several times: there x_t's content is decided."""


def freedom(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 43,
    step_size: float = 1.0,
    travels: int = 2,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """FreeDoM (Yu et al., ICCV 2023, arXiv 2303.09833): x ← step − c a ∇_{x_t} C(x̂_0), repeated in the schedule's middle.

    One evaluation and one backward pass each time.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: T'.
        step_size: c.
        travels: How often each step in the middle of the schedule (0.3 to 0.7 of it) is taken.
        eta: η of the step; 1 is DDPM's noise.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.freedom(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (5, 5)
    """
    return run(model, task, freedom_peer(step_size, travels, eta), num_inference_steps, **options)


def freedom_peer(step_size: float = 1.0, travels: int = 2, eta: float = 1.0) -> Peer:
    """The method by itself; the settings are those of `freedom`."""
    check_number("step_size", step_size, 0)
    check_count("travels", travels, 1, 1000)
    check_number("eta", eta, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        watch.eta = eta
        T = len(watch.schedule.timesteps)
        for i, t in enumerate(watch.schedule.timesteps):
            passes = _passes(i, T, travels)
            for again in reversed(range(passes)):
                x0 = yield x, t
                pull = step_size * watch.schedule.levels[i][0] * (yield from gradient(x, t, x0, watch.error(x0)))
                if again:
                    σ = watch.schedule.sigma(i, eta)
                    x = noised_back(i, watch.schedule.step(i, x, x0, σ, watch.noise(x)) + pull, watch)
                else:
                    x = watch.step(i, x, x0) + pull
        return x

    def plan(T: int) -> list[int]:
        return [i for i in range(T) for _ in range(_passes(i, T, travels))]

    return Peer("freedom", method, plan=plan, differentiates=True)


def freedom_budget(evaluations: int) -> Settings:
    """Settings for so many evaluations (and as many backward passes): two passes in the middle, one elsewhere."""
    T = max(1, round(evaluations / 1.4))
    while sum(_passes(i, T, 2) for i in range(T)) > evaluations and T > 1:
        T -= 1
    return {"num_inference_steps": T, "travels": 2}


def _passes(i: int, T: int, travels: int) -> int:
    return travels if MIDDLE[0] <= i / T < MIDDLE[1] else 1
