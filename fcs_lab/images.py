"""Pictures in and out: where files, PIL images, NumPy arrays and tensors become tensors in [-1, 1], and back."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fcs_lab.checks import check_tensor, describe, refuse_meta, typed
from fcs_lab.contexts import ordinary

__all__ = ["ImageLike", "MaskLike", "fit_image", "fit_mask", "read_image", "to_channels", "to_mask", "to_pil", "to_tensor"]

ImageLike = Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray]
MaskLike = Image.Image | np.ndarray | Tensor

SAME_GREY = {"JPEG": 8, None: 2}
"""How many grey levels of 255 the channels of a picture may differ by and still be a grey picture, by the file's format."""


def read_image(source: str | Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Any picture as an upright one of mode "L" or "RGB", 8 bits a channel.

    The first frame of an animation; turned as its EXIF data say; what is transparent is laid on white; 16 bits, palettes,
    CMYK and black-and-white are converted.

    Args:
        source: A file, its content, or a PIL image.
        name: What an error message calls it. None: the file, or "image".

    Raises:
        TypeError: Neither of these.
        ValueError: It cannot be read, is larger than Pillow's limit, or what its numbers mean is ambiguous (whole numbers
            of 32 bits, floating-point ones outside [0, 1], CIE L*a*b*).

    Example:
        >>> from PIL import Image
        >>> fcs_lab.images.read_image(Image.new("RGBA", (4, 3), (255, 0, 0, 0))).getpixel((0, 0))  # on white
        (255, 255, 255)
    """
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    pixels = _pixels(_opened(source, name), name)
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8))


@ordinary()
@typed
def fit_image(
    source: str | Path | bytes | Image.Image, shape: tuple[int, int, int], name: str | None = None
) -> tuple[Tensor, str]:
    """A picture as an image of a model's shape: its middle of the model's proportions, resized with antialiasing.

    Args:
        source, name: As for `read_image`.
        shape: (C, H, W), C = 1 (grey) or 3 (RGB).

    Returns:
        The image (1, C, H, W), float32 in [-1, 1], and a sentence on what was done to its size, "" if nothing was.

    Raises:
        TypeError, ValueError: As for `read_image` and `to_channels`.

    Example:
        >>> from PIL import Image
        >>> image, said = fcs_lab.images.fit_image(Image.new("L", (64, 32), 255), (1, 32, 32))
        >>> tuple(image.shape), image.min().item()
        ((1, 1, 32, 32), 1.0)
    """
    channels, height, width = shape
    name = name or (str(source) if isinstance(source, str | Path) else "image")
    opened = _opened(source, name)
    picture, said = read_image(opened, name), ""
    image = to_channels(to_tensor(picture), channels, name, SAME_GREY.get(opened.format, SAME_GREY[None]))
    if picture.size != (width, height):
        said = f"The picture's middle was resized from {picture.width}×{picture.height} to {width}×{height} pixels."
        image = to_tensor(ImageOps.fit(to_pil(image)[0], (width, height)))  # bicubic, antialiased
    return image, said


@ordinary()
@typed
def fit_mask(
    source: str | Path | bytes | Image.Image, shape: tuple[int, int], name: str | None = None
) -> tuple[Tensor, str]:
    """A picture as a mask of a model's height and width, cut out and resized as `fit_image` does, and cut at a half.

    Returns:
        The mask (H, W), bool, and a sentence on how many of its pixels were grey, "" if none was.

    Raises:
        TypeError, ValueError: As for `read_image`; its colour and its alpha channel both vary.

    Example:
        >>> from PIL import Image
        >>> mask, said = fcs_lab.images.fit_mask(Image.new("L", (64, 64), 255), (32, 32))
        >>> tuple(mask.shape), bool(mask.all()), said
        ((32, 32), True, '')
    """
    name = name or (str(source) if isinstance(source, str | Path) else "mask")
    picture = Image.fromarray(_mask_of(_opened(source, name), name))
    levels = np.asarray(ImageOps.fit(picture, shape[::-1], Image.Resampling.BOX))
    grey = int(((levels > 0) & (levels < 255)).sum())
    said = f"The mask had {grey} grey pixels; it was thresholded at 0.5, as shown." if grey else ""
    return torch.from_numpy(levels >= 127.5), said


@ordinary()
@typed
def to_channels(images: Tensor, channels: int, name: str = "image", tolerance: float = SAME_GREY[None]) -> Tensor:
    """Images (B, C, H, W) with 1 (grey) or 3 (RGB) channels: grey becomes RGB, and colour does not become grey.

    Args:
        images: In [-1, 1].
        channels: As many as there are to be; C is returned as it is.
        name: What an error message calls them.
        tolerance: By how many grey levels of 255 three channels may differ to be one grey one, their mean.

    Raises:
        ValueError: Colour for a grey model; or other numbers of channels.

    Example:
        >>> tuple(fcs_lab.images.to_channels(torch.zeros(1, 1, 8, 8), 3).shape)
        (1, 3, 8, 8)
    """
    check_tensor(name, images, "B", "C", "H", "W")
    found = images.shape[1]
    if found == channels:
        return images
    if (found, channels) == (1, 3):
        return images.expand(-1, 3, -1, -1)
    if (found, channels) == (3, 1):
        spread = (images.amax(1) - images.amin(1)).max().item() * 127.5
        if spread <= tolerance + 1e-3:
            return images.mean(1, keepdim=True)
        raise ValueError(
            f"{name} is in colour (its channels differ by up to {spread:.0f} of 255), and the model makes grey images: "
            "convert it (PIL: .convert('L'))"
        )
    raise ValueError(f"{name} has {found} channels; the model takes {channels}: convert the image (PIL: 'L' or 'RGB')")


def _opened(source: object, name: str) -> Image.Image:
    """The picture, decoded; its first frame."""
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    try:
        # A picture that is suspiciously large Pillow warns of, and refuses only at twice that; here both are errors.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(source)
            if getattr(image, "n_frames", 1) > 1:
                image.seek(0)
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS}: {error}") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise ValueError(f"{name} is not an image that can be read: {error}") from error
    except (TypeError, AttributeError) as error:
        raise TypeError(f"{name} is {describe(source)}; expected a file, its content, or a PIL image") from error
    return image


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image's pixels, (H, W) or (H, W, 3), uint8 or, where there is more than 8 bits of it, float32 in [0, 1]."""
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode == "F" or mode.startswith("I"):
        levels = np.asarray(image).astype(np.float32)
        if mode == "F" and not (levels.min() >= 0 and levels.max() <= 1):
            found = f"floating-point pixels from {levels.min():g} to {levels.max():g}; expected [0, 1]"
            raise ValueError(f"{name} has {found}: what white is cannot be told")
        if mode == "I" and not (levels.min() >= 0 and 255 < levels.max() <= 65535):
            found = f"whole numbers of 32 bits from {levels.min():g} to {levels.max():g}"
            raise ValueError(f"{name} has {found}: what white is cannot be told; save it with 8 or 16 bits")
        return levels if mode == "F" else levels / 65535
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        grey = mode in ("LA", "La", "L", "1")
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L" if grey else "RGB")
    elif mode in ("1", "L"):
        image = image.convert("L")
    elif mode in ("RGB", "P", "CMYK", "YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    else:
        raise ValueError(f"{name} has PIL mode {mode!r}, which has no one reading as RGB; expected 'L' or 'RGB'")
    return np.asarray(image)


@ordinary()
def to_tensor(image: ImageLike, name: str = "image", limit: float = 1.0) -> Tensor:
    """Any accepted form of image as a tensor.

    Args:
        image: A PIL image (read as `read_image` does, with all of its bits); a NumPy array (H, W) or (H, W, C) with C = 1
            or 3, uint8 in [0, 255] or floating point in [0, 1]; a list of those, all of one size; or a floating-point tensor
            (B, C, H, W) in [-1, 1].
        name: What an error message calls it.
        limit: The largest magnitude of a tensor's values; more than 1 for measurements, which may overshoot or be noisy.

    Returns:
        (B, C, H, W) in [-1, 1] (in [-limit, limit], for a tensor); float64 where the input is, else float32.

    Raises:
        TypeError: Not one of these types, or a dtype whose range is ambiguous.
        ValueError: A shape, mode, or range that is ambiguous or wrong; NaN or infinite values.

    Example:
        >>> from PIL import Image
        >>> x = fcs_lab.to_tensor(Image.new("RGB", (6, 8), "white"))
        >>> tuple(x.shape), x.max().item()
        ((1, 3, 8, 6), 1.0)
    """
    if isinstance(image, list | tuple):
        if not image:
            raise ValueError(f"{name} is an empty list; expected at least one image")
        tensors = [to_tensor(one, f"{name}[{i}]", limit) for i, one in enumerate(image)]
        if len({tensor.shape for tensor in tensors}) > 1:
            raise ValueError(f"{name} holds images of different sizes: {[tuple(t.shape[1:]) for t in tensors]}")
        return torch.cat(tensors)
    if isinstance(image, Image.Image):
        image = _pixels(_opened(image, name), name)
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
    refuse_meta(name, image)
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


@ordinary()
def to_mask(mask: MaskLike, name: str = "mask") -> Tensor:
    """Any accepted form of mask as a tensor; as in diffusers, True, 1 or white is what is to be filled in.

    Args:
        mask: A black-and-white PIL image, whose alpha channel is the mask if that is all that varies; a NumPy array (H, W)
            or (H, W, 1), boolean, of 0 and 1, or uint8 of 0 and
            255; or a tensor (H, W), (B, H, W) or (B, 1, H, W), boolean or of 0 and 1.
        name: What an error message calls it.

    Returns:
        (B, 1, H, W), bool.

    Raises:
        TypeError: Not one of these types.
        ValueError: A grey (non-binary) mask, NaN, or a shape that is not a mask's.

    Example:
        >>> from PIL import Image
        >>> mask = fcs_lab.images.to_mask(Image.new("L", (8, 8), 255))  # white is filled in
        >>> tuple(mask.shape), bool(mask.all())
        ((1, 1, 8, 8), True)
    """
    if isinstance(mask, Image.Image):
        mask = _mask_of(_opened(mask, name), name)
    if isinstance(mask, np.ndarray):
        if mask.ndim not in (2, 3) or (mask.ndim == 3 and mask.shape[2] != 1):
            raise ValueError(f"{name} is an array of shape {mask.shape}; expected (H, W) or (H, W, 1)")
        mask = mask.reshape(mask.shape[:2])
        values = torch.from_numpy(mask.copy())
        # White in 8 bits is 255; an 8-bit mask may also be written as 0 and 1.
        white = 255 if mask.dtype == np.uint8 and mask.max(initial=0) > 1 else 1
    elif isinstance(mask, Tensor):
        refuse_meta(name, mask)
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


def _mask_of(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image's mask, uint8 of 0 and 255 if it is one: its grey, or its alpha where only that varies."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        color, alpha = rgba[..., :3].reshape(-1, 3), rgba[..., 3]
        varies = bool((color != color[0]).any()), bool((alpha != alpha[0, 0]).any())
        if all(varies):
            raise ValueError(f"{name} varies in its colour and in its alpha channel; expected one of them to be the mask")
        if varies[1]:
            return alpha
        image = Image.fromarray(rgba[..., :3])
    if image.mode.startswith("I") or image.mode == "F":
        return (_pixels(image, name) * 255).round().astype(np.uint8)
    return np.asarray(image.convert("L"))


def to_pil(images: Tensor) -> list[Image.Image]:
    """Tensors to PIL images.

    Args:
        images: (B, C, H, W) in [-1, 1], C = 1 (grey) or 3 (RGB). Values outside are clipped.

    Returns:
        B images of mode "L" or "RGB".

    Raises:
        TypeError: Not a floating-point tensor.
        ValueError: Another shape, no images, or NaN.

    Example:
        >>> picture = fcs_lab.to_pil(torch.zeros(1, 3, 8, 6))[0]
        >>> picture.size, picture.mode
        ((6, 8), 'RGB')
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images is {describe(images)}; expected a floating-point tensor (B, C, H, W) in [-1, 1]")
    refuse_meta("images", images)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images has shape {tuple(images.shape)}; expected (B, C, H, W) with C = 1 or 3")
    if 0 in images.shape or bool(images.isnan().any()):
        raise ValueError(f"images has {'no pixels' if 0 in images.shape else 'NaN pixels'}; expected numbers")
    levels = (images.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)) for image in levels]
