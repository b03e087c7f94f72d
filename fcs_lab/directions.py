"""Directions d in which x_t is moved so that x̂_0 moves along e: J e, Jᵀ e, J⁻¹ e, or e itself.

Each is one small function of the counted denoiser, x_t, t, the estimate x̂_0 at hand and e; all are (B, C, H, W) and
every image of a batch is treated by itself. J = ∂x̂_0/∂x_t at (x_t, t).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from fcs_lab.denoisers import Denoiser, forward_mode

__all__ = ["DIRECTIONS", "FD_STEP", "CountedDenoiser", "exact", "gradient", "identity", "newton", "newton_jvp", "norm_inf"]

# The finite-difference step h, relative to ‖e‖_∞, for the dtype that the network runs in. Truncation grows with h and
# rounding with 1/h. For one product in float32 the paper's 0.005 is about the most accurate. But rounding depends on the
# batch size, and a run amplifies it: on the bundled model (6 steps, K = 3, 24 digits, h = 0.05) an image then differs from
# the same image sampled alone by up to 2e-2. With 0.2 it is 8e-4, for a truncation of 3 to 12 % of J e over the timesteps
# (a cosine of 0.99 or more). In half precision 0.005 drowns in rounding: a cosine of about 0.6 in float16, below 0.1 in
# bfloat16; what stands here is near the best of notebook 05.
FD_STEP = {torch.float64: 1e-5, torch.float32: 0.2, torch.float16: 0.2, torch.bfloat16: 0.5}


class CountedDenoiser:
    """A denoiser, its evaluations counted as they happen, with its Jacobian's products beside it.

    `forward` and `backward` count images that went through the network, so a batch of B adds B.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.forward = self.backward = 0

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        self.forward += len(x_t)
        return self.denoiser(x_t, t)

    def jvp(self, x_t: Tensor, t: int, v: Tensor) -> Tensor:
        """J v by forward mode; costs an evaluation that carries its tangents along."""
        with forward_mode(self.denoiser):
            return torch.func.jvp(lambda x: self(x, t), (x_t,), (v,))[1]

    def vjp(self, x_t: Tensor, x0: Tensor, u: Tensor, keep_graph: bool = False) -> Tensor:
        """Jᵀ u by a backward pass through the graph that leads from x_t to x0, which is freed unless it is to be kept."""
        self.backward += len(x_t)
        return torch.autograd.grad(x0, x_t, u, retain_graph=keep_graph)[0]


def norm_inf(v: Tensor) -> Tensor:
    """‖v‖_∞ of each image: (B, C, H, W) -> (B, 1, 1, 1)."""
    return v.flatten(1).abs().amax(1).reshape(-1, *[1] * (v.ndim - 1))


def newton(f: CountedDenoiser, x_t: Tensor, t: int, x0: Tensor, e: Tensor, *, fd_step: float) -> Tensor:
    """J e by a forward difference (Algorithm 1): (x̂_0(x_t + h' e) − x̂_0(x_t)) / h' with h' = h/‖e‖_∞.

    One evaluation, since x̂_0(x_t) is at hand. Where e = 0 it is 0.
    """
    size = norm_inf(e)
    unit = e / size.where(size > 0, 1)  # so that h' e = h · unit, also where ‖e‖_∞ is tiny
    return (f(x_t + fd_step * unit, t) - x0) * (size / fd_step)


def newton_jvp(f: CountedDenoiser, x_t: Tensor, t: int, x0: Tensor, e: Tensor) -> Tensor:
    """J e by forward-mode differentiation: no step size to choose, several times the time of `newton`."""
    return f.jvp(x_t, t, e)


def gradient(f: CountedDenoiser, x_t: Tensor, t: int, x0: Tensor, e: Tensor) -> Tensor:
    """Jᵀ e by one backward pass through the evaluation at hand: the gradient step of DPS and its kin."""
    return f.vjp(x_t, x0, e)


def identity(f: CountedDenoiser, x_t: Tensor, t: int, x0: Tensor, e: Tensor) -> Tensor:
    """e itself: the Jacobian taken for the identity. What J e has to beat."""
    return e


def exact(
    f: CountedDenoiser,
    x_t: Tensor,
    t: int,
    x0: Tensor,
    e: Tensor,
    *,
    regularization: float,
    max_iterations: int = 50,
) -> Tensor:
    """J⁻¹ e, regularised: argmin_d ‖J d − e‖² + ρ²‖d‖², by SciPy's LSMR with products of J and Jᵀ, image by image.

    J is close to singular (directions that the posterior is sure of), so ρ = regularization · ‖J e‖/‖e‖: directions
    that J shrinks much more than it shrinks e are left alone. ρ = 0 is plain least squares, stopped after
    `max_iterations`. Up to that many forward-mode products and backward passes an image: for analysis, not for speed.
    """
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


DIRECTIONS: dict[str, Callable[..., Tensor]] = {
    "newton": newton,
    "newton-jvp": newton_jvp,
    "gradient": gradient,
    "exact": exact,
    "identity": identity,
}
