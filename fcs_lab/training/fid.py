"""`python -m fcs_lab.training.fid MODEL --data cifar10_test.npz`: FID and KID of an RGB model's samples.

The feature extractor is torch-fidelity's InceptionV3, the network and weights of the original FID (2048 features, after
the last pooling); torchmetrics does the statistics. Both are the optional extra "fid".
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.data import read_cifar10
from fcs_lab.denoisers import Denoiser
from fcs_lab.latent import image_shape
from fcs_lab.records import save_record
from fcs_lab.sampler import sample
from fcs_lab.zoo import load

__all__ = ["inception_metrics", "measure"]

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000


class Metric(Protocol):
    """Of torchmetrics, what is used here."""

    def update(self, images: Tensor, real: bool) -> None: ...
    def compute(self) -> Tensor | tuple[Tensor, Tensor]: ...


def inception_metrics(device: torch.device, count: int) -> dict[str, Metric]:
    """FID and KID on Inception's features.

    Raises:
        ImportError: The extra "fid" is not installed.
    """
    try:
        import torch_fidelity  # noqa: F401  (torchmetrics needs it, and says so less clearly)
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError as error:
        raise ImportError(
            'FID and KID need torchmetrics and torch-fidelity, the optional extra "fid": '
            f"pip install 'fcs-lab[fid]' ({error})"
        ) from error
    return {
        "fid": FrechetInceptionDistance(feature=2048).to(device),
        "kid": KernelInceptionDistance(
            feature=2048, subsets=KID_SUBSETS, subset_size=min(KID_SUBSET_SIZE, count)
        ).to(device),
    }  # fmt: skip


def measure(
    model: Denoiser,
    truth: Tensor,
    metrics: Mapping[str, Metric],
    *,
    count: int,
    num_inference_steps: int = 100,
    batch_size: int = 250,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, float | list[float]]:
    """The metrics between `count` unconditional samples (DDIM, η = 0) and `truth`.

    Args:
        model: An RGB model.
        truth: Images (N, 3, H, W), float32 in [-1, 1], of the model's size.
        metrics: Name -> metric of uint8 images, as `inception_metrics` makes.
        count: How many samples.
        num_inference_steps: Of the sampler.
        batch_size: Images at once.
        seed: Of the generator that draws the noise, batch by batch.
        progress: Show a progress bar.

    Returns:
        Name -> value; of KID [mean, standard deviation over its subsets].

    Raises:
        ValueError: The model is not RGB, or `truth` is not of its size.
    """
    if image_shape(model)[0] != 3:
        raise ValueError(f"the model's images have {image_shape(model)[0]} channels; Inception's features are of RGB images")
    if tuple(truth.shape[1:]) != image_shape(model):
        raise ValueError(f"truth has shape {tuple(truth.shape)}; expected (N, *{image_shape(model)})")
    for part in truth.split(batch_size):
        _update(metrics, part.to(model.device), real=True)
    generator = torch.Generator(model.device).manual_seed(seed)
    for start in tqdm(range(0, count, batch_size), desc="samples", disable=not progress):
        images = sample(
            model,
            num_inference_steps=num_inference_steps,
            eta=0,
            batch_size=min(batch_size, count - start),
            generator=generator,
            progress=False,
        ).images
        _update(metrics, images, real=False)
    found = {name: metric.compute() for name, metric in metrics.items()}
    return {
        name: [float(part) for part in value] if isinstance(value, tuple) else float(value) for name, value in found.items()
    }


def _update(metrics: Mapping[str, Metric], images: Tensor, real: bool) -> None:
    images = (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    for metric in metrics.values():
        metric.update(images, real=real)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fcs_lab.training.fid", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what fcs_lab.load takes, such as runs/cifar10/model")
    parser.add_argument("--data", type=Path, required=True, help="the test images, as for training")
    parser.add_argument("--count", type=int, default=10_000, help="samples (%(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="DDIM steps (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=250, help="images at once (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/fid.json"), help="the record (%(default)s)")
    options = parser.parse_args(arguments)
    if options.count < 2:
        raise SystemExit(f"--count is {options.count}; expected at least 2")
    model = load(options.model)
    metrics = inception_metrics(torch.device(model.device), options.count)
    truth = read_cifar10(options.data, image_shape(model)[-1])
    numbers = measure(
        model,
        truth,
        metrics,
        count=options.count,
        num_inference_steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    settings = {
        "samples": options.count,
        "truth": f"{len(truth)} images of {options.data.name}",
        "features": "torch-fidelity InceptionV3, 2048",
        "sampler": f"DDIM, {options.steps} steps, η = 0",
        "kid": f"{KID_SUBSETS} subsets of {min(KID_SUBSET_SIZE, options.count)}: mean, standard deviation",
    }
    save_record(options.out, model=options.model, seed=options.seed, settings=settings, numbers=numbers)
    print(f"{numbers}, written to {options.out}")


if __name__ == "__main__":
    main()
