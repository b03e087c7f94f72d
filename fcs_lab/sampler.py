"""`sample`: checks what it is given, and drives Algorithm 1 (`fcs_lab.algorithm`) with a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.algorithm import Method, algorithm_1
from fcs_lab.checks import check_count, check_flag, check_function, check_generator, check_tensor, is_int, is_number
from fcs_lab.constraints import Constraint, for_channels
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, Model, as_model, left_as_found
from fcs_lab.directions import DIRECTIONS, FD_STEP, CountedDenoiser, Differentiation, Direction
from fcs_lab.fast import FAST_STEPS, fast
from fcs_lab.images import to_pil
from fcs_lab.precision import at_least_float32
from fcs_lab.schedule import Schedule, read_schedule, same_levels
from fcs_lab.trace import Callback, State, TraceEntry, Watch, check_finite, per_image

__all__ = ["Result", "Settings", "State", "StepSize", "TraceEntry", "check_preset", "check_task", "drive", "sample"]

StepSize = float | tuple[float, float] | Callable[[int, int], float]


@dataclass
class Result:
    """What `sample` returns.

    Example:
        >>> result = fcs_lab.sample(fcs_lab.load("mnist"), None, num_inference_steps=2, progress=False)
        >>> result.to_pil()[0].size, result.nfe, result.completed
        ((32, 32), 2, True)
    """

    x0: Tensor = field(repr=False)
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
class Settings:
    """Algorithm 1's own settings, checked; see `sample`."""

    num_inference_steps: int = 20
    inner_steps: int | Sequence[int] = 5
    step_size: StepSize = (0.5, 0.1)
    direction: str = "newton"
    fd_step: float | None = None
    regularization: float = 0.1
    eta: float | None = None
    trained: int = 1000
    """The timesteps that the model was trained with."""

    def __post_init__(self) -> None:
        if not is_int(self.num_inference_steps) or not 1 <= self.num_inference_steps <= self.trained:
            raise ValueError(
                f"num_inference_steps is {self.num_inference_steps!r}; expected 1 to {self.trained}, the model's timesteps"
            )
        if not isinstance(self.direction, str) or self.direction not in DIRECTIONS:
            raise ValueError(f"direction is {self.direction!r}; expected one of {', '.join(map(repr, DIRECTIONS))}")
        if self.fd_step is not None and not (is_number(self.fd_step) and self.fd_step > 0):
            raise ValueError(f"fd_step is {self.fd_step!r}; expected a positive number, or None")
        if not is_number(self.regularization) or self.regularization < 0:
            raise ValueError(f"regularization is {self.regularization!r}; expected a number of at least 0")
        if self.eta is not None and not (is_number(self.eta) and self.eta >= 0):
            raise ValueError(f"eta is {self.eta!r}; expected a number of at least 0, or None")
        counts = self.inner_steps if isinstance(self.inner_steps, Sequence) else [self.inner_steps]
        if not all(is_int(count) and 0 <= count <= 10_000 for count in counts):
            raise ValueError(f"inner_steps is {self.inner_steps!r}; expected whole numbers of at least 0, at most 10000")
        if isinstance(self.inner_steps, Sequence) and len(counts) != self.num_inference_steps:
            raise ValueError(
                f"inner_steps has {len(counts)} entries; expected one for each of {self.num_inference_steps} timesteps"
            )

    def λ(self, timesteps: Sequence[float]) -> list[list[float]]:
        """For each timestep λ_1 … λ_K."""
        counts = self.inner_steps if isinstance(self.inner_steps, Sequence) else [self.inner_steps] * len(timesteps)
        return [_step_sizes(self.step_size, t, K) for t, K in zip(timesteps, counts, strict=True)]

    def direction_of(self, dtype: torch.dtype) -> Direction:
        """The direction, with h for a network of this dtype."""
        options = {
            "newton": {"fd_step": FD_STEP[dtype] if self.fd_step is None else float(self.fd_step)},
            "exact": {"regularization": float(self.regularization)},
        }
        return partial(DIRECTIONS[self.direction], **options.get(self.direction, {}))

    def eta_of(self, schedule: Schedule) -> float:
        """η: by default 1, DDPM's noise, and 0 for a rectified flow."""
        return (0.0 if schedule.flow else 1.0) if self.eta is None else float(self.eta)


@ordinary()
def sample(
    model: Denoiser,
    task: Constraint | None = None,
    *,
    preset: str | None = None,
    num_inference_steps: int | None = None,
    inner_steps: int | Sequence[int] | None = None,
    step_size: StepSize | None = None,
    direction: str | None = None,
    fd_step: float | None = None,
    regularization: float | None = None,
    eta: float | None = None,
    scheduler: SchedulerMixin | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    x_T: Tensor | None = None,
    trace_x0: bool = False,
    callback_on_step_end: Callback | None = None,
    progress: bool = True,
) -> Result:
    """Sample the model under a constraint (paper, Algorithm 1).

    `torch.autocast` around it has no effect; the model's own precision counts.

    Args:
        model: A `Denoiser`, such as `fcs_lab.load` returns. Its networks run frozen and in evaluation mode, and are left
            as they were.
        task: The constraint on the images, which yields e; for a latent model it is carried into latent space
            (`fcs_lab.latent.in_latents`). None samples without one: no inner steps are taken.
        preset: None: Algorithm 1. "fast": one probe J e a timestep and no evaluation after it, about 60 evaluations in all
            (`fcs_lab.fast`), for linear tasks that have A⁺ (in latent space: inpainting); besides it only
            `num_inference_steps` (None: 30) and `fd_step` may be given.
        num_inference_steps: T', the timesteps of the schedule that are visited. None: 20.
        inner_steps: K, the updates of x_t at each timestep; one number, or one for each timestep, from the noisiest.
            None: 5.
        step_size: λ: one number; (first, last), linear over a timestep's inner steps; or a function of (t, k).
            In units of x_t: the largest change of any pixel in one update. None: (0.5, 0.1).
        direction: What moves x_t: "newton" (J e by a finite difference), "newton-jvp" (J e by forward mode),
            "gradient" (Jᵀ e), "exact" (J⁻¹ e, regularised) or "identity" (e). None: "newton".
        fd_step: h of "newton", relative to ‖e‖_∞. None: the right one for the model's dtype
            (0.2 in float32; the paper's is 0.005).
        regularization: Of "exact": ρ relative to ‖J e‖/‖e‖; see `directions.exact`. None: 0.1.
        eta: η, how much of each step's noise is fresh: 0 is deterministic (DDIM; Euler's step of a rectified flow), 1 has
            DDPM's variance. None: 1, and 0 for a rectified flow.
        scheduler: Whose timesteps are visited: any of diffusers' with the model's own noise schedule. Only its configuration
            is read (`fcs_lab.schedule`). None: the model's.
        batch_size: How many images. None: as many as the task describes, or generators are given, or 1.
        generator: One for the batch, or a list with one an image; then each image comes out as it would alone.
        x_T: The noise to start from, (B, C, H, W), in latent space for a latent model. None: drawn with `generator`.
        trace_x0: Keep x̂_0 of every timestep in the trace.
        callback_on_step_end: Called as (state, step_index, timestep, {"x_t": …, "x0": …}) after each timestep, as in
            diffusers. A dict that it returns may replace "x_t", and "task", by another constraint on x̂_0;
            `state.interrupt = True` ends the run.
        progress: Show a progress bar.

    Returns:
        The images, in the model's precision (float32 at least), with the trace and the evaluations counted.

    Raises:
        TypeError, ValueError: An argument is wrong; its name, what was found and what was expected are said before
            any work is done.
        FloatingPointError: Something became infinite or NaN: what it was, at which timestep, and what mostly helps.

    Example:
        >>> model, (digits, labels) = fcs_lab.load("mnist"), fcs_lab.load_digits(2)
        >>> task = fcs_lab.Inpainting(digits, torch.arange(32).ge(16).expand(32, 32))
        >>> seeds = [torch.Generator().manual_seed(i) for i in range(2)]
        >>> result = fcs_lab.sample(model, task, num_inference_steps=2, inner_steps=1, generator=seeds, progress=False)
        >>> tuple(result.images.shape), result.nfe  # 2 timesteps of 1 + 2 K evaluations
        ((2, 1, 32, 32), 6)
    """
    trained = as_model(model).scheduler.config.num_train_timesteps
    own = {
        "inner_steps": inner_steps,
        "step_size": step_size,
        "direction": direction,
        "fd_step": fd_step,
        "regularization": regularization,
        "eta": eta,
    }
    check_preset(preset, own, task)
    given = {name: value for name, value in own.items() if value is not None}
    T = num_inference_steps if num_inference_steps is not None else 20 if preset is None else FAST_STEPS
    settings = Settings(num_inference_steps=T, trained=trained, **given)
    if direction == "exact" and (as_model(model).num_prompts or 1) > 1:
        raise ValueError("direction is 'exact', which goes image by image; expected one prompt for all images")

    def method(x: Tensor, watch: Watch) -> Method:
        if preset is not None:
            return fast(x, watch, fd_step=settings.fd_step)
        watch.λ = [[] for _ in watch.schedule.timesteps] if watch.task is None else settings.λ(watch.schedule.timesteps)
        watch.along = settings.direction_of(watch.f.dtype)
        watch.eta = settings.eta_of(watch.schedule)
        return algorithm_1(x, watch.schedule.timesteps, watch.λ, watch.error, watch.direction, watch.step)

    return drive(
        model,
        task,
        method,
        num_inference_steps=T,
        scheduler=scheduler,
        batch_size=batch_size,
        generator=generator,
        x_T=x_T,
        trace_x0=trace_x0,
        callback_on_step_end=callback_on_step_end,
        progress=progress,
        keep_graph=direction == "gradient",
    )


def check_preset(preset: object, own: dict[str, object], task: Constraint | None) -> None:
    """That there is such a preset, and that nothing is given that it sets itself.

    Args:
        preset: None or "fast".
        own: Algorithm 1's settings, None where not given.
        task: The task.

    Raises:
        ValueError: It is not so.
        TypeError: A preset without a task.
    """
    if preset is None:
        return
    if not isinstance(preset, str) or preset != "fast":
        raise ValueError(f"preset is {preset!r}; expected 'fast', or None")
    for name, value in own.items():
        if value is not None and name != "fd_step":
            raise ValueError(
                f"{name} is {value!r}, and preset 'fast' sets that itself; expected one of them (besides the preset only "
                "num_inference_steps and fd_step may be given)"
            )
    if task is None:
        raise TypeError("task is None; preset 'fast' takes a constraint")


@ordinary()
def drive(
    model: Denoiser,
    task: Constraint | None,
    method: Callable[[Tensor, Watch], Method],
    *,
    num_inference_steps: int,
    scheduler: SchedulerMixin | None = None,
    batch_size: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    x_T: Tensor | None = None,
    trace_x0: bool = False,
    callback_on_step_end: Callback | None = None,
    progress: bool = True,
    keep_graph: bool = False,
) -> Result:
    """Run a method with a denoiser; `sample` says what the arguments are and what is raised.

    Args:
        method: (x_T, watch) -> the coroutine. The watch has the run's schedule, its task, moved to where the model is, its
            step, and its noise.
        keep_graph: Keep autograd's graph of each evaluation, which a method that differentiates at the same points wants.
    """
    model = as_model(model)
    check_task(task)
    if callback_on_step_end is not None:
        check_function("callback_on_step_end", callback_on_step_end, 4)
    for name, value in {"trace_x0": trace_x0, "progress": progress}.items():
        check_flag(name, value)
    check_count("num_inference_steps", num_inference_steps, 1, model.scheduler.config.num_train_timesteps)
    # x_t and all that is done to it stay in float32 at least; only the network runs in half precision.
    dtype = at_least_float32(model.dtype)
    with left_as_found(model.networks), torch.no_grad():
        model = model.snapshot()
        if task is not None:
            task = model.carry(for_channels(task, model.image_shape[0]))
        shape, batch_size = _check_batch(model, task, batch_size, generator, x_T)
        schedule = _schedule(model, scheduler, num_inference_steps, shape)
        if task is not None:
            task = task.to(model.device, dtype)
        if x_T is None:
            x_T = randn_tensor((batch_size, *shape), generator=generator, device=model.device, dtype=dtype)
        f = CountedDenoiser(model, keep_graph)
        watch = Watch(f, task, schedule, generator, trace_x0, callback_on_step_end)
        watch.bounded = tuple(model.shape) == tuple(model.image_shape)
        coroutine = method(x_T.to(model.device, dtype, copy=True), watch)
        try:
            x0, completed = _drive(coroutine, f, watch, progress)
            images = model.decode(x0)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{error}\nTo need less memory: a smaller batch_size ({batch_size}); torch_dtype=torch.float16 in load; "
                "direction='newton', which keeps no graph of the denoiser; for a latent model also a smaller image, "
                "model.vae.enable_slicing(), model.vae.enable_tiling() or model.pipeline.enable_model_cpu_offload()"
            ) from error
    check_finite(images, model.dtype)
    images = images.clamp(-1, 1)
    images = images if watch.task is None else watch.task.finish(images)
    return Result(x0, images, watch.finished_trace(), watch.state.nfe, per_image(f.backward, x0), completed)


def _drive(method: Method, f: CountedDenoiser, watch: Watch, progress: bool) -> tuple[Tensor, bool]:
    """Answer the method's questions until it returns, or a callback ends the run; the sample, and whether it is whole."""
    timesteps = len(watch.schedule.timesteps)
    with tqdm(total=timesteps, desc="sampling", disable=not progress) as bar:
        question = next(method)
        while True:
            answer = f.answer(question)
            if not isinstance(question, Differentiation):
                watch.estimated(answer)
            try:
                question = method.send(answer)
            except StopIteration as end:
                bar.update(timesteps - bar.n)
                return end.value, True
            bar.update(watch.i - bar.n)
            if watch.state is not None and watch.state.interrupt:
                method.close()
                return watch.state.x0, False


def check_task(task: Constraint | None) -> None:
    """That it is a constraint, or None.

    Raises:
        TypeError: It is not.
    """
    members = ("batch_size", "shape", "to", "cost_and_error", "finish")
    missing = [] if task is None else [name for name in members if not hasattr(task, name)]
    if missing:
        lacking = "" if len(missing) == len(members) else f" ({type(task).__name__} has no {', '.join(missing)})"
        raise TypeError(f"task is {task!r}; expected a constraint such as fcs_lab.Inpainting, or None{lacking}")


def _check_batch(
    model: Model,
    task: Constraint | None,
    batch_size: int | None,
    generator: torch.Generator | list[torch.Generator] | None,
    x_T: Tensor | None,
) -> tuple[tuple[int, ...], int]:
    """The shape of x̂_0 and the number of images, after checking that all agree on them."""
    listed = len(generator) if isinstance(generator, list) else None
    check_generator(generator)
    if x_T is not None and (not isinstance(x_T, Tensor) or x_T.ndim != 4 or not x_T.is_floating_point()):
        raise TypeError(f"x_T is {x_T!r}; expected a floating-point tensor (B, {', '.join(map(str, model.shape))})")
    if x_T is not None:
        check_tensor("x_T", x_T, *x_T.shape)
    described = None if task is None else task.batch_size
    prompts = model.num_prompts or 1
    given = None if x_T is None else len(x_T)
    if batch_size is None:
        batch_size = next((n for n in (described, prompts) if n not in (None, 1)), None) or given or listed or 1
    else:
        batch_size = check_count("batch_size", batch_size, 1, 10**6)
    if described not in (None, 1, batch_size):
        raise ValueError(f"batch_size is {batch_size}; the task describes {described} images")
    if prompts not in (1, batch_size):
        raise ValueError(f"the model has {prompts} prompts; expected one, or one for each of {batch_size} images")
    if listed not in (None, batch_size):
        raise ValueError(f"generator is a list of {listed}; expected one for each of {batch_size} images")
    if given not in (None, batch_size):
        raise ValueError(f"x_T holds {given} samples; expected one for each of {batch_size} images")
    shape = tuple(model.shape) if task is None or task.shape is None else tuple(task.shape)
    if not model.any_size and shape != tuple(model.shape):
        (c, h, w), (mc, mh, mw) = shape, model.shape
        if c != mc:
            raise ValueError(
                f"the task's image has {c} channels; the model takes {mc}: convert the image (PIL: 'L' or 'RGB')"
            )
        raise ValueError(f"the task's image is {h}×{w} (height × width); the model takes {mh}×{mw}: pad or resize the image")
    if x_T is not None:
        fits = x_T.shape[1] == shape[0] if task is None or task.shape is None else tuple(x_T.shape[1:]) == shape
        if not fits or (not model.any_size and tuple(x_T.shape[1:]) != shape):
            raise ValueError(f"x_T has shape {tuple(x_T.shape)}; expected (B, {', '.join(map(str, shape))})")
    return shape, batch_size


def _schedule(model: Model, scheduler: SchedulerMixin | None, num_inference_steps: int, shape: tuple[int, ...]) -> Schedule:
    """The run's schedule, once the scheduler is known to be the model's kind."""
    scheduler = model.scheduler if scheduler is None else scheduler
    schedule = read_schedule(scheduler, int(num_inference_steps), tokens=model.tokens(shape))
    if not same_levels(model.scheduler, scheduler):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__} with another noise schedule than the model's "
            f"{type(model.scheduler).__name__}; use from_config(model.scheduler.config)"
        )
    return schedule


def _step_sizes(step_size: StepSize, t: float, K: int) -> list[float]:
    """λ_1 … λ_K at timestep t."""
    if callable(step_size):
        check_function("step_size", step_size, 2)
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
