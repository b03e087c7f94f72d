"""The method as a diffusers pipeline: `FastConstrainedPipeline`, with `StableDiffusionInpaintPipeline`'s call."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from fcs_lab.checks import is_int, is_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import left_as_found
from fcs_lab.latent import Decoded, LatentDenoiser, LatentInpainting, check_base_model, in_latents
from fcs_lab.sampler import State, StepSize, sample
from fcs_lab.zoo import own_schedule, quiet

with quiet():  # this import asks transformers for an image processor
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput, StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

__all__ = ["FastConstrainedPipeline"]

LAYOUTS = {f"StableDiffusion{task}Pipeline" for task in ("", "Img2Img", "Inpaint")} | {"FastConstrainedPipeline"}
"""The pipeline classes, of those that `fcs_lab.load` takes, whose parts fit."""


class FastConstrainedPipeline(StableDiffusionInpaintPipeline):
    """Inpainting, and any other constraint, with a base Stable Diffusion 1.x or 2.x model.

    It is called as `StableDiffusionInpaintPipeline` is, so that a script works when the class is changed, and needs no
    model that was trained for the task. The work is done by `fcs_lab.sample`; the same seed gives the same images.

    ```python
    pipe = FastConstrainedPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16)
    pipe.to("cuda")
    image = pipe("a cat on a bench", image=photo, mask_image=mask, generator=torch.Generator().manual_seed(0)).images[0]
    ```

    Sampling uses DDIM with the noise schedule of `scheduler`, whichever that is. Everything else, such as `to`, CPU
    offload, LoRA weights, textual inversion, or the safety checker, is diffusers'.

    Raises:
        ValueError: The U-Net is not a base model's: it has 9 input channels (an inpainting model), SDXL's conditions,
            or no null prompt.
    """

    _callback_tensor_inputs = ["latents", "prompt_embeds", "x0"]  # noqa: RUF012 (diffusers has it so)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection = None,
        requires_safety_checker: bool = True,
    ):
        if unet is not None and vae is not None:
            check_base_model(unet.config, vae.config)
            if unet.config.addition_embed_type is not None:
                raise ValueError(
                    f"the U-Net takes added conditions ({unet.config.addition_embed_type}), as SDXL's does; {_others()}"
                )
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        channels = vae.config.in_channels if vae is not None else 3
        self.image_processor = VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_convert_rgb=channels == 3, do_convert_grayscale=channels == 1
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, from a hub id or a folder of a base model.

        Raises:
            ValueError: The model is of another layout (SDXL, SD 3, …), or see the class.
        """
        hub = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
        index = cls.load_config(pretrained_model_name_or_path, **{name: kwargs[name] for name in hub if name in kwargs})
        _check_layout(f"{pretrained_model_name_or_path} is a {index.get('_class_name')}", index.get("_class_name"))
        with quiet(loading_bars=not Path(pretrained_model_name_or_path).is_dir()):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """From a pipeline that is there, sharing its parts, in its U-Net's precision (diffusers' default: float32).

        Raises:
            ValueError: The pipeline is of another layout (SDXL, SD 3, …), or see the class.
        """
        _check_layout(f"pipeline is a {type(pipeline).__name__}", type(pipeline).__name__)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", pipeline.unet.dtype)
        return super().from_pipe(pipeline, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: PipelineImageInput = None,
        mask_image: PipelineImageInput = None,
        masked_image_latents: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 20,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        ip_adapter_image: PipelineImageInput | None = None,
        ip_adapter_image_embeds: list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        constraint: Constraint | None = None,
        inner_steps: int | Sequence[int] = 5,
        step_size: StepSize = (0.5, 0.1),
        direction: str = "newton",
        fd_step: float | None = None,
        keep_known: bool = False,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Inpaint, or meet another constraint.

        What is not described here is as in `StableDiffusionInpaintPipeline`: images and arrays in [0, 1], masks white
        where something is to be filled in and cut at 0.5, both resized to height × width.

        Args:
            prompt: None, without `prompt_embeds`: the empty prompt, which is the paper's.
            image, mask_image: For inpainting; both or neither. Several are dealt out over the batch in turn, and with
                one prompt and one image a prompt they make the batch.
            height, width: None: the constraint's, or else those the model was trained for.
            padding_mask_crop: As in diffusers: inpaint the surroundings of the mask enlarged, and put them back.
            strength: Only 1.0: the method starts from noise.
            num_inference_steps: T', the paper's 20.
            guidance_scale: As in diffusers, on if above 1.
            eta: Of DDIM. None: 1, the paper's.
            latents: The noise to start from, (B, c, height/factor, width/factor).
            output_type: "pil", "np", "pt", or "latent".
            callback_on_step_end: (pipe, step, timestep, tensors) after each timestep. What it returns may replace
                "latents" and "prompt_embeds" (with guidance: both branches, unwanted first), `pipe._guidance_scale = 0`
                ends guidance, and `pipe._interrupt = True` the run, whose result is then the last x̂_0.
            callback_on_step_end_tensor_inputs: Of "latents" (x_t), "x0" (x̂_0, to look at) and "prompt_embeds".
            constraint: Any constraint of fcs_lab, instead of `image` and `mask_image`.
            inner_steps, step_size, direction, fd_step: As for `fcs_lab.sample`.
            keep_known: Put the known pixels back, exactly, as `LatentInpainting` does.
            masked_image_latents, timesteps, sigmas, ip_adapter_image, ip_adapter_image_embeds, cross_attention_kwargs:
                Refused.

        Returns:
            The images, with the safety checker's verdicts if there is one (else None).

        Raises:
            TypeError, ValueError: An argument is wrong or cannot be honoured; it is named.
        """
        _refuse(
            masked_image_latents=masked_image_latents,
            timesteps=timesteps,
            sigmas=sigmas,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            cross_attention_kwargs=cross_attention_kwargs,
        )
        if clip_skip is not None and not hasattr(self.text_encoder, "text_model"):
            raise ValueError(f"clip_skip is {clip_skip}, which diffusers cannot honour with this version of transformers")
        _check(strength, num_inference_steps, guidance_scale, num_images_per_prompt, output_type)
        _check_task(constraint, image, mask_image, padding_mask_crop, keep_known)
        prompt = "" if prompt is None and prompt_embeds is None else prompt
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        height, width = self._size(height, width, constraint)
        self.check_inputs(
            prompt,
            image,
            mask_image,
            height,
            width,
            strength,
            None,
            output_type,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            padding_mask_crop=padding_mask_crop,
        )
        self._guidance_scale, self._clip_skip, self._cross_attention_kwargs = guidance_scale, clip_skip, None
        self._num_timesteps, self._interrupt = num_inference_steps, False
        guided = self.do_classifier_free_guidance

        with left_as_found([] if self.text_encoder is None else [self.text_encoder]):
            prompt_embeds, negative_prompt_embeds = self.encode_prompt(
                prompt,
                self._execution_device,
                num_images_per_prompt,
                guided,
                negative_prompt,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                clip_skip=clip_skip,
            )
        model = LatentDenoiser(
            self,
            own_schedule("the pipeline", self.scheduler),
            prompt_embeds,
            negative_prompt_embeds if guided else None,
            guidance_scale if guided else 1.0,
        )
        model.shape = (model.shape[0], height // model.factor, width // model.factor)
        batch_size, crop = len(prompt_embeds), None
        if constraint is None:
            if padding_mask_crop is not None:
                crop = self.mask_processor.get_crop_region(mask_image, width, height, pad=padding_mask_crop)
            images, masks = self._preprocess(image, mask_image, height, width, crop)
            batch_size, images, masks = _deal_out(batch_size, images, masks)
            task = LatentInpainting(images, masks, model, keep_known=keep_known)
        else:
            task = in_latents(constraint, model)
            batch_size = task.batch_size or 1 if batch_size == 1 else batch_size
        if latents is not None and tuple(latents.shape) != (batch_size, *model.shape):
            raise ValueError(f"latents has shape {tuple(latents.shape)}; expected {(batch_size, *model.shape)}")

        with self.progress_bar(total=num_inference_steps) as progress_bar:
            text = torch.cat([negative_prompt_embeds, prompt_embeds]) if guided else prompt_embeds
            result = sample(
                model,
                task,
                num_inference_steps=num_inference_steps,
                inner_steps=inner_steps,
                step_size=step_size,
                direction=direction,
                fd_step=fd_step,
                eta=eta,
                batch_size=batch_size,
                generator=generator,
                x_T=latents,
                callback_on_step_end=_Callback(
                    self, model, text, progress_bar, callback_on_step_end, callback_on_step_end_tensor_inputs
                ),
                progress=False,
            )
        if output_type == "latent":
            output, nsfw = result.x0.to(prompt_embeds.dtype), None
        else:
            output, nsfw = self.run_safety_checker(result.images, self._execution_device, prompt_embeds.dtype)
            in_range = None if nsfw is None else [not found for found in nsfw]  # what the checker blackened is 0, not −1
            output = self.image_processor.postprocess(output, output_type=output_type, do_denormalize=in_range)
        if crop is not None:
            output = [self.image_processor.apply_overlay(mask_image, image, one, crop) for one in output]
        self.maybe_free_model_hooks()
        if not return_dict:
            return output, nsfw
        return StableDiffusionPipelineOutput(images=output, nsfw_content_detected=nsfw)

    def _size(self, height: int | None, width: int | None, constraint: Constraint | None) -> tuple[int, int]:
        """The images' height and width: those given, the constraint's, or those of the model."""
        factor = self.vae_scale_factor
        own = [self.unet.config.sample_size * factor] * 2
        if constraint is not None and constraint.shape is not None:
            in_latent_space = isinstance(constraint, LatentInpainting | Decoded)
            own = [side * (factor if in_latent_space else 1) for side in constraint.shape[1:]]
            for name, side, expected in zip(("height", "width"), (height, width), own, strict=True):
                if side not in (None, expected):
                    raise ValueError(f"{name} is {side}; the constraint's images have {expected}")
        height, width = (one if given is None else given for given, one in zip((height, width), own, strict=True))
        for name, side in {"height": height, "width": width}.items():
            if not is_int(side) or side < 1:
                raise ValueError(f"{name} is {side!r}; expected a positive whole number")
            if side % factor:
                near = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name} is {side}; the VAE needs a multiple of {factor}: the nearest is {near}")
        return height, width

    def _preprocess(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        height: int,
        width: int,
        crop: tuple[int, int, int, int] | None,
    ) -> tuple[Tensor, Tensor]:
        """Images (n, C, height, width) in [-1, 1] and masks (m, 1, height, width) of 0 and 1."""
        how = {"height": height, "width": width, "crops_coords": crop, "resize_mode": "fill" if crop else "default"}
        images = self.image_processor.preprocess(image, **how).float()
        masks = self.mask_processor.preprocess(mask_image, **how).float()
        channels = self.vae.config.in_channels
        if images.shape[1] != channels:
            raise ValueError(
                f"image has {images.shape[1]} channels; expected {channels}, of an image (latents are not taken)"
            )
        if not images.abs().max() <= 1 + 1e-4:
            raise ValueError(
                "image has values outside [0, 1], or NaN; expected a PIL image, or an array or tensor in [0, 1]"
            )
        return images, masks


class _Callback:
    """`sample`'s callback that does what one of diffusers may do: see "latents" and "prompt_embeds", and change them,
    the guidance scale, or `_interrupt`."""

    def __init__(
        self,
        pipe: FastConstrainedPipeline,
        model: LatentDenoiser,
        text: Tensor,
        progress_bar: Any,
        callback: Callable[..., dict[str, Any] | None] | None,
        names: Sequence[str],
    ):
        self.pipe, self.model, self.progress_bar, self.callback, self.names = pipe, model, progress_bar, callback, names
        self.text, self.scale = text, pipe.guidance_scale

    def __call__(self, state: State, step: int, t: int | float, _: dict[str, Tensor]) -> dict[str, Tensor]:
        self.progress_bar.update()
        tensors = {"latents": state.x_t, "x0": state.x0, "prompt_embeds": self.text}
        if self.callback is not None:
            seen = {name: tensors[name] for name in self.names}
            tensors |= self.callback(self.pipe, step, torch.as_tensor(t), seen) or {}
        self._guide(tensors["prompt_embeds"])
        state.interrupt = self.pipe.interrupt
        return {"x_t": tensors["latents"]}

    def _guide(self, text: Tensor) -> None:
        """Bring the text and the guidance scale, if they were changed, to the model."""
        if text is self.text and self.pipe.guidance_scale == self.scale:
            return
        guided = self.pipe.do_classifier_free_guidance
        if guided and len(text) % 2:
            raise ValueError(f"prompt_embeds holds {len(text)}; with guidance expected both branches, unwanted first")
        if not guided and text is self.text and self.scale > 1:
            text = text.chunk(2)[1]  # only the scale was changed: the wanted branch is left
        unwanted, wanted = text.chunk(2) if guided else (None, text)
        self.model._set_prompt(wanted, unwanted, self.pipe.guidance_scale if guided else 1.0)
        self.text, self.scale = text, self.pipe.guidance_scale


def _others() -> str:
    return "expected SD 1.x or 2.x: for SDXL and SD 3 use fcs_lab.load and fcs_lab.sample"


def _check_layout(found: str, kind: object) -> None:
    if kind not in LAYOUTS:
        raise ValueError(f"{found}; {_others()}")


def _refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} is given; FastConstrainedPipeline cannot honour it: leave it out")


def _check(
    strength: float, num_inference_steps: int, guidance_scale: float, num_images_per_prompt: int, output_type: str
) -> None:
    if not is_number(strength) or strength != 1:
        raise ValueError(f"strength is {strength!r}; expected 1.0: the method starts from noise, not from the image")
    if not is_number(guidance_scale):
        raise ValueError(f"guidance_scale is {guidance_scale!r}; expected a number (1 or less is no guidance)")
    for name, value in {"num_inference_steps": num_inference_steps, "num_images_per_prompt": num_images_per_prompt}.items():
        if not is_int(value) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"output_type is {output_type!r}; expected 'pil', 'np', 'pt' or 'latent'")


def _check_task(
    constraint: Constraint | None,
    image: PipelineImageInput,
    mask_image: PipelineImageInput,
    padding_mask_crop: int | None,
    keep_known: bool,
) -> None:
    """That it is either inpainting or a constraint, and that what is to be cropped to has something in it."""
    inpainting = {"image": image, "mask_image": mask_image, "padding_mask_crop": padding_mask_crop}
    if constraint is not None:
        for name, value in (inpainting | {"keep_known": keep_known or None}).items():
            if value is not None:
                raise ValueError(f"{name} is given together with constraint; expected the one or the other")
        return
    for name in ("image", "mask_image"):
        if inpainting[name] is None:
            raise ValueError(f"{name} is missing; expected image and mask_image, or a constraint")
    if padding_mask_crop is not None and isinstance(mask_image, Image.Image) and mask_image.convert("L").getbbox() is None:
        raise ValueError("mask_image is empty: nothing is to be filled in; expected some white pixels")


def _deal_out(batch_size: int, images: Tensor, masks: Tensor) -> tuple[int, Tensor, Tensor]:
    """The batch size, and the images and masks repeated in turn to fill it, as diffusers repeats them."""
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
    return batch_size, images, masks
