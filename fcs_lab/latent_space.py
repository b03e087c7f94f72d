"""The latent space of a diffusers pipeline: images ⇄ latents by its VAE, how its loop keeps them, what tasks become there.

A task that is given in pixels is carried over by `LatentSpace.carry`: inpainting by the latent mask rule, any other through
the decoder, never through the denoising network, which is not here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fcs_lab.checks import typed
from fcs_lab.constraints import Constraint, ConstraintBase, Inpainting, Selection
from fcs_lab.contexts import ordinary, own_copy
from fcs_lab.denoisers import frozen
from fcs_lab.directions import norm_inf
from fcs_lab.images import ImageLike, MaskLike
from fcs_lab.precision import at_least_float32

__all__ = ["Decoded", "LatentInpainting", "LatentSpace", "Layout", "layout_of", "network_of"]


class LatentSpace:
    """Images ⇄ latents of a diffusers pipeline, by its VAE; and what the tasks become there.

    Args:
        pipeline: Whose; it is asked for its VAE whenever that is used, so that another one may be put in.
        shape: (c, h, w) of its latents, at its own size.
        patch: Of how many latent cells, in height and in width, the network's tokens are.
    """

    def __init__(self, pipeline: DiffusionPipeline, shape: tuple[int, int, int], patch: int = 1):
        self.pipeline, self.shape = pipeline, shape
        self.factor = pipeline.vae_scale_factor
        self.multiple = self.factor * patch  # of which image sizes are multiples

    @property
    def vae(self) -> nn.Module:
        """The pipeline's autoencoder."""
        return self.pipeline.vae

    @property
    def device(self) -> torch.device:
        """Where x_t has to be; with CPU offload, where the network runs."""
        return self.pipeline._execution_device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that latents of `shape` are decoded to."""
        channels = self.vae.config.get("out_channels") or self.image_channels
        return (channels, self.shape[1] * self.factor, self.shape[2] * self.factor)

    @ordinary()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] to latents (B, c, H/factor, W/factor), float32 at least: the posterior's mode.

        Raises:
            ValueError: Another number of channels, or a size that the VAE's factor does not divide.
        """
        self.check_shape(images, "images", self.image_channels, self.multiple)
        with self._autoencoder() as vae:
            x = images.to(self.device, vae.dtype)
            encoded = vae.encode(x.unsqueeze(2) if self._of_videos else x)
        if "latent_dist" in encoded:
            z = encoded.latent_dist.mode()
        else:  # an autoencoder without a posterior; the two of diffusers name its output differently
            z = encoded.latent if "latent" in encoded else encoded.latents
        return self.scaled((z.squeeze(2) if self._of_videos else z).to(at_least_float32(images.dtype)))

    @ordinary()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to images (B, C, h·factor, w·factor) about [-1, 1], unclipped, float32 at least."""
        self.check_shape(latents, "latents (x0)", self.shape[0], 1)
        z = self.unscaled(latents)
        with self._autoencoder() as vae:
            z = z.to(self.device, vae.dtype)
            images = vae.decode(z.unsqueeze(2) if self._of_videos else z, return_dict=False)[0]
        return (images.squeeze(2) if self._of_videos else images).to(at_least_float32(latents.dtype))

    def scaled(self, z: Tensor) -> Tensor:
        """What the VAE calls z (B, c, h, w) as the network's latents: about zero, of about unit variance."""
        mean, std = self._statistics(z)
        return (z - mean) / std

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) as the VAE's z."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Mean and deviation of z, for all, by channel, or by cell of a patch: what the VAE has of these."""
        vae, config = self.vae, self.vae.config
        if hasattr(vae, "bn"):  # Flux 2: the running statistics of 2×2 patches
            mean, std = vae.bn.running_mean, (vae.bn.running_var + config.batch_norm_eps).sqrt()
            height, width = (side // 2 for side in z.shape[-2:])
            each = (values.to(z).reshape(1, -1, 1, 1).expand(-1, -1, height, width) for values in (mean, std))
            return tuple(map(self.pipeline._unpatchify_latents, each))
        factor = config.get("scaling_factor") or 1.0
        means, stds = config.get("latents_mean"), config.get("latents_std")
        if means is None or stds is None:
            return config.get("shift_factor") or 0.0, 1.0 / factor
        mean, std = (torch.tensor(values).to(z).reshape(1, -1, 1, 1) for values in (means, stds))
        return mean, std / factor

    def carry(self, task: Constraint) -> Constraint:
        """The task as x̂_0 has to meet it in latent space: `LatentInpainting`, or else `Decoded`."""
        if isinstance(task, LatentInpainting | Decoded):
            return task
        return (
            LatentInpainting(task.y, task.mask, self, noise_std=task.noise_std)
            if isinstance(task, Inpainting)
            else Decoded(task, self)
        )

    @contextmanager
    def _autoencoder(self) -> Iterator[nn.Module]:
        """The VAE, frozen; one that overflows in float16 and says so (`force_upcast`) is in float32 while this lasts."""
        vae = self.vae
        upcast = hasattr(self.pipeline, "upcast_vae") and vae.dtype == torch.float16 and vae.config.get("force_upcast")
        with frozen(vae):
            try:
                yield vae.float() if upcast else vae
            finally:
                if upcast:
                    vae.half()

    @property
    def image_channels(self) -> int:
        """Of the images that the VAE encodes."""
        config = self.vae.config
        return config.get("in_channels") or config.get("input_channels") or 3

    @property
    def _of_videos(self) -> bool:
        """Whether the VAE is one of videos, to which an image is the only frame of one."""
        return any(parameter.ndim == 5 for parameter in self.vae.parameters())

    def check_shape(self, x: Tensor, name: str, channels: int, multiple: int) -> None:
        """That x is (B, channels, height, width), height and width multiples of `multiple`.

        Raises:
            ValueError: It is not; `name` is what the message calls it.
        """
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (B, {channels}, height, width)")
        height, width = x.shape[-2:]
        if height % multiple or width % multiple:
            near = [max(multiple, round(size / multiple) * multiple) for size in (height, width)]
            raise ValueError(
                f"{name} is {height}×{width} (height × width); the model needs multiples of {multiple}: "
                f"the nearest is {near[0]}×{near[1]}"
            )


def network_of(pipeline: DiffusionPipeline) -> nn.Module:
    """A pipeline's denoising network: its U-Net or its transformer."""
    unet = getattr(pipeline, "unet", None)
    return getattr(pipeline, "transformer", None) if unet is None else unet


@dataclass(frozen=True)
class Layout:
    """How a family of pipelines keeps its latents in its loop: two functions, each the other's inverse.

    They only move numbers about, since x_T is white noise on either side. Scale and shift between these latents and those
    that the VAE takes are read from the VAE itself.

    Example:
        >>> tokens = fcs_lab.Layout(  # latents that are kept as (B, h w, c)
        ...     unpack=lambda z, height, width: z.unflatten(1, (height // 8, width // 8)).movedim(-1, 1),
        ...     pack=lambda z: z.movedim(1, -1).flatten(1, 2),
        ... )
        >>> tuple(tokens.unpack(torch.zeros(2, 48, 4), 64, 48).shape)
        (2, 4, 8, 6)
    """

    unpack: Callable[[Tensor, int, int], Tensor]
    """(latents as the loop keeps them, the image's height, its width) -> (B, c, h, w), with the VAE's c, h and w.

    512×1024 and 1024×512 often look alike once packed, so the image's size is told.
    """
    pack: Callable[[Tensor], Tensor]
    """(B, c, h, w) -> latents as the loop keeps them."""


def layout_of(pipeline: DiffusionPipeline, latents: Tensor) -> Layout:
    """The layout of a pipeline's latents: (B, c, h, w) as they are, or tokens of 2×2 patches as Flux and Flux 2 have them.

    Raises:
        TypeError: The latents have another layout.
    """
    if latents.ndim == 4:
        return Layout(lambda x, height, width: x, lambda z: z)
    if latents.ndim == 3 and _has(pipeline, "_pack_latents", "_patchify_latents", "_unpatchify_latents"):
        side = 2 * pipeline.vae_scale_factor

        def unpack_patches(x: Tensor, height: int, width: int) -> Tensor:
            return pipeline._unpatchify_latents(x.transpose(1, 2).unflatten(2, (height // side, width // side)))

        return Layout(unpack_patches, lambda z: pipeline._pack_latents(pipeline._patchify_latents(z.contiguous())))
    if latents.ndim == 3 and _has(pipeline, "_pack_latents", "_unpack_latents"):

        def unpack(x: Tensor, height: int, width: int) -> Tensor:
            z = pipeline._unpack_latents(x, height, width, pipeline.vae_scale_factor)
            return z.squeeze(2) if z.ndim == 5 else z  # the only frame of a video

        return Layout(unpack, lambda z: pipeline._pack_latents(z.contiguous(), *z.shape))
    raise TypeError(
        f"the latents of {type(pipeline).__name__} have shape {tuple(latents.shape)}, a layout that is not known here; "
        "expected (B, channels, height, width), or tokens with the pipeline's own _pack_latents and _unpack_latents. "
        "Pass constrained(…, layout=fcs_lab.Layout(unpack, pack))"
    )


def _has(pipeline: DiffusionPipeline, *names: str) -> bool:
    return all(hasattr(pipeline, name) for name in names)


class LatentInpainting(Selection):
    """Inpainting in latent space: e = known ⊙ (y − x̂_0) with y the encoding of the image, grey under the mask.

    A latent cell is known only if all of its pixels are (paper's code, and diffusers'). So some known pixels are the
    model's to redraw, and all pass through the VAE.

    Args:
        image, mask: As for `Inpainting`.
        model: The latent model; image sizes are multiples of its VAE's factor.
        keep_known: Put the given pixels back, exactly, into the images that are returned.
        noise_std: σ_y of noise in the known cells, in the latents' units.

    Raises:
        TypeError, ValueError: As for `Inpainting`; a size that the VAE's factor does not divide; a mask that leaves no
            latent cell known.

    Example:
        >>> garment, mask = fcs_lab.load_garments(1)[0], torch.arange(32).ge(16).expand(32, 32)
        >>> task = fcs_lab.LatentInpainting(garment, mask, fcs_lab.load("fashion"))
        >>> task.shape, int(task.known[0, 0].sum())  # of 64 latent cells 32 are known
        ((4, 8, 8), 32)
    """

    @ordinary()
    @typed
    def __init__(
        self,
        image: ImageLike,
        mask: MaskLike,
        model: LatentSpace,
        *,
        keep_known: bool = False,
        noise_std: float = 0.0,
    ):
        task = Inpainting(image, mask, noise_std=noise_std)
        masked = task.y
        model.check_shape(masked, "image", model.image_channels, model.multiple)
        hidden = torch.nn.functional.max_pool2d(task.mask.float(), model.factor) > 0
        if bool(hidden.flatten(1).all(1).any()):
            raise ValueError(
                f"mask hides a pixel of every {model.factor}×{model.factor} latent cell, so that nothing is known in latent "
                "space; expected a mask that leaves whole cells free"
            )
        self.mask, self.image, self.keep_known = task.mask, masked, keep_known
        self.known = (~hidden).to(masked)
        with torch.no_grad():
            latents = model.encode(masked)
        self.known = self.known.to(latents)
        self._measure((self.known * latents).expand(len(masked), -1, -1, -1), task.noise_std)

    def finish(self, images: Tensor) -> Tensor:
        """The decoded images (B, C, H, W), with the known pixels put back if `keep_known`."""
        if not self.keep_known:
            return images
        return torch.where(self.mask.to(images.device), images, self.image.to(images))


FORWARD_STEP = 0.1
"""The largest change of a pixel in `Decoded`'s "forward" difference, in units of images in [-1, 1]."""


class Decoded(ConstraintBase):
    """A task on pixels, imposed on latents through the VAE's decoder D: C(D(x̂_0)). The U-Net is not differentiated.

    Args:
        task: The task, on images.
        model: The latent model.
        derivative: "backward": e = J_Dᵀ e_pixels, a backward pass through the decoder. "forward": a finite difference
            through the encoder E, (E(D(x̂_0) + h e_pixels) − E(D(x̂_0)))/h ≈ J_E e_pixels, which is J_D⁻¹ e_pixels
            where the VAE is a faithful code: no backward pass at all.

    Raises:
        ValueError: The task's images are of a size that the VAE's factor does not divide, or of other channels.
    """

    @typed
    def __init__(self, task: Constraint, model: LatentSpace, *, derivative: Literal["backward", "forward"] = "backward"):
        self.task, self.model, self.derivative = task, model, derivative
        self.batch_size, self.shape = task.batch_size, None
        if task.shape is not None:
            image = torch.empty(1, *task.shape, device="meta")
            model.check_shape(image, "the task's image", model.image_shape[0], model.multiple)
            self.shape = (model.shape[0], *(side // model.factor for side in task.shape[1:]))

    def to(self, device: torch.device, dtype: torch.dtype) -> Decoded:
        moved = copy.copy(self)
        moved.task = self.task.to(device, dtype)
        return moved

    @ordinary()
    def cost_and_error(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        if self.derivative == "forward":
            images = self.model.decode(x0)
            cost, error = self.task.cost_and_error(images)
            size = norm_inf(error)
            h = FORWARD_STEP / size.where(size > 0, 1)
            return cost, (self.model.encode(images + h * error) - self.model.encode(images)).to(x0) / h
        with torch.enable_grad():
            x0 = own_copy(x0.detach()).requires_grad_()
            images = self.model.decode(x0)
            cost, error = self.task.cost_and_error(images.detach())
            return cost.detach(), torch.autograd.grad(images, x0, error)[0]
