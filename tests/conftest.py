import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from browser import lab, page  # noqa: F401 (fixtures)
from diffusers import DDIMScheduler, UNet2DModel

import fcs_lab
from fcs_lab.denoisers import UNetDenoiser

SLOW = ("test_notebooks", "test_browser", "test_figures")
"""What takes minutes comes last: a mistake shows early. Of that the longest first, and `make test` gives a process four
tests at a time, so that both end together.
"""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, name in enumerate(SLOW, 1) if item.path.stem.startswith(name)), 0))


@pytest.fixture(scope="session")
def mnist():
    return fcs_lab.load("mnist", device="cpu")


@pytest.fixture
def digits():
    return fcs_lab.load_digits(4)[0]


@pytest.fixture
def right_half():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:, 16:] = True
    return mask


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def tiny_unet(in_channels: int = 1, out_channels: int = 1, size: int = 8, seed: int = 0) -> UNet2DModel:
    """A U-Net with every part that the bundled one has, small enough to differentiate densely."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )


def tiny_denoiser(dtype: torch.dtype = torch.float64, prediction_type: str = "epsilon", **unet) -> UNetDenoiser:
    scheduler = DDIMScheduler(prediction_type=prediction_type)
    return UNetDenoiser(tiny_unet(**unet).to(dtype).requires_grad_(False).eval(), scheduler)


@pytest.fixture
def mixture():
    """Three full-rank Gaussians in 2×3 pixels, in float64."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(3, 1, 2, 3, generator=generator, dtype=torch.float64) * 0.5
    roots = torch.randn(3, 6, 6, generator=generator, dtype=torch.float64) * 0.2
    covariances = roots @ roots.mT + 0.05 * torch.eye(6, dtype=torch.float64)
    return fcs_lab.GaussianMixtureDenoiser(means, covariances, torch.tensor([0.5, 0.3, 0.2]))


class Opaque:
    """A denoiser that torch cannot differentiate."""

    def __init__(self, denoiser):
        self.denoiser, self.scheduler, self.shape = denoiser, denoiser.scheduler, denoiser.shape
        self.device, self.dtype = denoiser.device, denoiser.dtype

    def __call__(self, x_t, t):
        return torch.from_numpy(self.denoiser(x_t.detach(), t).numpy())


def two_pixels(n: int, noise_std: float = 0.0) -> tuple[fcs_lab.GaussianMixtureDenoiser, fcs_lab.Inpainting]:
    """The exact model of two pixels with a correlation of 0.8 and a standard deviation of 0.3, and n times the first is 0.3.

    The second one's posterior has mean 0.24 and standard deviation 0.18.
    """
    covariance = 0.09 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    model = fcs_lab.GaussianMixtureDenoiser(torch.zeros(1, 1, 1, 2, dtype=torch.float64), covariance[None])
    image = torch.tensor([0.3, 0.0], dtype=torch.float64).reshape(1, 1, 1, 2).expand(n, -1, -1, -1)
    return model, fcs_lab.Inpainting(image, torch.tensor([[False, True]]), noise_std=noise_std)


def pictures(n: int = 3, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def ideal():
    """The exact denoiser of twenty pictures, which are no part of any test's images."""
    return fcs_lab.IdealDenoiser(pictures(20, seed=1))


@pytest.fixture
def sampled(monkeypatch):
    """(x, y) of the cells of a `SensitivityMap` that are computed from now on."""
    from fcs_lab.sensitivity.cells import Bench

    seen, own = [], Bench.sampled

    def counted(self, x, y, stop=None):
        seen.append((x, y))
        return own(self, x, y, stop)

    monkeypatch.setattr(Bench, "sampled", counted)
    return seen
