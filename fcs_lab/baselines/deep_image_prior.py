"""Deep Image Prior: a small convolutional net is fitted to y alone, and stopped; there is no trained model."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fcs_lab.baselines.frame import on_images
from fcs_lab.checks import check_count, check_generator, check_number
from fcs_lab.constraints import LinearConstraint
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser
from fcs_lab.sampler import Result
from fcs_lab.trace import TraceEntry

__all__ = ["deep_image_prior"]


@ordinary()
def deep_image_prior(
    model: Denoiser | None,
    task: LinearConstraint,
    *,
    num_inference_steps: int = 300,
    learning_rate: float = 0.01,
    width: int = 32,
    generator: torch.Generator | list[torch.Generator] | None = None,
    progress: bool = True,
) -> Result:
    """Deep Image Prior (Ulyanov et al., CVPR 2018): argmin_θ C(net_θ(z)) for a fixed noise z, one net an image.

    Args:
        model: None, or one whose images have the channels that are wanted; it is not evaluated.
        task: Any linear one, on images (C, H, W) whose sides are multiples of 8, larger than 8×8.
        num_inference_steps: Adam's steps, each a forward and a backward pass of the small net; when to stop is all the prior
            there is.
        learning_rate: Adam's.
        width: Channels of the net.
        generator: Of z and the weights: one, or a list with one an image.
        progress: Show a progress bar.

    Returns:
        As for `fcs_lab.sample`; `nfe` and `n_backward` are 0, for no denoiser runs; the trace has an entry for each step,
        its `step` from 0 and its `t` the steps that are left.

    Raises:
        TypeError, ValueError: An argument is wrong; a task of another size.

    Example:
        >>> mask = torch.arange(32).ge(16).expand(32, 32)  # the right half is made up
        >>> task = fcs_lab.Inpainting(fcs_lab.load_digits(1)[0], mask)
        >>> result = fcs_lab.baselines.deep_image_prior(None, task, num_inference_steps=3, width=8, progress=False)
        >>> tuple(result.images.shape)
        (1, 1, 32, 32)
    """
    check_count("num_inference_steps", num_inference_steps, 1, 100_000)
    check_number("learning_rate", learning_rate, 0, 1)
    check_count("width", width, 1, 1024)
    check_generator(generator)
    task = on_images(model, task, LinearConstraint, progress)
    C, H, W = task.shape
    if H % 8 or W % 8 or H * W < 128:
        raise ValueError(f"the task's images are {H}×{W}; expected multiples of 8, and more than 8×8")
    n = task.batch_size
    if isinstance(generator, list) and len(generator) != n:
        raise ValueError(f"generator holds {len(generator)} for {n} images; expected one for each")
    own = generator if isinstance(generator, list) else [generator] * n
    images, costs = [], torch.zeros(num_inference_steps, n)
    with tqdm(total=n * num_inference_steps, desc="deep_image_prior", disable=not progress) as bar:
        for i in range(n):
            one = _only(task, i)
            seed = int(torch.randint(2**31, (1,), generator=own[i], device=own[i].device if own[i] else None))
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.manual_seed(seed)
                net = _hourglass(width, C).to(task.y)
                z = 0.1 * torch.rand(1, width, H, W).to(task.y)
                optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
                for step in range(num_inference_steps):
                    x = net(z)
                    cost, e = one.cost_and_error(x.detach())
                    optimizer.zero_grad(set_to_none=True)
                    x.backward(-e / x.numel())
                    optimizer.step()
                    costs[step, i] = cost
                    bar.update()
            images.append(net(z).detach())
    x0 = torch.cat(images)
    blank = torch.zeros(n)
    trace = [
        TraceEntry(step, num_inference_steps - 1 - step, 0, costs[step], (2 * costs[step]).sqrt(), blank, 0.0)
        for step in range(num_inference_steps)
    ]
    return Result(x0, task.finish(x0.clamp(-1, 1)), trace, 0.0, 0.0)


def _only(task: LinearConstraint, i: int) -> LinearConstraint:
    """The task of its i-th image."""
    one = copy.copy(task)
    n = task.batch_size
    for name, value in vars(task).items():
        if isinstance(value, Tensor) and value.ndim == 4 and len(value) == n:
            setattr(one, name, value[i : i + 1])
    one.batch_size = 1
    return one


def _hourglass(width: int, channels: int) -> nn.Sequential:
    """Three levels down and up again, without skips, which need no noise to be kept from copying."""

    def block(channels_in: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, width, 3, stride, 1, padding_mode="reflect"),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
        ]

    def up() -> nn.Module:
        return nn.Upsample(scale_factor=2, mode="bilinear")

    down = [layer for _ in range(3) for layer in (*block(width, 2), *block(width, 1))]
    rise = [layer for _ in range(3) for layer in (up(), *block(width, 1))]
    return nn.Sequential(*down, *rise, nn.Conv2d(width, channels, 1), nn.Tanh())
