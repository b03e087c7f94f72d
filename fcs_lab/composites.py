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
from fcs_lab.data import GARMENTS, example_images, load_digits, load_emoji, load_garments, load_photographs
from fcs_lab.denoisers import Denoiser, as_model

__all__ = ["Composites", "example_composites", "make_composites", "make_emoji_composites", "supports"]

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
    """m_k, where layer k is what one sees: (B, K, H, W), summing to 1; of 0 and 1, but for the soft edges of emoji."""
    labels: Tensor
    """The classes of the layers, (B, K), int64; of emoji which picture it is, and −1 for a ground."""


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


Ground = Literal["white", "colour", "photograph"]
Arrangement = Literal["overlapping", "touching", "apart", "behind"]

EMOJI_SHIFT = 6
"""The largest shift of an emoji along each axis, in pixels of 64."""


@ordinary()
@typed
def make_emoji_composites(
    count: int,
    num_layers: int,
    *,
    ground: Ground = "white",
    arrangement: Arrangement = "overlapping",
    min_visible: float | None = None,
    split: Literal["test", "settings"] = "test",
    seed: int = 0,
) -> tuple[Composites, list[list[str]]]:
    """Lay emoji that no bundled model was trained on over one another, by their alpha.

    The layers x_k are the pictures on white, as the model makes them; y is put together as transparent pictures are, from
    their own colours, so that Σ m_k ⊙ x_k differs from it at soft edges over a ground that is not white.

    Args:
        count: B.
        num_layers: K emoji, of different concepts.
        ground: What lies under all of them. "white": nothing, the lowest emoji is seen wherever no other is, and there are K
            layers. "colour": one colour; "photograph": a part of a photograph (scikit-image); the ground is then a layer of
            its own, the last of K + 1.
        arrangement: "overlapping": in full size, up to `EMOJI_SHIFT` pixels off their places, and each overlaps another;
            "apart": at half size, each in its quarter; "touching": two at half size, side by side; "behind": two, the lower
            one at 0.4 of its size and all but 2 % of it hidden. The model was trained on full size.
        min_visible: The share of each emoji's alpha that has to be seen, of "overlapping". None: 0.4, of three layers
            0.3, of more 0.2.
        split: Whose pictures; see `load_emoji`.
        seed: Of the random draws.

    Returns:
        The composites, with layer 0 on top; and the layers' prompts, "concept, style", that of a ground being "".

    Raises:
        ValueError: An argument out of its range, or no such composites were found.
        ImportError: Photographs, and scikit-image is not installed.
    """
    check_count("num_layers", num_layers, 1, 4)
    check_count("count", count, 1, 10**6)
    check_seed(seed)
    if arrangement in ("touching", "behind") and num_layers != 2:
        raise ValueError(f"num_layers is {num_layers}; {arrangement!r} is an arrangement of two")
    min_visible = MIN_VISIBLE[num_layers] if min_visible is None else min_visible
    if not is_number(min_visible) or not 0 <= min_visible < 1:
        raise ValueError(f"min_visible is {min_visible!r}; expected a number of at least 0 and less than 1")
    pictures, alpha, names = load_emoji(256 if split == "test" else 156, split=split)
    premultiplied = torch.cat([pictures - 1 + alpha, alpha], 1)  # α c, and α
    concepts = [name.rpartition(", ")[0] for name in names]
    photographs = load_photographs(128) if ground == "photograph" else None
    generator = np.random.default_rng(seed)
    made, prompts = [], []
    for _ in range(2000 * count):
        chosen = generator.choice(len(names), num_layers, replace=False).tolist()
        if len({concepts[i] for i in chosen}) < num_layers:
            continue
        placed = _place(premultiplied[chosen], arrangement, generator)
        if not _is_so(premultiplied[chosen], placed, arrangement, min_visible):
            continue
        under = None if ground == "white" else _ground(photographs, generator)
        made.append((*_over(placed, under), torch.tensor(chosen + [-1] * (under is not None))))
        prompts.append([names[i] for i in chosen] + [""] * (under is not None))
        if len(made) == count:
            return Composites(*(torch.stack(parts) for parts in zip(*made, strict=True))), prompts
    raise ValueError(
        f"only {len(made)} of {count} composites of {num_layers} emoji, {arrangement!r}, show min_visible = {min_visible} "
        "of each; expected a smaller min_visible"
    )


def _place(emoji: Tensor, arrangement: Arrangement, generator: np.random.Generator) -> Tensor:
    """Emoji (K, 4, H, W), each in its place."""
    K, _, size, _ = emoji.shape
    half = size // 2
    if arrangement == "overlapping":
        moves = generator.integers(-EMOJI_SHIFT, EMOJI_SHIFT, (K, 2), endpoint=True).tolist()
        return torch.stack([_put(one, move, size) for one, move in zip(emoji, moves, strict=True)])
    if arrangement == "apart":
        quarters = generator.permutation([(0, 0), (0, half), (half, 0), (half, half)])[:K].tolist()
        return torch.stack([_put(one, corner, half) for one, corner in zip(emoji, quarters, strict=True)])
    if arrangement == "touching":
        left, right = (_put(one, (half // 2, side), half) for one, side in zip(emoji, (0, half), strict=True))
        edges = [(one[3] > 0.5).any(0).nonzero().flatten() for one in (left, right)]
        gap = int(edges[1].min() - edges[0].max()) - 1
        return torch.stack([left, _put(emoji[1], (half // 2, half - gap), half)])
    side = round(0.4 * size)
    corner = generator.integers(0, size - side, 2, endpoint=True).tolist()
    return torch.stack([emoji[0], _put(emoji[1], corner, side)])


def _is_so(emoji: Tensor, placed: Tensor, arrangement: Arrangement, min_visible: float) -> bool:
    """Whether emoji (K, 4, H, W), once placed, are as their arrangement says."""
    alpha = placed[:, 3]
    seen = (alpha * _through(alpha)).sum((1, 2)) / alpha.sum((1, 2))
    if arrangement == "behind":
        return bool(seen[1] < 0.02)
    if arrangement != "overlapping":
        return True
    inside = alpha.sum((1, 2)) >= 0.97 * emoji[:, 3].sum((1, 2))
    opaque = alpha > 0.5
    overlapping = (opaque & (opaque.sum(0) > 1)).any(-1).any(-1)
    return bool((inside & (seen >= min_visible) & (overlapping | (len(emoji) == 1))).all())


def _put(picture: Tensor, corner: tuple[int, int] | list[int], size: int) -> Tensor:
    """A picture (4, H, W) reduced to size × size, its upper left corner there, in a transparent frame of its old size."""
    frame = picture.shape[-1]
    if size != frame:
        picture = torch.nn.functional.interpolate(picture[None], (size, size), mode="area")[0]
    (down, right), wide = corner, torch.zeros(4, 3 * frame, 3 * frame)
    wide[:, frame + down : frame + down + size, frame + right : frame + right + size] = picture
    return wide[:, frame : 2 * frame, frame : 2 * frame]


def _through(alpha: Tensor) -> Tensor:
    """How much of each layer (K, H, W) the ones above it let through."""
    clear = torch.cumprod(1 - alpha, 0)
    return torch.cat([torch.ones_like(alpha[:1]), clear[:-1]])


def _over(placed: Tensor, ground: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """y, the layers x_k and the masks m_k of pictures (K, 4, H, W), colours premultiplied, over a ground (3, H, W)."""
    colour, alpha = placed[:, :3], placed[:, 3]
    through = _through(alpha)
    layers = colour + 1 - alpha[:, None]
    masks = alpha * through
    rest = 1 - masks.sum(0)
    y = (through[:, None] * colour).sum(0) + rest * (1.0 if ground is None else ground)
    if ground is None:
        masks[-1] += rest
        return y, layers, masks
    return y, torch.cat([layers, ground[None]]), torch.cat([masks, rest[None]])


def _ground(photographs: Tensor | None, generator: np.random.Generator) -> Tensor:
    """A ground (3, 64, 64) in [-1, 1]: one colour, or a square out of a photograph (3, 128, 128) of some."""
    if photographs is None:
        return torch.from_numpy(generator.uniform(-0.8, 0.8, (3, 1, 1))).float().expand(3, 64, 64).clone()
    down, right = generator.integers(0, 64, 2, endpoint=True).tolist()
    return photographs[int(generator.integers(len(photographs))), :, down : down + 64, right : right + 64]


PHOTOGRAPHED = ("a cat", "a cup of coffee", "an astronaut", "a rocket")
"""What `example_images` of an RGB model shows."""


@ordinary()
@typed
def example_composites(model: Denoiser, count: int, num_layers: int, seed: int = 0) -> tuple[Composites, list[list[str]]]:
    """Composites to try a model on: digits, garments if it takes prompts; emoji on white, if its images are RGB and
    64×64; photographs seen through discs, if they are RGB and of another size.

    Args:
        model: Whose images they are like.
        count, num_layers, seed: As for `make_composites`. Each layer is seen by at least 0.4 of it, of three layers 0.3,
            of more 0.2. Photographs begin anew after four.

    Returns:
        The composites, and what each of their layers shows: `names[b][k]`, such as "7", "a sneaker" or "red apple, noto".

    Raises:
        ValueError: A grey model whose images are not 32×32, or as for `make_composites`.
        ImportError: As for `example_images`.
    """
    model = as_model(model)
    shape = model.image_shape
    if shape == (3, 64, 64):
        return make_emoji_composites(count, num_layers, seed=seed)
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
