"""Numbers that say how good a completed image is."""

from __future__ import annotations

import torch
from torch import Tensor

from fcs_lab.constraints import LinearConstraint

__all__ = ["accuracy", "data_consistency", "masked_mse", "psnr"]


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
