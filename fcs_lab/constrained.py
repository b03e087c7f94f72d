"""`constrained`: any diffusers text-to-image pipeline under a constraint, driven by the pipeline's own loop.

The pipeline is called as always. While the context lasts its scheduler is a stand-in, whose timesteps are those of all of
Algorithm 1's evaluations; each `step` turns what the network said into x̂_0, sends it to the coroutine, and returns the next
point that the coroutine wants evaluated. So guidance, negative prompts, LoRA, ControlNet, offload and packing are the
pipeline's, and the method needs no adapter for them.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn
from tqdm.auto import tqdm

from fcs_lab.algorithm import Method
from fcs_lab.baselines import PEERS
from fcs_lab.baselines.frame import Peer
from fcs_lab.checks import check_function
from fcs_lab.constraints import Constraint
from fcs_lab.contexts import computes_in
from fcs_lab.denoisers import prediction_type_of
from fcs_lab.directions import DIRECTIONS, EVALUATIONS
from fcs_lab.families import family_of, what_it_takes
from fcs_lab.fast import FAST_NEEDS, FAST_STEPS, fast, fast_plan
from fcs_lab.latent_space import Layout
from fcs_lab.pipeline_call import PipelineCall
from fcs_lab.precision import at_least_float32
from fcs_lab.sampler import Result, Settings, StepSize, check_preset, check_task
from fcs_lab.schedule import Schedule, read_schedule
from fcs_lab.trace import Watch, check_finite

__all__ = ["ConstrainedRun", "check_pipeline", "constrained"]


@contextmanager
def constrained(
    pipe: DiffusionPipeline,
    task: Constraint | None = None,
    *,
    method: str | Peer | Callable[[Tensor, Watch], Method] = "newton",
    preset: str | None = None,
    inner_steps: int | Sequence[int] | None = None,
    step_size: StepSize | None = None,
    fd_step: float | None = None,
    eta: float | None = None,
    trace_x0: bool = False,
    layout: Layout | None = None,
    **settings: Any,
) -> Iterator[ConstrainedRun]:
    """While this lasts, calls of a diffusers pipeline sample under a constraint (paper, Algorithm 1).

    ```python
    with fcs_lab.constrained(pipe, fcs_lab.Inpainting(photograph, mask)) as run:
        out = pipe("a red house", num_inference_steps=20, generator=torch.Generator().manual_seed(0))
    run.result.to_pil()[0]
    ```

    T' timesteps with K inner steps cost (2K + 1) T' evaluations: a pipeline's usual 50 with K = 5 are 550. Models made for
    few timesteps (Turbo, schnell, LCM) run as well; with 4 timesteps the picture has only 4 K updates in which to meet the
    task, most of them where x_t is almost noise, so give them more inner steps. The pipeline's bar counts timesteps.
    `callback_on_step_end` is called at every evaluation; latents that it replaces are taken at the end of a timestep and
    refused elsewhere. The pipeline's own `eta` has no effect. Afterwards, also after an exception, everything is as it was.

    Args:
        pipe: A text-to-image pipeline with a VAE. Those of `fcs_lab.families` are proved; others are tried, with a warning.
        task: The constraint on the images, which is carried into the pipeline's latent space. None: none.
        method: "newton" (J e by a finite difference) or "identity" (e): what is made of evaluations only. A pipeline has no
            derivatives to give; `sample` has. Or a peer of `fcs_lab.baselines`: "repaint", "ddnm", "ddrm", "diffpir",
            "mpgd", "red_diff", "daps", "flowchef", "lanpaint" or "guess_and_guide". Or a function of one's own, (x_T, watch)
            -> a coroutine with one evaluation a timestep (`fcs_lab.baselines.Peer` says it for any other).
        preset: "fast": one probe a timestep, as in `sample`; a call with num_inference_steps=30 makes 59 evaluations.
        inner_steps, step_size, fd_step, eta, trace_x0: As for `sample`. h follows the network's dtype.
        **settings: A peer's own, as of its call (`method="repaint", resamplings=5`); step_size and eta, too, are its own
            then. Its timesteps are those of the pipeline's call.
        layout: How the pipeline keeps its latents, where it cannot be told from the pipeline; see `Layout`.

    Yields:
        A `ConstrainedRun`, whose `result` is the last call's.

    Raises:
        TypeError: `pipe` is not a text-to-image pipeline, or `task` no constraint, or `layout` no `Layout`. In the
            pipeline's call, before any evaluation: its latents have a layout that is not known.
        ValueError: A pipeline without a VAE, within another `constrained`, or with a feature cache; a method that takes
            derivatives; a scheduler whose levels cannot be read; a wrong setting. In the pipeline's call, before any
            evaluation: a task of another size, or with more images.
        FloatingPointError: In the pipeline's call: something is not finite; it is named.

    Example:
        >>> pipe = fcs_lab.load("fashion").pipeline  # a StableDiffusionPipeline; yours will do
        >>> garment, mask = fcs_lab.load_garments(1)[0], torch.arange(32).ge(16).expand(32, 32)
        >>> with fcs_lab.constrained(pipe, fcs_lab.Inpainting(garment, mask), inner_steps=1) as run:
        ...     picture = pipe("a photo of a sneaker", num_inference_steps=2, height=32, width=32).images[0]
        >>> run.result.nfe, picture.size
        (6, (32, 32))
    """
    check_pipeline(pipe)
    if layout is not None and not isinstance(layout, Layout):
        raise TypeError(f"layout is {layout!r}; expected a fcs_lab.Layout(unpack, pack)")
    check_task(task)
    own = {"inner_steps": inner_steps, "step_size": step_size, "fd_step": fd_step, "eta": eta}
    is_default = isinstance(method, str) and method == "newton"
    check_preset(preset, own | {"method": None if is_default else method} | settings, task)
    given = {name: value for name, value in own.items() if value is not None} | settings
    peer = None
    if preset is not None:
        peer = Peer("fast", partial(fast, fd_step=fd_step), FAST_NEEDS, plan=fast_plan)
    elif not (isinstance(method, str) and method in EVALUATIONS):
        peer, given = _peer(method, given), {}
        if task is None:
            raise TypeError(f"task is None; method {peer.name!r} takes a constraint")
    elif settings:
        name = next(iter(settings))
        raise ValueError(f"{name} is given, which method {method!r} has not; it has {', '.join(own)}")
    direction = method if peer is None else "identity"
    run = ConstrainedRun(pipe, task, trace_x0, layout, peer, direction=direction, **given)
    if family_of(pipe) is None:
        warnings.warn(
            f"{type(pipe).__name__} is of no family that constrained(…) is proved with (fcs_lab.families); it is tried",
            stacklevel=3,
        )
    with ExitStack() as stack:
        _shadow(stack, pipe, "scheduler", _stand_in(pipe.scheduler, run))
        _shadow(stack, pipe, "prepare_latents", run._prepare_latents)
        _shadow(stack, pipe, "progress_bar", run._progress_bar)
        _shadow(stack, pipe.vae, "decode", run._decode)
        run._watch_changes(stack)
        yield run


def _peer(method: Any, settings: dict[str, Any]) -> Peer:
    """The method that is no direction of Algorithm 1, with its settings.

    Raises:
        ValueError, TypeError: There is none of this name, it takes derivatives, or it has not such a setting.
    """
    if isinstance(method, str):
        known = [*EVALUATIONS, *(name for name, make in PEERS.items() if not make().differentiates)]
        if method in [*DIRECTIONS, *PEERS] and method not in known:
            raise ValueError(
                f"method is {method!r}, which takes derivatives of the network, and a pipeline has none to give; expected "
                f"{', '.join(map(repr, known))}, or `fcs_lab.sample` and `fcs_lab.baselines` with fcs_lab.load(…)"
            )
        if method not in known:
            raise ValueError(f"method is {method!r}; expected {', '.join(map(repr, known))}, or a function of one's own")
        names = list(inspect.signature(PEERS[method]).parameters)
        for name in settings:
            if name not in names:
                timesteps = "; the timesteps are those of the pipeline's call" if name == "num_inference_steps" else ""
                raise ValueError(f"{name} is given, which method {method!r} has not; it has {', '.join(names)}{timesteps}")
        return PEERS[method](**settings)
    if not isinstance(method, Peer):
        check_function("method", method, 2)
        method = Peer(getattr(method, "__name__", "method"), method)
    for name in settings:
        raise ValueError(f"{name} is given, but method is {method.name!r}, which has its settings already")
    if method.differentiates:
        raise ValueError(f"method is {method.name!r}, which takes derivatives of the network; a pipeline has none to give")
    return method


class ConstrainedRun:
    """What `constrained` gives: the result of the pipeline's last call, once there was one.

    Example:
        >>> with fcs_lab.constrained(fcs_lab.load("fashion").pipeline) as run:
        ...     print(run.result)
        None
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        task: Constraint | None,
        trace_x0: bool,
        layout: Layout | None,
        peer: Peer | None,
        **settings: Any,
    ):
        self.pipe, self.task, self.trace_x0, self.layout, self.peer = pipe, task, trace_x0, layout, peer
        self.settings = settings
        self.scheduler, self.prediction_type = pipe.scheduler, prediction_type_of(pipe.scheduler)
        self.prepare_latents, self.decode = pipe.prepare_latents, pipe.vae.decode
        counts = settings.get("inner_steps", Settings.inner_steps)
        N = len(counts) if isinstance(counts, Sequence) else 1
        checked = Settings(num_inference_steps=max(N, 1), trained=max(N, 1), **settings)  # a wrong one is named now
        if not callable(checked.step_size):
            checked.λ([0.0] * max(N, 1))
        read_schedule(self.scheduler, 1, tokens=1, bounded=False)
        self.call: PipelineCall | None = None

    @property
    def result(self) -> Result | None:
        """The `Result` that `sample` gives: images (B, C, H, W) in [-1, 1], x0 as unpacked latents (B, c, h, w), the trace.

        None before a call. After a run that was interrupted (`pipe._interrupt`, Ctrl-C, an exception), or that the pipeline
        ended early, it holds the last x̂_0, with `completed` False. `nfe` counts the estimates x̂_0 that the method was
        sent: a guided one counts once, however many calls of the network the pipeline makes for it.
        """
        call = self.call
        if call is None or call.x0 is None:
            return None
        if call.images is None:
            with torch.no_grad():
                call.images = call.space.decode(call.x0)
            check_finite(call.images, self.pipe.vae.dtype)
        images = call.images.clamp(-1, 1)
        images = images if call.watch.task is None else call.watch.task.finish(images)
        return Result(call.x0, images, call.watch.finished_trace(), call.forward // len(call.x0), 0, call.completed)

    # What the pipeline calls.

    def _prepare_latents(self, *arguments: Any, **options: Any) -> Any:
        made = self.prepare_latents(*arguments, **options)
        given = inspect.signature(self.prepare_latents).bind(*arguments, **options).arguments
        latents = made[0] if isinstance(made, tuple) else made
        self._fresh("space").enter(latents, given.get("height"), given.get("width"), given.get("generator"))
        return made

    def _set_timesteps(self, N: int | None, timesteps: Any, sigmas: Any, mu: float | None) -> tuple[list[float], Schedule]:
        return self._fresh("schedule").visit(N, timesteps, sigmas, mu)

    def _fresh(self, part: str) -> PipelineCall:
        """The call that is being prepared: the present one, unless it has this part or has begun."""
        if self.call is None or self.call.method is not None or getattr(self.call, part) is not None:
            self.call = PipelineCall(self)
        return self.call

    def _progress_bar(self, iterable: Any = None, total: int | None = None) -> _Bar:
        call = self.call
        T, evaluations = len(call.schedule.timesteps), len(call.index)
        each = f"× {evaluations // T}" if evaluations % T == 0 else f"with {evaluations}"
        of_the_preset = self.peer is not None and self.peer.name == "fast"
        hint = f" ({FAST_STEPS} make about {2 * FAST_STEPS})" if of_the_preset and T != FAST_STEPS else ""
        options = dict(getattr(self.pipe, "_progress_bar_config", {}))
        options.setdefault("desc", f"{T} timesteps {each} evaluations{hint}")
        call.bar = tqdm(total=T, **options)
        return _Bar(call.bar)

    def _decode(self, z: Tensor, *arguments: Any, **options: Any) -> Any:
        """The VAE's `decode`: of an unfinished run the pipeline's picture is x̂_0's; and no picture is black."""
        call = self.call
        of_the_pipeline = call is not None and call.x0 is not None and not call.space.busy
        if of_the_pipeline and not call.completed:
            if not getattr(self.pipe, "_interrupt", False):
                at = f"{call.n} of {len(call.index)} evaluations (denoising_end?)"
                warnings.warn(f"the pipeline stopped after {at}; the picture is the last x̂_0", stacklevel=2)
            z = call.space.unscaled(call.x0).to(z).reshape(z.shape)
        elif of_the_pipeline:
            call.check_decoded(z)
        out = self.decode(z, *arguments, **options)
        if of_the_pipeline:
            images = out[0] if isinstance(out, tuple) else out.sample
            images = images.squeeze(2) if images.ndim == 5 else images
            check_finite(images, self.pipe.vae.dtype)
            call.images = images.detach().to(at_least_float32(images.dtype))
        return out

    def _watch_changes(self, stack: ExitStack) -> None:
        """Refuse by name what would change the network within a timestep, where J e would be garbage."""

        def network(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            rows = arguments[0] if arguments else options.get("hidden_states", options.get("sample", ()))
            self.call.asked.append(len(rows))
            if options.get("skip_layers") is not None:
                raise ValueError(
                    "skip_guidance_layers is given; it makes the network another one within a timestep, and J e is then "
                    "none: leave it out"
                )

        def controlnet(_: nn.Module, __: Any, options: dict[str, Any]) -> None:
            self.call.hold("control_guidance_start and control_guidance_end", options.get("conditioning_scale"))

        for name, hook in (("unet", network), ("transformer", network), ("controlnet", controlnet)):
            part = getattr(self.pipe, name, None)
            if isinstance(part, nn.Module):
                stack.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)


class _Bar:
    """The pipeline's bar: it counts evaluations, or stops short; the call's own counts timesteps."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, n: int = 1) -> None:
        """Nothing."""


def _stand_in(scheduler: SchedulerMixin, run: ConstrainedRun) -> SchedulerMixin:
    """A scheduler of the same class and configuration, whose timesteps and steps are the run's."""

    class StandIn(type(scheduler)):
        order = 1
        init_noise_sigma = 1.0  # x_t = a x_0 + s ε, whatever the class makes of it

        def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None):
            visited, schedule = run._set_timesteps(num_inference_steps, timesteps, sigmas, mu)
            self.num_inference_steps = len(schedule.timesteps)
            self.timesteps = torch.tensor(visited, device=device, dtype=torch.float32 if schedule.flow else torch.int64)
            self.sigmas = torch.tensor(
                [s for i in run.call.index for _, s in [schedule.levels[i]]] + [0.0], device=device, dtype=torch.float32
            )

        def scale_model_input(self, sample, timestep=None):
            return sample

        def set_begin_index(self, begin_index=0):
            pass

        def step(self, model_output, timestep, sample, return_dict=True, **_):
            run.call.autocast = computes_in(None, sample.device)
            x = run.call.step(model_output, sample)
            return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    stand_in = copy.copy(scheduler)
    stand_in.__class__ = StandIn
    vars(stand_in)["init_noise_sigma"] = 1.0
    return stand_in


def _shadow(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Put a value in the place of an attribute until the stack unwinds, past any __setattr__ of the owner's."""
    had, before = name in vars(owner), vars(owner).get(name)
    object.__setattr__(owner, name, value)
    stack.callback(partial(object.__setattr__, owner, name, before) if had else partial(object.__delattr__, owner, name))


def check_pipeline(pipe: object) -> None:
    """That it is a pipeline that `constrained` takes.

    Raises:
        TypeError, ValueError: It is not; see `constrained`.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise TypeError(f"pipe is {pipe!r}; expected a diffusers pipeline from text to images")
    name, found = type(pipe).__name__, what_it_takes(type(pipe))
    if found is not None:
        raise TypeError(
            f"pipe is a {name}, which {found}; supported are pipelines from text to one image, whose loop starts from noise"
        )
    if getattr(pipe, "vae", None) is None:
        raise ValueError(f"pipe is a {name} without a VAE; the task is in images, so one is needed")
    if type(pipe.scheduler).__qualname__.startswith("_stand_in"):
        raise ValueError("pipe is within another constrained(…) already; leave that first")
    for part in ("unet", "transformer"):
        if getattr(getattr(pipe, part, None), "is_cache_enabled", False):
            raise ValueError(
                f"pipe.{part} has a feature cache (is_cache_enabled), which changes it within a timestep: disable it"
            )
