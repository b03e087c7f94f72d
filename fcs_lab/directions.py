"""Directions d in which x_t is moved so that x̂_0 moves along e: J e, Jᵀ e, J⁻¹ e, or e itself.

Each is a small piece of a coroutine, (x_t, t, x̂_0, e) -> d, that asks whoever drives it for what it needs: it yields a
point (x, t) where it wants x̂_0, or, where only differentiation will do, a `Differentiation`. All tensors are (B, C, H, W),
and every image of a batch is treated by itself. J = ∂x̂_0/∂x_t at (x_t, t). By itself a direction is had from a denoiser by
`CountedDenoiser(denoiser).run(newton(x_t, t, x0, e, fd_step=0.2))`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from fcs_lab.denoisers import Denoiser, as_model, forward_mode

__all__ = [
    "DIRECTIONS",
    "EVALUATIONS",
    "FD_STEP",
    "CountedDenoiser",
    "Differentiation",
    "Direction",
    "Question",
    "exact",
    "gradient",
    "identity",
    "moves",
    "newton",
    "newton_jvp",
    "norm_inf",
    "unit",
]

# The finite-difference step h, relative to ‖e‖_∞, for the dtype that the network runs in. Truncation grows with h and
# rounding with 1/h. For one product in float32 the paper's 0.005 is about the most accurate. But rounding depends on the
# batch size, and a run amplifies it: on the bundled model (6 steps, K = 3, 24 digits, h = 0.05) an image then differs from
# the same image sampled alone by up to 2e-2. With 0.2 it is 8e-4, for a truncation of 3 to 12 % of J e over the timesteps
# (a cosine of 0.99 or more). In half precision 0.005 drowns in rounding: a cosine of about 0.6 in float16, below 0.1 in
# bfloat16; what stands here is near the best of notebook 05.
FD_STEP = {torch.float64: 1e-5, torch.float32: 0.2, torch.float16: 0.2, torch.bfloat16: 0.5}


@dataclass(frozen=True)
class Differentiation:
    """A question that takes the denoiser's derivatives to answer; a diffusers pipeline cannot."""

    answer: Callable[[CountedDenoiser], Tensor]


Question = tuple[Tensor, float] | Differentiation
"""What a coroutine yields: a point (x, t), for x̂_0 there, or a differentiation, for what comes out of it."""

Direction = Callable[[Tensor, float, Tensor, Tensor], Generator[Question, Tensor, Tensor]]


class CountedDenoiser:
    """A denoiser, its evaluations counted as they happen, with its Jacobian's products beside it.

    `forward` and `backward` count images that went through the network, so a batch of B adds B.

    Args:
        denoiser: The denoiser.
        keep_graph: Keep autograd's graph of the last evaluation, for `pullback` at the same point.
    """

    def __init__(self, denoiser: Denoiser, keep_graph: bool = False):
        self.denoiser, self.keep_graph = as_model(denoiser).snapshot(), keep_graph
        self.forward = self.backward = 0
        self._last: tuple[Tensor, Tensor, Tensor] | None = None  # x_t, a copy of it, and that copy's x̂_0

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """x̂_0(x_t, t), (B, C, H, W), once it is known to be a tensor like x_t.

        Raises:
            TypeError, ValueError: The denoiser returned something else.
        """
        self.forward += len(x_t)
        self._last = None  # what it holds is freed before the next evaluation
        if not self.keep_graph:
            return _checked(self.denoiser(x_t, t), x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            x0 = _checked(self.denoiser(x, t), x)
        self._last = (x_t, x, x0)
        return x0.detach()

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's."""
        return self.denoiser.dtype

    @property
    def differentiable(self) -> bool:
        """Whether autograd can follow the last evaluation, whose graph was kept."""
        return self._last is not None and self._last[2].requires_grad

    def run(self, coroutine: Generator[Question, Tensor, Tensor]) -> Tensor:
        """Answer all that a coroutine asks, and return what it returns."""
        try:
            question = next(coroutine)
            while True:
                question = coroutine.send(self.answer(question))
        except StopIteration as end:
            return end.value

    def answer(self, question: Question) -> Tensor:
        """x̂_0 at a point, or what a differentiation gives."""
        return question.answer(self) if isinstance(question, Differentiation) else self(*question)

    def jvp(self, x_t: Tensor, t: float, v: Tensor) -> Tensor:
        """J v by forward mode; costs an evaluation that carries its tangents along."""
        self.forward += len(x_t)
        with forward_mode(self.denoiser):
            return torch.func.jvp(lambda x: self.denoiser(x, t), (x_t,), (v,))[1]

    def vjp(self, x_t: Tensor, x0: Tensor, u: Tensor, keep_graph: bool = False) -> Tensor:
        """Jᵀ u by a backward pass through the graph that leads from x_t to x0, which is freed unless it is to be kept."""
        self.backward += len(x_t)
        return torch.autograd.grad(x0, x_t, u, retain_graph=keep_graph)[0]

    def pullback(self, x_t: Tensor, t: float, u: Tensor) -> Tensor:
        """Jᵀ u at (x_t, t): one backward pass, through the last evaluation if it was at this x_t, else a new one."""
        if self._last is None or self._last[0] is not x_t:
            keep_graph, self.keep_graph = self.keep_graph, True
            self(x_t, t)
            self.keep_graph = keep_graph
        _, x, x0 = self._last
        self._last = None
        return self.vjp(x, x0, u)


def norm_inf(v: Tensor) -> Tensor:
    """‖v‖_∞ of each image: (B, C, H, W) -> (B, 1, 1, 1)."""
    return v.flatten(1).abs().amax(1).reshape(-1, *[1] * (v.ndim - 1))


def moves(d: Tensor, e: Tensor) -> Tensor:
    """Whether each image is moved, (B, 1, 1, 1), bool: one without an error fits already and stays as it is."""
    return (norm_inf(e) > 0) & (norm_inf(d) > 0)


def unit(d: Tensor, e: Tensor) -> Tensor:
    """d/‖d‖_∞ of each image; 0 where there is no direction, or no error."""
    moved = moves(d, e)
    return torch.where(moved, d / norm_inf(d).where(moved, 1), 0.0)


def newton(x_t: Tensor, t: float, x0: Tensor, e: Tensor, *, fd_step: float) -> Generator[Question, Tensor, Tensor]:
    """J e by a forward difference (Algorithm 1): (x̂_0(x_t + h' e) − x̂_0(x_t)) / h' with h' = h/‖e‖_∞.

    One evaluation, since x̂_0(x_t) is at hand. Where e = 0 it is 0.
    """
    size = norm_inf(e)
    u = e / size.where(size > 0, 1)  # so that h' e = h · u, also where ‖e‖_∞ is tiny
    x0_there = yield x_t + fd_step * u, t
    return (x0_there - x0) * (size / fd_step)


def newton_jvp(x_t: Tensor, t: float, x0: Tensor, e: Tensor) -> Generator[Question, Tensor, Tensor]:
    """J e by forward-mode differentiation: no step size to choose, several times the time of `newton`."""
    return (yield Differentiation(lambda f: f.jvp(x_t, t, e)))


def gradient(x_t: Tensor, t: float, x0: Tensor, e: Tensor) -> Generator[Question, Tensor, Tensor]:
    """Jᵀ e by one backward pass through the evaluation at hand: the gradient step of DPS and its kin."""
    return (yield Differentiation(lambda f: f.pullback(x_t, t, e)))


def identity(x_t: Tensor, t: float, x0: Tensor, e: Tensor) -> Generator[Question, Tensor, Tensor]:
    """e itself: the Jacobian taken for the identity. What J e has to beat."""
    yield from ()
    return e


def exact(
    x_t: Tensor, t: float, x0: Tensor, e: Tensor, *, regularization: float, max_iterations: int = 50
) -> Generator[Question, Tensor, Tensor]:
    """J⁻¹ e, regularised: argmin_d ‖J d − e‖² + ρ²‖d‖², by SciPy's LSMR with products of J and Jᵀ, image by image.

    J is close to singular (directions that the posterior is sure of), so ρ = regularization · ‖J e‖/‖e‖: directions
    that J shrinks much more than it shrinks e are left alone. ρ = 0 is plain least squares, stopped after
    `max_iterations`. Up to that many forward-mode products and backward passes an image: for analysis, not for speed.
    """
    return (yield Differentiation(lambda f: _least_squares(f, x_t, t, e, regularization, max_iterations)))


DIRECTIONS: dict[str, Callable[..., Generator[Question, Tensor, Tensor]]] = {
    "newton": newton,
    "newton-jvp": newton_jvp,
    "gradient": gradient,
    "exact": exact,
    "identity": identity,
}

EVALUATIONS = {"newton": 1, "identity": 0}
"""The directions that are made of evaluations alone, and how many each takes."""


def _checked(x0: Tensor, x_t: Tensor) -> Tensor:
    if not isinstance(x0, Tensor):
        raise TypeError(
            f"the denoiser returned {type(x0).__name__}; expected x̂_0, a tensor of x_t's shape {tuple(x_t.shape)}"
        )
    if x0.shape != x_t.shape:
        raise ValueError(f"the denoiser returned shape {tuple(x0.shape)}; expected x_t's, {tuple(x_t.shape)}")
    if x0.dtype != x_t.dtype:
        raise TypeError(f"the denoiser returned {x0.dtype}; expected x_t's dtype, {x_t.dtype}")
    return x0


def _least_squares(
    f: CountedDenoiser, x_t: Tensor, t: float, e: Tensor, regularization: float, max_iterations: int
) -> Tensor:
    d = torch.zeros_like(e)
    for i in range(len(e)):
        if not bool(e[i].any()):
            continue
        with torch.enable_grad():
            x = x_t[i : i + 1].detach().requires_grad_()
            y = f(x, t)

        def as_tensor(v: np.ndarray, like: Tensor = x) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(v)).to(like).reshape(like.shape)

        def forward(v: np.ndarray, x: Tensor = x) -> np.ndarray:
            return f.jvp(x.detach(), t, as_tensor(v)).flatten().double().cpu().numpy()

        def transposed(u: np.ndarray, x: Tensor = x, y: Tensor = y) -> np.ndarray:
            return f.vjp(x, y, as_tensor(u), keep_graph=True).flatten().double().cpu().numpy()

        J = LinearOperator((x.numel(), x.numel()), matvec=forward, rmatvec=transposed, dtype=np.float64)
        target = e[i].flatten().double().cpu().numpy()
        gain = np.linalg.norm(J @ target) / np.linalg.norm(target)
        damp = regularization * gain
        d[i : i + 1] = as_tensor(lsmr(J, target, damp=damp, atol=1e-10, btol=1e-10, conlim=0, maxiter=max_iterations)[0])
    return d
