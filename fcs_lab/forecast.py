"""What a run of `constrained` will take, told before it: evaluations, seconds, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from fcs_lab.algorithm import plan
from fcs_lab.checks import check_count
from fcs_lab.constrained import check_pipeline, constrained
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.directions import EVALUATIONS
from fcs_lab.latent_space import network_of

__all__ = ["Forecast", "forecast", "seconds_of_an_evaluation"]


@dataclass(frozen=True)
class Forecast:
    """What a run will take; printed, it says so in two lines."""

    evaluations: int
    """Estimates x̂_0, (2K + 1) T' with J e."""
    calls: int
    """Calls of the network for one of them: 2 where guidance takes two."""
    seconds: float
    """For all of them, from the time that one took; the VAE's work comes on top."""
    weights: int
    """Bytes of all of the pipeline's networks."""
    peak: int | None
    """Bytes that were in use at most on the GPU while one was made, weights included; None on a CPU."""

    def __str__(self) -> str:
        minutes = f"{self.seconds:.1f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        each = "one call" if self.calls == 1 else f"{self.calls} calls"
        peak = "" if self.peak is None else f", {self.peak / 2**30:.2f} GiB in use at most"
        return (
            f"{self.evaluations} evaluations, {each} of the network each: about {minutes}\n"
            f"weights of {self.weights / 2**20:.0f} MiB{peak}"
        )


def forecast(
    pipe: DiffusionPipeline,
    *arguments: Any,
    num_inference_steps: int = 20,
    inner_steps: int = 5,
    method: str = "newton",
    **options: Any,
) -> Forecast:
    """Make two estimates with a pipeline, without a task, and tell what a run takes.

    Args:
        pipe: As for `constrained`.
        *arguments, **options: The pipeline's call, as it is to be run.
        num_inference_steps, inner_steps, method: T', K and the method of the run.

    Raises:
        TypeError, ValueError: As for `constrained`, and as the pipeline's call raises them.

    Example:
        >>> pipe = fcs_lab.load("fashion").pipeline
        >>> told = fcs_lab.forecast.forecast(pipe, "a photo of a dress", num_inference_steps=20, inner_steps=5)
        >>> told.evaluations, told.calls  # 20 (1 + 2·5), both prompts in one call
        (220, 1)
    """
    check_pipeline(pipe)
    if not isinstance(method, str) or method not in EVALUATIONS:
        raise ValueError(f"method is {method!r}; expected {', '.join(map(repr, EVALUATIONS))}")
    check_count("num_inference_steps", num_inference_steps, 1, 10_000)
    check_count("inner_steps", inner_steps, 0, 10_000)
    network, marks = network_of(pipe), []

    def mark(*_: Any) -> None:
        if network.device.type == "cuda":
            torch.cuda.synchronize(network.device)
        marks.append(time.perf_counter())

    on_gpu = pipe._execution_device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    hooks = network.register_forward_pre_hook(mark), network.register_forward_hook(mark)
    try:
        with constrained(pipe, method=method) as run:
            pipe(*arguments, **options | {"num_inference_steps": 2, "output_type": "latent"})
    finally:
        for hook in hooks:
            hook.remove()
    calls = len(marks) // 2 // run.result.nfe
    took = sum(marks[2 * k + 1] - marks[2 * k] for k in range(calls, 2 * calls))  # of the second: the first one is slow
    evaluations = len(plan(range(num_inference_steps), [[0.0] * inner_steps] * num_inference_steps, EVALUATIONS[method]))
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    weights = sum(p.numel() * p.element_size() for part in parts for p in (*part.parameters(), *part.buffers()))
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return Forecast(evaluations, calls, evaluations * took, weights, peak)


@torch.no_grad()
def seconds_of_an_evaluation(model: Denoiser, count: int) -> float:
    """What one evaluation of one image takes, in a batch of `count`; measured by two, of which the first is slow.

    Example:
        >>> fcs_lab.forecast.seconds_of_an_evaluation(fcs_lab.load("mnist"), 1) > 0
        True
    """
    model = as_model(model).snapshot()
    x, took = torch.zeros(count, *model.shape, device=model.device), 0.0
    for _ in range(2):
        start = time.perf_counter()
        model(x, 500).sum().item()
        took = time.perf_counter() - start
    return took / count
