"""Layers without a prior: k-means of a composite's pixels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fcs_lab.checks import check_count, check_seed, check_tensor, is_number, typed
from fcs_lab.contexts import ordinary

__all__ = ["cluster_layers"]


@ordinary()
@typed
def cluster_layers(
    composites: Tensor, num_layers: int, *, place: float = 1.0, patch: int = 3, background: float = -1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Masks by k-means (scikit-learn; the extra "study") of the pixels that are not background; layers cut out by them.

    Args:
        composites: (B, C, H, W) in [-1, 1].
        num_layers: K, the number of clusters.
        place: The weight of a pixel's place, which runs from −1 to 1, beside the root mean square of its patch.
        patch: The side of the square of grey levels around a pixel, odd.
        background: The level that a layer has outside its mask. Pixels within 0.1 of it are not clustered; they go to
            the nearest cluster.
        seed: Of k-means, the best of ten starts.

    Returns:
        Layers (B, K, C, H, W), the composite where the mask is and background elsewhere; masks (B, K, H, W), of 0 and 1.

    Example:
        >>> composites = torch.full((1, 1, 8, 8), -1.0)
        >>> composites[..., :3], composites[..., 5:] = 0.2, 1.0  # two objects, dark between them
        >>> layers, masks = fcs_lab.baselines.cluster_layers(composites, 2)
        >>> tuple(layers.shape), tuple(masks.shape)
        ((1, 2, 1, 8, 8), (1, 2, 8, 8))
    """
    from sklearn.cluster import KMeans

    check_tensor("composites", composites, "B", "C", "H", "W")
    check_count("num_layers", num_layers, 1)
    check_seed(seed)
    for name, value in {"place": place, "background": background}.items():
        if not is_number(value):
            raise ValueError(f"{name} is {value!r}; expected a finite number")
    if check_count("patch", patch, 1) % 2 == 0 or patch > min(composites.shape[-2:]):
        raise ValueError(f"patch is {patch}; expected an odd number that is no larger than the image")
    composites = composites.detach()
    height, width = composites.shape[-2:]
    patches = torch.nn.functional.unfold(composites, patch, padding=patch // 2).mT.numpy() / patch
    places = place * np.stack(np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j], -1).reshape(height * width, 2)
    masks = []
    for image, around in zip(composites, patches, strict=True):
        features = np.concatenate([around, places.astype(around.dtype)], 1)
        told = ((image - background).abs().amax(0) > 0.1).flatten().numpy()
        if told.sum() < num_layers:
            raise ValueError(f"composites has an image with fewer than {num_layers} pixels that are not background")
        clusters = KMeans(num_layers, n_init=10, random_state=seed).fit(features[told]).predict(features)
        masks.append(np.eye(num_layers, dtype=np.float32)[clusters].T.reshape(num_layers, height, width))
    masks = torch.from_numpy(np.stack(masks))
    return torch.where(masks[:, :, None] > 0, composites[:, None], background), masks
