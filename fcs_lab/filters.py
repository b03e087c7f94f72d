"""Linear constraints that blur or shrink an image: deblurring and super-resolution, and what makes their measurements.

Every A here is a sum of separable ones, matrices along the columns and along the rows, so that its transpose is at hand, and
of a single one the singular vectors.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fcs_lab.checks import describe, is_int
from fcs_lab.constraints import BEYOND, EachChannel, SingularSystem, with_zeros
from fcs_lab.contexts import ordinary
from fcs_lab.images import ImageLike, to_tensor

__all__ = ["Blur", "SuperResolution", "blur", "downsample", "upsample"]

Kernel = Literal["bicubic", "box"] | Tensor | np.ndarray


class _Filter(EachChannel):
    """A x = Σ_r D_h[r] x D_w[r]ᵀ: what a kernel does along the columns and the rows of an image, one term if separable."""

    D_h: Tensor
    D_w: Tensor

    def A(self, x: Tensor) -> Tensor:
        return sum(D_h @ x @ D_w.T for D_h, D_w in zip(self.D_h, self.D_w, strict=True))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return sum(D_h.T @ y @ D_w for D_h, D_w in zip(self.D_h, self.D_w, strict=True))

    def singular(self) -> SingularSystem:
        if len(self.D_h) > 1:  # a sum of separable operators is none
            return super().singular()
        # Of a separable one the singular vectors are products of those along the columns and along the rows.
        (s_h, V_h), (s_w, V_w) = map(_right_singular, (self.D_h[0], self.D_w[0]))
        return SingularSystem(
            torch.outer(s_h, s_w).expand(1, *self.shape),
            lambda x: V_h.T @ x @ V_w,
            lambda c: V_h @ c @ V_w.T,
        )


class Blur(_Filter):
    """An image whose blurred version is `image` (deblurring): A x = kernel * x, of the same size.

    The convolution is a true one, so the kernel is the picture of a single bright pixel (its point-spread function).
    Beyond its border the image goes on with the pixel at the border.

    Args:
        image: The blurred image or images, in any form that `to_tensor` takes; `blur` makes one from a sharp one. As a
            measurement it may be noisy, and a tensor's values may lie beyond [-1, 1].
        kernel: (k_h, k_w), a tensor or an array; k_h and k_w odd, its middle the pixel that stays in place; the sum is 1.
        noise_std: σ_y, of noise in `image`; as for `LinearConstraint`.

    Raises:
        TypeError: `image` or `kernel` is of a type that is not taken.
        ValueError: The kernel has another shape, values that are not finite, or another sum; the image is one that
            `to_tensor` refuses.

    Example:
        >>> kernel = torch.full((1, 5), 1 / 5)  # moved sideways by five pixels
        >>> truth = fcs_lab.load_digits(1)[0]
        >>> task = fcs_lab.Blur(fcs_lab.blur(truth, kernel), kernel)
        >>> task.shape, f"{task.cost(truth).item():.4f}"
        ((1, 32, 32), '0.0000')
    """

    @ordinary()
    def __init__(self, image: ImageLike, kernel: Tensor | np.ndarray, *, noise_std: float = 0.0):
        y = to_tensor(image, limit=BEYOND)
        if isinstance(kernel, str):
            raise TypeError(f"kernel is {kernel!r}; expected a tensor or an array (k_h, k_w)")
        self.D_h, self.D_w = (D.to(y) for D in _factors(kernel, *y.shape[-2:], factor=1))
        self.kernel = torch.as_tensor(kernel).detach().cpu()
        self._measure(y, noise_std)


class SuperResolution(_Filter):
    """A larger image whose reduction is `low_res`: A x = the image filtered, then subsampled.

    Args:
        low_res: The small image or images, in any form that `to_tensor` takes; `downsample` makes one from a large one.
            As a measurement it may be noisy, and a tensor's values may lie beyond [-1, 1], as a bicubic reduction's do.
        factor: How many times larger, in height and in width; a whole number ≥ 2.
        kernel: How an image is reduced. "bicubic": antialiased, as PyTorch's and PIL's resize; "box": the mean of each
            factor × factor block; or a kernel as for `Blur`, and then low-resolution pixel i is the blurred image's
            pixel factor · i + ⌊(factor − 1)/2⌋, the block's middle (of two middle ones the first).

    Raises:
        TypeError: `low_res` or `kernel` is of a type that is not taken.
        ValueError: `factor` is not a whole number ≥ 2, the kernel is none of these, or the image is one that
            `to_tensor` refuses.

    Example:
        >>> small = fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4)
        >>> task = fcs_lab.SuperResolution(small, 4)
        >>> tuple(small.shape), task.shape
        ((1, 1, 8, 8), (1, 32, 32))
    """

    @ordinary()
    def __init__(self, low_res: ImageLike, factor: int, kernel: Kernel = "bicubic", *, noise_std: float = 0.0):
        _check_factor(factor)
        y = to_tensor(low_res, "low_res", limit=BEYOND)
        self.factor = factor
        self.D_h, self.D_w = (D.to(y) for D in _factors(kernel, *(factor * size for size in y.shape[-2:]), factor))
        self._measure(y, noise_std)


def _right_singular(D: Tensor) -> tuple[Tensor, Tensor]:
    """Of a matrix (m, n) the n singular values, zeros included, and the right singular vectors (n, n)."""
    _, values, Vh = torch.linalg.svd(D.double())
    return with_zeros(values, D.shape[1]).to(D), Vh.T.to(D)


@ordinary()
def blur(images: ImageLike, kernel: Tensor | np.ndarray) -> Tensor:
    """A x of `Blur`: images (B, C, H, W) convolved with the kernel, of the same size.

    Raises:
        TypeError, ValueError: As for `Blur`.

    Example:
        >>> tuple(fcs_lab.blur(fcs_lab.load_digits(2)[0], torch.full((3, 3), 1 / 9)).shape)
        (2, 1, 32, 32)
    """
    x = to_tensor(images, "images")
    return Blur(x, kernel).A(x)


@ordinary()
def downsample(images: ImageLike, factor: int, kernel: Kernel = "bicubic") -> Tensor:
    """A x of `SuperResolution`: images (B, C, H, W) reduced to (B, C, H/factor, W/factor), not clipped.

    Raises:
        TypeError, ValueError: As for `SuperResolution`; `factor` does not divide the height and the width.

    Example:
        >>> tuple(fcs_lab.downsample(fcs_lab.load_digits(2)[0], 4, "box").shape)
        (2, 1, 8, 8)
    """
    _check_factor(factor)
    x = to_tensor(images, "images")
    if x.shape[-2] % factor or x.shape[-1] % factor:
        raise ValueError(
            f"images is {x.shape[-2]}×{x.shape[-1]} (height × width); expected multiples of the factor {factor}"
        )
    small = x.new_zeros(*x.shape[:2], x.shape[-2] // factor, x.shape[-1] // factor)
    return SuperResolution(small, factor, kernel).A(x)


@ordinary()
def upsample(images: ImageLike, factor: int) -> Tensor:
    """Images (B, C, H, W) enlarged to (B, C, factor·H, factor·W) by bicubic interpolation, clipped to [-1, 1].

    As PIL's resize does it: what super-resolution is compared with.

    Raises:
        TypeError, ValueError: As for `SuperResolution`.

    Example:
        >>> small = fcs_lab.downsample(fcs_lab.load_digits(2)[0], 4)
        >>> tuple(fcs_lab.upsample(small, 4).shape)
        (2, 1, 32, 32)
    """
    _check_factor(factor)
    x = to_tensor(images, "images", limit=BEYOND)
    return torch.nn.functional.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True).clamp(-1, 1)


def _check_factor(factor: int) -> None:
    if not is_int(factor) or not 2 <= factor <= 1024:
        raise ValueError(f"factor is {factor!r}; expected a whole number of at least 2, and at most 1024")


def _factors(kernel: Kernel, height: int, width: int, factor: int) -> tuple[Tensor, Tensor]:
    """D_h (R, height/factor, height) and D_w (R, width/factor, width), float64, with A x = Σ_r D_h[r] x D_w[r]ᵀ.

    Any kernel is a sum of separable ones, its singular value decomposition, so that every A here is made of matrices
    along the rows and along the columns, boundary included, and so is its transpose.
    """
    if isinstance(kernel, str):
        matrices = {"bicubic": bicubic_matrix, "box": box_matrix}
        if kernel not in matrices:
            raise ValueError(f"kernel is {kernel!r}; expected 'bicubic', 'box', or a tensor or array (k_h, k_w)")
        return tuple(matrices[kernel](size, size // factor)[None] for size in (height, width))
    U, singular, Vh = torch.linalg.svd(_check_kernel(kernel))
    rank = int((singular > 1e-12 * singular[0]).sum())
    rows, columns = (U[:, :rank] * singular[:rank]).T, Vh[:rank]
    return tuple(
        torch.stack([convolution_matrix(taps, size, factor) for taps in vectors])
        for vectors, size in ((rows, height), (columns, width))
    )


def _check_kernel(kernel: Tensor | np.ndarray) -> Tensor:
    if isinstance(kernel, np.ndarray) and np.issubdtype(kernel.dtype, np.floating):
        kernel = torch.from_numpy(kernel)
    if not isinstance(kernel, Tensor) or not kernel.is_floating_point():
        raise TypeError(f"kernel is {describe(kernel)}; expected a floating-point tensor or array (k_h, k_w)")
    if kernel.ndim != 2 or not all(size % 2 for size in kernel.shape):
        raise ValueError(f"kernel has shape {tuple(kernel.shape)}; expected (k_h, k_w), both odd")
    kernel = kernel.detach().double().cpu()
    if not abs(kernel.sum().item() - 1) <= 1e-3:  # NaN is refused, too
        raise ValueError(f"kernel sums to {kernel.sum().item():.4g}; expected finite values that sum to 1")
    return kernel


def bicubic_matrix(large: int, small: int) -> Tensor:
    """The antialiased bicubic reduction of `large` pixels in a row to `small`, as a matrix (small, large), float64.

    Written out from PyTorch's own resize, so that A is what `interpolate(mode="bicubic", antialias=True)` does and
    its transpose is at hand.
    """
    identity = torch.eye(large, dtype=torch.float64)[None, None]
    return torch.nn.functional.interpolate(identity, size=(small, large), mode="bicubic", antialias=True)[0, 0]


def box_matrix(large: int, small: int) -> Tensor:
    """The means of `small` blocks of a row of `large` pixels, as a matrix (small, large), float64."""
    factor = large // small
    return torch.eye(small, dtype=torch.float64).repeat_interleave(factor, 1) / factor


def convolution_matrix(taps: Tensor, large: int, factor: int = 1) -> Tensor:
    """A convolution of `large` pixels in a row that keeps every `factor`-th, as a matrix (large/factor, large).

    Row i has its middle at pixel factor · i + ⌊(factor − 1)/2⌋; what would fall beyond an end falls on the end's pixel.
    """
    middles = torch.arange((factor - 1) // 2, large, factor)[:, None]
    reach = len(taps) // 2
    columns = (middles + torch.arange(reach, -reach - 1, -1)).clamp(0, large - 1)
    return torch.zeros(len(middles), large, dtype=taps.dtype).scatter_add(1, columns, taps.expand(columns.shape))
