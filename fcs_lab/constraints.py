"""Constraints: each turns the estimate x̂_0 into a cost C(x̂_0) and the error direction e = −∂C/∂x̂_0.

"e depends on the task, the rest of the algorithm does not": this file is all that a task is. The linear ones have
C = ½‖A x̂_0 − y‖² and e = Aᵀ(y − A x̂_0); those that blur or shrink an image are in `filters`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fcs_lab.checks import check_function, check_number, describe, refuse_meta, typed
from fcs_lab.contexts import ordinary, own_copy
from fcs_lab.images import ImageLike, MaskLike, to_channels, to_mask, to_tensor

__all__ = [
    "Colorization",
    "Constraint",
    "ConstraintBase",
    "CostConstraint",
    "EachChannel",
    "Inpainting",
    "LinearConstraint",
    "Selection",
    "SingularSystem",
    "for_channels",
    "needs",
]

BEYOND = 3.0
"""How far measurements of images in [-1, 1] may reach: a bicubic reduction overshoots, and there may be noise."""


@runtime_checkable
class Constraint(Protocol):
    """What the sampler asks of a task.

    `batch_size` is the number of images that it describes and `shape` the (C, H, W) of x̂_0 that it fits; None where
    it takes any.
    """

    batch_size: int | None
    shape: tuple[int, ...] | None

    def to(self, device: torch.device, dtype: torch.dtype) -> Constraint:
        """A copy with its tensors there."""
        ...

    def cost_and_error(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """C(x̂_0) of each image (B,), and e = −∂C/∂x̂_0 (B, C, H, W), for x̂_0 (B, C, H, W)."""
        ...

    def finish(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) that are returned, for those that came out, decoded and clipped; mostly the same."""
        ...


class ConstraintBase:
    """Cost and error one by one, for who wants only the one, and a `finish` that changes nothing."""

    def finish(self, images: Tensor) -> Tensor:
        return images

    def with_channels(self, channels: int) -> Constraint:
        """The task for a model whose images have so many channels: itself, unless grey and RGB images are alike to it.

        Raises:
            ValueError: It describes colour, and the model makes grey images.
        """
        return self

    def cost(self, x0: Tensor) -> Tensor:
        """C(x̂_0) of each image: (B, C, H, W) -> (B,)."""
        return self.cost_and_error(x0)[0]

    def error(self, x0: Tensor) -> Tensor:
        """e = −∂C/∂x̂_0: (B, C, H, W) -> (B, C, H, W)."""
        return self.cost_and_error(x0)[1]


@dataclass(frozen=True)
class SingularSystem:
    """A linear task in the basis of A's right singular vectors v_i: images (B, C, H, W) as as many coefficients."""

    values: Tensor
    """The singular value of each, (1 or B, C, H, W); 0 where A does not see it."""
    coefficients: Callable[[Tensor], Tensor]
    """Images -> ⟨v_i, x⟩, of the same shape."""
    images: Callable[[Tensor], Tensor]
    """Coefficients -> images."""


DENSE = 4096
"""Up to how many numbers an image's singular vectors are found of a matrix that is written out."""


class LinearConstraint(ConstraintBase):
    """A x̂_0 = y for a linear A: C = ½‖A x̂_0 − y‖², e = Aᵀ(y − A x̂_0).

    Args:
        A: Images (B, C, H, W) -> measurements (B, …). Must be linear.
        A_adjoint: Measurements -> images; the transpose of A.
        y: The measurements (B, …), floating point; one for each image.
        noise_std: σ_y, the standard deviation of the noise in y, in y's units. The error e does not depend on it;
            methods that weigh y against the model do (`fcs_lab.baselines`).

    Raises:
        TypeError: y is not a floating-point tensor.
        ValueError: y is not finite, A and A_adjoint are not each other's transpose (tried on random vectors), or
            `noise_std` is not a number of at least 0.

    Example:
        >>> truth = fcs_lab.load_digits(2)[0]
        >>> spread = lambda v: v[..., None].expand(*v.shape, 32) / 32  # the transpose of a mean
        >>> task = fcs_lab.LinearConstraint(lambda x: x.mean(-1), spread, truth.mean(-1))
        >>> task.shape, task.cost(truth).tolist()
        ((1, 32, 32), [0.0, 0.0])
    """

    noise_std: float

    @ordinary()
    @typed
    def __init__(
        self,
        A: Callable[[Tensor], Tensor],
        A_adjoint: Callable[[Tensor], Tensor],
        y: Tensor,
        *,
        noise_std: float = 0.0,
    ):
        check_function("A", A, 1)
        check_function("A_adjoint", A_adjoint, 1)
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.ndim < 2:
            raise TypeError(f"y is {describe(y)}; expected a floating-point tensor (B, …)")
        refuse_meta("y", y)
        if not bool(y.isfinite().all()):
            raise ValueError("y has NaN or infinite values; expected finite ones")
        self.A, self.A_adjoint = A, A_adjoint
        self._measure(y, noise_std)

    @ordinary()
    def pinv(self, v: Tensor) -> Tensor:
        """A⁺ v = Aᵀ (A Aᵀ)⁺ v, by conjugate gradients: measurements (B, …) -> images (B, C, H, W)."""
        return self.A_adjoint(_conjugate_gradients(lambda w: self.A(self.A_adjoint(w)), v))

    def prox(self, x: Tensor, weight: float) -> Tensor:
        """argmin_z ½‖A z − y‖² + ½ weight ‖z − x‖² for images x (B, C, H, W) and weight > 0, by conjugate gradients."""
        known = self.A_adjoint(self.y) + weight * x
        return _conjugate_gradients(lambda z: self.A_adjoint(self.A(z)) + weight * z, known)

    def singular(self) -> SingularSystem:
        """A's singular values, and images in the basis of its right singular vectors.

        Raises:
            ValueError: The images have more than 4,096 numbers each, and A is none that is known to be separable.
        """
        size = math.prod(self.shape)
        if size > DENSE:
            raise ValueError(
                f"the task's images have {size} numbers each; the singular vectors of an operator of one's own are found "
                f"for at most {DENSE}"
            )
        basis = torch.eye(size, dtype=torch.float64, device=self.y.device).to(self.y)
        A = self.A(basis.reshape(size, *self.shape)).flatten(1).double().T
        _, values, Vh = torch.linalg.svd(A)
        values, V = with_zeros(values, size).to(self.y), Vh.T.to(self.y)
        return SingularSystem(
            values.reshape(1, *self.shape),
            lambda x: (x.flatten(1) @ V).reshape(x.shape),
            lambda c: (c.flatten(1) @ V.T).reshape(c.shape),
        )

    def _measure(self, y: Tensor, noise_std: float) -> None:
        """Take y, once A and A_adjoint (methods, in a subclass) are usable."""
        self.y, self.noise_std = y, check_number("noise_std", noise_std, 0)
        self.batch_size = len(y)
        self.shape = self._image_shape()

    def _image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of what A takes, once ⟨A u, v⟩ = ⟨u, Aᵀ v⟩ holds on random u and v."""
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.y.shape, generator=generator, dtype=torch.float32).to(self.y)
        pulled = self.A_adjoint(v)
        # u leans towards Aᵀ v: for two independent random vectors both products would be near zero.
        noise = torch.randn(pulled.shape, generator=generator, dtype=torch.float32).to(pulled)
        u = pulled / pulled.norm().clamp_min(1e-12) + noise / noise.norm()
        pushed = self.A(u)
        if pushed.shape != self.y.shape:
            raise ValueError(f"A yields shape {tuple(pushed.shape)}, y has {tuple(self.y.shape)}; expected the same")
        mismatch = (pushed * v).sum() - (u * pulled).sum()
        if not mismatch.abs() <= 1e-4 * (pushed.norm() * v.norm() + u.norm() * pulled.norm()):
            raise ValueError("A_adjoint is not the transpose of A: ⟨A u, v⟩ differs from ⟨u, A_adjoint(v)⟩")
        return tuple(pulled.shape[1:])

    def to(self, device: torch.device, dtype: torch.dtype) -> LinearConstraint:
        moved = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, dtype if value.is_floating_point() else None))
        return moved

    @ordinary()
    def cost_and_error(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        residual = self.y - self.A(x0)
        return residual.square().flatten(1).sum(1) / 2, self.A_adjoint(residual)


class EachChannel(LinearConstraint):
    """A task that treats the channels alike, so that a grey image may be an RGB model's."""

    def with_channels(self, channels: int) -> EachChannel:
        if self.shape[0] == channels:
            return self
        other = copy.copy(self)
        other._measure(to_channels(self.y, channels, "the task's image"), self.noise_std)
        return other


class Selection(LinearConstraint):
    """A x = known ⊙ x for a mask of 0 and 1, in pixels or in latent cells: what else needs A has it in closed form."""

    known: Tensor

    def A(self, x: Tensor) -> Tensor:
        return self.known * x

    A_adjoint = pinv = A

    def prox(self, x: Tensor, weight: float) -> Tensor:
        return (self.y + weight * x) / (self.known + weight)

    def singular(self) -> SingularSystem:
        return SingularSystem(self.known, lambda x: x, lambda c: c)


class Inpainting(Selection, EachChannel):
    """Fill in the masked pixels of an image: A x = known ⊙ x, so e = known ⊙ (y − x̂_0).

    Args:
        image: The image or images, in any form that `to_tensor` takes. What lies under the mask has no influence.
        mask: What is to be filled in (True, 1 or white, as in diffusers): one for all images or one each, in any form
            that `to_mask` takes.
        noise_std: σ_y of noise in the known pixels; as for `LinearConstraint`.

    Raises:
        TypeError: Image or mask of a type, or a dtype, that is not taken.
        ValueError: Image and mask differ in size or number; a mask is empty, full or grey; a pixel is NaN, infinite
            or out of range.

    Example:
        >>> image, mask = fcs_lab.load_digits(1)[0], torch.arange(32).ge(16).expand(32, 32)  # True is filled in
        >>> task = fcs_lab.Inpainting(image, mask)
        >>> bool(task.error(torch.zeros_like(image))[..., 16:].any())  # what is hidden has no say
        False
    """

    @ordinary()
    def __init__(self, image: ImageLike, mask: MaskLike, *, noise_std: float = 0.0):
        image, mask = to_tensor(image), to_mask(mask)
        if image.shape[-2:] != mask.shape[-2:]:
            raise ValueError(f"mask is {_size(mask)} (height × width) and image {_size(image)}; expected the same size")
        if len(mask) not in (1, len(image)) and len(image) != 1:
            raise ValueError(f"there are {len(mask)} masks for {len(image)} images; expected one, or one each")
        hidden = mask.flatten(1).sum(1)
        if bool((hidden == 0).any()):
            raise ValueError("mask is empty: nothing is to be filled in; expected some pixels True (1, white)")
        if bool((hidden == mask[0].numel()).any()):
            raise ValueError("mask is full: nothing is known; use task=None to sample without a constraint")
        self.mask = mask.to(image.device)
        self.known = (~self.mask).to(image.dtype)
        batch = max(len(image), len(mask))
        self._measure((self.known * image).expand(batch, -1, -1, -1), noise_std)


class Colorization(LinearConstraint):
    """An RGB image whose luminance is `grey`: A x = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as PIL's mode "L").

    Args:
        grey: The grey image or images, in any form that `to_tensor` takes, of one channel; a measurement as for `Blur`.
        noise_std: σ_y, of noise in `grey`; as for `LinearConstraint`.

    Raises:
        TypeError: `grey` is of a type that is not taken.
        ValueError: It has more than one channel, or is one that `to_tensor` refuses.

    Example:
        >>> emoji = fcs_lab.load_emoji(1)[0]
        >>> grey = fcs_lab.Colorization(torch.zeros(1, 1, 64, 64)).A(emoji)
        >>> tuple(grey.shape), f"{fcs_lab.Colorization(grey).cost(emoji).item():.4f}"
        ((1, 1, 64, 64), '0.0000')
    """

    @ordinary()
    def __init__(self, grey: ImageLike, *, noise_std: float = 0.0):
        y = to_tensor(grey, "grey", limit=BEYOND)
        if y.shape[1] != 1:
            raise ValueError(f"grey has {y.shape[1]} channels; expected 1 (PIL: .convert('L'))")
        self.weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).to(y).reshape(3, 1, 1)
        self._measure(y, noise_std)

    def A(self, x: Tensor) -> Tensor:
        return (self.weights * x).sum(1, keepdim=True)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.weights * y

    def singular(self) -> SingularSystem:
        row = self.weights.flatten()[None].double()
        _, values, Vh = torch.linalg.svd(row)
        V = Vh.T.to(self.y)
        return SingularSystem(
            with_zeros(values, 3).to(self.y).reshape(1, 3, 1, 1).expand(1, *self.shape),
            lambda x: torch.einsum("bchw,cd->bdhw", x, V),
            lambda c: torch.einsum("bdhw,cd->bchw", c, V),
        )


def with_zeros(values: Tensor, size: int) -> Tensor:
    """Singular values with zeros for the directions that A does not see, and for those that are lost in rounding."""
    values = torch.where(values > 1e-6 * values[0], values, 0.0)
    return torch.cat([values, values.new_zeros(size - len(values))])


def _conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 200) -> Tensor:
    """The solution x of M x = b for each of a batch, M symmetric and positive semi-definite, b in its range."""

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (u * v).flatten(1).sum(1).reshape(-1, *[1] * (u.ndim - 1))

    x, r = torch.zeros_like(b), b
    p, left = r, dot(r, r)
    enough = left * (1e-6 if b.dtype == torch.float32 else 1e-12) ** 2
    for _ in range(iterations):
        going = left > enough
        if not bool(going.any()):
            break
        Mp = product(p)
        alpha = torch.where(going, left / dot(p, Mp).where(going, 1), 0.0)
        x, r = x + alpha * p, r - alpha * Mp
        left, before = dot(r, r), left
        p = r + torch.where(going, left / before.where(going, 1), 0.0) * p
    return x


def needs(task: Constraint, members: Sequence[str]) -> None:
    """That a task has what a method needs of it.

    Raises:
        TypeError: It has not; through a decoder, for example, there is no A⁺.
    """
    words = {
        "A": "A",
        "A_adjoint": "Aᵀ",
        "pinv": "A⁺",
        "prox": "proximal step",
        "singular": "singular vectors",
        "y": "measurements y",
        "known": "known part",
    }
    missing = [words.get(member, member) for member in members if not hasattr(task, member)]
    if missing:
        raise TypeError(
            f"task is a {type(task).__name__}, which has no {', no '.join(missing)}; this method takes linear tasks "
            "(inpainting, super-resolution, deblurring, colourisation), and in latent space inpainting only"
        )


def for_channels(task: Constraint, channels: int) -> Constraint:
    """The task for a model whose images have so many channels; see `ConstraintBase.with_channels`."""
    fits = task.shape is None or task.shape[0] == channels
    return task if fits or not hasattr(task, "with_channels") else task.with_channels(channels)


class CostConstraint(ConstraintBase):
    """Any differentiable cost of x̂_0; e = −∂C/∂x̂_0 by automatic differentiation of the cost, never of the denoiser.

    Args:
        fn: x̂_0 (B, C, H, W) -> the cost of each image, (B,); or a single number, and then it is called image by image.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: At its first use: the cost has another shape, or does not depend on x̂_0 differentiably.

    Example:
        >>> mirrored = fcs_lab.CostConstraint(lambda x0: (x0 - x0.flip(-1)).square().flatten(1).sum(1))
        >>> tuple(mirrored.error(fcs_lab.load_digits(2)[0]).shape)
        (2, 1, 32, 32)
    """

    batch_size: int | None = None
    shape: tuple[int, ...] | None = None

    @ordinary()
    def __init__(self, fn: Callable[[Tensor], Tensor]):
        check_function("fn", fn, 1)
        self.fn = fn

    def to(self, device: torch.device, dtype: torch.dtype) -> CostConstraint:
        return self

    @ordinary()
    def cost_and_error(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x0 = own_copy(x0.detach()).requires_grad_()
            try:
                cost = self.cost(x0)
            except RuntimeError as error:
                if "Inference tensors" not in str(error):
                    raise
                raise ValueError(
                    "fn uses tensors that were made inside torch.inference_mode, which cannot be differentiated: make them "
                    "outside of it, or clone them there"
                ) from error
            if not cost.requires_grad:
                raise ValueError(
                    "fn's cost does not depend differentiably on x̂_0; expected torch operations on its argument"
                )
            return cost.detach(), -torch.autograd.grad(cost.sum(), x0)[0]

    def cost(self, x0: Tensor) -> Tensor:
        cost = self.fn(x0)
        if isinstance(cost, Tensor) and cost.ndim == 0 and len(x0) > 1:
            cost = torch.stack([self.fn(image) for image in x0.split(1)])
        if not isinstance(cost, Tensor) or cost.numel() != len(x0) or cost.ndim > 1:
            raise ValueError(f"fn returned {describe(cost)}; expected the costs of {len(x0)} images, shape ({len(x0)},)")
        return cost.reshape(len(x0))


def _size(x: Tensor) -> str:
    return f"{x.shape[-2]}×{x.shape[-1]}"
