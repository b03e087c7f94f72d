"""Algorithm 1: sampling a pre-trained diffusion model under a constraint.

`_algorithm_1` is the paper's, line by line; `sample` checks what it is given, and calls it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.checks import is_int, is_number
from fcs_lab.constraints import Constraint
from fcs_lab.denoisers import Denoiser
from fcs_lab.directions import DIRECTIONS, FD_STEP, CountedDenoiser, norm_inf
from fcs_lab.images import to_pil
from fcs_lab.latent import LatentDenoiser, decode, in_latents

__all__ = ["Result", "State", "TraceEntry", "sample"]

StepSize = float | tuple[float, float] | Callable[[int, int], float]


@dataclass
class TraceEntry:
    """Where the sampler stood at one inner step of one timestep.

    A timestep with K inner steps has K + 1 entries: `inner_step` k < K is before update k, and k = K is where the
    scheduler took over (its `step_length` is 0).
    """

    step: int
    """Index of the timestep, from 0."""
    t: int | float
    """The timestep; of a rectified flow it need not be whole."""
    inner_step: int
    """k, from 0 to K."""
    cost: Tensor
    """C(x̂_0) of each image, (B,); 0 without a constraint."""
    error_norm: Tensor
    """‖e‖_2 of each image, (B,); 0 without a constraint."""
    step_length: Tensor
    """‖Δx_t‖_∞ of each image's update, (B,): λ_k, or 0 where there was none."""
    nfe: float
    """Forward evaluations an image so far."""
    x0: Tensor | None = None
    """x̂_0 (B, C, H, W) on the CPU, at k = K and if asked for with `trace_x0`."""


@dataclass
class State:
    """What a callback sees, after each timestep. Setting `interrupt` ends the run after this timestep."""

    x_t: Tensor
    """The noisy samples that the next timestep starts from."""
    x0: Tensor
    """The last estimate x̂_0."""
    trace: list[TraceEntry]
    nfe: float
    interrupt: bool = False


@dataclass
class Result:
    """What `sample` returns."""

    x0: Tensor
    """The samples as the sampler left them (B, C, H, W), unclipped, latents of a latent model; of a run that was ended
    early, the last x̂_0."""
    images: Tensor = field(repr=False)
    """The samples as images (B, C, H, W), decoded and clipped to [-1, 1]."""
    trace: list[TraceEntry] = field(repr=False)
    nfe: float
    """Forward evaluations an image, counted."""
    n_backward: float
    """Backward passes an image, counted."""
    completed: bool = True
    """False if a callback ended the run early."""

    def to_pil(self) -> list[Image.Image]:
        """The samples as B PIL images."""
        return to_pil(self.images)


@dataclass(frozen=True)
class _Plan:
    """The checked arguments of a run."""

    timesteps: list[int] | list[float]
    step_sizes: list[list[float]]  # λ_k for each timestep
    direction: Callable[..., Tensor]
    needs_graph: bool
    scheduler_step: Callable[[Tensor, int | float, Tensor], Tensor]  # (x̂_0, t, x_t) -> x_t of the next timestep


def sample(
    model: Denoiser,
    task: Constraint | None = None,
    *,
    num_inference_steps: int = 20,
    inner_steps: int | Sequence[int] = 5,
    step_size: StepSize = (0.5, 0.1),
    direction: str = "newton",
    fd_step: float | None = None,
    regularization: float = 0.1,
    eta: float | None = None,
    scheduler: SchedulerMixin | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    x_T: Tensor | None = None,
    trace_x0: bool = False,
    callback_on_step_end: Callable[[State, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
    progress: bool = True,
) -> Result:
    """Sample the model under a constraint (paper, Algorithm 1).

    Args:
        model: A `Denoiser`, such as `fcs_lab.load` returns.
        task: The constraint on the images, which yields e; for a latent model it is carried into latent space
            (`fcs_lab.latent.in_latents`). None samples without one: no inner steps are taken.
        num_inference_steps: T', the timesteps of the schedule that are visited.
        inner_steps: K, the updates of x_t at each timestep; one number, or one for each timestep, from the noisiest.
        step_size: λ: one number; (first, last), linear over a timestep's inner steps; or a function of (t, k).
            In units of x_t: the largest change of any pixel in one update.
        direction: What moves x_t: "newton" (J e by a finite difference), "newton-jvp" (J e by forward mode),
            "gradient" (Jᵀ e), "exact" (J⁻¹ e, regularised) or "identity" (e).
        fd_step: h of "newton", relative to ‖e‖_∞. None: the right one for the model's dtype
            (0.2 in float32; the paper's is 0.005).
        regularization: Of "exact": ρ relative to ‖J e‖/‖e‖; see `directions.exact`.
        eta: Stochasticity of DDIM: 0 is deterministic, 1 has DDPM's variance. None: 1 where the scheduler has an η.
        scheduler: A `DDIMScheduler` or `DDPMScheduler` with the model's own ᾱ; for a rectified flow a
            `FlowMatchEulerDiscreteScheduler`. None: the model's.
        batch_size: How many images. None: as many as the task describes, or generators are given, or 1.
        generator: One for the batch, or a list with one an image; then each image comes out as it would alone.
        x_T: The noise to start from, (B, C, H, W), in latent space for a latent model. None: drawn with `generator`.
        trace_x0: Keep x̂_0 of every timestep in the trace.
        callback_on_step_end: Called as (state, step_index, timestep, {"x_t": …, "x0": …}) after each timestep, as in
            diffusers. A dict that it returns may replace "x_t"; `state.interrupt = True` ends the run.
        progress: Show a progress bar.

    Returns:
        The images, in the model's precision (float32 at least), with the trace and the evaluations counted.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.
    """
    _check_types(model, task)
    if task is not None:
        task = in_latents(task, model)
    shape, batch_size = _check_batch(model, task, batch_size, generator, x_T)
    if direction == "exact" and getattr(model, "num_prompts", 1) > 1:
        raise ValueError("direction is 'exact', which goes image by image; expected one prompt for all images")
    plan = _plan(
        model,
        task,
        num_inference_steps,
        inner_steps,
        step_size,
        direction,
        fd_step,
        regularization,
        eta,
        scheduler,
        generator,
    )
    # x_t and all that is done to it stay in float32 at least; only the network runs in half precision.
    dtype = torch.promote_types(model.dtype, torch.float32)
    if task is not None:
        task = task.to(model.device, dtype)
    if x_T is None:
        x_T = randn_tensor((batch_size, *shape), generator=generator, device=model.device, dtype=dtype)
    try:
        return _algorithm_1(model, task, x_T.to(model.device, dtype), plan, trace_x0, callback_on_step_end, progress)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"{error}\nTo need less memory: a smaller batch_size ({batch_size}); torch_dtype=torch.float16 in load; "
            "direction='newton', which keeps no graph of the denoiser; for a latent model also a smaller image, "
            "model.vae.enable_slicing(), model.vae.enable_tiling() or model.pipeline.enable_model_cpu_offload()"
        ) from error


@torch.no_grad()
def _algorithm_1(
    model: Denoiser,
    task: Constraint | None,
    x_t: Tensor,
    plan: _Plan,
    trace_x0: bool,
    callback_on_step_end: Callable | None,
    progress: bool,
) -> Result:
    f = CountedDenoiser(model)
    state = State(x_t=x_t, x0=x_t, trace=[], nfe=0)

    def estimate(x_t: Tensor, t: int, graph: bool) -> tuple[Tensor, Tensor]:
        """x_t and x̂_0(x_t, t), joined by autograd's graph if a backward pass is to follow."""
        with torch.set_grad_enabled(graph):
            x_t = x_t.detach().requires_grad_(graph)
            return x_t, f(x_t, t)

    for step, t in enumerate(tqdm(plan.timesteps, desc="sampling", disable=not progress)):
        K = len(plan.step_sizes[step])
        x_t, x0 = estimate(x_t, t, plan.needs_graph and K > 0)
        for k, step_size in enumerate(plan.step_sizes[step]):
            cost, e = task.cost_and_error(x0.detach())  # e: where x̂_0 has to move
            d = plan.direction(f, x_t, t, x0, e)  # J e ≈ (x̂_0(x_t + h' e) − x̂_0(x_t)) / h'
            size = norm_inf(d)
            moves = (norm_inf(e) > 0) & (size > 0)  # an image that fits already stays as it is
            step_length = torch.where(moves, step_size, 0.0).to(d)
            state.trace.append(_entry(f, step, t, k, cost, e, step_length))
            update = step_length * (d / size.where(moves, 1))  # λ_k d/‖d‖_∞
            x_t, x0 = estimate(x_t + update, t, plan.needs_graph and k + 1 < K)
        cost, e = (x0.new_zeros(len(x0)), torch.zeros_like(x0)) if task is None else task.cost_and_error(x0)
        state.trace.append(_entry(f, step, t, K, cost, e, torch.zeros(len(x0)), x0.cpu() if trace_x0 else None))
        x_t = plan.scheduler_step(x0, t, x_t)

        state.x_t, state.x0, state.nfe = x_t, x0, _per_image(f.forward, x_t)
        if callback_on_step_end is not None:
            changed = callback_on_step_end(state, step, t, {"x_t": x_t, "x0": x0}) or {}
            x_t = changed.get("x_t", x_t)
            if state.interrupt:
                break

    completed = step + 1 == len(plan.timesteps)
    for entry in state.trace:
        entry.cost, entry.error_norm, entry.step_length = entry.cost.cpu(), entry.error_norm.cpu(), entry.step_length.cpu()
    x0 = x_t if completed else x0
    images = decode(model, x0).clamp(-1, 1)
    if hasattr(task, "finish"):
        images = task.finish(images)
    return Result(x0, images, state.trace, state.nfe, _per_image(f.backward, x_t), completed)


def _entry(
    f: CountedDenoiser,
    step: int,
    t: int | float,
    k: int,
    cost: Tensor,
    e: Tensor,
    step_length: Tensor,
    x0: Tensor | None = None,
) -> TraceEntry:
    return TraceEntry(
        step=step,
        t=t,
        inner_step=k,
        cost=cost,
        error_norm=e.flatten(1).norm(dim=1),
        step_length=step_length.flatten(),
        nfe=_per_image(f.forward, e),
        x0=x0,
    )


def _per_image(count: int, x: Tensor) -> float:
    """Evaluations an image; a whole number unless images needed different numbers (direction "exact")."""
    return count // len(x) if count % len(x) == 0 else count / len(x)


def _check_types(model: Denoiser, task: Constraint | None) -> None:
    if not isinstance(model, Denoiser):
        hint = "; use fcs_lab.load to get one" if isinstance(model, str) else ""
        raise TypeError(f"model is {model!r}; expected a fcs_lab.Denoiser{hint}")
    if task is not None and not all(hasattr(task, name) for name in ("batch_size", "shape", "to", "cost_and_error")):
        raise TypeError(f"task is {task!r}; expected a constraint such as fcs_lab.Inpainting, or None")


def _check_batch(
    model: Denoiser,
    task: Constraint | None,
    batch_size: int | None,
    generator: torch.Generator | list[torch.Generator] | None,
    x_T: Tensor | None,
) -> tuple[tuple[int, ...], int]:
    """The shape of x̂_0 and the number of images, after checking that all agree on them."""
    generators = generator if isinstance(generator, list | tuple) else [] if generator is None else [generator]
    for one in generators:
        if not isinstance(one, torch.Generator):
            raise TypeError(f"generator holds {one!r}; expected a torch.Generator, or a list with one an image")
    if x_T is not None and (not isinstance(x_T, Tensor) or x_T.ndim != 4 or not x_T.is_floating_point()):
        raise TypeError(f"x_T is {x_T!r}; expected a floating-point tensor (B, {', '.join(map(str, model.shape))})")
    listed = len(generators) if isinstance(generator, list | tuple) else None
    described = None if task is None else task.batch_size
    prompts = getattr(model, "num_prompts", 1)
    given = None if x_T is None else len(x_T)
    if batch_size is None:
        batch_size = next((n for n in (described, prompts) if n not in (None, 1)), None) or given or listed or 1
    elif isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
    if described not in (None, 1, batch_size):
        raise ValueError(f"batch_size is {batch_size}; the task describes {described} images")
    if prompts not in (1, batch_size):
        raise ValueError(f"the model has {prompts} prompts; expected one, or one for each of {batch_size} images")
    if listed not in (None, batch_size):
        raise ValueError(f"generator is a list of {listed}; expected one for each of {batch_size} images")
    if given not in (None, batch_size):
        raise ValueError(f"x_T holds {given} samples; expected one for each of {batch_size} images")
    shape = tuple(model.shape) if task is None or task.shape is None else tuple(task.shape)
    if not isinstance(model, LatentDenoiser) and shape != tuple(model.shape):
        (c, h, w), (mc, mh, mw) = shape, model.shape
        if c != mc:
            raise ValueError(
                f"the task's image has {c} channels; the model takes {mc}: convert the image (PIL: 'L' or 'RGB')"
            )
        raise ValueError(f"the task's image is {h}×{w} (height × width); the model takes {mh}×{mw}: pad or resize the image")
    if x_T is not None:
        fits = x_T.shape[1] == shape[0] if task is None or task.shape is None else tuple(x_T.shape[1:]) == shape
        if not fits or (not isinstance(model, LatentDenoiser) and tuple(x_T.shape[1:]) != shape):
            raise ValueError(f"x_T has shape {tuple(x_T.shape)}; expected (B, {', '.join(map(str, shape))})")
    return shape, batch_size


def _plan(
    model: Denoiser,
    task: Constraint | None,
    num_inference_steps: int,
    inner_steps: int | Sequence[int],
    step_size: StepSize,
    direction: str,
    fd_step: float | None,
    regularization: float,
    eta: float | None,
    scheduler: SchedulerMixin | None,
    generator: torch.Generator | list[torch.Generator] | None,
) -> _Plan:
    trained = model.scheduler.config.num_train_timesteps
    if not is_int(num_inference_steps) or not 1 <= num_inference_steps <= trained:
        raise ValueError(f"num_inference_steps is {num_inference_steps!r}; expected 1 to {trained}, the model's timesteps")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; expected one of {', '.join(map(repr, DIRECTIONS))}")
    if fd_step is not None and not (is_number(fd_step) and fd_step > 0):
        raise ValueError(f"fd_step is {fd_step!r}; expected a positive number, or None")
    if not is_number(regularization) or regularization < 0:
        raise ValueError(f"regularization is {regularization!r}; expected a number of at least 0")
    if eta is not None and not (is_number(eta) and eta >= 0):
        raise ValueError(f"eta is {eta!r}; expected a number of at least 0, or None")

    scheduler = _sampling_scheduler(model, scheduler)
    takes = inspect.signature(scheduler.step).parameters
    if eta is not None and "eta" not in takes:
        raise ValueError(f"eta is {eta}, but {type(scheduler).__name__} has no η; use a DDIMScheduler, or leave eta out")
    step_options: dict[str, Any] = {"generator": generator}
    if "eta" in takes:
        step_options["eta"] = 1.0 if eta is None else float(eta)
    scheduler.set_timesteps(num_inference_steps)
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    timesteps = [t.item() for t in scheduler.timesteps]
    if not flow and timesteps[0] >= trained:
        raise ValueError(
            f"num_inference_steps is {num_inference_steps}: with its offset the schedule would start at t = "
            f"{timesteps[0]}, beyond the model's {trained - 1}; take fewer steps"
        )

    counts = list(inner_steps) if isinstance(inner_steps, Sequence) else [inner_steps] * num_inference_steps
    if not all(is_int(count) and count >= 0 for count in counts):
        raise ValueError(f"inner_steps is {inner_steps!r}; expected whole numbers of at least 0")
    if len(counts) != num_inference_steps:
        raise ValueError(f"inner_steps has {len(counts)} entries; expected one for each of {num_inference_steps} timesteps")
    if task is None:
        counts = [0] * num_inference_steps

    def scheduler_step(x0: Tensor, t: int | float, x_t: Tensor) -> Tensor:
        # A flow's scheduler is told the velocity, v = (x_t − x̂_0)/σ; the others x̂_0 itself.
        output = (x_t - x0) / (t / trained) if flow else x0
        return scheduler.step(output, t, x_t, **step_options).prev_sample

    options = {
        "newton": {"fd_step": float(fd_step) if fd_step is not None else FD_STEP[model.dtype]},
        "exact": {"regularization": float(regularization)},
    }
    return _Plan(
        timesteps=timesteps,
        step_sizes=[_step_sizes(step_size, t, count) for t, count in zip(timesteps, counts, strict=True)],
        direction=partial(DIRECTIONS[direction], **options.get(direction, {})),
        needs_graph=direction == "gradient",
        scheduler_step=scheduler_step,
    )


def _sampling_scheduler(model: Denoiser, scheduler: SchedulerMixin | None) -> SchedulerMixin:
    """A fresh scheduler that is told x̂_0 itself (prediction_type "sample"), so that the caller's is left as it was."""
    if isinstance(model.scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = model.scheduler if scheduler is None else scheduler
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            raise ValueError(
                f"scheduler is {type(scheduler).__name__}; a rectified flow takes a FlowMatchEulerDiscreteScheduler"
            )
        return FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, use_dynamic_shifting=False)
    if scheduler is None:
        scheduler = DDIMScheduler.from_config(model.scheduler.config)
    if not isinstance(scheduler, DDIMScheduler | DDPMScheduler):
        raise ValueError(
            f"scheduler is {type(scheduler).__name__ if isinstance(scheduler, SchedulerMixin) else repr(scheduler)}; "
            "expected a DDIMScheduler or a DDPMScheduler. A multistep scheduler extrapolates from its earlier outputs, "
            "and inner updates of x_t invalidate that history; others scale x_t differently"
        )
    changes = {"prediction_type": "sample"}
    if str(scheduler.config.get("variance_type")).startswith("learned"):
        changes["variance_type"] = "fixed_small"  # x̂_0 is all that it will be given
    scheduler = type(scheduler).from_config(scheduler.config, **changes)
    own, given = model.scheduler.alphas_cumprod.cpu(), scheduler.alphas_cumprod.cpu()
    if own.shape != given.shape or not torch.allclose(own, given, rtol=1e-4, atol=1e-7):
        raise ValueError("scheduler has another noise schedule (ᾱ) than the model; use from_config(model.scheduler.config)")
    return scheduler


def _step_sizes(step_size: StepSize, t: int, K: int) -> list[float]:
    """λ_1 … λ_K at timestep t."""
    if callable(step_size):
        sizes = [step_size(t, k) for k in range(K)]
    elif isinstance(step_size, Sequence) and len(step_size) == 2 and all(map(is_number, step_size)):
        first, last = step_size
        sizes = [first + (last - first) * k / max(K - 1, 1) for k in range(K)]
    elif is_number(step_size):
        sizes = [step_size] * K
    else:
        raise TypeError(f"step_size is {step_size!r}; expected a number, a pair (first, last), or a function of (t, k)")
    for size in [*(step_size if isinstance(step_size, Sequence) else []), *sizes]:
        if not is_number(size) or size < 0:
            raise ValueError(f"step_size gives {size!r}; expected finite numbers of at least 0")
    return [float(size) for size in sizes]
