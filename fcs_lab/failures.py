"""Ways in which constrained sampling goes wrong, as cases to be run: what is asked is wrong, or the model does not suit it.

How it depends on its settings, and on what is hidden, is a study (`fcs_lab/study/failures.toml`); here is what no study's
file can say: noise in y, another operator than was told, a y that no image fits, images that the model does not know, and
prompts that contradict. And `completed_modes`: what is drawn from a posterior that is known exactly. All of it takes the
extra 'study'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fcs_lab.checks import check_count, check_seed, check_tensor, describe
from fcs_lab.constraints import Constraint, Inpainting
from fcs_lab.contexts import ordinary
from fcs_lab.data import GARMENTS, load_digits, load_garments
from fcs_lab.denoisers import Denoiser
from fcs_lab.exact import IdealDenoiser
from fcs_lab.filters import Blur, SuperResolution, blur, downsample
from fcs_lab.metrics import data_consistency, denoising_loss, masked_mse
from fcs_lab.sampler import Result, sample
from fcs_lab.study.tasks import gaussian, mask
from fcs_lab.zoo import load

__all__ = ["CASES", "Case", "Posterior", "Ran", "completed_modes", "run_case", "shared_half"]

SHORT = {"num_inference_steps": 10, "inner_steps": 3}
"""The settings of all cases, but for what they name: 70 evaluations."""


@dataclass(frozen=True)
class Case:
    """A way to go wrong."""

    what: str
    """What is wrong; "nothing" of a section's first case, which the others are compared with."""
    pose: Callable[[Tensor], Constraint]
    """The true images (B, C, H, W) -> the task as the sampler is told it."""
    model: str = "mnist"
    alter: Callable[[Tensor], Tensor] = lambda images: images
    """The images -> those that are there instead."""
    images: Callable[[int], tuple[Tensor, Tensor]] = load_digits
    """n -> images and labels."""
    settings: dict[str, Any] = field(default_factory=dict)
    guidance_scale: float | None = None
    """With the prompt of the image's kind; None: no prompt."""
    prompted_as: int = 0
    """How many kinds on the prompt's is from the image's: 0 is right."""
    alarm: bool = False
    """Whether the model's denoising loss on the result is measured."""


def right_half(images: Tensor) -> Tensor:
    """Where pixels are hidden, bool (1, 1, H, W)."""
    return mask("right-half", *images.shape[-2:], 0)[None, None]


def half(images: Tensor) -> Constraint:
    """The right half hidden."""
    return Inpainting(images, right_half(images))


def noisy_half(σ: float) -> Callable[[Tensor], Constraint]:
    """The right half hidden, the rest with noise of standard deviation σ, clipped to [-1, 1] as a picture is."""

    def pose(images: Tensor) -> Constraint:
        noise = [torch.randn(images[:1].shape, generator=torch.Generator().manual_seed(i)) for i in range(len(images))]
        return Inpainting((images + σ * torch.cat(noise)).clamp(-1, 1), right_half(images))

    return pose


def enlarged(true: str, told: str) -> Callable[[Tensor], Constraint]:
    """×4 from a reduction by one kernel, told to be by another."""
    return lambda images: SuperResolution(downsample(images, 4, true), 4, told)


def deblurred(true: float, told: float) -> Callable[[Tensor], Constraint]:
    """A Gaussian blur of one width in pixels, told to be of another."""
    return lambda images: Blur(blur(images, gaussian(true)), gaussian(told))


def averaged(images: Tensor) -> Constraint:
    """What is known is the average of two images: hardly an image of the model's fits."""
    return half((images + images.roll(1, 0)) / 2)


def scrambled(images: Tensor) -> Constraint:
    """What is known are an image's pixels in another order: no image of the model's fits."""
    H, W = images.shape[-2:]
    order = torch.randperm(H * W, generator=torch.Generator().manual_seed(0))
    return half(images.flatten(-2)[..., order].unflatten(-1, (H, W)))


CASES: dict[str, dict[str, Case]] = {
    "noise in y": {
        "no noise": Case("nothing", half),
        "σ_y = 0.1": Case("noise that Algorithm 1 is not told of", noisy_half(0.1)),
        "σ_y = 0.3": Case("more of it", noisy_half(0.3)),
        "σ_y = 0.3, K = 1": Case("fewer inner steps for it", noisy_half(0.3), settings={"inner_steps": 1}),
        "σ_y = 0.3, λ a fifth": Case("shorter ones", noisy_half(0.3), settings={"step_size": (0.1, 0.02)}),
    },
    "a wrong operator": {
        "×4, bicubic": Case("nothing", enlarged("bicubic", "bicubic")),
        "×4, box told to be bicubic": Case("the kernel", enlarged("box", "bicubic")),
        "×4, bicubic told to be box": Case("the kernel", enlarged("bicubic", "box")),
        "blur of 2 pixels": Case("nothing", deblurred(2, 2)),
        "blur of 2.5 told to be 2": Case("wider than told", deblurred(2.5, 2)),
        "blur of 1.5 told to be 2": Case("narrower than told", deblurred(1.5, 2)),
    },
    "images that the model does not know": {
        "digits": Case("nothing", half, alarm=True),
        "digits, shifted by 8": Case("the place", half, alter=lambda images: images.roll(8, -2), alarm=True),
        "digits, upside down": Case("the direction", half, alter=lambda images: images.rot90(2, (-2, -1)), alarm=True),
        "digits, inverted": Case("black for white", half, alter=torch.neg, alarm=True),
        "garments": Case("the kind", half, images=load_garments, alarm=True),
        "two digits averaged": Case("y, which no digit fits", averaged, alarm=True),
        "pixels in another order": Case("y, which nothing fits", scrambled, alarm=True),
    },
    "prompts and their weight": {
        "no prompt": Case("nothing", half, "fashion", images=load_garments),
        **{
            f"its own prompt, guidance {w:g}": Case("", half, "fashion", images=load_garments, guidance_scale=w)
            for w in (1.0, 2.0, 5.0, 15.0)
        },
        "another garment's, guidance 2": Case("the prompt", half, "fashion", images=load_garments, guidance_scale=2.0,
                                              prompted_as=3),
        "another garment's, guidance 15": Case("the prompt", half, "fashion", images=load_garments, guidance_scale=15.0,
                                               prompted_as=3),
    },
}  # fmt: skip
"""By section and name. A section's differences are to its first case, or to the last before with nothing wrong."""


@dataclass(frozen=True)
class Ran:
    """What `run_case` returns."""

    result: Result
    truth: Tensor
    """(B, C, H, W)."""
    task: Constraint
    """As the sampler was told it, on images."""
    values: dict[str, Tensor]
    """Each (B,). "hidden", "known" or "all": mean squared error to the truth; "fit": root mean square of A x − y; "fit of
    the truth": the same of the true image; "loss": the model's denoising loss on the result, of cases with an alarm."""


def run_case(case: Case, n: int, *, seed: int = 0, model: Denoiser | None = None) -> Ran:
    """Sample a case.

    Args:
        case: Of `CASES`.
        n: How many images, from the first.
        seed: Of the first image's noise; the others have the next ones.
        model: The case's model, if it is at hand.

    Raises:
        ValueError: n or seed out of range.
    """
    if not isinstance(case, Case):
        raise TypeError(f"case is {describe(case)}; expected one of fcs_lab.failures.CASES")
    check_count("n", n, 1)
    seed = int(check_seed(seed))
    model = load(case.model) if model is None else model
    images, labels = case.images(n)
    truth = case.alter(images)
    task = case.pose(truth)
    prompted = model
    if case.guidance_scale is not None:
        prompts = [f"a photo of {GARMENTS[(int(label) + case.prompted_as) % 10]}" for label in labels]
        prompted = model.with_prompt(prompts, guidance_scale=case.guidance_scale)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(n)]
    result = sample(prompted, task, generator=generators, progress=False, **SHORT | case.settings)
    out = result.images.cpu()
    values = {"fit": data_consistency(task, out), "fit of the truth": data_consistency(task, truth)}
    if isinstance(task, Inpainting):
        values |= {"hidden": masked_mse(out, truth, task.mask), "known": masked_mse(out, truth, ~task.mask)}
    else:
        values["all"] = masked_mse(out, truth, torch.ones_like(truth[:1, :1], dtype=torch.bool))
    if case.alarm:
        values["loss"] = denoising_loss(model, out)
    return Ran(result, truth, task, values)


@dataclass(frozen=True)
class Posterior:
    """An empirical prior whose posterior, given the known half, is known exactly."""

    data: Tensor
    """(N, 1, H, W): images that share the left half, some of them several times, and others that do not."""
    modes: Tensor
    """(M, 1, H, W): those that share it."""
    probabilities: Tensor
    """(M,): of each given the known half, by how often it is there."""
    task: Inpainting
    """The left half given."""


def shared_half(images: Tensor, counts: Sequence[int], others: int = 24) -> Posterior:
    """A prior of which the first image's left half, given, leaves `len(counts)` right halves.

    Args:
        images: (N, C, H, W); the first's left half is given, the right halves are those of the first, the second, ….
        counts: How often each is in the data: the posterior is in proportion to them.
        others: How many of the images that follow are in the data as they are, and are excluded by y.

    Raises:
        ValueError: Too few images.
    """
    check_tensor("images", images, "N", "C", "H", "W")
    if not isinstance(counts, list | tuple) or not counts:
        raise TypeError(f"counts is {describe(counts)}; expected a list of whole numbers")
    M = len(counts)
    for count in counts:
        check_count("counts", count, 1, 10_000)
    check_count("others", others, 0)
    if len(images) < M + others or M < 1:
        raise ValueError(f"images has {len(images)}; expected {M} for the modes and {others} others")
    hidden = right_half(images)
    modes = torch.where(hidden, images[:M], images[:1])
    data = torch.cat([modes.repeat_interleave(torch.tensor(counts), 0), images[M : M + others]])
    weights = torch.tensor(counts, dtype=torch.float64)
    return Posterior(data, modes, weights / weights.sum(), Inpainting(modes[:1], hidden))


@ordinary()
def completed_modes(posterior: Posterior, draws: int, *, seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor]:
    """Complete the known half many times with the exact denoiser, and say which of the modes each is nearest to.

    Args:
        posterior: Of `shared_half`.
        draws: How many samples.
        seed: Of the first; the others have the next ones.
        **settings: Of `fcs_lab.sample`, or `method`: a name of `fcs_lab.baselines.METHODS`.

    Returns:
        The counts (M,), and the root mean square to the nearest mode in the hidden half (draws,).
    """
    from fcs_lab.baselines import METHODS

    if not isinstance(posterior, Posterior):
        raise TypeError(f"posterior is {describe(posterior)}; expected what shared_half returns")
    check_count("draws", draws, 1, 10_000)
    settings = dict(settings)
    call = METHODS[settings.pop("method", "newton")]
    generators = [torch.Generator().manual_seed(int(check_seed(seed)) + i) for i in range(draws)]
    model = IdealDenoiser(posterior.data)
    images = call(model, posterior.task, batch_size=draws, generator=generators, progress=False, **settings).images
    hidden = posterior.task.mask.expand_as(images)
    apart = (images[:, None] - posterior.modes[None]) * hidden[:, None]
    distance = (apart.flatten(2).square().sum(2) / hidden[0].sum()).sqrt()
    nearest = distance.argmin(1)
    return torch.bincount(nearest, minlength=len(posterior.modes)), distance.min(1).values
