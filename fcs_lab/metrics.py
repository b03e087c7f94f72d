"""Numbers that say how good a completed image is."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accuracy", "masked_mse"]


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


@torch.no_grad()
def accuracy(classifier: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (B, 1, 32, 32) whose largest logit is that of their label (B,)."""
    return (classifier(images.float()).argmax(1) == labels).float().mean().item()
