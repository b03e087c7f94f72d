"""Latent and text-conditional models: `LatentDenoiser` over diffusers' Stable Diffusion pipelines, and what the tasks
become in their latent space.

The method sees x̂_0 in latent space; images are decoded from it. A task that is given in pixels is carried over by
`in_latents`: inpainting by the latent mask rule, any other through the decoder, never through the U-Net. Prompts and
classifier-free guidance are here as well, in `LatentDenoiser`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from fcs_lab.checks import describe, is_number, typed
from fcs_lab.constraints import Constraint, ConstraintBase, Inpainting, Selection
from fcs_lab.contexts import ordinary, own_copy
from fcs_lab.denoisers import (
    Denoiser,
    as_model,
    at_least_float32,
    estimate_x0,
    frozen,
    left_as_found,
    levels_at,
    prediction_type_of,
)
from fcs_lab.directions import norm_inf
from fcs_lab.images import ImageLike, MaskLike

__all__ = [
    "Decoded",
    "LatentDenoiser",
    "LatentInpainting",
    "LatentSpace",
    "Layout",
    "check_base_model",
    "check_channels",
    "decode",
    "encode",
    "image_shape",
    "in_latents",
    "layout_of",
    "network_of",
]


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

    ```python
    def unpack(tokens, height, width):  # one token a latent cell, row by row
        return tokens.transpose(1, 2).unflatten(2, (height // 8, width // 8))

    layout = fcs_lab.Layout(unpack, pack=lambda z: z.flatten(2).transpose(1, 2))
    ```
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


class LatentDenoiser(LatentSpace):
    """x̂_0 in the latent space of a Stable Diffusion pipeline, for one prompt or one an image.

    Supported are SD 1.x and 2.x, SDXL and SD 3 in diffusers' layout; `fcs_lab.load` makes it. What is sampled is what the
    pipeline is at that moment: its parts are asked for anew, and prompts are encoded by the text encoder that it has then.
    Its VAE's slicing and tiling, and its CPU offload, are diffusers' own and are respected here.

    Args:
        pipeline: A diffusers pipeline, which stays as it is: its networks run frozen and in evaluation mode, and SDXL's VAE,
            which overflows in float16 and says so, in float32 while it runs.
        scheduler: The noise schedule the network was trained on; a rectified flow's, for SD 3. x̂_0 is never clipped
            to [-1, 1], whatever the scheduler says: that is for images.
        prompt, negative_prompt, guidance_scale: As for `with_prompt`.

    Raises:
        ValueError: The network is no base model: it takes more than the VAE's latents (an inpainting or depth model),
            had guidance distilled into it, or is SDXL's refiner.
    """

    any_size = True

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        scheduler: SchedulerMixin,
        prompt: str | list[str] = "",
        negative_prompt: str | list[str] | None = None,
        guidance_scale: float = 1.0,
    ):
        if getattr(pipeline, "vae", None) is None or network_of(pipeline) is None:
            raise TypeError(f"pipeline is {describe(pipeline)}; expected a diffusers pipeline with a VAE")
        self.pipeline, self.scheduler = pipeline, scheduler
        config = self.network.config
        check_base_model(config, self.vae.config)
        if pipeline.config.get("requires_aesthetics_score"):
            raise ValueError("this is SDXL's refiner, which finishes another model's images; expected the base model")
        self.prediction_type = prediction_type_of(scheduler)
        if scheduler.config.get("clip_sample"):
            self.scheduler = type(scheduler).from_config(scheduler.config, clip_sample=False)
        # Some configurations have no size; diffusers' own default is then 64 cells.
        size = config.get("sample_size") or 64
        shape = (config.in_channels, *(size if isinstance(size, list | tuple) else (size, size)))
        super().__init__(pipeline, shape, config.get("patch_size", 1))
        self._set_prompt(prompt, negative_prompt, guidance_scale)
        self._warn_of_unseen_words()

    @property
    def network(self) -> nn.Module:
        """The denoising network: the pipeline's U-Net or transformer."""
        return network_of(self.pipeline)

    @property
    def networks(self) -> list[nn.Module]:
        """All of the pipeline's networks."""
        return [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def tokens(self, shape: tuple[int, ...]) -> int:
        """How many patches the network cuts latents of shape (c, h, w) into."""
        patch = self.multiple // self.factor
        return (shape[-2] // patch) * (shape[-1] // patch)

    def snapshot(self) -> LatentDenoiser:
        """The model for one run: its prompts encoded, by the pipeline's text encoders as they are now."""
        if self._text is not None:
            return self
        other = copy.copy(self)
        with left_as_found(self.networks):
            other._text, other.guided = self._encode_prompts()
        return other

    def with_prompt(
        self, prompt: str | list[str], negative_prompt: str | list[str] | None = None, guidance_scale: float = 7.5
    ) -> LatentDenoiser:
        """The same model, its weights shared, under another prompt.

        Args:
            prompt: What is asked for; one for all images, or one for each. "" is the null prompt. For SD 1.x and 2.x
                its embedding (n, L, D), as `pipeline.encode_prompt` returns it, will do as well.
            negative_prompt: What is guided away from; one, or one for each; an embedding if the prompt is one. None:
                the null prompt, which for SDXL is an embedding of zeros where its configuration says so.
            guidance_scale: s of diffusers' convention: uncond + s (cond − uncond), both in one batch, so an evaluation
                costs two. 1 is no guidance: the prompt alone.

        Raises:
            TypeError, ValueError: An argument of the wrong type, a negative number, lists of different lengths.
        """
        other = copy.copy(self)
        other._set_prompt(prompt, negative_prompt, guidance_scale)
        other._warn_of_unseen_words()
        return other

    def __repr__(self) -> str:
        return (
            f"LatentDenoiser({type(self.pipeline).__name__}, prompt={self.prompt!r}, "
            f"negative_prompt={self.negative_prompt!r}, guidance_scale={self.guidance_scale:g})"
        )

    def __call__(self, x_t: Tensor, t: int | float | Tensor) -> Tensor:
        if self._text is None:
            return self.snapshot()(x_t, t)
        self.check_shape(x_t, "x_t", self.shape[0], self.multiple // self.factor)
        signal, noise = levels_at(self, t, x_t)
        B = len(x_t)
        t = torch.as_tensor(t, device=x_t.device).expand(B)
        x = x_t.to(self.dtype)
        with frozen(self.network):
            if self.guided:  # classifier-free guidance, both branches in one batch
                uncond, cond = self._predict(torch.cat([x, x]), torch.cat([t, t]), B).to(noise.dtype).chunk(2)
                output = uncond + self.guidance_scale * (cond - uncond)
            else:
                output = self._predict(x, t, B).to(noise.dtype)
        return estimate_x0(self.prediction_type, x_t.to(noise.dtype), output, signal, noise).to(x_t.dtype)

    def _set_prompt(
        self,
        prompt: str | list[str] | Tensor,
        negative_prompt: str | list[str] | Tensor | None,
        guidance_scale: float,
    ) -> None:
        """Take the prompt, once checked. Embeddings are ready to use; text is encoded when it is needed (`snapshot`)."""
        if not is_number(guidance_scale) or guidance_scale < 0:
            raise ValueError(f"guidance_scale is {guidance_scale!r}; expected a number of at least 0 (1 is no guidance)")
        if guidance_scale == 1 and negative_prompt is not None:
            warnings.warn("negative_prompt has no effect: guidance_scale is 1, which is no guidance", stacklevel=4)
        self.prompt, self.negative_prompt, self.guidance_scale = prompt, negative_prompt, float(guidance_scale)
        self._text: list[Tensor] | None = None
        self.guided = guidance_scale != 1
        if isinstance(prompt, Tensor):
            self._text, self.guided = _branches(*self._check_embeddings(prompt, negative_prompt, self.guided), self.guided)
            self.num_prompts = len(prompt)
        else:
            self.num_prompts = len(self._prompts()[0])

    def _prompts(self) -> tuple[list[str], list[str] | None]:
        """The prompts and the negative ones, as many of each."""
        prompts = _as_list(self.prompt, "prompt")
        negatives = None if self.negative_prompt is None else _as_list(self.negative_prompt, "negative_prompt")
        n = max(len(prompts), len(negatives or prompts))
        if len(prompts) not in (1, n) or len(negatives or prompts) not in (1, n):
            raise ValueError(
                f"there are {len(negatives)} negative prompts for {len(prompts)} prompts; expected as many, or 1"
            )
        return prompts * (n // len(prompts)), negatives and negatives * (n // len(negatives))

    @torch.no_grad()
    def _encode_prompts(self) -> tuple[list[Tensor], bool]:
        """Of both branches the token embeddings and, where the network takes it, the pooled one; see `_branches`."""
        prompts, negatives = self._prompts()
        encoded = self.pipeline.encode_prompt(
            prompt=prompts,
            negative_prompt=negatives,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=self.guided,
            **({"prompt_2": None, "prompt_3": None} if hasattr(self.pipeline, "transformer") else {}),
        )  # embeddings of the wanted and the unwanted, and for SDXL and SD 3 again, pooled
        return _branches(list(encoded[0::2]), list(encoded[1::2]), self.guided)

    def _warn_of_unseen_words(self) -> None:
        """Name the words that a model whose tokenizer lists all that it was trained with has never seen."""
        tokenizer = getattr(self.pipeline, "tokenizer", None)
        if isinstance(self.prompt, Tensor) or not getattr(tokenizer, "init_kwargs", {}).get("closed_vocabulary"):
            return
        known = {token.content for token in tokenizer.added_tokens_decoder.values()}
        texts = [text for part in self._prompts() for text in part or ()]
        unseen = dict.fromkeys(word for text in texts for word in re.findall(r"\w+", text.lower()) if word not in known)
        if unseen:
            warnings.warn(
                f"the model never saw {', '.join(map(repr, unseen))}; it was not trained on such words", stacklevel=4
            )

    def _check_embeddings(
        self, prompt: Tensor, negative_prompt: object, guided: bool
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        if hasattr(self.pipeline, "text_encoder_2"):
            raise TypeError("prompt is an embedding; expected text: this model takes a pooled embedding beside it")
        width = self.network.config.cross_attention_dim
        if prompt.ndim != 3 or prompt.shape[2] != width or not prompt.is_floating_point():
            raise ValueError(f"prompt is an embedding of shape {tuple(prompt.shape)}; expected (n, tokens, {width})")
        if guided and (not isinstance(negative_prompt, Tensor) or negative_prompt.shape != prompt.shape):
            found = tuple(negative_prompt.shape) if isinstance(negative_prompt, Tensor) else repr(negative_prompt)
            raise ValueError(f"negative_prompt is {found}; expected an embedding like prompt's, {tuple(prompt.shape)}")
        return [prompt], [negative_prompt]

    def _predict(self, x: Tensor, t: Tensor, B: int) -> Tensor:
        """The network's output for x (branches · B, c, h, w)."""
        if self.num_prompts not in (1, B):
            raise ValueError(f"there are {self.num_prompts} prompts for a batch of {B}; expected one, or one for each image")
        text, *pooled = (part.expand(-1, B, *part.shape[2:]).flatten(0, 1).to(x.device, self.dtype) for part in self._text)
        if hasattr(self.pipeline, "transformer"):  # SD 3
            return self.network(
                hidden_states=x, timestep=t, encoder_hidden_states=text, pooled_projections=pooled[0], return_dict=False
            )[0]
        conditions: dict[str, Any] = {}
        if pooled:  # SDXL: the size that the image has, is cropped from and is to have
            size = [side * self.factor for side in x.shape[-2:]]
            conditions["added_cond_kwargs"] = {
                "text_embeds": pooled[0],
                "time_ids": torch.tensor([[*size, 0, 0, *size]], device=x.device, dtype=self.dtype).expand(len(x), -1),
            }
        return self.network(x, t, encoder_hidden_states=text, return_dict=False, **conditions)[0]


BASE = "such as stable-diffusion-v1-5/stable-diffusion-v1-5"


def check_channels(network: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Whether the denoising network, by its configuration and the VAE's, takes the latents and nothing else.

    Raises:
        ValueError: It does not; a base model is named.
    """
    channels, latent_channels = network["in_channels"], vae["latent_channels"]
    if channels != latent_channels:
        raise ValueError(
            f"the denoising network has {channels} input channels, the VAE {latent_channels} latent ones; "
            f"expected as many: load a base model ({BASE}), not an inpainting, depth or upscaling one"
        )


def check_base_model(network: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Whether the denoising network, by its configuration and the VAE's, is one that the method can use.

    Raises:
        ValueError: It is not; a base model is named.
    """
    check_channels(network, vae)
    channels, made = network["in_channels"], network.get("out_channels")
    if made not in (None, channels):
        raise ValueError(
            f"the denoising network has {made} output channels for {channels} input ones, as a "
            f"learned variance needs (out_channels), which is not cut off here; load another base model ({BASE})"
        )
    if network.get("time_cond_proj_dim") is not None:
        raise ValueError(
            "the denoising network had guidance distilled into it (time_cond_proj_dim), so that guidance_scale has no null "
            f"prompt to guide away from; load a base model ({BASE})"
        )


def _branches(wanted: list[Tensor], unwanted: list[Tensor | None], guided: bool) -> tuple[list[Tensor], bool]:
    """Each of the text's tensors as (branches, prompts, …), the unwanted branch first, as diffusers has it.

    Where both branches are the same there is nothing to guide from or to, and one will do, at half the cost.
    """
    guided = guided and not all(map(torch.equal, wanted, unwanted))
    return [torch.stack(parts) for parts in zip(*([unwanted, wanted] if guided else [wanted]), strict=True)], guided


@typed
def encode(model: Denoiser, images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [-1, 1] as the model's x_0: encoded for a latent model, as they are for a pixel model.

    Either way they end up on the model's device.
    """
    return as_model(model).encode(images)


@typed
def decode(model: Denoiser, x0: Tensor) -> Tensor:
    """x̂_0 as images (B, C, H, W): decoded for a latent model, as it is for a pixel model."""
    return as_model(model).decode(x0)


def image_shape(model: Denoiser) -> tuple[int, ...]:
    """(C, H, W) of the images that the model makes, at its own size."""
    return as_model(model).image_shape


@typed
def in_latents(task: Constraint, model: Denoiser) -> Constraint:
    """The task as the model's x̂_0 has to meet it: itself, or for a latent model `LatentInpainting` or `Decoded`."""
    return as_model(model).carry(task)


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


def _as_list(value: str | list[str], name: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(one, str) for one in values):
        raise TypeError(f"{name} is {value!r}; expected a string or a list of strings")
    return list(values)
