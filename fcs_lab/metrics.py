"""Numbers that say how good a completed image is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcs_lab.constraints import LinearConstraint
from fcs_lab.denoisers import Denoiser, levels_at
from fcs_lab.latent import encode

__all__ = ["accuracy", "data_consistency", "denoising_loss", "masked_mse", "psnr"]


def masked_mse(images: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each image over the pixels where the mask is True.

    Args:
        images, truth: (B, C, H, W) in [-1, 1], so that the error is at most 4.
        mask: Bool, broadcastable to (B, 1, H, W); True in at least one pixel of each image.

    Returns:
        (B,).
    """
    weight = mask.expand_as(images).to(images.dtype).flatten(1)
    return ((images - truth).square().flatten(1) * weight).sum(1) / weight.sum(1)


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, 10 log₁₀(2²/mean squared error): (B, C, H, W) in [-1, 1] -> (B,).

    Infinite where an image is the truth itself.
    """
    return 10 * torch.log10(4 / (images - truth).square().flatten(1).mean(1))


def data_consistency(task: LinearConstraint, images: Tensor) -> Tensor:
    """The data-consistency error of each image: the root mean square of A x − y, in the images' units.

    Args:
        task: The task on images, not its latent form.
        images: (B, C, H, W), in [-1, 1].

    Returns:
        (B,).
    """
    task = task.to(images.device, images.dtype)
    return (task.A(images) - task.y).square().flatten(1).mean(1).sqrt()


@torch.no_grad()
def accuracy(classifier: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (B, 1, 32, 32) whose largest logit is that of their label (B,)."""
    return (classifier(images.float()).argmax(1) == labels).float().mean().item()


@torch.no_grad()
def denoising_loss(
    model: Denoiser, images: Tensor, *, timesteps: Sequence[int] = (100, 300, 500), noises: int = 4, seed: int = 0
) -> Tensor:
    """How well the model denoises each image: the loss that it was trained with, the mean of (ε̂ − ε)².

    It bounds the negative log-likelihood from above (up to weights), so what the model finds plausible has a low one. But
    plain images have a lower one than rich ones: compare what is alike. Every image is given the same noises.

    Args:
        model: Latent models encode the images first; a prompt of theirs counts.
        images: (B, C, H, W) in [-1, 1].
        timesteps: Those that are averaged over.
        noises: How many for each timestep.
        seed: Of the noises.

    Returns:
        (B,).
    """
    x0 = encode(model, images)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for t in timesteps:
        signal, noise = levels_at(model, t, x0)
        for _ in range(noises):
            epsilon = torch.randn(x0[:1].shape, generator=generator).to(x0)
            x0_hat = model(signal * x0 + noise * epsilon, t)
            # x_t = a x_0 + s ε = a x̂_0 + s ε̂, so ε̂ − ε = (a/s) (x_0 − x̂_0).
            losses.append((signal / noise * (x0 - x0_hat)).square().flatten(1).mean(1))
    return torch.stack(losses).mean(0)
