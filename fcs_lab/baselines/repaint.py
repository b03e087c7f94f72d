"""RePaint: the known part is that of the noised image, and each step is taken again until both parts agree."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, Settings, clipped, noised_back, repeated, run
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import Watch

__all__ = ["repaint", "repaint_budget", "repaint_peer"]


def repaint(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 20,
    resamplings: int = 3,
    eta: float = 1.0,
    **options: Unpack[RunOptions],
) -> Result:
    """RePaint (Lugmayr et al., CVPR 2022, arXiv 2201.09865), for inpainting.

    After a step the known part is a' y + s' z; then x is noised back to where it was, and the step taken again.

    Args:
        model, task: As for `fcs_lab.sample`; the task is inpainting.
        num_inference_steps: T'.
        resamplings: r, how often each step is taken: r T' evaluations.
        eta: η of the step; 1 is DDPM's noise.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a task that is not inpainting.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> model = fcs_lab.load("mnist")
        >>> result = fcs_lab.baselines.repaint(model, task, num_inference_steps=4, resamplings=3, progress=False)
        >>> result.nfe, result.n_backward
        (12, 0)
    """
    return run(model, task, repaint_peer(resamplings, eta), num_inference_steps, **options)


def repaint_peer(resamplings: int = 3, eta: float = 1.0) -> Peer:
    """The method by itself, for `fcs_lab.constrained`; the settings are those of `repaint`."""
    check_count("resamplings", resamplings, 1, 1000)
    check_number("eta", eta, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        known, y, levels = watch.task.known, watch.task.y, watch.schedule.levels
        watch.eta = eta
        for i, t in enumerate(watch.schedule.timesteps):
            a_next, s_next = levels[i + 1]
            for again in range(resamplings):
                x0 = clipped((yield x, t), watch)
                if again == resamplings - 1:
                    moved = known * y + (1 - known) * x0
                    there = watch.step(i, x, x0, moved=moved)
                else:
                    σ = watch.schedule.sigma(i, eta)
                    there = watch.schedule.step(i, x, x0, σ, watch.noise(x) if σ > 0 else None)
                there = known * (a_next * y + s_next * watch.noise(x)) + (1 - known) * there
                if again < resamplings - 1:
                    x = noised_back(i, there, watch)
            x = there
        return x

    return Peer("repaint", method, ("known", "y"), plan=repeated(resamplings))


def repaint_budget(evaluations: int) -> Settings:
    """Settings for so many evaluations: 3 resamplings of each step while that leaves 20 timesteps or fewer, then more."""
    resamplings = min(10, max(3, evaluations // 22))
    return {"num_inference_steps": evaluations // resamplings, "resamplings": resamplings}
