"""The tasks of a study by name, each the same for all methods: masks and strokes are drawn by the image's own number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fcs_lab.constraints import Colorization, Constraint, Inpainting
from fcs_lab.features import style
from fcs_lab.filters import Blur, SuperResolution, blur, downsample
from fcs_lab.images import read_image, to_mask

__all__ = ["TASKS", "Posed", "check_task_name", "pose"]

TASKS = ("right-half", "top-half", "box", "free-form", "region-N", "random-N", "srN", "deblur", "colorization", "style")
"""N: of a region and of random pixels the share of the image that is hidden, in per cent; of sr the factor."""

STROKES = 0.25
"""The share of the image that free-form strokes hide, at least."""


@dataclass(frozen=True)
class Posed:
    """A task on some images."""

    constraint: Constraint
    hidden: Tensor | None
    """Where pixels are hidden, bool (B, 1, H, W). None: there are no known ones."""
    given: Tensor
    """What is given, as pictures to look at (B, C, H, W) of any size, what is hidden being grey."""
    compared: bool = True
    """Whether there is one right answer, the image itself."""


def check_task_name(name: object) -> str:
    """The name, if there is such a task.

    Raises:
        ValueError: There is none, or its number is out of range.
    """
    found = re.fullmatch(r"(region|random)-(\d+)|sr(\d+)", name) if isinstance(name, str) else None
    if found is None:
        if name not in TASKS or str(name).endswith("N"):
            raise ValueError(f"tasks has {name!r}; expected some of {', '.join(TASKS)} (N: a number, as region-25 or sr4)")
    elif found[3] is not None and not 2 <= int(found[3]) <= 64:
        raise ValueError(f"tasks has {name!r}; expected a factor of 2 to 64")
    elif found[2] is not None and not 1 <= int(found[2]) <= 99:
        raise ValueError(f"tasks has {name!r}; expected a share of 1 to 99 per cent")
    return str(name)


def pose(
    name: str,
    truth: Tensor,
    numbers: Sequence[int],
    features: nn.Module | None = None,
    masks: Sequence[Tensor] | None = None,
) -> Posed:
    """A task on images.

    Args:
        name: One of `TASKS`.
        truth: (B, C, H, W) in [-1, 1].
        numbers: Which images of the study these are; their masks are drawn by these.
        features: Of "style": what the Gram matrices are of.
        masks: Of a task of one's own, whose name may be any: bool (H, W), one for all images or one each, of all images.

    Raises:
        ValueError: A task that images of this kind cannot have.
    """
    H, W = truth.shape[-2:]
    if masks is not None:
        hidden = torch.stack([masks[number if len(masks) > 1 else 0] for number in numbers])[:, None]
        return Posed(Inpainting(truth, hidden), hidden, truth.masked_fill(hidden, 0))
    check_task_name(name)
    if name.startswith("sr"):
        factor = int(name[2:])
        small = downsample(truth, factor)
        return Posed(SuperResolution(small, factor), None, small)
    if name == "deblur":
        kernel = gaussian(W / 16)
        blurred = blur(truth, kernel)
        return Posed(Blur(blurred, kernel), None, blurred)
    if name == "colorization":
        if truth.shape[1] != 3:
            raise ValueError(f"the task 'colorization' needs images in colour; these have {truth.shape[1]} channel")
        grey = Colorization(truth.new_zeros(1, 1, H, W)).A(truth)
        return Posed(Colorization(grey), None, grey)
    if name == "style":
        if features is None:
            raise ValueError("the task 'style' needs features: a bundled model's classifier, or CLIP")
        return Posed(style(truth, features), None, truth, compared=False)
    hidden = torch.stack([mask(name, H, W, number) for number in numbers])[:, None]
    return Posed(Inpainting(truth, hidden), hidden, truth.masked_fill(hidden, 0))


def read_masks(files: Sequence[Path], name: str, height: int, width: int) -> list[Tensor]:
    """Masks of one's own, white is hidden: bool (H, W) each.

    Raises:
        ValueError: One is of another size, or as for `to_mask`.
    """
    masks = [to_mask(read_image(file), str(file))[0, 0] for file in files]
    for file, one in zip(files, masks, strict=True):
        if one.shape != (height, width):
            size = f"{one.shape[0]}×{one.shape[1]}"
            raise ValueError(
                f"tasks: {file.name} of {name!r} is {size}; expected masks of the images' size, {height}×{width}"
            )
    return masks


def mask(name: str, height: int, width: int, number: int) -> Tensor:
    """Where the image of this number is hidden, bool (H, W)."""
    hidden = torch.zeros(height, width, dtype=torch.bool)
    generator = np.random.default_rng([number, height, width])
    if name == "right-half":
        hidden[:, width // 2 :] = True
    elif name == "top-half":
        hidden[: height // 2] = True
    elif name == "box":
        hidden[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    elif name == "free-form":
        hidden = strokes(height, width, generator)
    elif name.startswith("random-"):
        count = min(max(round(height * width * int(name[7:]) / 100), 1), height * width - 1)
        hidden.view(-1)[torch.from_numpy(generator.permutation(height * width)[:count])] = True
    else:  # a rectangle of the share, of a shape between 1:2 and 2:1, that fits
        share = int(name[7:]) / 100
        low, high = max(0.5, share), min(2.0, 1 / share)
        aspect = math.exp(generator.uniform(math.log(low), math.log(high)))
        h = min(max(round(height * math.sqrt(share * aspect)), 1), height)
        w = min(max(round(height * width * share / h), 1), width - (h == height))
        top, left = generator.integers(height - h + 1), generator.integers(width - w + 1)
        hidden[top : top + h, left : left + w] = True
    return hidden


def strokes(height: int, width: int, generator: np.random.Generator) -> Tensor:
    """Thick strokes with round ends that turn as they go, until a quarter of the image lies under them; as free-form masks
    of the inpainting papers are drawn."""
    size, hidden = min(height, width), np.zeros((height, width), dtype=bool)
    while hidden.mean() < STROKES:
        picture = Image.fromarray(hidden)
        pen = ImageDraw.Draw(picture)
        x, y, angle = generator.uniform(0, width), generator.uniform(0, height), generator.uniform(0, 2 * math.pi)
        thick = size * generator.uniform(0.06, 0.16)
        for _ in range(int(generator.integers(2, 6))):
            angle += generator.uniform(-1.2, 1.2)
            length = size * generator.uniform(0.1, 0.35)
            end = x + length * math.cos(angle), y + length * math.sin(angle)
            pen.line((x, y, *end), fill=1, width=max(1, round(thick)))
            for a, b in ((x, y), end):
                pen.ellipse((a - thick / 2, b - thick / 2, a + thick / 2, b + thick / 2), fill=1)
            x, y = end
        drawn = np.array(picture, dtype=bool)
        if not drawn.all():  # nothing would be known
            hidden = drawn
    return torch.from_numpy(hidden)


def gaussian(sigma: float) -> Tensor:
    """A blur's kernel, as wide as three standard deviations to each side."""
    radius = max(1, math.ceil(3 * sigma))
    line = torch.exp(-((torch.arange(-radius, radius + 1).float() / sigma) ** 2) / 2)
    line /= line.sum()
    return line[:, None] * line
