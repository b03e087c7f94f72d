"""Composites of which the layers and masks are known: pictures laid over one another, to try layer inference on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import binary_dilation, binary_fill_holes
from torch import Tensor

from fcs_lab.checks import check_count, check_seed, check_tensor, is_number, typed
from fcs_lab.contexts import ordinary
from fcs_lab.data import GARMENTS, example_images, load_digits, load_garments
from fcs_lab.denoisers import Denoiser, as_model

__all__ = ["Composites", "example_composites", "make_composites", "supports"]

BACKGROUND = -1.0

MIN_VISIBLE = {1: 0.4, 2: 0.4, 3: 0.3, 4: 0.2}
"""The share of each layer that is seen, by the number of layers, in the examples and in the study of them."""


@dataclass(frozen=True)
class Composites:
    """B composites of K layers each; layer 0 lies on top."""

    images: Tensor
    """y = Σ m_k ⊙ x_k, (B, C, H, W) in [-1, 1]."""
    layers: Tensor
    """x_k, whole, what is hidden included: (B, K, C, H, W)."""
    masks: Tensor
    """m_k, where layer k is what one sees: (B, K, H, W), of 0 and 1, and 1 in one layer at every pixel."""
    labels: Tensor
    """The classes of the layers, (B, K), int64."""


@ordinary()
@typed
def supports(images: Tensor, kind: Literal["stroke", "silhouette"]) -> Tensor:
    """Where pictures on a background of −1 are opaque: (N, C, H, W) -> (N, H, W), bool.

    Args:
        images: In [-1, 1].
        kind: "stroke": all that is not background, and one pixel around it. "silhouette": all that is not
            background, its holes filled.

    Raises:
        ValueError: Another kind.
    """
    if not isinstance(kind, str) or kind not in ("stroke", "silhouette"):
        raise ValueError(f"kind is {kind!r}; expected 'stroke' or 'silhouette'")
    check_tensor("images", images, "N", "C", "H", "W")
    opaque = (images.amax(1) > BACKGROUND + 0.1).cpu().numpy()
    square = np.ones((3, 3), dtype=bool)
    shape = [binary_dilation(one, square) if kind == "stroke" else binary_fill_holes(one) for one in opaque]
    return torch.from_numpy(np.stack(shape)).to(images.device)


@ordinary()
@typed
def make_composites(
    images: Tensor,
    labels: Tensor,
    count: int,
    num_layers: int,
    *,
    kind: Literal["stroke", "silhouette"],
    max_shift: int = 3,
    min_visible: float = 0.4,
    seed: int = 0,
) -> Composites:
    """Lay pictures of different classes over one another, each a little off its place.

    Pictures and shifts are drawn at random, and drawn again until every layer overlaps another and enough of it is
    seen. No picture is shifted out of the frame.

    Args:
        images: (N, C, H, W) in [-1, 1] on a background of −1, such as `load_digits` and `load_garments` return.
        labels: (N,), their classes.
        count: B, the number of composites.
        num_layers: K, at least 1.
        kind: What of a picture is opaque; see `supports`.
        max_shift: The largest shift along each axis, in pixels.
        min_visible: The share of each layer's pixels (those that are not background) that has to be seen.
        seed: Of the random draws.

    Raises:
        ValueError: An argument out of its range, or no such composites were found.
    """
    check_count("num_layers", num_layers, 1)
    check_count("max_shift", max_shift, 0)
    if not is_number(min_visible) or not 0 <= min_visible < 1:
        raise ValueError(f"min_visible is {min_visible!r}; expected a number of at least 0 and less than 1")
    check_count("count", count, 1, 10**6)
    check_seed(seed)
    check_tensor("images", images, "N", "C", "H", "W")
    check_tensor("labels", labels, len(images), like="any")
    opaque = supports(images, kind)
    classes = len(labels.unique())
    if num_layers > classes:
        raise ValueError(f"num_layers is {num_layers}; the images are of {classes} classes, and layers take different ones")
    generator = np.random.default_rng(seed)
    made: list[tuple[Tensor, ...]] = []
    for _ in range(2000 * count):
        chosen = torch.from_numpy(generator.choice(len(images), num_layers, replace=False))
        moves = generator.integers(-max_shift, max_shift, (num_layers, 2), endpoint=True)
        one = _lay(images[chosen], opaque[chosen], moves, min_visible) if _differ(labels[chosen]) else None
        if one is not None:
            made.append((*one, labels[chosen]))
        if len(made) == count:
            return Composites(*(torch.stack(parts) for parts in zip(*made, strict=True)))
    raise ValueError(
        f"only {len(made)} of {count} composites of {num_layers} layers show min_visible = {min_visible} of every layer; "
        "expected a smaller min_visible, or a larger max_shift"
    )


def _differ(labels: Tensor) -> bool:
    return len(labels.unique()) == len(labels)


def _lay(layers: Tensor, opaque: Tensor, moves: np.ndarray, min_visible: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """One composite, its layers and masks; None if it is not one to be kept."""
    moved = []
    for layer, shape, (down, right) in zip(layers, opaque, moves.tolist(), strict=True):
        rolled = torch.roll(shape, (down, right), (0, 1))
        if rolled.sum() != _inside(shape, down, right):
            return None  # over the edge
        moved.append((torch.roll(layer, (down, right), (1, 2)), rolled))
    layers, opaque = (torch.stack(parts) for parts in zip(*moved, strict=True))
    above = torch.cumsum(opaque.int(), 0) - opaque.int()  # how many layers hide this one
    masks = opaque & (above == 0)
    masks[-1] = above[-1] == 0  # the lowest layer is seen wherever no other is
    ink = layers.amax(1) > BACKGROUND + 0.1
    seen = (ink & masks).sum((1, 2)) / ink.sum((1, 2))
    overlapping = (opaque & (opaque.sum(0) > 1)).any(-1).any(-1)
    if bool((seen < min_visible).any()) or (len(layers) > 1 and not bool(overlapping.all())):
        return None
    return (masks[:, None] * layers).sum(0), layers, masks.to(layers.dtype)


def _inside(shape: Tensor, down: int, right: int) -> Tensor:
    """How many pixels of the shape stay in the frame."""
    height, width = shape.shape
    return shape[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)].sum()


PHOTOGRAPHED = ("a cat", "a cup of coffee", "an astronaut", "a rocket")
"""What `example_images` of an RGB model shows."""


@ordinary()
@typed
def example_composites(model: Denoiser, count: int, num_layers: int, seed: int = 0) -> tuple[Composites, list[list[str]]]:
    """Composites to try a model on: digits, garments if it takes prompts; for an RGB model photographs seen through discs.

    Args:
        model: Whose images they are like.
        count, num_layers, seed: As for `make_composites`. Each layer is seen by at least 0.4 of it, of three layers 0.3,
            of more 0.2. Photographs begin anew after four.

    Returns:
        The composites, and what each of their layers shows: `names[b][k]`, such as "7" or "a sneaker".

    Raises:
        ValueError: A grey model whose images are not 32×32, or as for `make_composites`.
        ImportError: As for `example_images`.
    """
    model = as_model(model)
    shape = model.image_shape
    if shape[0] == 3:
        photographs = example_images(model)
        if not 1 <= num_layers <= len(photographs):
            raise ValueError(f"num_layers is {num_layers!r}; there are {len(photographs)} photographs")
        chosen = torch.stack([torch.arange(b, b + num_layers) % len(photographs) for b in range(count)])
        row, column = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
        angle = 2 * np.pi * np.arange(num_layers)[:, None, None] / num_layers
        discs = (row - 0.4 * np.sin(angle)) ** 2 + (column - 0.4 * np.cos(angle)) ** 2 < 0.3
        masks = torch.from_numpy(discs & (np.cumsum(discs, 0) == 1))
        masks[-1] = ~masks[:-1].any(0)
        masks = masks.to(photographs).expand(count, -1, -1, -1)
        layers = photographs[chosen]
        composites = Composites((masks[:, :, None] * layers).sum(1), layers, masks, chosen)
        names = PHOTOGRAPHED
    elif shape == (1, 32, 32):
        garments = model.num_prompts is not None
        names = GARMENTS if garments else tuple("0123456789")
        images, labels = load_garments() if garments else load_digits()
        kind = "silhouette" if garments else "stroke"
        visible = MIN_VISIBLE.get(num_layers, 0.2)
        composites = make_composites(images, labels, count, num_layers, kind=kind, min_visible=visible, seed=seed)
    else:
        raise ValueError(f"the model's images are {shape}; there are example composites of (1, 32, 32) and of RGB images")
    return composites, [[names[label] for label in row] for row in composites.labels.tolist()]
