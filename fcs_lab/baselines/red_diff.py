"""RED-diff: one image is optimised, and the denoiser says at each noise level where it would have it."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, clipped, run
from fcs_lab.checks import check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["red_diff", "red_diff_peer"]


def red_diff(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    learning_rate: float = 0.1,
    weight: float = 0.25,
    **options: Unpack[RunOptions],
) -> Result:
    """RED-diff (Mardani et al., ICLR 2024, arXiv 2305.04391): Adam on μ for C(μ) + λ_t sg(ε̂(a μ + s ε) − ε)ᵀ μ.

    t falls from high to low. With λ_t = λ s/a the second part's gradient is λ (μ − x̂_0): ε̂ − ε = a (μ − x̂_0)/s.

    Args:
        model, task: As for `fcs_lab.sample`; any task that has an error e = −∂C/∂x̂_0.
        num_inference_steps: Adam's steps, the evaluations.
        learning_rate: Adam's.
        weight: λ.
        **options: As for `fcs_lab.sample`; `x_T` is where μ begins.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.red_diff(model, task, num_inference_steps=4, progress=False)
        >>> result.nfe, result.n_backward
        (4, 0)
    """
    return run(model, task, red_diff_peer(learning_rate, weight), num_inference_steps, **options)


def red_diff_peer(learning_rate: float = 0.1, weight: float = 0.25) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `red_diff`."""
    check_number("learning_rate", learning_rate, 0)
    check_number("weight", weight, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        μ = watch.task.A_adjoint(watch.task.y) if hasattr(watch.task, "A_adjoint") else torch.zeros_like(x)
        μ = μ.expand_as(x).clone()
        optimizer = torch.optim.Adam([μ], lr=learning_rate, betas=(0.9, 0.99))
        for i, t in enumerate(watch.schedule.timesteps):
            a, s = watch.schedule.levels[i]
            noisy = x if i == 0 else a * μ + s * watch.noise(μ)  # the first point is x_T, which is noise as well
            x0 = clipped((yield noisy, t), watch)
            μ.grad = weight * (μ - x0) - watch.error(μ)
            optimizer.step()
            watch.step(i, noisy, μ, sigma=0.0)  # for the trace and the callback; μ goes on
        return μ

    return Peer("red_diff", method)
