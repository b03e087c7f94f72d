"""Methods without a model, by scikit-image (the extra "study"): what an image's smoothness alone can do.

They have the peers' shape of call; the model says only how many channels its images have, and may be None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.baselines.frame import on_images
from fcs_lab.checks import check_count, check_number
from fcs_lab.constraints import Constraint, Inpainting, LinearConstraint
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.filters import Blur, SuperResolution, upsample
from fcs_lab.sampler import Result

__all__ = ["bicubic", "biharmonic", "richardson_lucy", "total_variation", "wiener"]


@ordinary()
def biharmonic(model: Denoiser | None, task: Inpainting, *, progress: bool = True) -> Result:
    """Inpainting by the smoothest surface: ∇⁴x = 0 where it is hidden (Damelin and Hoang 2018; scikit-image).

    Args:
        model: None, or one whose images have the channels that are wanted.
        task: Inpainting.
        progress: Show a progress bar.

    Returns:
        As for `fcs_lab.sample`; `nfe` is 0 and the trace empty.

    Raises:
        TypeError: Another task.
        ImportError: scikit-image is not installed.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> result = fcs_lab.baselines.biharmonic(None, task, progress=False)
        >>> bool((result.images[..., ~mask] == task.y[..., ~mask]).all())  # what is known is kept
        True
    """
    restoration = _restoration()
    task = on_images(model, task, Inpainting, progress)

    def one(y: np.ndarray, i: int) -> np.ndarray:
        hidden = task.mask.expand(len(task.y), -1, -1, -1)[i, 0].cpu().numpy()
        return restoration.inpaint_biharmonic(y, hidden, channel_axis=0)

    return _each(one, task, "biharmonic", progress)


@ordinary()
def total_variation(
    model: Denoiser | None,
    task: LinearConstraint,
    *,
    num_inference_steps: int = 100,
    weight: float = 0.02,
    progress: bool = True,
) -> Result:
    """argmin ½‖A x − y‖² + w TV(x) by proximal gradient steps (Chambolle 2004, for the proximal map; scikit-image).

    Args:
        model, progress: As for `biharmonic`.
        task: Any linear one.
        num_inference_steps: How many gradient steps.
        weight: w, relative to ‖A‖².

    Returns:
        As for `biharmonic`.

    Raises:
        TypeError, ValueError, ImportError: As for `biharmonic`.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> result = fcs_lab.baselines.total_variation(None, task, num_inference_steps=20, progress=False)
        >>> tuple(result.images.shape)
        (1, 1, 32, 32)
    """
    check_count("num_inference_steps", num_inference_steps, 1, 10_000)
    check_number("weight", weight, 1e-6)
    restoration = _restoration()
    task = on_images(model, task, LinearConstraint, progress)
    gain = _squared_norm(task)
    x = task.A_adjoint(task.y) / gain
    for _ in tqdm(range(num_inference_steps), desc="total_variation", disable=not progress):
        x = x + task.error(x) / gain
        pictures = x.cpu().numpy()
        smooth = [restoration.denoise_tv_chambolle(p, weight, max_num_iter=30, channel_axis=0) for p in pictures]
        x = torch.from_numpy(np.stack(smooth)).to(x)
    return _result(task, x)


@ordinary()
def wiener(model: Denoiser | None, task: Blur, *, balance: float = 0.01, progress: bool = True) -> Result:
    """Deblurring by a Wiener filter, with the Laplacian's spectrum as the prior (Orieux et al. 2010; scikit-image).

    Args:
        model, progress: As for `biharmonic`.
        task: Deblurring.
        balance: How smooth, beside how true to y.

    Returns:
        As for `biharmonic`.

    Raises:
        TypeError, ValueError, ImportError: As for `biharmonic`.

    Example:
        >>> kernel = torch.full((1, 5), 1 / 5)  # moved sideways by five pixels
        >>> truth = fcs_lab.load_digits(1)[0]
        >>> task = fcs_lab.Blur(fcs_lab.blur(truth, kernel), kernel)
        >>> result = fcs_lab.baselines.wiener(None, task, balance=0.001, progress=False)
        >>> (result.images - truth).square().mean() < (task.y - truth).square().mean()  # nearer than the blurred one
        tensor(True)
    """
    check_number("balance", balance, 0)
    restoration = _restoration()
    task = on_images(model, task, Blur, progress)
    kernel = task.kernel.double().numpy()
    return _deblurred(task, lambda y: restoration.wiener(y, kernel, balance, clip=False), "wiener", progress)


@ordinary()
def richardson_lucy(model: Denoiser | None, task: Blur, *, num_inference_steps: int = 30, progress: bool = True) -> Result:
    """Deblurring by Richardson's and Lucy's iteration, the likeliest image under Poisson noise (1972, 1974; scikit-image).

    Args:
        model, progress: As for `biharmonic`.
        task: Deblurring, with a kernel that is not negative.
        num_inference_steps: How many iterations; the more, the sharper and the noisier.

    Returns:
        As for `biharmonic`.

    Raises:
        TypeError, ValueError, ImportError: As for `biharmonic`.

    Example:
        >>> kernel = torch.full((1, 5), 1 / 5)  # moved sideways by five pixels
        >>> truth = fcs_lab.load_digits(1)[0]
        >>> task = fcs_lab.Blur(fcs_lab.blur(truth, kernel), kernel)
        >>> result = fcs_lab.baselines.richardson_lucy(None, task, num_inference_steps=10, progress=False)
        >>> (result.images - truth).square().mean() < (task.y - truth).square().mean()  # nearer than the blurred one
        tensor(True)
    """
    check_count("num_inference_steps", num_inference_steps, 1, 10_000)
    restoration = _restoration()
    task = on_images(model, task, Blur, progress)
    kernel = task.kernel.double().numpy()
    if (kernel < 0).any():
        raise ValueError("the task's kernel has negative values; Richardson and Lucy's iteration takes none")

    def sharp(y: np.ndarray) -> np.ndarray:  # levels from 0 on
        light = np.clip((y + 1) / 2, 0, None)
        return 2 * restoration.richardson_lucy(light, kernel, num_inference_steps, clip=False, filter_epsilon=1e-6) - 1

    return _deblurred(task, sharp, "richardson_lucy", progress)


@ordinary()
def bicubic(model: Denoiser | None, task: SuperResolution, *, progress: bool = True) -> Result:
    """Super-resolution by bicubic interpolation, as PIL's resize does it; no scikit-image needed.

    Args:
        model, progress: As for `biharmonic`.
        task: Super-resolution.

    Returns:
        As for `biharmonic`.

    Raises:
        TypeError: Another task.

    Example:
        >>> task = fcs_lab.SuperResolution(fcs_lab.downsample(fcs_lab.load_digits(1)[0], 4), 4)
        >>> tuple(fcs_lab.baselines.bicubic(None, task).images.shape)
        (1, 1, 32, 32)
    """
    task = on_images(model, task, SuperResolution, progress)
    return _result(task, upsample(task.y, task.factor))


def _restoration() -> Any:
    try:
        from skimage import restoration
    except ImportError as error:
        raise ImportError(
            'scikit-image is not installed; it comes with the extra "study": pip install "fcs-lab[study]"'
        ) from error
    return restoration


def _each(restore: Callable[[np.ndarray, int], np.ndarray], task: LinearConstraint, name: str, progress: bool) -> Result:
    """Restore image by image, y (C, H, W), float64."""
    y = task.y.double().cpu().numpy()
    images = [restore(y[i], i) for i in tqdm(range(len(y)), desc=name, disable=not progress)]
    return _result(task, torch.from_numpy(np.stack(images)).to(task.y))


def _deblurred(task: Blur, restore: Callable[[np.ndarray], np.ndarray], name: str, progress: bool) -> Result:
    """Channel by channel; beyond its border the image goes on as the task says it does, so that edges do not ring."""
    reach = [(size // 2, size // 2) for size in task.kernel.shape]

    def one(y: np.ndarray, _: int) -> np.ndarray:
        padded = [restore(np.pad(channel, reach, mode="edge")) for channel in y]
        (top, _), (left, _) = reach
        return np.stack(padded)[:, top : top + y.shape[1], left : left + y.shape[2]]

    return _each(one, task, name, progress)


def _squared_norm(task: LinearConstraint) -> float:
    """‖A‖², by power iteration, from above by a hundredth."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(task.A_adjoint(task.y).shape, generator=generator).to(task.y)
    for _ in range(30):
        v = task.A_adjoint(task.A(v / v.norm()))
    return 1.01 * v.norm().item()


def _result(task: Constraint, x: Tensor) -> Result:
    return Result(x, task.finish(x.clamp(-1, 1)), [], 0.0, 0.0)
