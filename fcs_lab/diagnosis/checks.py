"""Before a long run: what may be wrong with a model, a task and settings, told by a few dozen evaluations.

`diagnose` takes a short run of its own, with default settings so that one fault does not hide another, stops at two of its
timesteps to measure there what the asked settings do, and asks afterwards whether the model takes the result for an image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fcs_lab.algorithm import Method, plan
from fcs_lab.baselines.frame import Peer, run
from fcs_lab.checks import check_seed
from fcs_lab.constrained import check_pipeline, constrained
from fcs_lab.constraints import Constraint
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.directions import EVALUATIONS, FD_STEP, CountedDenoiser, Differentiation, newton, norm_inf, unit
from fcs_lab.latent_space import LatentInpainting
from fcs_lab.sampler import Settings, StepSize, check_task
from fcs_lab.trace import Watch

__all__ = ["Diagnosis", "Finding", "diagnose"]

TIMESTEPS, PROBED = 6, (2, 3)
"""Of the short run, and which of them are looked at: neither almost noise nor almost an image."""
LENGTHS = (0.25, 1.0, 4.0)
"""In units of λ_1: how far x_t is moved."""
OFF = 0.5
"""The linear prediction is of no use where it is off by so much of itself."""
PRODUCTS = 3
"""Applications of J in the estimate of μ_max."""
# Where "ok" ends and where "bad" begins. On the bundled models, their own test images and default settings every value is
# within the second; each planted fault of the tests is beyond it.
LIMITS = {
    "fd_step": (0.9, 0.6),  # cosine of the finite difference with J e
    "symmetry": (0.5, 0.0),  # cosine of J e with Jᵀ e
    "step_size": (1.0, 1.5),  # C after a step of λ_1, in units of C before it
    "leakage": (0.25, 0.75),  # change of the known latents, in units of their standard deviation
    "distribution": (2.0, 3.0),  # denoising error, in units of what the model expects of it
    "range": (1.2, 1.5),  # largest |y|; a bicubic reduction overshoots 1
}
HARDLY = 0.02
"""K steps that take less off C than this do not move x_t enough."""
LONG = 600.0
"""Seconds."""


@dataclass(frozen=True)
class Finding:
    """One check.

    Example:
        >>> print(fcs_lab.Finding("fd_step", "ok", "h = 0.005 suits float32"))
              ok  fd_step: h = 0.005 suits float32
    """

    check: str
    """Its name: "fd_step", "symmetry", "step_size", "invertibility", "leakage", "distribution", "range" or "cost"."""
    verdict: str
    """ "ok", "doubtful" or "bad"."""
    told: str
    """What was measured."""
    advice: str = ""
    """What to do about it; "" where nothing."""
    values: dict[str, float] = field(default_factory=dict)
    """The numbers, by name."""

    def __str__(self) -> str:
        return f"{self.verdict:>8}  {self.check}: {self.told}" + (f"\n{'':10}{self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` returns: its findings, in order. Printed, it is the report.

    Example:
        >>> found = fcs_lab.Diagnosis((fcs_lab.Finding("fd_step", "ok", "h = 0.005 suits float32"),), evaluations=46)
        >>> found["fd_step"].verdict, len(found)
        ('ok', 1)
    """

    findings: tuple[Finding, ...]
    evaluations: int
    """What it took, an image: evaluations of the network, a product by autograd counted as two."""

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, check: str) -> Finding:
        """A finding by its check's name."""
        for finding in self:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r}; made were {', '.join(repr(finding.check) for finding in self)}")

    def __str__(self) -> str:
        return "\n".join([*map(str, self), f"({self.evaluations} evaluations an image)"])

    def plot(self) -> Any:
        """The findings as a matplotlib Figure, a line each with its verdict and advice."""
        from fcs_lab.diagnosis.plots import plot_diagnosis

        return plot_diagnosis(self)


@ordinary()
def diagnose(
    model: Denoiser | DiffusionPipeline,
    task: Constraint,
    *,
    num_inference_steps: int = 20,
    inner_steps: int | list[int] | None = None,
    step_size: StepSize | None = None,
    direction: str = "newton",
    fd_step: float | None = None,
    regularization: float | None = None,
    eta: float | None = None,
    seed: int = 0,
    **call: Any,
) -> Diagnosis:
    """Check a model, a task and settings of `sample` before a long run.

    ```python
    print(fcs_lab.diagnose(model, fcs_lab.Inpainting(photograph, mask), fd_step=0.01))
    ```

    | check | what is looked at | bad where |
    | --- | --- | --- |
    | `fd_step` | cosine of J e by h's finite difference with J e by forward mode (of a pipeline: with that by h/2) | < 0.6 |
    | `symmetry` | cosine of J e with Jᵀ e; at 0 J e does not lower C at all | ≤ 0 |
    | `step_size` | C after one step of λ_1, over C before; 2‖J e‖_∞/μ_max², which is safe for any e, beside it | > 1.5 |
    | `invertibility` | λ_1 against the radius where x̂_0 is off its linear prediction by half | radius < λ_1/4 |
    | `leakage` | change of the known latents as hidden pixels turn white, over their standard deviation | > 0.75 |
    | `distribution` | ‖x̂_0 − x_0‖² at noisy versions of the result, over its expectation (s²/a) tr J (Tweedie) | > 3 |
    | `range` | the largest \\|y\\|; images are in [-1, 1] | > 1.5 |
    | `cost` | evaluations and seconds of the run that was asked for | never |

    Medians over images and two timesteps, of `distribution` the worst image. It takes 46 evaluations of a denoiser (a
    product by autograd counts as two), 40 of a pipeline, which has no Jᵀ, so no `symmetry`. `leakage` is of inpainting in
    latents alone.

    Args:
        model: What `sample` takes, or a pipeline that `constrained` takes.
        task: The constraint.
        num_inference_steps, inner_steps, step_size, direction, fd_step, regularization, eta: Of the run, as for `sample`.
        seed: Of the noise.
        **call: Of a pipeline its call's arguments, such as `prompt`, `height`, `guidance_scale`.

    Raises:
        TypeError, ValueError: As for `sample`, or as for `constrained` and the pipeline's call; other arguments for a
            denoiser.
        FloatingPointError: Something became infinite or NaN; it is named.

    Example:
        >>> digit, mask = fcs_lab.load_digits(1)[0], torch.arange(32).ge(16).expand(32, 32)
        >>> found = fcs_lab.diagnose(fcs_lab.load("mnist"), fcs_lab.Inpainting(digit, mask))
        >>> found.evaluations, found["cost"].verdict
        (46, 'ok')
    """
    check_task(task)
    if task is None:
        raise TypeError("task is None; expected a constraint")
    seed = int(check_seed(seed))
    own = {
        "inner_steps": inner_steps,
        "step_size": step_size,
        "fd_step": fd_step,
        "regularization": regularization,
        "eta": eta,
    }
    of_pipeline = isinstance(model, DiffusionPipeline)
    trained = (model.scheduler if of_pipeline else as_model(model).scheduler).config.num_train_timesteps
    given = {name: value for name, value in own.items() if value is not None}
    asked = Settings(num_inference_steps=num_inference_steps, trained=trained, direction=direction, **given)
    λ = asked.λ(torch.linspace(trained, 1, num_inference_steps).tolist())
    examined = _Examined(asked, next((sizes[0] for sizes in λ if sizes), 0.0), max(map(len, λ)))
    if of_pipeline:
        check_pipeline(model)
        peer = Peer("diagnose", examined.method, plan=examined.plan)
        with constrained(model, task, method=peer) as started:
            generator = torch.Generator().manual_seed(seed)
            model(**{"output_type": "latent", "generator": generator} | call | {"num_inference_steps": TIMESTEPS})
        derivatives, encode = 0, started.call.space.encode
    else:
        for name in call:
            raise TypeError(f"{name} is given; with a denoiser expected settings of sample and a seed")
        examined.derivatives = True
        peer = Peer("diagnose", examined.method)
        result = run(model, task, peer, TIMESTEPS, generator=torch.Generator().manual_seed(seed), progress=False)
        derivatives, encode = examined.forward_mode + result.n_backward, as_model(model).encode
    findings = [*examined.findings(), _leakage(examined.task, encode), _range(task), _cost(λ, direction, examined.seconds)]
    made = tuple(finding for finding in findings if finding is not None)
    return Diagnosis(made, examined.evaluations + derivatives)


@dataclass
class _Examined:
    """The short run, and what was measured in it."""

    asked: Settings
    step: float
    """λ_1."""
    inner_steps: int
    """The most of a timestep."""
    seconds: float = math.nan
    """Of one evaluation."""
    derivatives: bool = False
    forward_mode: int = 0
    """Products by forward mode."""
    evaluations: int = 0
    """All, an image."""
    task: Constraint | None = None
    measured: dict[str, list[Tensor]] = field(default_factory=dict)

    def plan(self, T: int) -> list[int]:
        """Of each evaluation its timestep's place, without derivatives."""
        probed = 1 + PRODUCTS + len(LENGTHS) + (2 if self.asked.direction == "newton" else 0)
        of_run = [i for i in range(T) for _ in range(3 + (probed if i in PROBED else 0))]
        return of_run + [i for i in PROBED for _ in range(2)]

    def note(self, name: str, value: Tensor) -> None:
        self.measured.setdefault(name, []).append(value.flatten().double().cpu())

    def method(self, x: Tensor, watch: Watch) -> Method:
        """Algorithm 1 with K = 1, looked at on its way."""
        self.task, h, λ = watch.task, FD_STEP[watch.f.dtype], Settings.step_size[0]
        for i, t in enumerate(watch.schedule.timesteps):
            start = time.perf_counter()
            x0 = yield x, t
            x0.sum().item()  # a GPU is waited for
            self.seconds = time.perf_counter() - start
            e = watch.error(x0)
            d = yield from newton(x, t, x0, e, fd_step=h)
            if i in PROBED:
                if self.derivatives:
                    yield from self._symmetry(x, t, d, e)
                if self.asked.direction == "newton":
                    yield from self._fd_step(x, t, x0, e, self.asked.fd_step or h)
                yield from self._steps(x, t, x0, unit(d, e), norm_inf(d), h, watch)
            x = x + λ * unit(d, e)
            x0 = yield x, t
            x = watch.step(i, x, x0)
        yield from self._distribution(_meeting(watch.task, x), watch, h)
        self.evaluations = watch.f.forward // len(x)
        return x

    def _symmetry(self, x: Tensor, t: float, d: Tensor, e: Tensor) -> Method:
        """J e against Jᵀ e, if the denoiser has derivatives to give: not one that is compiled or quantised, say."""

        def pulled(f: CountedDenoiser) -> Tensor | None:
            f.keep_graph = True
            f(x, t)
            f.keep_graph = False
            return f.pullback(x, t, e) if f.differentiable else None

        found = yield Differentiation(pulled)
        self.derivatives = found is not None
        if found is not None:
            self._compare("symmetry", d, found, e)

    def _fd_step(self, x: Tensor, t: float, x0: Tensor, e: Tensor, h: float) -> Method:
        """J e by h against forward mode, or against h/2."""
        asked = yield from newton(x, t, x0, e, fd_step=h)
        if self.derivatives:
            self.forward_mode += 1
            truth = yield Differentiation(lambda f: f.jvp(x, t, e))
        else:
            truth = yield from newton(x, t, x0, e, fd_step=h / 2)
        self._compare("fd_step", asked, truth, e)

    def _steps(self, x: Tensor, t: float, x0: Tensor, u: Tensor, size: Tensor, h: float, watch: Watch) -> Method:
        """μ_max, what steps along u do to C, and how far x̂_0 is then from its linear prediction."""
        Ju = v = yield from newton(x, t, x0, u, fd_step=h)
        μ = _norm(Ju) / _norm(u)
        for _ in range(PRODUCTS):
            after = yield from newton(x, t, x0, v, fd_step=h)
            μ, v = _norm(after) / _norm(v).clamp_min(1e-12), after
        before, _ = watch.task.cost_and_error(x0)
        off, radius = [], torch.full_like(μ, math.inf)
        for length in LENGTHS:
            λ = length * max(self.step, 1e-6)
            there = yield x + λ * u, t
            off.append(_norm(there - x0 - λ * Ju) / (λ * _norm(Ju)).clamp_min(1e-12))
            radius = torch.where((off[-1] > OFF) & radius.isinf(), λ * OFF / off[-1], radius)
            if length == 1:
                after, _ = watch.task.cost_and_error(there)
                self.note("step_size", after / before.clamp_min(1e-12))
        self.note("allowed", 2 * size.flatten() / μ.clamp_min(1e-12).square())
        self.note("mu_max", μ)
        self.note("radius", radius)

    def _distribution(self, image: Tensor, watch: Watch, h: float) -> Method:
        """The error of x̂_0 at noisy versions of x_0, over E‖x_0 − x̂_0‖² = tr Cov[x_0 | x_t] = (s²/a) tr J."""
        error, expected = 0.0, 0.0
        for i in PROBED:
            t, (a, s) = watch.schedule.timesteps[i], watch.schedule.levels[i]
            x_t = a * image + s * watch.noise(image)
            x0 = yield x_t, t
            signs = torch.sign(watch.noise(image))  # Hutchinson's
            Jv = yield from newton(x_t, t, x0, signs, fd_step=h)
            error = error + (image - x0).flatten(1).square().sum(1)
            expected = expected + s**2 / a * (signs * Jv).flatten(1).sum(1)
        self.note("distribution", error / expected.clamp_min(1e-12))

    def _compare(self, name: str, a: Tensor, b: Tensor, e: Tensor) -> None:
        """The cosine of each image; 1 where there is nothing to compare, since e is 0, and 0 where a or b vanishes."""
        cosine = cosine_similarity(a.flatten(1), b.flatten(1)).nan_to_num(0.0)
        self.note(name, torch.where(norm_inf(e).flatten() > 0, cosine, 1.0))

    def median(self, name: str) -> float:
        return torch.cat(self.measured[name]).median().item()

    def findings(self) -> list[Finding]:
        made = []
        if "fd_step" in self.measured:
            made.append(self._told_fd_step())
        if "symmetry" in self.measured:
            made.append(self._told_symmetry())
        return [*made, self._told_step_size(), self._told_invertibility(), self._told_distribution()]

    def _told_fd_step(self) -> Finding:
        cosine, h = self.median("fd_step"), self.asked.fd_step
        against = "forward mode" if self.derivatives else "h/2"
        verdict = _verdict("fd_step", cosine, low=True)
        told = f"cosine {cosine:.3f} of J e by h = {'the default' if h is None else f'{h:g}'} with that by {against}"
        advice = "leave fd_step out, or see fcs_lab.probes.suggest_fd_step: large ones bend, small ones drown in rounding"
        return Finding("fd_step", verdict, told, "" if verdict == "ok" else advice, {"cosine": cosine})

    def _told_symmetry(self) -> Finding:
        cosine = self.median("symmetry")
        verdict = _verdict("symmetry", cosine, low=True)
        advice = "direction='gradient', Jᵀ e, is the slope of C; it takes a backward pass"
        told = f"cosine {cosine:.3f} of J e with Jᵀ e"
        return Finding("symmetry", verdict, told, "" if verdict == "ok" else advice, {"cosine": cosine})

    def _told_step_size(self) -> Finding:
        ratio, allowed, μ = self.median("step_size"), self.median("allowed"), self.median("mu_max")
        verdict, advice = _verdict("step_size", ratio), "a smaller step_size: the step overshoots"
        if verdict == "ok" and self.step and (1 - ratio) * self.inner_steps < HARDLY:
            verdict, advice = "doubtful", "a larger step_size, or more inner_steps: x_t is hardly moved"
        told = (
            f"a step of λ_1 = {self.step:g} leaves {ratio:.3g} of C; safe for any e would be {allowed:.2g} "
            f"(2‖J e‖_∞/μ_max², μ_max about {μ:.2g})"
        )
        values = {"cost_ratio": ratio, "allowed": allowed, "mu_max": μ}
        return Finding("step_size", verdict, told, "" if verdict == "ok" else advice, values)

    def _told_invertibility(self) -> Finding:
        radius = self.median("radius")
        verdict = "ok" if radius >= self.step else "doubtful" if radius >= LENGTHS[0] * self.step else "bad"
        shown = f"at least {LENGTHS[-1] * self.step:.2g}" if math.isinf(radius) else f"about {radius:.2g}"
        told = f"x̂_0 is near its linear prediction up to {shown}; λ_1 = {self.step:g}"
        advice = "a smaller step_size with more inner_steps: J says little of where such a step leads"
        return Finding("invertibility", verdict, told, "" if verdict == "ok" else advice, {"radius": radius})

    def _told_distribution(self) -> Finding:
        ratio = self.measured["distribution"][0].max().item()
        verdict = _verdict("distribution", ratio)
        told = f"the model is off by {ratio:.2f} of what it expects, squared, on what comes out"
        advice = "the image may be none of the model's: inverted, shifted, of another kind or scale; or no image fits y"
        return Finding("distribution", verdict, told, "" if verdict == "ok" else advice, {"ratio": ratio})


def _leakage(task: Constraint | None, encode: Callable[[Tensor], Tensor]) -> Finding | None:
    """How far the known latents of inpainting depend on pixels that are hidden."""
    if not isinstance(task, LatentInpainting):
        return None
    with torch.no_grad():
        images = task.image.expand(len(task.y), -1, -1, -1)
        white = encode(torch.where(task.mask.to(images.device), 1.0, images))
    known = task.known.bool().expand_as(task.y)
    change = (white.to(task.y) - task.y)[known].square().mean().sqrt() / task.y[known].std().clamp_min(1e-12)
    verdict = _verdict("leakage", change.item())
    told = f"known latents change by {change:.2f} of their spread as the hidden pixels turn from grey to white"
    advice = "what is under the mask reaches y through the encoder: hide a margin of whole cells, or put the cost on pixels"
    return Finding("leakage", verdict, told, "" if verdict == "ok" else advice, {"change": change.item()})


def _range(task: Constraint) -> Finding | None:
    """Whether what is given is in [-1, 1]."""
    y = getattr(task, "y", None)
    if not isinstance(y, Tensor):
        return None
    y = y.detach().float()
    known = getattr(task, "known", None)
    y = y if known is None else y[known.to(y.device).bool().expand_as(y)]
    low, high = y.min().item(), y.max().item()
    most = max(abs(low), abs(high))
    verdict, advice = _verdict("range", most), "images are in [-1, 1]: x / 127.5 - 1 of bytes; fcs_lab.to_tensor does it"
    if verdict == "ok" and low >= 0 and high > 0.5:
        verdict, advice = "doubtful", "there is nothing below 0: 2 x - 1, if these are images in [0, 1]"
    told = f"y is within [{low:.3g}, {high:.3g}]"
    return Finding("range", verdict, told, "" if verdict == "ok" else advice, {"low": low, "high": high})


def _cost(λ: list[list[float]], direction: str, seconds: float) -> Finding:
    """What the run that was asked for will take."""
    each = EVALUATIONS.get(direction, 0)
    evaluations = len(plan(range(len(λ)), λ, each))
    told = f"{evaluations} evaluations, about {seconds * evaluations:.3g} s here"
    told += "" if direction in EVALUATIONS else f", and the derivatives of {direction!r} on top"
    verdict = "ok" if seconds * evaluations < LONG else "doubtful"
    advice = "" if verdict == "ok" else "fewer timesteps or inner steps, or preset='fast'"
    return Finding("cost", verdict, told, advice, {"evaluations": evaluations, "seconds": seconds * evaluations})


def _verdict(check: str, value: float, *, low: bool = False) -> str:
    """Of a value that is better the smaller it is, or with `low` worse."""
    ok, bad = LIMITS[check]
    if not math.isfinite(value) or (value <= bad if low else value > bad):
        return "bad"
    return "ok" if (value >= ok if low else value <= ok) else "doubtful"


def _norm(v: Tensor) -> Tensor:
    """‖v‖ of each image, (B,)."""
    return v.flatten(1).norm(dim=1)


def _meeting(task: Constraint, x0: Tensor) -> Tensor:
    """x̂_0 as far as it meets a linear task, x̂_0 + A⁺(y − A x̂_0): what is given is in it as it was given."""
    if all(hasattr(task, name) for name in ("A", "pinv", "y")):
        return x0 + task.pinv(task.y - task.A(x0))
    return x0
