"""How wrong a finite difference for J e is: over the step h, the scheme and the precision of the network.

A difference has two errors. *Truncation*: x̂_0 is not a straight line between the two points; falls with h. *Rounding*:
two nearly equal numbers are subtracted, and what is left of their digits is divided by h; grows with 1/h. The best h is
where they are equal, and it belongs to the precision of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fcs_lab.checks import is_number, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, Model, networks_of
from fcs_lab.directions import CountedDenoiser
from fcs_lab.precision import HALF, at_least_float32, channels_last_if_half
from fcs_lab.probes.jacobian import check_direction, check_point

__all__ = ["SCHEMES", "FdCurve", "FdError", "in_precision", "measure_fd_error", "suggest_fd_step"]

# Σ weight · x̂_0(x_t + multiple · h' e) / h' over {multiple: weight}.
SCHEMES: dict[str, dict[int, float]] = {
    "forward": {0: -1, 1: 1},  # Algorithm 1; truncation O(h)
    "central": {-1: -1 / 2, 1: 1 / 2},  # O(h²)
    "fourth-order": {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12},  # O(h⁴)
}

DTYPES = (torch.float64, torch.float32, *HALF)
STEPS = tuple(float(h) for h in np.logspace(-4, 0.5, 10))


@dataclass(frozen=True)
class FdCurve:
    """One scheme in one precision, over h. Errors are 2-norms relative to ‖J e‖, all arrays (H,)."""

    dtype: torch.dtype
    scheme: str
    evaluations: int
    """Of the denoiser for one product, x̂_0(x_t) being at hand."""
    h: np.ndarray
    """The step, relative to ‖e‖_∞."""
    error: np.ndarray
    """‖d − J e‖ / ‖J e‖ for the difference d."""
    cosine: np.ndarray
    """Between d and J e."""
    truncation: np.ndarray
    """The error of the same difference in float64: what is left without rounding."""
    rounding: np.ndarray
    """The distance from the same difference in float64, weights included. NaN in float64, where the two are one."""

    @property
    def best(self) -> int:
        """Index of the least error."""
        return int(np.argmin(self.error))


@dataclass(frozen=True)
class FdError:
    """What `measure_fd_error` returns."""

    curves: dict[tuple[torch.dtype, str], FdCurve]
    """(dtype, scheme) -> its curve."""
    forward_mode: dict[torch.dtype, tuple[float, float]]
    """dtype -> (error, cosine) of `torch.func.jvp` in that precision: what no choice of h is needed for."""
    Je: Tensor
    """The truth, float64, of x_t's shape."""


@ordinary()
@typed
def in_precision(denoiser: Denoiser, dtype: torch.dtype) -> Denoiser:
    """A copy of the denoiser, its networks and tensors in `dtype`; the denoiser is left as it was.

    In float64 attention processors that up-cast their softmax to float32 are kept from it, or nothing would be exact.

    Raises:
        TypeError: dtype is not a floating-point one.
        ValueError: The copy does not say that it is in `dtype` (a denoiser that keeps its weights elsewhere).
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype is {dtype!r}; expected a floating-point torch.dtype")
    twin = copy.deepcopy(denoiser.snapshot() if isinstance(denoiser, Model) else denoiser)
    for network in networks_of(twin):
        nn.Module.to(network, dtype)  # diffusers' own `to` warns of modules to be kept in float32, also if there are none
        for module in network.modules():
            for switch in ("upcast_softmax", "upcast_attention"):
                if dtype == torch.float64 and switch in vars(module):
                    setattr(module, switch, False)
        channels_last_if_half(network, dtype)
    for name, value in vars(twin).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            setattr(twin, name, value.to(dtype))
        elif isinstance(value, Denoiser):  # a wrapper's
            setattr(twin, name, in_precision(value, dtype))
        elif name == "dtype":
            twin.dtype = dtype
    if twin.dtype != dtype:
        raise ValueError(f"a copy of the denoiser is still {twin.dtype}; expected one whose attributes convert to {dtype}")
    return twin


@ordinary()
@typed
def measure_fd_error(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    e: Tensor,
    *,
    h: Sequence[float] = STEPS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    schemes: Sequence[str] = tuple(SCHEMES),
    autocast: bool = False,
    one_batch: bool = False,
    forward_mode: bool = True,
) -> FdError:
    """The error of finite differences for J e against forward mode in float64 (paper, Algorithm 1: d ≈ J e).

    Args:
        denoiser: The model; copies of it are converted.
        x_t: The point (1, C, H, W).
        t: A timestep of the model's schedule.
        e: The direction (1, C, H, W), not zero. h is relative to ‖e‖_∞, so its length does not matter.
        h: The steps, positive.
        dtypes: The precisions of the network; x_t and the difference itself stay in float32 at least, as in `sample`.
        schemes: Of `SCHEMES`.
        autocast: Mixed precision: weights as they are, the network under `torch.autocast(dtype)` where the dtype is a
            half one.
        one_batch: Evaluate all points of all differences in one batch, not one by one.
        forward_mode: Measure `torch.func.jvp` in each dtype, too; not in mixed precision, where PyTorch 2.13 does not
            cast the inputs that carry tangents and the network fails.

    Returns:
        A curve for each dtype and scheme, and the error of forward mode. Evaluations: 1 for x̂_0 and those of the
        schemes for each h, in each dtype and once more in float64.

    Raises:
        TypeError, ValueError: An argument does not fit; J e = 0; the float64 copy is not float64 throughout; the
            network cannot run in one of the dtypes on its device.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> asked = {"h": [0.1], "dtypes": [torch.float64], "schemes": ["forward"]}
        >>> curve = fcs_lab.probes.measure_fd_error(model, x_t, t, e, **asked).curves[torch.float64, "forward"]
        >>> curve.evaluations, bool(curve.error.max() < 1e-9)  # x̂_0 is affine: no truncation
        (1, True)
    """
    x_t = check_point(denoiser, x_t, t)
    steps = np.array([_positive(one) for one in h])
    for scheme in schemes:
        if scheme not in SCHEMES:
            raise ValueError(f"schemes has {scheme!r}; expected some of {', '.join(map(repr, SCHEMES))}")
    unit = _unit(check_direction("e", e, x_t))
    exact = in_precision(denoiser, torch.float64)
    Je = _truth(exact, x_t, t, unit)
    reference = _differences(exact, x_t.double(), t, unit, steps, schemes, one_batch)

    curves, modes = {}, {}
    for dtype in dtypes:
        mixed = autocast and dtype in HALF
        twin = _Autocast(denoiser, dtype) if mixed else exact if dtype == torch.float64 else in_precision(denoiser, dtype)
        x, v = (tensor.to(at_least_float32(dtype)) for tensor in (x_t, unit))
        found = _run(dtype, twin, lambda f, x=x, v=v: _differences(f, x, t, v, steps, schemes, one_batch))
        for scheme in schemes:
            d = found[scheme]
            curves[dtype, scheme] = FdCurve(
                dtype=dtype,
                scheme=scheme,
                evaluations=len(SCHEMES[scheme].keys() - {0}),
                h=steps,
                error=_relative(d - Je, Je),
                cosine=_cosine(d, Je),
                truncation=_relative(reference[scheme] - Je, Je),
                rounding=_relative(d - reference[scheme], Je) if dtype != torch.float64 else np.full(len(steps), np.nan),
            )
        if forward_mode and not mixed:
            d = _run(dtype, twin, lambda f, x=x, v=v: CountedDenoiser(f).jvp(x, t, v)).double()
            modes[dtype] = (_relative(d - Je, Je).item(), _cosine(d, Je).item())
    return FdError(curves, modes, Je * e.abs().max().to(Je))


@ordinary()
@typed
def suggest_fd_step(
    denoiser: Denoiser,
    x_t: Tensor,
    t: int | float,
    dtype: torch.dtype | None = None,
    e: Tensor | None = None,
    scheme: str = "forward",
) -> float:
    """The h, relative to ‖e‖_∞, at which the difference for J e is most accurate in `dtype`.

    Truncation is measured in float64, over h; rounding in `dtype`, at one h, and it goes as 1/h. What is returned is
    where the sum of their squares is least. The evaluations in `dtype` are as many as the scheme has points.

    Args:
        denoiser: The model; copies of it are converted.
        x_t: The point (1, C, H, W).
        t: A timestep of the model's schedule.
        dtype: The precision of the network. None: the denoiser's own.
        e: The direction (1, C, H, W), such as a task's error. None: a Gaussian one, always the same.
        scheme: Of `SCHEMES`.

    Raises:
        TypeError, ValueError: As for `measure_fd_error`.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> h = fcs_lab.probes.suggest_fd_step(model, x_t, t, e=e)
        >>> 0 < h < 10
        True
    """
    x_t = check_point(denoiser, x_t, t)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; expected one of {', '.join(map(repr, SCHEMES))}")
    dtype = denoiser.dtype if dtype is None else dtype
    twin, exact = in_precision(denoiser, dtype), in_precision(denoiser, torch.float64)
    if e is None:
        e = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(x_t)
    unit = _unit(check_direction("e", e, x_t))
    Je = _truth(exact, x_t, t, unit)

    def differences(f: Denoiser, dtype: torch.dtype, steps: np.ndarray) -> Tensor:
        return _differences(f, x_t.to(dtype), t, unit.to(dtype), steps, [scheme], one_batch=False)[scheme]

    # √ε balances the parts of a forward difference for a function of size, slope and curvature 1: the search is around it.
    steps = torch.finfo(dtype).eps ** 0.5 * np.logspace(-1, 3, 9)
    truncation = _relative(differences(exact, torch.float64, steps) - Je, Je)
    if dtype == torch.float64:  # rounding alone is left where h is tiny
        trial, reference = steps[:1] * 1e-2, Je
    else:
        trial = steps[4:5]
        reference = differences(exact, torch.float64, trial)
    rounding = _relative(_run(dtype, twin, lambda f: differences(f, at_least_float32(dtype), trial)) - reference, Je)
    fine = np.geomspace(steps[0], steps[-1], 201)
    truncation = np.exp(np.interp(np.log(fine), np.log(steps), np.log(truncation.clip(1e-300))))
    return float(fine[np.argmin(truncation**2 + (rounding * trial / fine) ** 2)])


class _Autocast:
    """A copy of the denoiser in mixed precision: its weights as they are, what torch.autocast chooses in `dtype`."""

    def __init__(self, denoiser: Denoiser, dtype: torch.dtype):
        self.denoiser, self.autocast_dtype = in_precision(denoiser, denoiser.dtype), dtype  # a copy
        for network in networks_of(self.denoiser):
            channels_last_if_half(network, dtype)
        self.scheduler, self.shape = denoiser.scheduler, denoiser.shape
        self.device, self.dtype = denoiser.device, denoiser.dtype

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        with torch.autocast(torch.device(self.device).type, self.autocast_dtype):
            return self.denoiser(x_t, t)


def _differences(
    f: Denoiser, x_t: Tensor, t: int | float, unit: Tensor, steps: np.ndarray, schemes: Sequence[str], one_batch: bool
) -> dict[str, Tensor]:
    """Scheme -> the differences for J unit at every step, (H, C, H, W) in float64; a point is evaluated once."""
    multiples = sorted({multiple for scheme in schemes for multiple in SCHEMES[scheme]} - {0})
    offsets = torch.from_numpy(np.outer(multiples, steps).ravel()).to(x_t).reshape(-1, *[1] * (x_t.ndim - 1))
    points = torch.cat([x_t, x_t + offsets * unit])
    with torch.no_grad():
        values = f(points, t) if one_batch else torch.cat([f(point[None], t) for point in points])
    # In float64 from here on, so that what is measured is the network's rounding and not that of the subtraction.
    values = values.double()
    at = dict(zip(multiples, values[1:].reshape(len(multiples), len(steps), *x_t.shape[1:]), strict=True)) | {0: values[:1]}
    h = torch.from_numpy(steps).to(values).reshape(-1, *[1] * (x_t.ndim - 1))
    return {name: sum(weight * at[k] for k, weight in SCHEMES[name].items()) / h for name in schemes}


def _truth(exact: Denoiser, x_t: Tensor, t: int | float, unit: Tensor) -> Tensor:
    """J unit by forward mode through the float64 copy of the denoiser, once that is proved to be float64 throughout."""
    with torch.no_grad():
        try:
            Je = CountedDenoiser(exact).jvp(x_t.double(), t, unit)
        except RuntimeError as error:
            raise ValueError(f"the denoiser has no forward mode, and so no truth to compare with: {error}") from error
    if not bool(Je.any()):
        raise ValueError("J e = 0: x̂_0 does not move along e at this (x_t, t), so there is no relative error")
    # Rounding in float32 anywhere on the way would leave 1e-7 / h.
    error = _relative(_differences(exact, x_t.double(), t, unit, np.array([1e-6]), ["central"], False)["central"] - Je, Je)
    if error.item() > 1e-2:
        raise ValueError(
            f"the float64 copy of the denoiser is no reference: at h = 1e-6 a central difference is {error.item():.1%} off "
            "forward mode; expected below 1 % (something in it still runs in float32, or is not differentiable)"
        )
    return Je


def _run(dtype: torch.dtype, f: Denoiser, work: Callable[[Denoiser], object]):
    """work(f), with torch's complaint about a precision that the device does not know put in words."""
    try:
        with torch.no_grad():
            return work(f)
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"dtypes has {dtype}, in which the denoiser does not run on {f.device}: {error}") from error


def _unit(e: Tensor) -> Tensor:
    """e/‖e‖_∞, in float64."""
    e = e.double()
    return e / e.abs().max()


def _positive(h: float) -> float:
    if not is_number(h) or not h > 0:
        raise ValueError(f"h has {h!r}; expected positive numbers")
    return float(h)


def _relative(difference: Tensor, Je: Tensor) -> np.ndarray:
    """‖difference‖ / ‖J e‖ of each of (H, C, H, W)."""
    return (difference.double().flatten(1).norm(dim=1) / Je.norm()).cpu().numpy()


def _cosine(d: Tensor, Je: Tensor) -> np.ndarray:
    return torch.cosine_similarity(d.flatten(1), Je.flatten(1)).cpu().numpy()
