"""The Jacobian J = ∂x̂_0/∂x_t as a linear operator: never a matrix unless asked for, everything else is SciPy's."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.checks import refuse_meta, typed
from fcs_lab.contexts import ordinary, own_copy
from fcs_lab.denoisers import Denoiser, as_model, levels_at
from fcs_lab.directions import FD_STEP, CountedDenoiser, newton
from fcs_lab.precision import at_least_float32

__all__ = ["ACCURATE_FD_STEP", "JacobianOperator", "check_direction", "check_point", "check_vector"]

# Where a single product is most accurate. In float32 the sampler takes a larger step, to be independent of batch sizes.
ACCURATE_FD_STEP = FD_STEP | {torch.float32: 0.005}


class JacobianOperator(LinearOperator):
    """J = ∂x̂_0/∂x_t at one (x_t, t), for `scipy.sparse.linalg`: `J @ v`, `J.T @ u`, `(J + J.T) / 2`, `eigs(J)`, ….

    Products are by forward mode or finite differences, transposed products by reverse mode, several vectors at once in
    batches; x̂_0(x_t) is evaluated once. Vectors are images flattened in (C, H, W) order, D = C·H·W.

    Args:
        denoiser: The model. It is left exactly as it was.
        x_t: The point (1, C, H, W), finite, on the model's device.
        t: A timestep of the model's schedule.
        method: "jvp": `torch.func.jvp`, exact; "fd": a forward difference, no differentiation at all.
        fd_step: h of "fd", relative to the vector's largest entry. None: the right one for the model's dtype.
        batch_size: How many vectors go through the network at once.

    Attributes:
        x0: x̂_0(x_t), (1, C, H, W).
        f: The counted denoiser: `f.forward` evaluations and `f.backward` passes so far.

    The operator's dtype is float64 if the model's is, else float32: a half-precision model is cast at its border. J is real;
    of a complex vector it takes the real and the imaginary part, and the product is complex.

    Raises:
        TypeError, ValueError: x_t or t does not fit the model; or "jvp" of a denoiser that is not differentiable.

    Example:
        >>> model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
        >>> x_t, t, e = torch.zeros(1, 1, 1, 2), 500, torch.tensor([[[[1.0, 0.0]]]])  # two pixels, of which one is known
        >>> J = fcs_lab.probes.JacobianOperator(model, x_t, t)
        >>> J.shape, [f"{value:.2f}" for value in J @ e.flatten().numpy()]  # J e moves the hidden pixel too
        ((2, 2), ['0.27', '0.21'])
    """

    @ordinary()
    @typed
    def __init__(
        self,
        denoiser: Denoiser,
        x_t: Tensor,
        t: int | float,
        method: Literal["jvp", "fd"] = "jvp",
        *,
        fd_step: float | None = None,
        batch_size: int = 32,
    ):
        if not isinstance(method, str) or method not in ("jvp", "fd"):
            raise ValueError(f"method is {method!r}; expected 'jvp' or 'fd'")
        if fd_step is not None and not fd_step > 0:
            raise ValueError(f"fd_step is {fd_step!r}; expected a positive number, or None")
        x_t = check_point(denoiser, x_t, t)
        self.f, self.x_t, self.t, self.method, self.batch_size = CountedDenoiser(denoiser), x_t, t, method, batch_size
        self.fd_step = ACCURATE_FD_STEP[denoiser.dtype] if fd_step is None else fd_step
        self._graph: tuple[Tensor, Tensor] | None = None  # copies of x_t and their x̂_0, joined by autograd
        with torch.enable_grad():
            x = x_t.clone().requires_grad_()
            x0 = self.f(x, t)
        self.x0, self.differentiable = x0.detach(), x0.requires_grad
        if self.differentiable:
            self._graph = (x, x0)
        elif method == "jvp":
            raise ValueError("the denoiser is not differentiable, so method 'jvp' cannot be used; use method='fd'")
        super().__init__(np.dtype(str(x_t.dtype).removeprefix("torch.")), (x_t.numel(), x_t.numel()))

    def dense(self, progress: bool = True) -> np.ndarray:
        """J as a matrix (D, D), entry (i, j) = ∂x̂_0[i]/∂x_t[j]: by rows, or by columns if only differences will do.

        Raises:
            ValueError: It would take more than half of the machine's memory; the message says how much.
        """
        D = self.shape[0]
        size, memory = D * D * self.dtype.itemsize, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if size > memory / 2:
            raise ValueError(
                f"a dense J is {D}×{D}, {size / 2**30:.0f} GiB, more than half of this machine's {memory / 2**30:.0f} GiB; "
                "use the operator's products"
            )
        by_rows = self.method == "jvp"
        J = np.empty((D, D), self.dtype)
        for start in tqdm(range(0, D, self.batch_size), desc="dense J", disable=not progress):
            columns = np.eye(D, min(self.batch_size, D - start), -start, dtype=self.dtype)
            if by_rows:
                J[start : start + columns.shape[1]] = self._rmatmat(columns).T
            else:
                J[:, start : start + columns.shape[1]] = self._matmat(columns)
        return J

    def image(self, v: np.ndarray) -> Tensor:
        """A vector (D,) as an image (1, C, H, W) on the model's device.

        Raises:
            ValueError: It is complex, or has another length.
        """
        v = np.asarray(v)
        if np.iscomplexobj(v) or v.size != self.shape[0]:
            raise ValueError(f"v is of {v.dtype}, with shape {v.shape}; expected {self.shape[0]} real numbers")
        return self._tensors(np.asarray(v).reshape(-1, 1))

    # What SciPy calls.

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        return self._matmat(v.reshape(-1, 1))[:, 0]

    def _rmatvec(self, u: np.ndarray) -> np.ndarray:
        return self._rmatmat(u.reshape(-1, 1))[:, 0]

    @torch.no_grad()
    @ordinary()
    def _matmat(self, V: np.ndarray) -> np.ndarray:
        def product(v: Tensor) -> Tensor:
            x_t = self.x_t.expand_as(v)
            if self.method == "jvp":
                return self.f.jvp(x_t.contiguous(), self.t, v)
            return self.f.run(newton(x_t, self.t, self.x0, v, fd_step=self.fd_step))

        return self._in_batches(product, V)

    @ordinary()
    def _rmatmat(self, U: np.ndarray) -> np.ndarray:
        if not self.differentiable:
            raise TypeError("the denoiser is not differentiable: products J v work (method='fd'), Jᵀ u need a backward pass")

        def product(u: Tensor) -> Tensor:
            if self._graph is None or len(self._graph[0]) != len(u):
                with torch.enable_grad():
                    x = self.x_t.expand_as(u).clone().requires_grad_()
                    self._graph = (x, self.f(x, self.t))
            return self.f.vjp(*self._graph, u, keep_graph=True)

        return self._in_batches(product, U)

    def _in_batches(self, product, V: np.ndarray) -> np.ndarray:
        if np.iscomplexobj(V):  # J, and Jᴴ = Jᵀ, of both parts, as one more column each
            parts = self._in_batches(product, np.concatenate([V.real, V.imag], axis=1))
            return parts[:, : V.shape[1]] + 1j * parts[:, V.shape[1] :]
        parts = [V[:, i : i + self.batch_size] for i in range(0, V.shape[1], self.batch_size)]
        products = [product(self._tensors(part)).detach().flatten(1).T.cpu().numpy() for part in parts]
        return np.concatenate(products, axis=1)

    def _tensors(self, V: np.ndarray) -> Tensor:
        """Columns (D, k) as images (k, C, H, W)."""
        return torch.from_numpy(np.ascontiguousarray(V.T, dtype=self.dtype)).reshape(-1, *self.x_t.shape[1:]).to(self.x_t)


def check_point(denoiser: Denoiser, x_t: Tensor, t: int | float) -> Tensor:
    """x_t, checked to be one finite sample of the model's, in float32 or in the model's float64.

    A latent model takes latents of any height and width.

    Raises:
        TypeError: x_t is not a floating-point tensor, or t not an integer (a number, for a rectified flow).
        ValueError: Its shape, device or values do not fit, or t is outside the schedule.
    """
    if not isinstance(x_t, Tensor) or not x_t.is_floating_point():
        raise TypeError(f"x_t is {x_t.dtype if isinstance(x_t, Tensor) else x_t!r}; expected a floating-point tensor")
    refuse_meta("x_t", x_t)
    any_size = as_model(denoiser).any_size and x_t.ndim == 4
    shape = (denoiser.shape[0], *x_t.shape[2:]) if any_size else tuple(denoiser.shape)
    if tuple(x_t.shape) != (1, *shape):
        raise ValueError(f"x_t has shape {tuple(x_t.shape)}; expected one sample, {(1, *shape)}")
    if x_t.device != torch.device(denoiser.device):
        raise ValueError(f"x_t is on {x_t.device}, the model on {denoiser.device}; expected the same")
    if not bool(x_t.isfinite().all()):
        raise ValueError("x_t has NaN or infinite values; expected finite ones")
    if isinstance(t, Tensor) and t.ndim:
        raise ValueError(f"t has shape {tuple(t.shape)}; expected one timestep")
    levels_at(denoiser, t, x_t)
    return own_copy(x_t.detach().to(at_least_float32(denoiser.dtype)))


def check_vector(name: str, v: Tensor, x_t: Tensor) -> Tensor:
    """v, checked to be finite and of x_t's shape, on its device and in its dtype.

    Raises:
        TypeError: v is not a floating-point tensor.
        ValueError: It has another shape, or NaN or infinite values.
    """
    if not isinstance(v, Tensor) or not v.is_floating_point():
        raise TypeError(f"{name} is {v.dtype if isinstance(v, Tensor) else v!r}; expected a floating-point tensor")
    refuse_meta(name, v)
    if v.shape != x_t.shape:
        raise ValueError(f"{name} has shape {tuple(v.shape)}; expected x_t's, {tuple(x_t.shape)}")
    if not bool(v.isfinite().all()):
        raise ValueError(f"{name} has NaN or infinite values; expected finite ones")
    return own_copy(v.detach().to(x_t))


def check_direction(name: str, v: Tensor, x_t: Tensor) -> Tensor:
    """`check_vector`, and v is not zero.

    Raises:
        TypeError, ValueError: As there; or v is zero.
    """
    v = check_vector(name, v, x_t)
    if not bool(v.any()):
        raise ValueError(f"{name} is zero everywhere; expected a direction")
    return v
