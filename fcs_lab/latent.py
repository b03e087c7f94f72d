"""Latent and text-conditional models: `LatentDenoiser` over diffusers' Stable Diffusion pipelines.

The method sees x̂_0 in latent space; images are decoded from it. Prompts and classifier-free guidance are here; the space
itself, and what tasks that are given in pixels become in it, are in `latent_space.py`.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor, nn

from fcs_lab.checks import describe, is_number, typed
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import (
    Denoiser,
    as_model,
    estimate_x0,
    frozen,
    left_as_found,
    levels_at,
    prediction_type_of,
)
from fcs_lab.latent_space import LatentSpace, network_of

__all__ = ["LatentDenoiser", "check_base_model", "check_channels", "decode", "encode", "image_shape", "in_latents"]


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

    Example:
        >>> model = fcs_lab.load("fashion")
        >>> sneakers = model.with_prompt("a photo of a sneaker", guidance_scale=2.0)
        >>> model.shape, model.image_shape, sneakers.guidance_scale
        ((4, 8, 8), (1, 32, 32), 2.0)
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


def _as_list(value: str | list[str], name: str) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values or not all(isinstance(one, str) for one in values):
        raise TypeError(f"{name} is {value!r}; expected a string or a list of strings")
    return list(values)
