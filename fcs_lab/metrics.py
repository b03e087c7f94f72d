"""Numbers that say how good a completed image is, or layers and their masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fcs_lab.checks import check_count, check_seed, check_tensor, describe, typed
from fcs_lab.constraints import LinearConstraint
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, as_model, levels_at

__all__ = [
    "accuracy",
    "clustered",
    "data_consistency",
    "denoising_loss",
    "layer_psnr",
    "mask_error",
    "mask_iou",
    "masked_mse",
    "match_layers",
    "mean_and_error",
    "psnr",
    "with_error",
]


@ordinary()
@typed
def masked_mse(images: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of each image over the pixels where the mask is True.

    Args:
        images, truth: (B, C, H, W) in [-1, 1], so that the error is at most 4; one truth may be that of all images.
        mask: Bool, broadcastable to (B, 1, H, W); True in at least one pixel of each image.

    Returns:
        (B,).

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> fcs_lab.metrics.masked_mse(torch.tensor([[[[0.5, 9.0]]]]), torch.zeros(1, 1, 1, 2), mask).tolist()
        [0.25]
    """
    _check_pair(images, truth)
    if mask.dtype != torch.bool or mask.is_meta or not _broadcasts(mask, (len(images), 1, *images.shape[-2:])):
        raise ValueError(f"mask is {describe(mask)}; expected a Boolean one that fits images {tuple(images.shape)}")
    weight = mask.expand_as(images).to(images.dtype).flatten(1)
    if not bool((weight.sum(1) > 0).all()):
        raise ValueError("mask is False everywhere in an image; expected at least one pixel")
    return ((images - truth).square().flatten(1) * weight).sum(1) / weight.sum(1)


@ordinary()
@typed
def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, 10 log₁₀(2²/mean squared error): (B, C, H, W) in [-1, 1] -> (B,).

    Infinite where an image is the truth itself.

    Example:
        >>> truth = torch.zeros(1, 1, 2, 2)
        >>> fcs_lab.metrics.psnr(truth + 0.2, truth).round(decimals=3).tolist()  # 10 log₁₀(4/0.04)
        [20.0]
    """
    _check_pair(images, truth)
    return _decibels((images - truth).square().flatten(1).mean(1))


@ordinary()
@typed
def data_consistency(task: LinearConstraint, images: Tensor) -> Tensor:
    """The data-consistency error of each image: the root mean square of A x − y, in the images' units.

    Args:
        task: The task on images, not its latent form.
        images: (B, C, H, W), in [-1, 1].

    Returns:
        (B,).

    Example:
        >>> truth = fcs_lab.load_digits(1)[0]
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4)
        >>> fcs_lab.metrics.data_consistency(task, truth).round(decimals=5).tolist()
        [0.0]
    """
    check_tensor("images", images, "B", *(task.shape or ("C", "H", "W")))
    task = task.to(images.device, images.dtype)
    return (task.A(images) - task.y).square().flatten(1).mean(1).sqrt()


@torch.no_grad()
@ordinary()
@typed
def accuracy(classifier: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (B, 1, 32, 32) whose largest logit is that of their label (B,).

    Example:
        >>> from fcs_lab.classifier import load_classifier
        >>> fcs_lab.metrics.accuracy(load_classifier("digits"), *fcs_lab.load_digits(4))
        1.0
    """
    check_tensor("images", images, "B", "C", "H", "W")
    check_tensor("labels", labels, len(images), like="any")
    return (classifier(images.float()).argmax(1) == labels).float().mean().item()


@torch.no_grad()
@ordinary()
@typed
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

    Example:
        >>> model, digits = fcs_lab.load("mnist"), fcs_lab.load_digits(1)[0]
        >>> loss = fcs_lab.metrics.denoising_loss(model, torch.cat([digits, digits.roll(16, 3)]), noises=1)
        >>> bool(loss[0] < loss[1])  # its halves exchanged, it is no digit
        True
    """
    check_tensor("images", images, "B", "C", "H", "W")
    check_count("noises", noises, 1, 10_000)
    check_seed(seed)
    if not len(timesteps):
        raise ValueError("timesteps is empty; expected at least one")
    model = as_model(model).snapshot()
    if tuple(images.shape[1:]) != tuple(model.image_shape) and not model.any_size:
        raise ValueError(f"images has shape {tuple(images.shape)}; the model makes {tuple(model.image_shape)}")
    x0 = model.encode(images)
    generator = torch.Generator().manual_seed(int(seed))
    losses = []
    for t in timesteps:
        signal, noise = levels_at(model, t, x0)
        for _ in range(noises):
            epsilon = torch.randn(x0[:1].shape, generator=generator, dtype=torch.float32).to(x0)
            x0_hat = model(signal * x0 + noise * epsilon, t)
            # x_t = a x_0 + s ε = a x̂_0 + s ε̂, so ε̂ − ε = (a/s) (x_0 − x̂_0).
            losses.append((signal / noise * (x0 - x0_hat)).square().flatten(1).mean(1))
    return torch.stack(losses).mean(0)


@ordinary()
@typed
def clustered(values: Tensor, groups: Sequence[str]) -> tuple[float, float]:
    """The mean of some values, and its standard error where those of one group are not independent.

    Such as six drawings of one concept. The error is that of a ratio of sums over G groups, √(G/(G−1) Σ_g r_g²)/n with r_g a
    group's sum of deviations from the mean; for groups of one it is the usual one.

    Args:
        values: (n,).
        groups: Of each value the group that it belongs to.

    Raises:
        ValueError: Other numbers of values and groups.

    Example:
        >>> mean, error = fcs_lab.metrics.clustered(torch.tensor([1.0, 1.0, 3.0, 3.0]), ["a", "a", "b", "b"])
        >>> mean, error  # two groups, so two independent values: 1 and 3
        (2.0, 1.0)
    """
    if values.ndim != 1 or len(values) != len(groups):
        raise ValueError(f"values has shape {tuple(values.shape)} and groups {len(groups)} entries; expected as many")
    check_tensor("values", values, "n")
    mean = values.double().mean()
    index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums = torch.zeros(len(index), dtype=torch.float64)
    sums.index_add_(0, torch.tensor([index[group] for group in groups]), values.double().cpu() - mean.cpu())
    G = len(sums)
    error = (G / (G - 1) * sums.square().sum()).sqrt() / len(values) if G > 1 else torch.tensor(torch.nan)
    return mean.item(), error.item()


@ordinary()
@typed
def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error, of values of independent images; of those that are not, see `clustered`.

    Args:
        values: (n,), one of each image, with n of at least 2: of floating dtype, or Boolean.

    Example:
        >>> fcs_lab.metrics.mean_and_error(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    if values.ndim != 1 or len(values) < 2 or not (values.is_floating_point() or values.dtype == torch.bool):
        raise ValueError(f"values is {describe(values)}; expected at least two, (n,), floating or Boolean")
    check_tensor("values", values, len(values), like="any")
    v = values.double()
    return v.mean().item(), v.std().item() / len(v) ** 0.5


@ordinary()
@typed
def with_error(values: Tensor) -> str:
    """The mean and its standard error in words: "0.165 ± 0.013 (n = 64)"; of Booleans, "84% ± 5% (n = 64)".

    Args:
        values: As for `mean_and_error`.

    Example:
        >>> fcs_lab.metrics.with_error(torch.tensor([1.0, 3.0]))
        '2.0 ± 1.0 (n = 2)'
    """
    mean, error = mean_and_error(values)
    if values.dtype == torch.bool:
        return f"{mean:.0%} ± {error:.0%} (n = {len(values)})"
    # As many digits as the error's first two need, and no more than six.
    digits = min(6, max(0, 1 - math.floor(math.log10(error)))) if 0 < error < math.inf else 3
    return f"{mean:.{digits}f} ± {error:.{digits}f} (n = {len(values)})"


@ordinary()
@typed
def match_layers(layers: Tensor, truth: Tensor) -> Tensor:
    """Which of the layers found is which of the true ones: the permutation of least squared error.

    Args:
        layers, truth: (B, K, C, H, W).

    Returns:
        int64 (B, K): `layers[b, match[b, k]]` is the true layer k.

    Example:
        >>> truth = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None, :, None] * 2 - 1  # (B, K, C, H, W): two layers
        >>> fcs_lab.metrics.match_layers(truth.flip(1), truth).tolist()  # found in the other order
        [[1, 0]]
    """
    _check_pair(layers, truth, "layers", "K")
    return _assign((layers[:, None] - truth[:, :, None]).square().mean((-3, -2, -1)))


@ordinary()
@typed
def layer_psnr(layers: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each composite's layers together, hidden parts included, under the best permutation of the layers.

    Args:
        layers, truth: (B, K, C, H, W) in [-1, 1].

    Returns:
        10 log10(2²/MSE), the error averaged over a composite's layers, (B,).

    Example:
        >>> truth = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None, :, None] * 2 - 1  # (B, K, C, H, W): two layers
        >>> fcs_lab.metrics.layer_psnr((truth + 0.2).flip(1), truth).round(decimals=3).tolist()
        [20.0]
    """
    _check_pair(layers, truth, "layers", "K")
    error = (layers[:, None] - truth[:, :, None]).square().mean((-3, -2, -1))
    return _decibels(error.gather(2, _assign(error)[..., None]).mean((1, 2)))


@ordinary()
@typed
def mask_iou(masks: Tensor, truth: Tensor, true_layers: Tensor) -> Tensor:
    """Intersection over union of the masks, averaged over the layers, under their best permutation.

    Masks are compared by the layer that is largest at a pixel, and only where the true layers differ: what they share,
    such as a background, belongs to all of them.

    Args:
        masks, truth: (B, K, H, W), soft or of 0 and 1.
        true_layers: (B, K, C, H, W) in [-1, 1]; they differ where they are more than 0.1 apart.

    Returns:
        (B,) in [0, 1].

    Example:
        >>> truth = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None, :, None] * 2 - 1  # (B, K, C, H, W): two layers
        >>> masks = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None]
        >>> fcs_lab.metrics.mask_iou(masks.flip(1), masks, truth).tolist()  # the best permutation
        [1.0]
    """
    check_tensor("masks", masks, "B", "K", "H", "W")
    check_tensor("truth", truth, *masks.shape)
    B, K, H, W = masks.shape
    check_tensor("true_layers", true_layers, B, K, "C", H, W)
    counted = _differ(true_layers).unsqueeze(1)
    found, true = (
        (torch.nn.functional.one_hot(m.argmax(1), K).movedim(-1, 1).bool() & counted).flatten(2).double()
        for m in (masks, truth)
    )
    both = true @ found.mT
    either = true.sum(2)[:, :, None] + found.sum(2)[:, None] - both
    iou = both / either.clamp_min(1)
    return iou.gather(2, _assign(-iou)[..., None]).mean((1, 2))


@ordinary()
@typed
def mask_error(masks: Tensor, truth: Tensor, true_layers: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean absolute error of soft masks, under the permutation of the layers for which it is least.

    Args:
        masks, truth, true_layers: As for `mask_iou`; pixels where the true layers do not differ are not counted.
        where: (B, H, W), bool: count these pixels alone.

    Returns:
        (B,) in [0, 1]; NaN where no pixel is counted.

    Example:
        >>> truth = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None, :, None] * 2 - 1  # (B, K, C, H, W): two layers
        >>> masks = torch.stack([torch.eye(4), 1 - torch.eye(4)])[None]
        >>> fcs_lab.metrics.mask_error(0.75 * masks + 0.125, masks, truth).tolist()
        [0.125]
    """
    check_tensor("masks", masks, "B", "K", "H", "W")
    check_tensor("truth", truth, *masks.shape)
    B, K, H, W = masks.shape
    check_tensor("true_layers", true_layers, B, K, "C", H, W)
    counted = _differ(true_layers)
    if where is not None:
        check_tensor("where", where, B, H, W, like="any")
        counted &= where.bool()
    error = ((masks[:, None] - truth[:, :, None]).abs() * counted[:, None, None]).sum((-2, -1))
    return error.gather(2, _assign(error)[..., None]).sum((1, 2)) / (K * counted.sum((-2, -1)))


def _differ(layers: Tensor) -> Tensor:
    """Where layers (B, K, C, H, W) are more than 0.1 apart, (B, H, W)."""
    return (layers.amax(1) - layers.amin(1)).amax(1) > 0.1


def _check_pair(images: Tensor, truth: Tensor, name: str = "images", *leading: str) -> None:
    check_tensor(name, images, "B", *leading, "C", "H", "W")
    one_for_all = truth.ndim > 0 and len(truth) == 1
    check_tensor("truth", truth, 1 if one_for_all else len(images), *images.shape[1:])


def _broadcasts(mask: Tensor, shape: tuple[int, ...]) -> bool:
    return mask.ndim <= len(shape) and all(n in (1, m) for n, m in zip(mask.shape[::-1], shape[::-1], strict=False))


def _assign(cost: Tensor) -> Tensor:
    """The column of each row in the cheapest assignment, of costs (B, K, K): int64 (B, K)."""
    columns = [linear_sum_assignment(matrix.numpy())[1] for matrix in cost.cpu()]
    return torch.from_numpy(np.stack(columns)).to(cost.device)


def _decibels(mse: Tensor) -> Tensor:
    return 10 * torch.log10(4 / mse)
