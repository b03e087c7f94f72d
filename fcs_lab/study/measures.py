"""What a study measures: of each image, of its known and its hidden part; and of all images of a method together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fcs_lab.constraints import LinearConstraint
from fcs_lab.metrics import data_consistency, denoising_loss, masked_mse
from fcs_lab.study.tasks import Posed

METRICS = {
    "mse": "mean squared error, of images in [-1, 1]",
    "psnr": "peak signal-to-noise ratio in dB, of the part's mean squared error",
    "ssim": "structural similarity, the mean of its map over the part",
    "consistency": "root mean square of A x − y",
    "cost": "C of a task that is not linear",
    "seam": "jump across the mask's border, less the mean one inside, less the same of the truth",
    "named": "1 where a bundled model's classifier names the image as it names the truth",
    "realism": "the model's own denoising loss on the image; low is plausible",
    "lpips": "learned perceptual distance (AlexNet); extra 'lpips'",
    "fid": "Fréchet distance of features; extra 'fid' where they are Inception's",
    "kid": "kernel distance of the same features",
    "diversity": "root mean square between the images of two seeds, over all pixels",
}
"""What can be measured, by name."""

DEFAULTS = ("mse", "psnr", "ssim", "consistency", "cost", "seam", "named", "realism", "diversity")
SETS = ("fid", "kid")
"""Of all images of a row together."""

ENOUGH = 2048
"""The images that a Fréchet distance of Inception's 2,048 features takes at least to mean something."""


@torch.no_grad()
def measure(
    names: Sequence[str],
    images: Tensor,
    truth: Tensor,
    posed: Posed,
    *,
    model: Any = None,
    judge: nn.Module | None = None,
    lpips: nn.Module | None = None,
) -> list[dict[str, dict[str, float]]]:
    """The measures of each image: metric -> part -> value. What makes no sense of a task or a model is left out.

    Args:
        names: Of `METRICS`.
        images, truth: (B, C, H, W) in [-1, 1].
        posed: The task.
        model: Of "realism", a denoiser; None: it is left out.
        judge: Of "named", images -> logits.
        lpips: Of "lpips", pairs of RGB images -> distances.
    """
    found: dict[tuple[str, str], Tensor] = {}
    parts = {"all": torch.ones_like(images[:, :1], dtype=torch.bool)}
    if posed.hidden is not None:
        parts |= {"known": ~posed.hidden, "hidden": posed.hidden}
    if posed.compared:
        similar = ssim_map(images, truth) if "ssim" in names else None
        for part, where in parts.items():
            error = masked_mse(images, truth, where)
            found["mse", part], found["psnr", part] = error, 10 * torch.log10(4 / error.clamp(min=1e-10))
            if similar is not None:
                found["ssim", part] = (similar * where).flatten(1).sum(1) / where.flatten(1).sum(1)
        if judge is not None and "named" in names:
            found["named", "all"] = (judge(images).argmax(1) == judge(truth).argmax(1)).float()
        if lpips is not None and "lpips" in names:
            rgb = [x.clamp(-1, 1).expand(-1, 3, -1, -1) for x in (images, truth)]
            found["lpips", "all"] = torch.stack([lpips(*(x[i : i + 1] for x in rgb)) for i in range(len(images))])
    if posed.hidden is not None and "seam" in names:
        found["seam", "hidden"] = _jump(images, posed.hidden) - _jump(truth, posed.hidden)
    if isinstance(posed.constraint, LinearConstraint):
        found["consistency", "all"] = data_consistency(posed.constraint, images)
    else:
        found["cost", "all"] = posed.constraint.cost_and_error(images)[0]
    if model is not None and "realism" in names:
        found["realism", "all"] = denoising_loss(model, images)
    rows: list[dict[str, dict[str, float]]] = [{} for _ in images]
    for (metric, part), values in found.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            if metric in names and math.isfinite(value):
                row.setdefault(metric, {})[part] = float(f"{value:.6g}")
    return rows


def ssim_map(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity at each pixel, the mean over the channels: (B, C, H, W) in [-1, 1] -> (B, 1, H, W).

    By torchmetrics: a Gaussian window of σ = 1.5, as in the paper that defined it.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    size = min(11, *(side - 1 + side % 2 for side in images.shape[-2:]))
    _, similar = structural_similarity_index_measure(
        images.clamp(-1, 1), truth, kernel_size=size, data_range=2.0, reduction="none", return_full_image=True
    )
    return similar.mean(1, keepdim=True)


def _jump(images: Tensor, hidden: Tensor) -> Tensor:
    """The mean |difference| of neighbours across the mask's border, less that of neighbours inside: (B,)."""
    across, inside = [], []
    for axis in (-1, -2):
        n = images.shape[axis]
        step = (images.narrow(axis, 1, n - 1) - images.narrow(axis, 0, n - 1)).abs().mean(1, keepdim=True)
        first, second = hidden.narrow(axis, 0, n - 1), hidden.narrow(axis, 1, n - 1)
        fill = (0, 1) if axis == -1 else (0, 0, 0, 1)
        for chosen, kept in ((across, first ^ second), (inside, first & second)):
            weight = pad(kept.expand_as(step).to(step), fill)
            chosen.append(torch.stack([(pad(step, fill) * weight).flatten(1).sum(1), weight.flatten(1).sum(1)]))
    means = [sum(x[0] for x in some) / sum(x[1] for x in some).clamp(min=1) for some in (across, inside)]
    return means[0] - means[1]


@torch.no_grad()
def set_distances(
    names: Sequence[str], images: Tensor, truth: Tensor, features: nn.Module | None
) -> dict[str, list[float | None]]:
    """FID and KID between images and truth, by torchmetrics: name -> (value, standard error; none of FID's).

    KID stands beside FID always: with few images FID is biased upwards, KID is not.

    Args:
        names: Some of `SETS`.
        images, truth: (N, C, H, W) in [-1, 1].
        features: Images in [-1, 1] -> (N, F). None: Inception's, whose weights torch-fidelity fetches.

    Raises:
        ImportError: Inception's features, and the extra 'fid' is not installed.
    """
    if not set(names) & set(SETS):
        return {}
    if len(images) < ENOUGH:
        what = "Inception's 2,048 features" if features is None else "its features"
        warnings.warn(
            f"FID of {len(images)} images is biased upwards (of {what}, {ENOUGH:,} are wanted at least): compare it with "
            "none of another n, and look at KID",
            stacklevel=2,
        )
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        subset = min(len(images), 1000)
        width = 0 if features is None else features(truth[:1]).flatten(1).shape[1]
        kind = {"feature": 2048 if features is None else _Features(features, width), "normalize": True}
        fid = FrechetInceptionDistance(**kind)
        kid = KernelInceptionDistance(subset_size=subset, subsets=1 if subset == len(images) else 50, **kind)
    except ModuleNotFoundError as error:
        raise ImportError("FID and KID of Inception's features need the extra 'fid': pip install 'fcs_lab[fid]'") from error
    for metric in (fid, kid):
        for some, real in ((truth, True), (images, False)):
            for part in (some.clamp(-1, 1) / 2 + 0.5).split(32):
                metric.update(part if features is not None else part.expand(-1, 3, -1, -1), real=real)
    mean, spread = kid.compute()
    return {"fid": [fid.compute().item(), None], "kid": [mean.item(), spread.item() if kid.subsets > 1 else None]}


class _Features(nn.Module):
    """A function of images in [-1, 1] as torchmetrics wants one, of images in [0, 1]."""

    def __init__(self, features: nn.Module, width: int):
        super().__init__()
        self.features, self.num_features = features, width

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images * 2 - 1).flatten(1)
