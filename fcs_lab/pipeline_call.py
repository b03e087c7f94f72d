"""One call of a diffusers pipeline that `constrained` drives: its schedule, its latent space, where the coroutine stands.

`constrained` puts itself in the place of the pipeline's scheduler and hands on here what the loop asks of it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.algorithm import Method, algorithm_1, plan
from fcs_lab.constraints import Constraint, for_channels, needs
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import estimate_x0
from fcs_lab.directions import EVALUATIONS, FD_STEP
from fcs_lab.latent_space import Decoded, LatentInpainting, LatentSpace, layout_of, network_of
from fcs_lab.precision import at_least_float32
from fcs_lab.sampler import Settings
from fcs_lab.schedule import Schedule, read_schedule
from fcs_lab.trace import Watch

if TYPE_CHECKING:
    from fcs_lab.constrained import ConstrainedRun

__all__ = ["PipelineCall"]


class PipelineCall:
    """One call of the pipeline: its schedule and its latent space, and the coroutine where it stands."""

    def __init__(self, run: ConstrainedRun):
        self.run = run
        self.schedule: Schedule | None = None
        self.space: _Space | None = None
        self.method: Method | None = None
        self.watch: Watch | None = None
        self.x0: Tensor | None = None
        """The last x̂_0, and the sample in the end; unpacked."""
        self.images: Tensor | None = None
        self.bar: tqdm | None = None
        self.completed, self.forward, self.n = False, 0, 0
        self.autocast: torch.dtype | None = None
        """What the pipeline's loop computes in, where that is within torch.autocast."""
        self.asked: list[int] = []
        """The batch sizes of the network's calls since the last estimate."""
        self._held: dict[str, Any] = {}

    @ordinary()
    def visit(self, N: int | None, timesteps: Any, sigmas: Any, mu: float | None) -> tuple[list[float], Schedule]:
        """The timesteps of all evaluations of a run of N timesteps, or of those that are given."""
        own = {"timesteps": _as_list(timesteps), "sigmas": _as_list(sigmas), "mu": mu}
        schedule = read_schedule(self.run.scheduler, N, bounded=False, **own)
        T = len(schedule.timesteps)
        self.settings = Settings(num_inference_steps=T, trained=T, **self.run.settings)
        self.λ = [[] for _ in range(T)] if self.run.task is None else self.settings.λ(schedule.timesteps)
        if self.run.prediction_type == "epsilon" and schedule.levels[0][0] == 0:
            raise ValueError(
                f"the run would start at t = {schedule.timesteps[0]}, where ᾱ_t = 0 and a network that predicts ε has no "
                "x̂_0: take another timestep_spacing, or rescale_betas_zero_snr=False"
            )
        # Of each evaluation its timestep's place.
        if self.run.peer is None:
            self.index = plan(range(T), self.λ, EVALUATIONS[self.settings.direction])
        else:
            self.index = self.run.peer.plan(T)
        self.schedule = schedule
        return [schedule.timesteps[i] for i in self.index], schedule

    @ordinary()
    def enter(self, latents: Tensor, height: int | None, width: int | None, generator: Any) -> None:
        """The latent space of the pipeline's latents, and the task in it."""
        pipe = self.run.pipe
        self.size = (height, width)
        self.layout = self.run.layout or layout_of(pipe, latents)
        unpacked = self.unpack(latents)
        if unpacked.ndim != 4 or not torch.equal(self.layout.pack(unpacked), latents):
            raise TypeError(
                f"layout.unpack makes {tuple(unpacked.shape)} of latents {tuple(latents.shape)}, and layout.pack not these "
                "again; expected (B, channels, height, width), and each the other's inverse"
            )
        space = _Space(pipe, tuple(unpacked.shape[1:]))
        self.generator, self.state_dtype = generator, at_least_float32(latents.dtype)
        self.task = None if self.run.task is None else _carried(self.run.task, space, len(unpacked))
        if self.task is not None:
            self.task = self.task.to(unpacked.device, self.state_dtype)
            if isinstance(self.task, Decoded):
                if hasattr(pipe.vae, "_hf_hook"):
                    warnings.warn(
                        "the task goes through the VAE at each evaluation, which CPU offload moves to the device and back "
                        "each time: expect this to be slow, or take no offload",
                        stacklevel=2,
                    )
                self.task.cost_and_error(unpacked.to(self.state_dtype))  # a cost that cannot reach the latents says so now
        if self.run.peer is not None:
            needs(self.task, self.run.peer.needs)
        self.space = space

    def begin(self, x: Tensor) -> None:
        network = network_of(self.run.pipe)
        # A quantised network has no floating dtype of its own; it computes in that of its inputs.
        self.dtype = self.autocast or (network.dtype if network.dtype in FD_STEP else x.dtype)
        self.watch = watch = Watch(self, self.task, self.schedule, self.generator, self.run.trace_x0, None)
        watch.λ, watch.along = self.λ, self.settings.direction_of(self.dtype)
        watch.eta = self.settings.eta_of(self.schedule)
        x = x.to(self.state_dtype, copy=True)
        if self.run.peer is not None:
            self.method = self.run.peer.start(x, watch)
        else:
            self.method = algorithm_1(x, self.schedule.timesteps, watch.λ, watch.error, watch.direction, watch.step)
        self.point, _ = next(self.method)

    @ordinary()
    def step(self, output: Tensor, sample: Tensor) -> Tensor:
        """Send x̂_0 of the point that was evaluated, and return the next one, as the pipeline keeps its latents."""
        x = self.unpack(sample)
        if self.method is None:
            self.begin(x)
        elif sample is not self.handed and not torch.equal(sample, self.handed):
            self._replace(x)
        if output.shape != sample.shape:
            raise ValueError(
                f"the network's output has shape {tuple(output.shape)} for latents {tuple(sample.shape)}; expected as many "
                "channels (a learned variance is not cut off here)"
            )
        self.hold("guidance_scale", getattr(self.run.pipe, "_guidance_scale", None))
        self.hold("guidance (such as cfg_trunc_ratio or cfg_truncation)", self.asked)
        self.asked = []
        a, s = self.schedule.levels[self.index[self.n]]
        output = self.unpack(output).to(self.state_dtype)
        self.x0 = self.watch.estimated(estimate_x0(self.run.prediction_type, x.to(self.state_dtype), output, a, s))
        self.forward, self.n = self.forward + len(x), self.n + 1
        try:
            self.point, t = self.method.send(self.x0)
            self._check_plan(t)
        except StopIteration as end:
            self.x0 = self.point = end.value
            self.completed = True
            self._check_plan(None)
        if self.bar is not None:
            self.bar.update(self.watch.i - self.bar.n)
        self.handed = self.layout.pack(self.point).to(sample.dtype)
        return self.handed

    def _check_plan(self, t: float | None) -> None:
        """That a method asks at the timestep that its plan has next; None: that the plan is at its end."""
        planned = self.schedule.timesteps[self.index[self.n]] if self.n < len(self.index) else None
        if t != planned:
            found, wanted = ("its end" if at is None else f"t = {at:g}" for at in (t, planned))
            raise ValueError(
                f"the method came to {found} after {self.n} evaluations, where its plan has {wanted}: give it as "
                "fcs_lab.baselines.Peer(name, method, plan=…), which says at which timesteps it evaluates the network"
            )

    def unpack(self, latents: Tensor) -> Tensor:
        """Latents as the pipeline keeps them, as (B, c, h, w)."""
        return self.layout.unpack(latents, *self.size)

    def check_decoded(self, z: Tensor) -> None:
        """Warn where the pipeline decodes something else than what was imposed on: its latents' scale is then not known."""
        ours = self.space.unscaled(self.x0).to(z)
        scale = ours.std() or 1
        if ours.numel() != z.numel() or not (ours.reshape(z.shape) - z).abs().max() <= 0.1 * scale:
            warnings.warn(
                f"{type(self.run.pipe).__name__} scales its latents in a way that is not known here: the task was imposed "
                "on other images than the pipeline decodes",
                stacklevel=4,
            )

    def hold(self, name: str, value: Any) -> None:
        """That a setting stays what it was at the first evaluation of this timestep."""
        if self._starts_timestep():
            self._held[name] = value
        elif self._held.get(name, value) != value:
            raise ValueError(
                f"{name} changes the network within a timestep (at evaluation {self.n + 1}), and J e is then none: keep it "
                "constant"
            )

    @property
    def at_timestep_end(self) -> bool:
        """Whether the last evaluation was a timestep's last."""
        return self.completed or (self.n > 0 and self._starts_timestep())

    def _starts_timestep(self) -> bool:
        return self.n == 0 or self.index[self.n] != self.index[self.n - 1]

    def _replace(self, x: Tensor) -> None:
        """Latents that a callback put in: taken at the first point of a timestep."""
        if not self._starts_timestep():
            raise ValueError(
                f"latents were replaced after evaluation {self.n} of {len(self.index)}, in the midst of a timestep; "
                "expected at its end only"
            )
        self.point.copy_(x)


class _Space(LatentSpace):
    """The pipeline's latent space, which says when it is the task, and not the pipeline, that decodes."""

    busy = False

    def decode(self, latents: Tensor) -> Tensor:
        self.busy = True
        try:
            return super().decode(latents)
        finally:
            self.busy = False


def _carried(task: Constraint, space: LatentSpace, B: int) -> Constraint:
    """The task in the latent space, once its size and number are known to be the pipeline's."""
    latent = isinstance(task, LatentInpainting | Decoded)
    task = task if latent else for_channels(task, space.image_shape[0])
    expected, what = (space.shape, "latents") if latent else (space.image_shape, "images")
    if task.shape is not None and tuple(task.shape) != tuple(expected):
        raise ValueError(
            f"the task's {what} are {tuple(task.shape)}; the pipeline makes {tuple(expected)} (channels, height, width): "
            "pass it height= and width= (and use_resolution_binning=False where it has that) or latents of that size, or "
            "resize the task's image"
        )
    if task.batch_size not in (None, 1, B):
        raise ValueError(
            f"the task describes {task.batch_size} images; the pipeline makes {B} (prompts × num_images_per_prompt)"
        )
    return space.carry(task)


def _as_list(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in values]
