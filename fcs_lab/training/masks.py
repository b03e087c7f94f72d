"""Masks of many kinds, for a model that is tuned to inpainting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["draw_masks"]


def draw_masks(n: int, size: int, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, size, size), float32, 1 where something is to be filled in.

    Of each six about one is of each kind: one side of a straight line at any angle, through any place; a box; what is
    outside of a box; strokes of a brush; single pixels, 10 to 90 % of them; everything.
    """
    axis = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    def half() -> Tensor:
        # Every other one is upright or level.
        angle = uniform(0, 2 * math.pi, 1)
        angle = torch.where(torch.rand(1, generator=generator) < 0.5, (angle / (math.pi / 2)).round() * (math.pi / 2), angle)
        return angle.cos() * x + angle.sin() * y > uniform(-0.5, 0.5, 1)

    def box() -> Tensor:
        (half_height, half_width), (top, left) = uniform(0.15, 0.8, 2), uniform(-0.5, 0.5, 2)
        return ((y - top).abs() < half_height) & ((x - left).abs() < half_width)

    def strokes() -> Tensor:
        place, angle, mask = uniform(-0.8, 0.8, 2), uniform(0, 2 * math.pi, 1), torch.zeros(size, size, dtype=torch.bool)
        width = uniform(0.06, 0.2, 1)
        for _ in range(int(torch.randint(20, 90, (1,), generator=generator))):
            mask |= (y - place[0]) ** 2 + (x - place[1]) ** 2 < width**2
            angle = angle + uniform(-0.6, 0.6, 1)
            place = (place + 0.1 * torch.cat([angle.sin(), angle.cos()])).clamp(-1, 1)
        return mask

    def pixels() -> Tensor:
        return torch.rand(size, size, generator=generator) < uniform(0.1, 0.9, 1)

    def everything() -> Tensor:
        return torch.ones(size, size, dtype=torch.bool)

    kinds = (half, box, lambda: ~box(), strokes, pixels, everything)
    drawn = [kinds[int(torch.randint(len(kinds), (1,), generator=generator))]() for _ in range(n)]
    return torch.stack(drawn)[:, None].float()
