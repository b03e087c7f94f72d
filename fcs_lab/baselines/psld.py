"""PSLD: DPS in latent space, through the decoder, with a second pull towards latents that the autoencoder can make."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from fcs_lab.algorithm import Method
from fcs_lab.baselines.frame import Peer, RunOptions, run
from fcs_lab.checks import check_number, describe
from fcs_lab.constraints import Constraint, needs
from fcs_lab.contexts import own_copy
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import gradient
from fcs_lab.latent import LatentDenoiser
from fcs_lab.latent_space import Decoded
from fcs_lab.sampler import Result, check_task
from fcs_lab.trace import Watch

__all__ = ["psld", "psld_peer"]


def psld(
    model: Denoiser,
    task: Constraint,
    *,
    num_inference_steps: int = 60,
    step_size: float = 1.0,
    gluing: float = 0.1,
    **options: Unpack[RunOptions],
) -> Result:
    """PSLD (Rout et al., NeurIPS 2023, arXiv 2307.00619), for latent models.

    DDPM's step, then x ← x − ζ ∇(‖y − A D(ẑ_0)‖ + γ ‖ẑ_0 − E(A⁺y + (I − A⁺A) D(ẑ_0))‖), norms of each image. One evaluation
    and one backward pass a timestep, and a backward pass each through the decoder and the encoder, which are not counted.

    Args:
        model, task: As for `fcs_lab.sample`; a latent model, and a linear task on images.
        num_inference_steps: T', the evaluations and the backward passes.
        step_size: ζ.
        gluing: γ.
        **options: As for `fcs_lab.sample`.

    Raises:
        TypeError, ValueError: As for `fcs_lab.sample`; a model without a decoder, a task without A⁺.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_garments(1)[0], mask)
        >>> result = fcs_lab.baselines.psld(fcs_lab.load("fashion"), task, num_inference_steps=2, progress=False)
        >>> result.nfe, tuple(result.images.shape)
        (2, (1, 1, 32, 32))
    """
    peer = psld_peer(step_size, gluing)
    if not isinstance(model, LatentDenoiser):
        raise TypeError(f"model is {describe(model)}; expected a latent model, such as fcs_lab.load('fashion')")
    check_task(task)
    if task is None:
        raise TypeError("task is None; expected a constraint")
    needs(task, ("A", "pinv", "y"))
    return run(model, Decoded(task, model), peer, num_inference_steps, **options)


def psld_peer(step_size: float = 1.0, gluing: float = 0.1) -> Peer:
    """The method by itself; the settings are those of `psld`."""
    check_number("step_size", step_size, 0)
    check_number("gluing", gluing, 0)

    def method(x: Tensor, watch: Watch) -> Method:
        for i, t in enumerate(watch.schedule.timesteps):
            task, space = watch.task.task, watch.task.model
            x0 = yield x, t
            with torch.enable_grad():
                z = own_copy(x0.detach()).requires_grad_()
                images = space.decode(z)
                missing = task.y - task.A(images)
                glued = space.encode(images + task.pinv(missing))
                objective = _norm(missing) + gluing * _norm(z - glued)
                u = -torch.autograd.grad(objective.sum(), z)[0]
            pull = yield from gradient(x, t, x0, u)
            x = watch.step(i, x, x0) + step_size * pull
        return x

    return Peer("psld", method, differentiates=True)


def _norm(v: Tensor) -> Tensor:
    return (v.flatten(1).square().sum(1) + 1e-12).sqrt()
