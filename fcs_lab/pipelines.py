"""The method as a diffusers pipeline: `FastConstrainedPipeline`, with `StableDiffusionInpaintPipeline`'s call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from torch import Tensor

from fcs_lab.checks import check_count, check_generator, describe, is_int, is_number
from fcs_lab.constrained import ConstrainedRun, check_pipeline, constrained
from fcs_lab.constraints import Constraint, Inpainting
from fcs_lab.directions import EVALUATIONS
from fcs_lab.families import family_of, takes_a_callback, takes_an_interrupt, what_it_takes
from fcs_lab.inpainting_inputs import Preparation, processor
from fcs_lab.latent import LatentDenoiser, check_channels
from fcs_lab.latent_space import Decoded, LatentInpainting, network_of
from fcs_lab.sampler import Result, StepSize, sample
from fcs_lab.zoo import load_pipeline, own_schedule, quiet

with quiet():  # this import asks transformers for an image processor
    from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

__all__ = ["FastConstrainedPipeline"]

DIFFERENTIABLE = ("Stable Diffusion 1.x, 2.x", "Stable Diffusion XL", "Stable Diffusion 3")
"""The families that `sample` can drive, as a `LatentDenoiser`, and that so have derivatives to give."""

PASSED_ON = (
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "timesteps",
    "sigmas",
    "guidance_scale",
    "generator",
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "ip_adapter_image",
    "ip_adapter_image_embeds",
    "cross_attention_kwargs",
    "clip_skip",
    "callback_on_step_end",
)
"""Arguments that are the pipeline's own, where they are given."""

Callback = Callable[..., "dict[str, Any] | None"] | PipelineCallback | MultiPipelineCallbacks


class FastConstrainedPipeline:
    """Inpainting, and any other constraint, with any text-to-image pipeline of diffusers that `constrained` takes.

    It is called as `StableDiffusionInpaintPipeline` is, so that a script works when the class is changed, and needs no
    model that was trained for the task.

    ```python
    pipe = FastConstrainedPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16)
    pipe.to("cuda")
    image = pipe("a cat on a bench", image=photo, mask_image=mask, generator=torch.Generator().manual_seed(0)).images[0]
    ```

    It stands around the pipeline that does the work: whatever is asked of it or set that is not described here (`to`, CPU
    offload, LoRA weights, `scheduler`, the safety checker, …) is that pipeline's.

    Args:
        pipeline: The text-to-image pipeline; `from_pipe` takes others of the same parts.

    Raises:
        TypeError, ValueError: As for `constrained`; a network that takes more than the VAE's latents (an inpainting model).

    Example:
        >>> pipe = fcs_lab.pipelines.FastConstrainedPipeline(fcs_lab.load("fashion").pipeline)
        >>> pipe.set_progress_bar_config(disable=True)
        >>> image = fcs_lab.to_pil(fcs_lab.load_garments(1)[0])[0]
        >>> mask = torch.arange(32).ge(16).expand(32, 32)
        >>> found = pipe("a photo of a dress", image=image, mask_image=mask, num_inference_steps=2, inner_steps=1)
        >>> found.images[0].size
        (32, 32)
    """

    pipeline: DiffusionPipeline

    def __init__(self, pipeline: DiffusionPipeline):
        check_pipeline(pipeline)
        family, unet = family_of(pipeline), getattr(pipeline, "unet", None)
        if family is not None and unet is not None:
            check_channels(unet.config, pipeline.vae.config)
        object.__setattr__(self, "pipeline", pipeline)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> FastConstrainedPipeline:
        """As in diffusers, from a folder, a single file or a hub id; safely, as `fcs_lab.zoo.load_pipeline` reads them."""
        return cls.from_pipe(load_pipeline(pretrained_model_name_or_path, **kwargs))

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> FastConstrainedPipeline:
        """Around a pipeline that is there; an inpainting or image-to-image one's parts go into a text-to-image one.

        Keywords are diffusers': other parts (safety_checker=None), or a dtype; without one it stays as it is.
        """
        if isinstance(pipeline, DiffusionPipeline) and what_it_takes(type(pipeline)) is not None:
            with suppress(ValueError), quiet():  # there may be none of its family; what it takes is said below
                from diffusers import AutoPipelineForText2Image  # which imports every pipeline there is

                pipeline = AutoPipelineForText2Image.from_pipe(pipeline)
        if kwargs:
            if "torch_dtype" not in kwargs:
                kwargs.setdefault("dtype", network_of(pipeline).dtype)
            pipeline = type(pipeline).from_pipe(pipeline, **kwargs)
        return cls(pipeline)

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # not made yet, as when it is copied
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.pipeline, name, value)

    def __repr__(self) -> str:
        return f"FastConstrainedPipeline({type(self.pipeline).__name__})"

    def to(self, *arguments: Any, **options: Any) -> FastConstrainedPipeline:
        """Move or cast the pipeline, as diffusers' `to` does."""
        self.pipeline.to(*arguments, **options)
        return self

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
        guidance_scale: float | None = None,
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
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        constraint: Constraint | None = None,
        inner_steps: int | Sequence[int] = 5,
        step_size: StepSize = (0.5, 0.1),
        direction: str = "newton",
        fd_step: float | None = None,
        keep_known: bool = False,
        **others: Any,
    ) -> StableDiffusionPipelineOutput | tuple:
        """Inpaint, or meet another constraint.

        What is not described here is as in `StableDiffusionInpaintPipeline`, and the pipeline's own: an argument that it
        does not take is refused, and others that it takes are passed on.

        Args:
            prompt: None, without `prompt_embeds`: the empty prompt, which is the paper's.
            image: To be filled in: PIL images, or arrays and tensors in [0, 1]; resized to height × width.
            mask_image: White where something is to be filled in: PIL images; Booleans; whole numbers of 0 and 1 or up to
                255; or floating-point numbers in [0, 1]. Cut at half of that range, and resized to height × width. Several
                images and masks are dealt out over the batch in turn; with one prompt and one image a prompt they make it.
            height, width: None: the constraint's, or else those that the model was trained for.
            padding_mask_crop: As in diffusers: inpaint the surroundings of the mask enlarged, and put them back.
            strength: Only 1.0: the method starts from noise.
            num_inference_steps: T', the paper's 20.
            guidance_scale: None: the pipeline's own default.
            eta: Of the steps. None: 1, the paper's, and 0 for a rectified flow.
            output_type: "pil", "np", "pt", or "latent".
            callback_on_step_end: (pipe, step, timestep, tensors) after each timestep. What it returns may replace tensors,
                and `pipe._interrupt = True` ends the run, whose result is then the last x̂_0.
            callback_on_step_end_tensor_inputs: Those that the pipeline has, and "x0" (x̂_0, to look at).
            constraint: Any constraint of fcs_lab, instead of `image` and `mask_image`.
            inner_steps, step_size, fd_step: As for `fcs_lab.sample`.
            direction: "newton" or "identity"; for Stable Diffusion (1.x, 2.x, XL, 3) any of `sample`'s, which then does the
                work: with prompts, guidance, generators and latents, and nothing else.
            keep_known: Put the known pixels back, exactly.

        Returns:
            The images, with the safety checker's verdicts if there is one (else None).

        Raises:
            TypeError, ValueError: An argument is wrong or cannot be honoured; it is named.
        """
        arguments, pipe = locals(), self.pipeline
        if masked_image_latents is not None:
            raise ValueError("masked_image_latents is given, which only an inpainting model has a use for: leave it out")
        if not is_number(strength) or strength != 1:
            raise ValueError(f"strength is {strength!r}; expected 1.0: the method starts from noise, not from the image")
        if not isinstance(output_type, str) or output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; expected 'pil', 'np', 'pt' or 'latent'")
        if guidance_scale is not None and not is_number(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale!r}; expected a number, or None")
        if clip_skip is not None and not hasattr(getattr(pipe, "text_encoder", None), "text_model"):
            raise ValueError(f"clip_skip is {clip_skip}, which diffusers cannot honour with this version of transformers")
        for name in ("prompt", "negative_prompt"):
            texts = arguments[name] if isinstance(arguments[name], list) else [arguments[name]]
            if not all(isinstance(one, str | None) for one in texts) or not texts:
                raise TypeError(f"{name} is {describe(arguments[name])}; expected a text, a list of texts, or None")
        if None not in (prompt, negative_prompt) and type(prompt) is not type(negative_prompt):
            raise TypeError(f"negative_prompt is {negative_prompt!r} for prompt {prompt!r}; expected two texts or two lists")
        check_generator(generator)
        check_count("num_inference_steps", num_inference_steps, 1)
        each = check_count("num_images_per_prompt", num_images_per_prompt, 1, 1024)
        asked = {name: arguments[name] for name in PASSED_ON} | others
        if prompt is None and prompt_embeds is None:
            asked["prompt"] = ""
        asked = {name: value for name, value in asked.items() if value is not None}
        takes = inspect.signature(type(pipe).__call__).parameters
        for name in asked:
            if name not in takes:
                raise ValueError(f"{name} is given, which {type(pipe).__name__} does not take: leave it out")
        if "negative_prompt_embeds" in asked and "negative_prompt" in takes:
            asked.setdefault("negative_prompt", None)  # some pipelines' default is "", which they refuse beside embeddings
        height, width = self._size(height, width, constraint)
        batch_size = each * (
            len(asked["prompt"]) if isinstance(asked.get("prompt"), list) else len(asked.get("prompt_embeds", [0]))
        )
        inputs = None
        if constraint is None:
            inputs = Preparation(pipe, image, mask_image, height, width, padding_mask_crop, batch_size)
            constraint = Inpainting(inputs.images, inputs.masks)
        else:
            for name in ("image", "mask_image", "padding_mask_crop", "keep_known"):
                if arguments[name] is not None and arguments[name] is not False:
                    raise ValueError(f"{name} is given together with constraint; expected the one or the other")
        if batch_size == 1:  # one prompt and one image a prompt: the task's images make the batch
            each = constraint.batch_size or 1
        asked |= {"height": height, "width": width, "num_images_per_prompt": each}
        settings = {"inner_steps": inner_steps, "step_size": step_size, "fd_step": fd_step, "eta": eta}
        names = callback_on_step_end_tensor_inputs
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            names = callback_on_step_end.tensor_inputs
        if not isinstance(direction, str):
            raise TypeError(f"direction is {describe(direction)}; expected a name such as 'newton'")
        if direction in EVALUATIONS:
            result, latents = self._constrained(constraint, direction, settings, asked, names)
        else:
            result, latents = self._sampled(constraint, direction, settings, asked)
        if output_type == "latent":
            output, nsfw = latents, None
        else:
            output, nsfw = result.images, None
            if keep_known:
                output = torch.where(constraint.mask.to(output.device), output, inputs.images.to(output))
            if getattr(pipe, "safety_checker", None) is not None:
                output, nsfw = pipe.run_safety_checker(output, pipe._execution_device, network_of(pipe).dtype)
            in_range = None if nsfw is None else [not found for found in nsfw]  # what the checker blackened is 0, not −1
            output = processor(pipe).postprocess(output, output_type=output_type, do_denormalize=in_range)
        output = output if inputs is None else inputs.put_back(output)
        pipe.maybe_free_model_hooks()
        if not return_dict:
            return output, nsfw
        return StableDiffusionPipelineOutput(images=output, nsfw_content_detected=nsfw)

    def _constrained(
        self, task: Constraint, method: str, settings: dict[str, Any], asked: dict[str, Any], names: Sequence[str]
    ) -> tuple[Result, Tensor]:
        """By the pipeline's own loop: the result, and the latents as the pipeline keeps them."""
        with constrained(self.pipeline, task, method=method, **settings) as run:
            if "callback_on_step_end" in asked:
                asked["callback_on_step_end"] = _each_timestep(self, run, asked["callback_on_step_end"], names)
            if takes_a_callback(type(self.pipeline)):
                asked["callback_on_step_end_tensor_inputs"] = [name for name in names if name != "x0"]
            with suppress(_Interrupted):
                self.pipeline(**asked, output_type="latent")
            result = run.result
        return result, run.call.layout.pack(result.x0).to(network_of(self.pipeline).dtype)

    def _sampled(
        self, task: Constraint, direction: str, settings: dict[str, Any], asked: dict[str, Any]
    ) -> tuple[Result, Tensor]:
        """By `sample`, where the direction takes derivatives of the network."""
        pipe, family = self.pipeline, family_of(self.pipeline)
        if family is None or family.name not in DIFFERENTIABLE:
            known = ", ".join(map(repr, EVALUATIONS))
            raise ValueError(
                f"direction is {direction!r}; expected {known}: a {type(pipe).__name__} has no derivatives to give"
            )
        height, width, each = (asked.pop(name) for name in ("height", "width", "num_images_per_prompt"))
        scale = asked.pop("guidance_scale", inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)
        prompts, negative = asked.pop("prompt", None), asked.pop("negative_prompt", None)
        steps, generator, x_T = asked.pop("num_inference_steps"), asked.pop("generator", None), asked.pop("latents", None)
        if asked:
            raise ValueError(f"{next(iter(asked))} is given, which cannot be honoured with direction {direction!r}")
        prompts = [prompt for prompt in ([prompts] if isinstance(prompts, str) else prompts) for _ in range(each)]
        guided = scale > 1  # as diffusers' pipelines have it
        model = LatentDenoiser(
            pipe, own_schedule("the pipeline", pipe.scheduler), prompts, negative if guided else None, scale if guided else 1
        )
        model.shape = (model.shape[0], height // model.factor, width // model.factor)
        settings |= {"num_inference_steps": steps, "direction": direction, "generator": generator, "x_T": x_T}
        progress = not getattr(pipe, "_progress_bar_config", {}).get("disable", False)
        result = sample(model, task, **settings, batch_size=len(prompts), progress=progress)
        return result, result.x0.to(model.dtype)

    def _size(self, height: int | None, width: int | None, constraint: Constraint | None) -> tuple[int, int]:
        """The images' height and width: those given, the constraint's, or those of the model."""
        factor = self.pipeline.vae_scale_factor
        cells = network_of(self.pipeline).config.get("sample_size") or getattr(self.pipeline, "default_sample_size", 64)
        own = [side * factor for side in (cells if isinstance(cells, list | tuple) else (cells, cells))]
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
            if side > 2**16:
                raise ValueError(f"{name} is {side}; expected at most {2**16}")
            if side % factor:
                near = max(factor, round(side / factor) * factor)
                raise ValueError(f"{name} is {side}; the VAE needs a multiple of {factor}: the nearest is {near}")
        return int(height), int(width)


class _Interrupted(Exception):
    """Ends the loop of a pipeline that looks at no `_interrupt`."""


def _each_timestep(
    pipe: FastConstrainedPipeline, run: ConstrainedRun, callback: Callback, names: Sequence[str]
) -> Callable[..., dict[str, Any]]:
    """A callback for the pipeline, which calls one every evaluation, that calls the user's every timestep."""

    def called(_: DiffusionPipeline, evaluation: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
        call = run.call
        if not call.at_timestep_end:
            return {}
        i, T = call.watch.i - 1, len(call.schedule.timesteps)
        pipe._num_timesteps = T
        seen = tensors | ({"x0": call.x0} if "x0" in names else {})
        changed = callback(pipe, i, torch.as_tensor(call.schedule.timesteps[i]), seen) or {}
        if call.completed and "latents" in changed:
            call.x0 = call.unpack(changed["latents"])
        if getattr(pipe, "_interrupt", False) and not takes_an_interrupt(type(pipe.pipeline)):
            raise _Interrupted
        return {name: value for name, value in changed.items() if name != "x0"}

    return called
