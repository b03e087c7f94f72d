"""Pictures in and out: the one place where PIL images, NumPy arrays and tensors become tensors in [-1, 1], and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ImageLike", "MaskLike", "to_mask", "to_pil", "to_tensor"]

ImageLike = Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray]
MaskLike = Image.Image | np.ndarray | Tensor


def to_tensor(image: ImageLike, name: str = "image", limit: float = 1.0) -> Tensor:
    """Any accepted form of image as a tensor.

    Args:
        image: A PIL image of mode "1", "L" or "RGB"; a NumPy array (H, W) or (H, W, C) with C = 1 or 3, uint8 in
            [0, 255] or floating point in [0, 1]; a list of those, all of one size; or a floating-point tensor
            (B, C, H, W) in [-1, 1].
        name: What an error message calls it.
        limit: The largest magnitude of a tensor's values; more than 1 for measurements, which may overshoot or be noisy.

    Returns:
        (B, C, H, W) in [-1, 1] (in [-limit, limit], for a tensor); float64 where the input is, else float32.

    Raises:
        TypeError: Not one of these types, or a dtype whose range is ambiguous.
        ValueError: A shape, mode, or range that is ambiguous or wrong; NaN or infinite values.
    """
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError(f"{name} is an empty list; expected at least one image")
        tensors = [to_tensor(one, f"{name}[{i}]", limit) for i, one in enumerate(image)]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise ValueError(f"{name} holds images of different sizes: {[tuple(t.shape[1:]) for t in tensors]}")
        return torch.cat(tensors)
    if isinstance(image, Image.Image):
        if image.mode not in ("1", "L", "RGB"):
            raise ValueError(
                f"{name} has PIL mode {image.mode!r}; expected 'L' or 'RGB': use .convert('L') or .convert('RGB')"
            )
        image = np.asarray(image.convert("L") if image.mode == "1" else image)
    if isinstance(image, np.ndarray):
        tensor = _from_numpy(image, name)
    elif isinstance(image, Tensor):
        tensor = _from_torch(image, name, limit)
    else:
        raise TypeError(f"{name} is a {type(image).__name__}; expected a PIL image, a NumPy array, a tensor, or a list")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _from_numpy(image: np.ndarray, name: str) -> Tensor:
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"{name} is an array of shape {image.shape}; expected (H, W) or (H, W, C) with C = 1 or 3")
    if image.dtype == np.uint8:
        levels = image.astype(np.float32) / 127.5 - 1
    elif np.issubdtype(image.dtype, np.floating):
        _check_range(name, float(image.min()), float(image.max()), 0, 1, "a floating-point array")
        levels = image * 2 - 1
    else:
        raise TypeError(f"{name} is an array of {image.dtype}; expected uint8 in [0, 255] or floating point in [0, 1]")
    return torch.from_numpy(np.ascontiguousarray(levels)).reshape(*image.shape[:2], -1).permute(2, 0, 1)[None]


def _from_torch(image: Tensor, name: str, limit: float) -> Tensor:
    if not image.is_floating_point():
        raise TypeError(f"{name} is a tensor of {image.dtype}; expected floating point in [-1, 1]")
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"{name} is a tensor of shape {tuple(image.shape)}; expected (B, C, H, W)")
    _check_range(name, image.min().item(), image.max().item(), -limit, limit, "a tensor")
    return image.detach()


def _check_range(name: str, low: float, high: float, least: float, most: float, what: str) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} has NaN or infinite pixels; expected finite values in [{least}, {most}]")
    slack = 1e-4
    if low < least - slack or high > most + slack:
        raise ValueError(f"{name} has values in [{low:.4g}, {high:.4g}]; {what} is expected within [{least}, {most}]")


def to_mask(mask: MaskLike, name: str = "mask") -> Tensor:
    """Any accepted form of mask as a tensor; as in diffusers, True, 1 or white is what is to be filled in.

    Args:
        mask: A black-and-white PIL image; a NumPy array (H, W) or (H, W, 1), boolean, of 0 and 1, or uint8 of 0 and
            255; or a tensor (H, W), (B, H, W) or (B, 1, H, W), boolean or of 0 and 1.
        name: What an error message calls it.

    Returns:
        (B, 1, H, W), bool.

    Raises:
        TypeError: Not one of these types.
        ValueError: A grey (non-binary) mask, NaN, or a shape that is not a mask's.
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    if isinstance(mask, np.ndarray):
        if mask.ndim not in (2, 3) or (mask.ndim == 3 and mask.shape[2] != 1):
            raise ValueError(f"{name} is an array of shape {mask.shape}; expected (H, W) or (H, W, 1)")
        mask = mask.reshape(mask.shape[:2])
        values = torch.from_numpy(mask.copy())
        # White in 8 bits is 255; an 8-bit mask may also be written as 0 and 1.
        white = 255 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else 1
    elif isinstance(mask, Tensor):
        values, white = mask.detach(), 1
    else:
        raise TypeError(f"{name} is a {type(mask).__name__}; expected a PIL image, a NumPy array or a tensor")
    if (values.ndim == 4 and values.shape[1] != 1) or values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected (H, W), (B, H, W) or (B, 1, H, W)")
    grey = int(((values != 0) & (values != white)).sum())
    if grey:
        raise ValueError(
            f"{name} is not binary: {grey} of its {values.numel()} values are neither 0 nor {white}; "
            "threshold it first (diffusers uses 0.5)"
        )
    return (values == white).reshape(-1, 1, *values.shape[-2:])


def to_pil(images: Tensor) -> list[Image.Image]:
    """Tensors to PIL images.

    Args:
        images: (B, C, H, W) in [-1, 1], C = 1 (grey) or 3 (RGB). Values outside are clipped.

    Returns:
        B images of mode "L" or "RGB".
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {tuple(images.shape)}; expected (B, C, H, W) with C = 1 or 3")
    levels = (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in levels]
