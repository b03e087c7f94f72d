"""Layer inference: the K images that one composite is made of, and the masks that say where each of them is seen.

y = Σ_k m_k ⊙ x_k with Σ_k m_k = 1 (the task of the paper's first version). Neither the layers nor the masks are known.
Given the masks, the layers are sampled jointly under that constraint by Algorithm 1; given the layers, the masks have a
closed form. `infer_layers` takes turns, a timestep at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fcs_lab.checks import check_count, check_tensor, is_int, is_number, refuse_meta, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, Model, as_model, levels_at
from fcs_lab.images import ImageLike, to_channels, to_tensor
from fcs_lab.layered import LayeredComposite, LayersResult, blurred
from fcs_lab.precision import at_least_float32
from fcs_lab.sampler import StepSize, sample
from fcs_lab.trace import Callback, State

__all__ = ["infer_layers", "infer_masks", "late_inner_steps"]

LARGEST_RESIDUAL = 4.0  # of two images in [-1, 1], squared


@ordinary()
@typed
def infer_masks(
    composite: Tensor, layers: Tensor, temperature: float, smoothness: float = 0.0, scribbles: Tensor | None = None
) -> Tensor:
    """The masks for given layers: m = softmax_k(−r_k/2τ), r_k the squared residual (y − x_k)² averaged locally.

    These minimise Σ_k m_k (r_k/2 + τ log m_k) over all m with Σ_k m_k = 1: each pixel is the more a layer's, the better
    that layer and its neighbourhood explain it; τ is what a doubt is worth.

    Args:
        composite: y (B, C, H, W).
        layers: x_k (B, K, C, H, W).
        temperature: τ > 0, in units of squared grey levels of [-1, 1], averaged over the channels.
        smoothness: The standard deviation of the Gaussian neighbourhood, in pixels; the prior that a pixel belongs to
            the same layer as those about it.
        scribbles: int64 (B, H, W): the layer that a pixel is known to belong to, or −1.

    Returns:
        (B, K, H, W).
    """
    check_tensor("composite", composite, "B", "C", "H", "W")
    check_tensor("layers", layers, len(composite), "K", *composite.shape[1:])
    if not is_number(temperature) or temperature <= 0:
        raise ValueError(f"temperature is {temperature!r}; expected a positive number")
    _check_smoothness(smoothness)
    if scribbles is not None:
        _check_scribbles(scribbles, composite, layers.shape[1])
    residual = (composite[:, None] - layers).square().mean(2).detach()
    if scribbles is None:
        return (-blurred(residual, smoothness) / (2 * temperature)).softmax(1)
    told = (scribbles >= 0)[:, None]
    one_hot = torch.nn.functional.one_hot(scribbles.clamp_min(0), residual.shape[1]).movedim(-1, 1).to(residual)
    residual = torch.where(told, LARGEST_RESIDUAL * (1 - one_hot), residual)  # so that the neighbourhood hears of it
    masks = (-blurred(residual, smoothness) / (2 * temperature)).softmax(1)
    return torch.where(told, one_hot, masks)


@typed
def late_inner_steps(num_inference_steps: int, inner_steps: int = 5) -> list[int]:
    """None at the first three tenths of the timesteps, where the masks cannot be told apart, `inner_steps` at each other."""
    check_count("num_inference_steps", num_inference_steps, 1, 10_000)
    check_count("inner_steps", inner_steps, 0, 10_000)
    return [inner_steps * (10 * step >= 3 * num_inference_steps) for step in range(num_inference_steps)]


@ordinary()
def infer_layers(
    model: Denoiser,
    composite: ImageLike,
    num_layers: int = 2,
    *,
    prompts: Sequence[str] | Sequence[Sequence[str]] | None = None,
    guidance_scale: float | None = None,
    masks: Tensor | np.ndarray | None = None,
    scribbles: Tensor | np.ndarray | None = None,
    known_layers: Mapping[int, ImageLike] | None = None,
    starts: int = 1,
    num_inference_steps: int = 10,
    inner_steps: int | Sequence[int] | None = None,
    step_size: StepSize = (0.5, 0.1),
    direction: str = "newton",
    eta: float | None = None,
    fd_step: float | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    temperature: tuple[float, float] = (0.1, 0.02),
    smoothness: float = 1.5,
    callback_on_step_end: Callback | None = None,
    progress: bool = True,
) -> LayersResult:
    """The layers and masks of a composite, y = Σ m_k ⊙ x_k: x_k sampled jointly by Algorithm 1, m_k inferred between steps.

    Nothing but their noise tells the layers apart at first: all start with equal masks, and what one happens to explain
    better than the others becomes its own as the temperature falls. So another seed may well split a composite in
    another way, or not at all; scribbles, prompts or a known layer break the tie. Where all layers agree (a common
    background), the masks stay undecided, and rightly so.

    Args:
        model: A denoiser of single layers; in a latent model the layers are decoded, and the masks are at the size of
            the images.
        composite: y: an image, or several of one size, in any form that `to_tensor` takes; grey will do for a
            colour model.
        num_layers: K, at least 1 and at most as many as the composite has pixels.
        prompts: For a text-conditional model: K prompts, one a layer; or such a list for each composite. None: the
            model's own.
        guidance_scale: Of the prompts. None: 7.5, as in `load`.
        masks: Fixed masks, (K, H, W) or (B, K, H, W), at least 0, which sum to 1 over K: then only layers are inferred.
        scribbles: Whole numbers (H, W) or (B, H, W): k where a pixel is known to belong to layer k, −1 elsewhere.
        known_layers: Layer -> its image, one for all composites or one each. It is not sampled.
        starts: How many times each composite is taken apart, from other noise and in one batch; what explains it best is
            kept (see `LayersResult.costs`). The evaluations are as many times as many.
        num_inference_steps, step_size, direction, eta, fd_step: As for `sample`.
        inner_steps: As for `sample`. None: none at the first three tenths of the timesteps, 5 at each of the others. While
            the masks are undecided every layer is drawn to the whole composite, and layers that agree stay so.
        generator: One for all, or a list with one a composite; then each comes out as it would alone. Several starts have
            generators of their own, whose seeds are drawn from it.
        temperature: τ of the masks (see `infer_masks`), (at pure noise, at the end); between them it falls with the
            share of noise in x_t: 1 − ᾱ_t, or σ²/(σ² + (1 − σ)²) of a rectified flow.
        smoothness: Of the masks, in pixels; see `infer_masks`.
        callback_on_step_end: Called as (state, step_index, timestep, {"x_t": …, "x0": …, "layers": …, "masks": …})
            after each timestep, the layers as images and shaped as in the result; of several starts, with a leading
            B · starts. As for `sample` it may return a new "x_t", and `state.interrupt = True` ends the run.
        progress: Show a progress bar.

    Returns:
        Layers and masks, with their traces and the evaluations counted.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.

    Example:
        >>> model, composite = fcs_lab.load("mnist"), fcs_lab.load_digits(1)[0]
        >>> found = fcs_lab.infer_layers(model, composite, 2, num_inference_steps=2, inner_steps=1, progress=False)
        >>> tuple(found.layers.shape), tuple(found.masks.shape)
        ((2, 1, 32, 32), (2, 32, 32))
    """
    model = as_model(model)
    y = to_channels(to_tensor(composite, "composite"), model.image_shape[0], "composite")
    pixels = y[0, 0].numel()
    if not is_int(num_layers) or not 1 <= num_layers <= pixels:
        raise ValueError(f"num_layers is {num_layers!r}; expected a whole number, 1 to the composite's {pixels} pixels")
    B, K = len(y), num_layers
    if masks is not None and scribbles is not None:
        raise ValueError("masks and scribbles are both given; fixed masks leave nothing for scribbles to tell")
    check_count("starts", starts, 1, 1000)
    known = _check_known(known_layers, y, K)
    known = {k: image.expand_as(y).repeat_interleave(starts, 0) for k, image in known.items()}
    start = y.new_full((B, K, *y.shape[-2:]), 1 / K) if masks is None else _check_masks(masks, y, K)
    told = None
    if scribbles is not None:
        told = _check_scribbles(scribbles, y, K).to(model.device).repeat_interleave(starts, 0)
    model = _prompted(model, prompts, guidance_scale, B, K, known, starts)
    generators = _each_start(_check_generator(generator, B), starts)
    # From here on the starts of a composite are as many composites.
    y, start = y.repeat_interleave(starts, 0), start.repeat_interleave(starts, 0)
    if inner_steps is None and is_int(num_inference_steps):
        inner_steps = late_inner_steps(num_inference_steps)
    task = LayeredComposite(y, start, known, masks is not None).to(model.device, at_least_float32(y.dtype))
    anneal = _check_temperature(temperature), _check_smoothness(smoothness)
    turns = _Turns(model, task, *anneal, told, callback_on_step_end)
    result = sample(
        model,
        turns.task,
        num_inference_steps=num_inference_steps,
        inner_steps=inner_steps,
        step_size=step_size,
        direction=direction,
        eta=eta,
        fd_step=fd_step,
        # Layers draw from their composite's generator in turn.
        generator=None if generators is None else [one for one in generators for _ in turns.task.sampled],
        callback_on_step_end=turns,
        progress=progress,
    )
    layers = turns.task.layers(result.images)
    found = turns.masks_for(layers, turns.temperature[1])
    costs = turns.task.with_masks(found).cost_and_error(result.images.to(found))[0].reshape(B, starts, -1)
    costs = (costs.mean(2) if turns.task.fixed else costs.sum(2)).cpu()  # a blend's is every layer's
    best = torch.arange(B) * starts + costs.argmin(1)

    def kept(x: Tensor) -> Tensor:
        return x[best[0]] if B == 1 else x[best]

    return LayersResult(
        layers=kept(layers),
        masks=kept(found),
        trace=result.trace,
        mask_trace=[kept(masks) for masks in turns.mask_trace],
        nfe=result.nfe * starts,
        n_backward=result.n_backward * starts,
        costs=costs,
        completed=result.completed,
    )


class _Turns:
    """`sample`'s callback: after each timestep it infers the masks from the layers, and hands on the task with new masks."""

    def __init__(
        self,
        model: Model,
        task: LayeredComposite,
        temperature: tuple[float, float],
        smoothness: float,
        scribbles: Tensor | None,
        callback: Callback | None,
    ):
        self.model, self.temperature, self.smoothness = model, temperature, smoothness
        self.scribbles, self.callback = scribbles, callback
        self.mask_trace: list[Tensor] = []
        self.task = task
        # What scribbles and known layers say already, where the layers that are sampled are the composite itself.
        layers = task.layers(task.composite.repeat_interleave(len(task.sampled), 0))
        self.task = task.with_masks(self.masks_for(layers, temperature[0]))

    def masks_for(self, layers: Tensor, temperature: float) -> Tensor:
        """The masks (B, K, H, W) for layers (B, K, C, H, W): those that are fixed, or inferred ones."""
        if self.task.fixed:
            return self.task.masks
        return infer_masks(self.task.composite, layers, temperature, self.smoothness, self.scribbles)

    def shaped(self, x: Tensor) -> Tensor:
        """Without the leading B, for one start of one composite."""
        return x[0] if len(self.task.composite) == 1 else x

    def __call__(self, state: State, step: int, t: int | float, tensors: dict[str, Tensor]) -> dict[str, object]:
        layers = self.task.layers(self.model.decode(state.x0))
        signal, noise = levels_at(self.model, t, state.x0)
        first, last = self.temperature
        masks = self.masks_for(layers, last + (first - last) * float(noise**2 / (signal**2 + noise**2)))
        self.task = self.task.with_masks(masks)
        self.mask_trace.append(masks.cpu())
        changed = None
        if self.callback is not None:
            shown = {"layers": self.shaped(layers.clamp(-1, 1)), "masks": self.shaped(masks)}
            changed = self.callback(state, step, t, tensors | shown)
        return {"task": self.model.carry(self.task)} | (changed or {})


def _check_temperature(temperature: tuple[float, float]) -> tuple[float, float]:
    pair = isinstance(temperature, Sequence) and len(temperature) == 2 and all(map(is_number, temperature))
    if not pair or not temperature[0] >= temperature[1] > 0:
        raise ValueError(f"temperature is {temperature!r}; expected (first, last), positive numbers that do not rise")
    return float(temperature[0]), float(temperature[1])


def _check_smoothness(smoothness: float) -> float:
    if not is_number(smoothness) or not 0 <= smoothness <= 1000:
        raise ValueError(f"smoothness is {smoothness!r}; expected a number of at least 0, and at most 1000 pixels")
    return float(smoothness)


def _check_known(known_layers: Mapping[int, ImageLike] | None, y: Tensor, K: int) -> dict[int, Tensor]:
    if known_layers is not None and not isinstance(known_layers, Mapping):
        raise TypeError(f"known_layers is a {type(known_layers).__name__}; expected a dict of layer -> image")
    known = {}
    for k, image in (known_layers or {}).items():
        if not is_int(k) or not 0 <= k < K:
            raise ValueError(f"known_layers has layer {k!r}; expected 0 to {K - 1}")
        known[int(k)] = image = to_channels(to_tensor(image, f"known_layers[{k}]"), y.shape[1], f"known_layers[{k}]")
        if image.shape[1:] != y.shape[1:] or len(image) not in (1, len(y)):
            raise ValueError(
                f"known_layers[{k}] has shape {tuple(image.shape)}; the composite has {tuple(y.shape)}: expected one image "
                "of that size, or one for each composite"
            )
    if len(known) == K:
        raise ValueError(f"known_layers gives all {K} layers; expected fewer, or a larger num_layers")
    return known


def _check_masks(masks: Tensor | np.ndarray, y: Tensor, K: int) -> Tensor:
    masks = _array(masks, "masks", y, (K,)).double()
    if not bool(masks.isfinite().all()) or bool((masks < 0).any()):
        raise ValueError("masks has values that are negative, NaN or infinite; expected at least 0")
    sums = masks.sum(1)
    if not bool(((sums - 1).abs() <= 1e-3).all()):
        raise ValueError(
            f"masks sum to between {sums.min():.4g} and {sums.max():.4g} over the layers; expected 1 everywhere"
        )
    return masks / sums[:, None]


def _check_scribbles(scribbles: Tensor | np.ndarray, y: Tensor, K: int) -> Tensor:
    scribbles = _array(scribbles, "scribbles", y, ())
    if scribbles.is_floating_point() or scribbles.dtype == torch.bool:
        raise TypeError(f"scribbles is of {scribbles.dtype}; expected whole numbers: a layer, or −1 where it is unknown")
    if int(scribbles.min()) < -1 or int(scribbles.max()) >= K:
        raise ValueError(
            f"scribbles has values from {scribbles.min()} to {scribbles.max()}; expected layers 0 to {K - 1}, and −1"
        )
    return scribbles.long()


def _array(value: Tensor | np.ndarray, name: str, y: Tensor, leading: tuple[int, ...]) -> Tensor:
    """An array (…, H, W) for all composites, or one for each, as (B, …, H, W)."""
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__}; expected an array or a tensor")
    if isinstance(value, Tensor):
        refuse_meta(name, value)
    elif value.dtype.kind not in "biuf":
        raise TypeError(f"{name} is an array of {value.dtype}; expected Booleans, whole or floating-point numbers")
    value = torch.as_tensor(value).detach()
    one = (*leading, *y.shape[-2:])
    if tuple(value.shape) not in (one, (1, *one), (len(y), *one)):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {one}, or {(len(y), *one)}")
    return value.expand(len(y), *one)


def _check_generator(generator: torch.Generator | list[torch.Generator] | None, B: int) -> list[torch.Generator] | None:
    if generator is None or isinstance(generator, torch.Generator):
        return None if generator is None else [generator] * B
    if not isinstance(generator, list) or len(generator) != B:
        raise ValueError(
            f"generator is {generator!r}; expected a torch.Generator, or a list with one for each of {B} composites"
        )
    return generator


def _each_start(generators: list[torch.Generator] | None, starts: int) -> list[torch.Generator | None] | None:
    """The generators of all starts: of one, those that were given."""
    if generators is None or starts == 1:
        return generators
    seeds = [torch.randint(2**62, (starts,), generator=one, device=one.device).tolist() for one in generators]
    return [
        torch.Generator(one.device).manual_seed(seed) for one, row in zip(generators, seeds, strict=True) for seed in row
    ]


def _prompted(
    model: Model,
    prompts: Sequence[str] | Sequence[Sequence[str]] | None,
    guidance_scale: float | None,
    B: int,
    K: int,
    known: Mapping[int, Tensor],
    starts: int,
) -> Model:
    """The model with a prompt for each layer that is sampled, in each start."""
    if prompts is None:
        if guidance_scale is not None:
            raise ValueError(f"guidance_scale is {guidance_scale!r}, but there are no prompts for it to follow")
        return model
    if model.num_prompts is None:
        raise ValueError(f"prompts is {prompts!r}, but the model is unconditional; it takes no prompts")
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {prompts!r}; expected a list with one prompt for each layer")
    rows = [prompts] * B if all(isinstance(one, str) for one in prompts) else list(prompts)
    if len(rows) != B:
        raise ValueError(f"prompts holds {len(rows)} lists; expected one for each of {B} composites")
    for row in rows:
        if isinstance(row, str) or not isinstance(row, Sequence) or not all(isinstance(one, str) for one in row):
            raise TypeError(f"prompts holds {row!r}; expected {K} prompts, or a list of {K} for each composite")
        if len(row) != K:
            raise ValueError(f"prompts holds {len(row)} prompts; expected one for each of {K} layers")
    flat = [row[k] for row in rows for _ in range(starts) for k in range(K) if k not in known]
    return model.with_prompt(flat, model.negative_prompt, 7.5 if guidance_scale is None else guidance_scale)
