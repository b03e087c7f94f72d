"""What diffusers' inpainting call takes for an image and a mask, as the tensors of an inpainting task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL import Image
from torch import Tensor

from fcs_lab.checks import check_count, check_tensor, describe, refuse_meta
from fcs_lab.latent_space import LatentSpace

__all__ = ["Preparation", "processor"]


class Preparation:
    """Brings images and masks to a pipeline's size, and its images back.

    Args:
        pipeline: Whose VAE the images are for.
        image, mask_image: As `FastConstrainedPipeline` takes them.
        height, width: Of the images that the pipeline is to make.
        padding_mask_crop: How many pixels about the mask to cut out and enlarge, or None.
        batch_size: How many images the prompts make; 1: as many as there are images or masks.

    Attributes:
        images: (n, C, height, width) in [-1, 1].
        masks: (m, 1, height, width) of 0 and 1, 1 where something is to be filled in.

    Raises:
        TypeError, ValueError: One of them is missing, of another type, range or shape, or does not fit the other.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        height: int,
        width: int,
        padding_mask_crop: int | None,
        batch_size: int,
    ):
        self.image, self.mask_image, self.region = image, mask_image, None
        for name, given in {"image": image, "mask_image": mask_image}.items():
            if given is None:
                raise ValueError(f"{name} is missing; expected image and mask_image, or a constraint")
            if isinstance(given, list | tuple) and not given:
                raise ValueError(f"{name} is an empty list; expected at least one picture")
            for one in given if isinstance(given, list | tuple) else [given]:
                _check_picture(name, one)
        levels = _levels(mask_image)
        channels = LatentSpace(pipeline, (0, 0, 0)).image_channels
        self.processor = processor(pipeline)
        options = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
        of_masks = VaeImageProcessor(pipeline.vae_scale_factor, **options)
        how: dict[str, Any] = {"height": height, "width": width}
        if padding_mask_crop is not None:
            check_count("padding_mask_crop", padding_mask_crop, 0)
            if not (isinstance(image, Image.Image) and isinstance(mask_image, Image.Image)):
                raise ValueError("padding_mask_crop is given; with it image and mask_image should be a PIL image each")
            if mask_image.convert("L").getbbox() is None:
                raise ValueError("mask_image is empty: nothing is to be filled in; expected some white pixels")
            self.region = of_masks.get_crop_region(mask_image, width, height, pad=padding_mask_crop)
            how |= {"crops_coords": self.region, "resize_mode": "fill"}
        for one in image if isinstance(image, list | tuple) else [image]:
            if isinstance(one, Tensor):
                check_tensor("image", one, *one.shape)
        images = self.processor.preprocess(image, **how).float()
        if images.shape[1] != channels:
            raise ValueError(
                f"image has {images.shape[1]} channels; expected {channels}, of an image (latents are not taken)"
            )
        if not images.abs().max() <= 1 + 1e-4:
            raise ValueError(
                "image has values outside [0, 1], or NaN; expected a PIL image, or an array or tensor in [0, 1]"
            )
        (h, w), (mask_h, mask_w) = _pixels(image), _pixels(levels)
        if (h, w) != (mask_h, mask_w):
            raise ValueError(f"image is {h}×{w} and mask_image {mask_h}×{mask_w} (height × width); expected one size")
        self.images, self.masks = _deal_out(batch_size, images, of_masks.preprocess(levels, **how).float())

    def put_back(self, images: list[Image.Image]) -> list[Image.Image]:
        """The filled-in surroundings of the mask within the image that they were cut out of."""
        if self.region is None:
            return images
        return [self.processor.apply_overlay(self.mask_image, self.image, one, self.region) for one in images]


def processor(pipeline: DiffusionPipeline) -> VaeImageProcessor:
    """diffusers' own, for the images of a pipeline's VAE, grey or in colour."""
    grey = LatentSpace(pipeline, (0, 0, 0)).image_channels == 1
    return VaeImageProcessor(pipeline.vae_scale_factor, do_convert_rgb=not grey, do_convert_grayscale=grey)


def _check_picture(name: str, one: object) -> None:
    if not isinstance(one, Image.Image | np.ndarray | Tensor):
        raise TypeError(f"{name} is {describe(one)}; expected PIL images, arrays or tensors")
    if not isinstance(one, Image.Image) and one.ndim < 2:
        raise ValueError(f"{name} has shape {tuple(one.shape)}; expected height and width")
    if isinstance(one, Image.Image):
        try:
            one.load()
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{name} cannot be read from its file: {error}") from error


def _levels(mask: PipelineImageInput) -> Any:
    """A mask as diffusers' processor takes it: PIL images as they are, else (n, 1, H, W) in [0, 1].

    Raises:
        ValueError: Its values are in no range that a mask's are in, or its shape is not a mask's.
    """
    if isinstance(mask, list | tuple) and mask and all(isinstance(one, Image.Image) for one in mask):
        return list(mask)
    if isinstance(mask, list | tuple):
        return torch.cat([_levels(one) for one in mask])
    if isinstance(mask, Image.Image):
        return mask
    array = isinstance(mask, np.ndarray)
    if array and mask.dtype.kind not in "biuf":
        raise TypeError(f"mask_image is an array of {mask.dtype}; expected Booleans, whole or floating-point numbers")
    if not array:
        refuse_meta("mask_image", mask)
    values = torch.from_numpy(np.ascontiguousarray(mask)) if array else mask.detach().cpu()
    if array and values.ndim in (3, 4) and values.shape[-1] == 1:
        values = values.squeeze(-1)  # channels last
    if values.ndim not in (2, 3, 4) or (values.ndim == 4 and values.shape[1] != 1) or 0 in values.shape:
        raise ValueError(f"mask_image has shape {tuple(mask.shape)}; expected (H, W), or a batch of such, of one channel")
    if values.is_complex():
        raise ValueError(f"mask_image is {values.dtype}; expected Booleans, whole or floating-point numbers")
    white = 255 if not values.is_floating_point() and values.dtype != torch.bool and values.max() > 1 else 1
    values = values.float()
    if not (values.min() >= 0 and values.max() <= white):
        raise ValueError(
            f"mask_image has values from {values.min():g} to {values.max():g}; expected whole numbers of 0 and 1, or up to "
            "255, or floating-point ones in [0, 1]"
        )
    return (values / white).reshape(-1, 1, *values.shape[-2:])


def _pixels(image: Any) -> tuple[int, int]:
    """Height and width of an image or of the first of several."""
    if isinstance(image, list | tuple):
        return _pixels(image[0])
    if isinstance(image, Image.Image):
        return (image.height, image.width)
    last = isinstance(image, np.ndarray) and image.ndim > 2
    return tuple(image.shape[-3:-1] if last else image.shape[-2:])


def _deal_out(batch_size: int, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The images and masks repeated in turn to fill the batch, as diffusers repeats them."""
    n = max(len(images), len(masks))
    batch_size = n if batch_size == 1 else batch_size
    for name, x in {"image": images, "mask_image": masks}.items():
        if batch_size % len(x):
            raise ValueError(
                f"{name} holds {len(x)} images for a batch of {batch_size} (prompts × num_images_per_prompt); "
                "expected a number that divides it"
            )
    if n > 1:
        images, masks = (x.repeat(batch_size // len(x), 1, 1, 1) for x in (images, masks))
    return images, masks
