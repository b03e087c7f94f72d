"""The levels of signal and noise that a run goes through, x_t = a x_0 + s ε, and the step from one to the next.

They are read from any diffusers scheduler's configuration; its own `step` is not used. That assumes t − T/N for the next
timestep, which is wrong for some spacings, and what a multistep solver remembers is invalid once Algorithm 1 has moved x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from fcs_lab.checks import typed

__all__ = ["Schedule", "check_scheduler", "is_flow", "read_schedule", "same_levels"]

SIGMA_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Configurations whose timesteps are those of given noise-to-signal ratios σ = s/a."""

UNREADABLE = {
    "sigma_data": None,  # EDM's preconditioning: x_t is scaled otherwise
    "invert_sigmas": False,
    "timestep_type": "discrete",
    "lambda_min_clipped": -math.inf,
}
"""Fields of a configuration that change the levels in ways that are not read here, and the values that do not."""


@dataclass(frozen=True)
class Schedule:
    """T' timesteps, from the noisiest, and the levels at each."""

    timesteps: list[int] | list[float]
    """As the network takes them; whole numbers, except for a rectified flow."""
    levels: list[tuple[float, float]]
    """(a, s) at each timestep and, as one more, where the run ends."""
    flow: bool = False
    """Whether it is a rectified flow: a = 1 − σ and s = σ. Else a² + s² = 1."""
    bound: Callable[[Tensor], Tensor] = lambda x0: x0
    """What the scheduler does to x̂_0 before a step: `clip_sample`, `thresholding`, or nothing."""

    def sigma(self, i: int, eta: float) -> float:
        """σ of the step from timestep i to the next: η times that of the ancestral step (DDPM's, for η = 1)."""
        (a, s), (a_next, s_next) = self.levels[i], self.levels[i + 1]
        if s == 0 or a_next == 0:
            return 0.0
        return eta * s_next * math.sqrt(max(0.0, 1 - (a * s_next / (a_next * s)) ** 2))

    def step(
        self, i: int, x: Tensor, x0: Tensor, sigma: float = 0.0, z: Tensor | None = None, moved: Tensor | None = None
    ) -> Tensor:
        """From x at timestep i, with the estimate x̂_0, to the next: x' = a' x̂_0 + √(s'² − σ²) ε̂ + σ z.

        ε̂ = (x − a x̂_0)/s. With σ = η s' √(1 − (a s'/(a' s))²) it is DDIM for any η, and DDPM for η = 1; for a rectified
        flow and σ = 0 it is Euler's step. σ may go up to s', where all noise is fresh.

        Args:
            i: The timestep's place in `timesteps`.
            x, x0: x_t and x̂_0 (B, C, H, W).
            sigma: σ, from 0 to s'.
            z: Noise of x's shape; needed where σ > 0.
            moved: What takes x̂_0's place at the next level, while ε̂ stays that of x0. None: x̂_0, within its bound.
        """
        (a, s), (a_next, s_next) = self.levels[i], self.levels[i + 1]
        noise = (x - a * x0) / s if s > 0 else torch.zeros_like(x)
        x = a_next * (self.bound(x0) if moved is None else moved) + math.sqrt(max(s_next**2 - sigma**2, 0.0)) * noise
        return x if sigma == 0 else x + sigma * z


def check_scheduler(scheduler: object) -> None:
    """That it is one of diffusers' schedulers.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(scheduler, SchedulerMixin):
        raise TypeError(f"scheduler is {scheduler!r}; expected one of diffusers' schedulers, such as a DDIMScheduler")


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether the scheduler is a rectified flow's, by its class or its configuration."""
    check_scheduler(scheduler)
    config = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


@typed
def read_schedule(
    scheduler: SchedulerMixin,
    num_inference_steps: int | None = None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    tokens: int | None = None,
    bounded: bool = True,
) -> Schedule:
    """The schedule of a run, from the scheduler's configuration. The scheduler is left as it was.

    Args:
        scheduler: Any of diffusers' that has a noise schedule ᾱ_t, or is a rectified flow's.
        num_inference_steps: T'. None: as many as `timesteps` or `sigmas`.
        timesteps, sigmas: A list of one's own instead, from the noisiest; σ = s/a, or a flow's σ, as diffusers takes them.
        mu: Of a flow whose shift depends on the image's size (`use_dynamic_shifting`).
        tokens: How many tokens the image is to the network, from which `mu` follows if it is None.
        bounded: Whether `clip_sample` and `thresholding` count; not for latents.

    Raises:
        TypeError: `scheduler` is none of diffusers'.
        ValueError: Its configuration has a field that cannot be read here; or the timesteps do not fall, or lie outside.
    """
    check_scheduler(scheduler)
    config = scheduler.config
    if num_inference_steps is None and timesteps is None and sigmas is None:
        raise ValueError("num_inference_steps is None; expected a number, or timesteps or sigmas of one's own")
    for field, harmless in UNREADABLE.items():
        if config.get(field, harmless) != harmless:
            raise ValueError(
                f"scheduler is a {type(scheduler).__name__} whose {field} is {config[field]!r}, which has no reading as "
                f"levels of signal and noise here; expected {harmless!r}, or another scheduler, such as a DDIMScheduler"
            )
    if is_flow(scheduler):
        return _read_flow(scheduler, num_inference_steps, timesteps, sigmas, mu, tokens)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"scheduler is a {type(scheduler).__name__}, which has no noise schedule ᾱ_t (alphas_cumprod); expected "
            "one that has, such as a DDIMScheduler, or a rectified flow's"
        )
    alphas = scheduler.alphas_cumprod.double().cpu().clamp(0, 1).tolist()
    visited = _timesteps(scheduler, num_inference_steps, timesteps, sigmas, alphas)
    ends_at_first = config.get("final_sigmas_type") == "sigma_min" or not config.get("set_alpha_to_one", True)
    squares = [*(alphas[t] for t in visited), alphas[0] if ends_at_first else 1.0]
    levels = [(math.sqrt(alpha), math.sqrt(1 - alpha)) for alpha in squares]
    return Schedule(visited, levels, bound=_bound(config)) if bounded else Schedule(visited, levels)


def same_levels(one: SchedulerMixin, other: SchedulerMixin) -> bool:
    """Whether two schedulers have the same noise schedule; two rectified flows always have."""
    for scheduler in (one, other):
        check_scheduler(scheduler)
    if is_flow(one) or is_flow(other):
        return is_flow(one) and is_flow(other)
    a, b = one.alphas_cumprod.cpu(), other.alphas_cumprod.cpu()
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def _timesteps(
    scheduler: SchedulerMixin,
    N: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    alphas: list[float],
) -> list[int]:
    """The timesteps of a schedule of ᾱ_t, whole numbers from the noisiest."""
    config, T = scheduler.config, len(alphas)
    if timesteps is not None:
        visited = [round(float(t)) for t in timesteps]
        if any(not 0 <= t < T for t in visited) or any(a <= b for a, b in pairwise(visited)):
            raise ValueError(f"timesteps is {list(timesteps)}; expected falling timesteps from {T - 1} to 0")
        return visited
    if sigmas is not None:
        return _nearest([float(sigma) for sigma in sigmas if sigma > 0], alphas)
    if any(config.get(name) for name in SIGMA_SPACINGS):
        # A solver of second order lists every σ twice.
        kind = EulerDiscreteScheduler if scheduler.order == 2 else type(scheduler)
        own = kind.from_config(config)
        own.set_timesteps(N)
        return _nearest(own.sigmas[:N].tolist(), alphas)
    if config.get("original_inference_steps"):  # a consistency model's, distilled at some timesteps only
        own = type(scheduler).from_config(config)
        own.set_timesteps(N)
        return [int(t) for t in own.timesteps]
    if not 1 <= N <= T:
        raise ValueError(f"num_inference_steps is {N}; expected 1 to {T}, the model's timesteps")
    spacing, offset = config.get("timestep_spacing", "leading"), config.get("steps_offset", 0)
    if spacing == "leading":
        visited = [i * (T // N) + offset for i in reversed(range(N))]
    elif spacing == "linspace":
        visited = [round(i * (T - 1) / (N - 1)) for i in reversed(range(N))] if N > 1 else [T - 1]
    elif spacing == "trailing":
        visited = [round(T - i * T / N) - 1 for i in range(N)]
    else:
        raise ValueError(f"timestep_spacing is {spacing!r}; expected 'leading', 'linspace' or 'trailing'")
    if visited[0] >= T:
        raise ValueError(
            f"num_inference_steps is {N}: with its offset the schedule would start at t = {visited[0]}, beyond the model's "
            f"{T - 1}; take fewer steps"
        )
    return visited


def _nearest(sigmas: Sequence[float], alphas: list[float]) -> list[int]:
    """For each falling σ = s/a the timestep with the nearest log σ; no timestep twice."""
    ratios = torch.tensor([(1 - a) / max(a, 1e-12) for a in alphas], dtype=torch.float64).clamp_min(1e-12).log() / 2
    wanted = torch.tensor(sigmas, dtype=torch.float64).clamp_min(1e-12).log()
    nearest = (ratios[None] - wanted[:, None]).abs().argmin(1).tolist()
    visited: list[int] = []
    for t in reversed(nearest):  # from the cleanest: where two coincide, the noisier one gives way
        visited.append(max(t, visited[-1] + 1) if visited else t)
    if visited and visited[-1] >= len(alphas):
        raise ValueError(f"there are {len(sigmas)} sigmas, more than there are timesteps to tell them apart; take fewer")
    return visited[::-1]


def _read_flow(
    scheduler: SchedulerMixin,
    N: int | None,
    timesteps: Sequence[float] | None,
    sigmas: Sequence[float] | None,
    mu: float | None,
    tokens: int | None,
) -> Schedule:
    """A rectified flow's: diffusers' own σ, with their shift."""
    config = scheduler.config
    T = config.num_train_timesteps
    if timesteps is not None:
        visited = [float(t) / T for t in timesteps]
    else:
        # Of the flow-match classes Euler's lists each σ once; a multistep solver's are read as it spaces them.
        ours = type(scheduler).__name__.startswith("FlowMatch")
        own = (FlowMatchEulerDiscreteScheduler if ours else type(scheduler)).from_config(config)
        options: dict[str, Any] = {}
        if config.get("use_dynamic_shifting"):
            options["mu"] = _shift(config, tokens) if mu is None else mu
        own.set_timesteps(**({"num_inference_steps": N} if sigmas is None else {"sigmas": list(sigmas)}), **options)
        visited = own.sigmas[: len(own.timesteps)].tolist()
    if any(not 0 < sigma <= 1 for sigma in visited) or any(a <= b for a, b in pairwise(visited)):
        raise ValueError(f"the flow's σ are {visited}; expected falling numbers from at most 1 to above 0")
    levels = [(1 - sigma, sigma) for sigma in [*visited, 0.0]]
    return Schedule([sigma * T for sigma in visited], levels, flow=True)


def _shift(config: Any, tokens: int | None) -> float:
    """μ of the shift, which rises linearly with the number of the image's tokens (Esser et al. 2024, and diffusers)."""
    if tokens is None:
        raise ValueError(
            "the scheduler has use_dynamic_shifting, so its levels depend on the image's size: pass mu or tokens"
        )
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return first + (last - first) * (tokens - low) / (high - low)


def _bound(config: Any) -> Callable[[Tensor], Tensor]:
    if config.get("thresholding"):  # Saharia et al. 2022, "dynamic thresholding"
        ratio, most = config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0)

        def threshold(x0: Tensor) -> Tensor:
            size = torch.quantile(x0.flatten(1).abs().float(), ratio, dim=1).clamp(1, most).to(x0)
            size = size.reshape(-1, *[1] * (x0.ndim - 1))
            return x0.clamp(-size, size) / size

        return threshold
    if config.get("clip_sample"):
        limit = config.get("clip_sample_range", 1.0)
        return lambda x0: x0.clamp(-limit, limit)
    return lambda x0: x0
