"""Denoisers x̂_0(x_t, t): any unconditional diffusers U-Net behind one call. Exact ones are in `exact.py`.

Everything downstream (constraints, directions, sampler, probes) sees a model only through `Denoiser`. What a network
predicts (ε, v, x_0 or a flow's velocity) and in what precision it runs is dealt with here, once, at the border, and so is
what the lab asks of a model besides (`Model`): its images, its prompts, its latent space (more in `latent_space.py`).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fcs_lab.checks import check_tensor, describe, is_int, typed
from fcs_lab.precision import at_least_float32
from fcs_lab.schedule import check_scheduler, is_flow

__all__ = [
    "Denoiser",
    "InpaintingDenoiser",
    "Model",
    "UNetDenoiser",
    "add_noise",
    "alpha_bar_at",
    "as_model",
    "check_shape",
    "estimate_x0",
    "forward_mode",
    "frozen",
    "is_tuned",
    "left_as_found",
    "levels_at",
    "networks_of",
    "prediction_type_of",
]


@runtime_checkable
class Denoiser(Protocol):
    """What the sampler and the probes ask of a model: an object with these four attributes that can be called.

    ```python
    class Shrink:                                    # the exact denoiser of x_0 ~ N(0, I)
        scheduler = DDIMScheduler(clip_sample=False) # the noise schedule ᾱ_t
        shape = (1, 8, 8)                            # (C, H, W) of x_t
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, x_t, t):                  # (B, C, H, W) -> x̂_0, (B, C, H, W)
            return alpha_bar_at(self, t, x_t).sqrt() * x_t
    ```

    Example:
        >>> isinstance(fcs_lab.load("mnist"), fcs_lab.Denoiser)
        True
    """

    scheduler: SchedulerMixin
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The estimate x̂_0 of the clean sample.

        Args:
            x_t: Noisy samples (B, C, H, W).
            t: One timestep of the model's schedule, or a tensor (B,) with one a sample; whole numbers, except for a
                rectified flow.

        Returns:
            x̂_0, unclipped, of x_t's shape and dtype.
        """
        ...


@runtime_checkable
class Model(Denoiser, Protocol):
    """What the lab asks of a denoiser besides x̂_0. Of a plain one `as_model` supplies the answers."""

    image_shape: tuple[int, ...]
    """(C, H, W) of the images that it makes, at its own size."""
    any_size: bool
    """Whether it takes x_t of any height and width."""
    num_prompts: int | None
    """How many prompts it has, 1 for all images; None: it takes none."""
    networks: list[nn.Module]
    """All networks that it is made of."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] as its x_0, on its device."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x̂_0 as images (B, C, H, W), unclipped."""
        ...

    def carry(self, task: Any) -> Any:
        """A constraint on images as one on x̂_0."""
        ...

    def tokens(self, shape: tuple[int, ...]) -> int:
        """How many tokens an x_t of shape (C, H, W) is to the network; what a flow's dynamic shift depends on."""
        ...

    def snapshot(self) -> Model:
        """The model as it is at this moment, for one run: its prompts encoded."""
        ...


class _PixelModel:
    """A denoiser of images with the plain answers of `Model`."""

    any_size, num_prompts = False, None

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.scheduler, self.shape, self.dtype = denoiser.scheduler, tuple(denoiser.shape), denoiser.dtype
        self.device = torch.device(denoiser.device)
        self.image_shape = self.shape
        self.networks = networks_of(denoiser)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        return self.denoiser(x_t, t)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device)

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def carry(self, task: Any) -> Any:
        return task

    def tokens(self, shape: tuple[int, ...]) -> int:
        return shape[-2] * shape[-1]

    def snapshot(self) -> Model:
        return self


def as_model(denoiser: Denoiser) -> Model:
    """The denoiser with all that the lab asks of a model: itself if it has it, else wrapped, as a model of images.

    Raises:
        TypeError: It is no `Denoiser`.
    """
    if not isinstance(denoiser, Denoiser):
        hint = "; use fcs_lab.load to get one" if isinstance(denoiser, str) else ""
        raise TypeError(f"model is {denoiser!r}; expected a fcs_lab.Denoiser{hint}")
    return denoiser if isinstance(denoiser, Model) else _PixelModel(denoiser)


def networks_of(denoiser: object) -> list[nn.Module]:
    """The networks that a denoiser is made of: those that it names, or those among its attributes."""
    if isinstance(denoiser, Model):
        return denoiser.networks
    return [value for value in getattr(denoiser, "__dict__", {}).values() if isinstance(value, nn.Module)]


@contextmanager
def left_as_found(networks: Iterable[nn.Module]) -> Iterator[None]:
    """While this lasts the networks are frozen and in evaluation mode; afterwards each part is as it was found."""
    networks = list(networks)
    training = [module for network in networks for module in network.modules() if module.training]
    trainable = [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]
    if torch._C._are_functorch_transforms_active():
        trainable = []  # within torch.func's transformations nothing may be frozen, and nothing need be
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


def frozen(network: nn.Module) -> AbstractContextManager[None]:
    """`left_as_found` for one evaluation, which costs nothing where the network as a whole is frozen already."""
    as_it_is = not network.training and not next(network.parameters()).requires_grad
    return nullcontext() if as_it_is else left_as_found([network])


def alpha_bar_at(denoiser: Denoiser, t: int | Tensor, x_t: Tensor) -> Tensor:
    """ᾱ_t of the denoiser's own schedule, shaped to multiply x_t.

    Args:
        denoiser: Whose schedule.
        t: A timestep 0 ≤ t < T, or an integer tensor (B,).
        x_t: The (B, …) tensor to be multiplied; gives the dtype (float32 at least) and the device.

    Returns:
        A scalar tensor, or (B, 1, …, 1).

    Raises:
        TypeError: t is not an integer.
        ValueError: t is outside the schedule, or has the wrong number of entries.
    """
    return _alpha_bar(denoiser, t, x_t).to(x_t.device, at_least_float32(x_t.dtype))


def _alpha_bar(denoiser: Denoiser, t: int | Tensor, x_t: Tensor) -> Tensor:
    """ᾱ_t, once t is checked, in float64 on the CPU."""
    _check_asked(denoiser, x_t)
    alphas = denoiser.scheduler.alphas_cumprod
    if isinstance(t, Tensor):
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t is a tensor of {t.dtype}; expected integer timesteps")
        if t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, len(x_t))):
            raise ValueError(f"t has shape {tuple(t.shape)}; expected one timestep, or one for each of {len(x_t)} samples")
    elif not is_int(t) and not (getattr(t, "shape", None) == () and getattr(t.dtype, "kind", "") in "iu"):
        raise TypeError(f"t is {t!r}; expected an integer timestep")
    index = torch.as_tensor(t, device="cpu")
    if index.numel() and (index.min() < 0 or index.max() >= len(alphas)):
        raise ValueError(f"t is {t}; expected a timestep of the model's schedule, 0 to {len(alphas) - 1}")
    alpha_bar = alphas.cpu().double()[index]
    if getattr(denoiser, "prediction_type", None) == "epsilon" and bool((alpha_bar <= 0).any()):
        raise ValueError(
            f"t is {t}, where ᾱ_t = 0: x_t is all noise, and of a network that predicts ε there is no x̂_0. Take a schedule "
            "without zero terminal SNR (rescale_betas_zero_snr=False), timestep_spacing='leading', or a v-prediction network"
        )
    alpha_bar = alpha_bar.clamp(0, 1)
    return alpha_bar.reshape(-1, *[1] * (x_t.ndim - 1)) if index.ndim else alpha_bar


def levels_at(denoiser: Denoiser, t: int | float | Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """The levels (a, s) of signal and noise at t: x_t = a x_0 + s ε.

    They are √ᾱ_t and √(1−ᾱ_t) of a diffusion's schedule, and 1−σ and σ of a rectified flow's, whose timestep is
    t = 1000 σ and need not be whole.

    Raises:
        TypeError, ValueError: As for `alpha_bar_at`; t outside a flow's [0, 1000].
    """
    _check_asked(denoiser, x_t)
    if not is_flow(denoiser.scheduler):
        alpha_bar = _alpha_bar(denoiser, t, x_t)
        return tuple(level.sqrt().to(x_t.device, at_least_float32(x_t.dtype)) for level in (alpha_bar, 1 - alpha_bar))
    last = denoiser.scheduler.config.num_train_timesteps
    if isinstance(t, bool) or not isinstance(t, int | float | Tensor):
        raise TypeError(f"t is {t!r}; expected a number or a tensor")
    sigma = torch.as_tensor(t, device=x_t.device, dtype=at_least_float32(x_t.dtype)) / last
    if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(x_t))):
        raise ValueError(f"t has shape {tuple(sigma.shape)}; expected one timestep, or one for each of {len(x_t)} samples")
    if sigma.numel() and not bool(((sigma >= 0) & (sigma <= 1)).all()):
        raise ValueError(f"t is {t}; expected a timestep of the flow, 0 to {last}")
    sigma = sigma.reshape(-1, *[1] * (x_t.ndim - 1)) if sigma.ndim else sigma
    return 1 - sigma, sigma


def _check_asked(denoiser: object, x_t: object) -> None:
    if not hasattr(denoiser, "scheduler"):
        raise TypeError(f"denoiser is {describe(denoiser)}; expected a fcs_lab.Denoiser")
    if not isinstance(x_t, Tensor):
        raise TypeError(f"x_t is {describe(x_t)}; expected a tensor")


@typed
def add_noise(denoiser: Denoiser, x_0: Tensor, noise: Tensor, t: int | float | Tensor) -> Tensor:
    """x_t = a x_0 + s ε at the denoiser's own levels: diffusers' `add_noise`, for a rectified flow as well.

    Raises:
        TypeError, ValueError: As for `levels_at`.
    """
    check_tensor("x_0", x_0, *x_0.shape)
    check_tensor("noise", noise, *x_0.shape)
    signal, level = levels_at(denoiser, t, x_0)
    return (signal * x_0 + level * noise).to(x_0.dtype)


def prediction_type_of(scheduler: SchedulerMixin) -> str:
    """What a network trained with this scheduler predicts: "epsilon", "v_prediction", "sample" or "flow".

    Raises:
        TypeError: `scheduler` is none of diffusers'.
        ValueError: It says anything else.
    """
    check_scheduler(scheduler)
    if is_flow(scheduler):
        return "flow"
    prediction_type = scheduler.config.prediction_type
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"prediction_type is {prediction_type!r}; expected 'epsilon', 'v_prediction' or 'sample'")
    return prediction_type


def estimate_x0(prediction_type: str, x_t: Tensor, output: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """x̂_0 from what the network said: linear in it, whatever it predicts."""
    if prediction_type == "epsilon":
        return (x_t - noise * output) / signal
    if prediction_type == "v_prediction":
        return signal * x_t - noise * output
    if prediction_type == "flow":
        return x_t - noise * output  # x_t = x_0 + σ v with v = ε − x_0
    return output


def check_shape(denoiser: Denoiser, x_t: Tensor) -> None:
    """That x_t is (B, *shape) of the denoiser's shape.

    Raises:
        ValueError: It is not.
    """
    if tuple(x_t.shape[1:]) != tuple(denoiser.shape):
        raise ValueError(f"x_t has shape {tuple(x_t.shape)}; the model takes (B, {', '.join(map(str, denoiser.shape))})")


class UNetDenoiser:
    """x̂_0 of an unconditional diffusers U-Net, whatever it predicts.

    The network runs in its own dtype; x̂_0 is put together from its output in float32 at least (float64 if x_t is),
    because in half precision the differences that J e is made of would vanish in the sum.

    Args:
        unet: An unconditional `UNet2DModel`. It runs frozen and in evaluation mode, and is left as it is. A head with twice
            the channels (learned variance) is cut to its first half.
        scheduler: The noise schedule it was trained on, with `prediction_type` "epsilon", "v_prediction" or "sample";
            or a rectified flow's, such as a `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: Another prediction type, a class-conditional U-Net, or a head of another width.
    """

    @typed
    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        config = unet.config
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            raise ValueError(
                f"the U-Net has {config.in_channels} input and {config.out_channels} output channels; "
                "expected as many, or twice as many (learned variance)"
            )
        self._take(unet, scheduler, config.in_channels)

    def _take(self, unet: UNet2DModel, scheduler: SchedulerMixin, channels: int) -> None:
        config = unet.config
        if config.get("num_class_embeds") or config.get("class_embed_type"):
            raise ValueError("the U-Net is class-conditional; expected an unconditional one")
        self.prediction_type = prediction_type_of(scheduler)
        self.unet = unet
        self.scheduler = scheduler
        size = config.sample_size
        self.shape = (channels, *(size if isinstance(size, list | tuple) else (size, size)))

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def __call__(self, x_t: Tensor, t: int | Tensor) -> Tensor:
        check_shape(self, x_t)
        signal, noise = levels_at(self, t, x_t)
        with frozen(self.unet):
            output = self.unet(self._input(x_t).to(self.dtype), t).sample[:, : x_t.shape[1]].to(noise.dtype)
        return estimate_x0(self.prediction_type, x_t.to(noise.dtype), output, signal, noise).to(x_t.dtype)

    def _input(self, x_t: Tensor) -> Tensor:
        """What the network is shown."""
        return x_t


def is_tuned(unet: UNet2DModel) -> bool:
    """Whether a U-Net is tuned to inpainting: beside x_t it takes a mask and an image."""
    return unet.config.in_channels == 2 * unet.config.out_channels + 1


class InpaintingDenoiser(UNetDenoiser):
    """x̂_0 of a U-Net that was tuned to inpainting: it sees x_t, the mask and the masked image, 2C + 1 channels.

    By itself it is a denoiser to which all is hidden; `given` tells it a task. diffusers' inpainting checkpoints, which do
    the same in latent space, are pipelines; see `fcs_lab.baselines.tuned`.

    Args:
        unet, scheduler: As for `UNetDenoiser`. The channels are, as in diffusers, x_t's, the mask (1 is hidden), and the
            image's, 0 where it is hidden.

    Raises:
        ValueError: As for `UNetDenoiser`.
    """

    @typed
    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        if not is_tuned(unet):
            raise ValueError(
                f"the U-Net has {unet.config.in_channels} input and {unet.config.out_channels} output channels; expected "
                "2C + 1 for C: x_t, the mask and the masked image"
            )
        self._take(unet, scheduler, unet.config.out_channels)
        self._seen: Tensor | None = None

    def given(self, known: Tensor, y: Tensor) -> InpaintingDenoiser:
        """The same model, its weights shared, told what is known.

        Args:
            known: (1 or B, 1 or C, H, W), 1 where the image is known, else 0.
            y: The image (1 or B, C, H, W) in [-1, 1]; what lies where it is not known has no influence.
        """
        other = copy.copy(self)
        image = known * y
        other._seen = torch.cat([(1 - known[:, :1]).expand(len(image), -1, -1, -1), image], 1)
        return other

    def _input(self, x_t: Tensor) -> Tensor:
        if self._seen is None:
            return torch.cat([x_t, torch.ones_like(x_t[:, :1]), torch.zeros_like(x_t)], 1)
        return torch.cat([x_t, self._seen.to(x_t).expand(len(x_t), -1, -1, -1)], 1)


_ONE_AT_A_TIME = threading.RLock()
"""Which attention runs is a setting of the process: a thread that turned it back would stop another's forward mode."""


@contextmanager
def forward_mode(denoiser: Denoiser) -> Iterator[None]:
    """While this lasts, `torch.func.jvp` works through the denoiser's diffusers network; afterwards all is as it was.

    Two things stand in its way: fused attention has no forward-mode rule (the MATH backend has), and that of
    `group_norm` rejects inputs that are not contiguous (a hook makes them so).
    """
    networks = networks_of(denoiser)
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(left_as_found(networks))  # not within a transformed function, where torch refuses it
        for network in networks:
            for module in network.modules():
                if isinstance(module, nn.GroupNorm):
                    hook = module.register_forward_pre_hook(lambda _, inputs: tuple(x.contiguous() for x in inputs))
                    stack.callback(hook.remove)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
