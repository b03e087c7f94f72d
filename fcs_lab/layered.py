"""y = Σ_k m_k ⊙ x_k: the constraint on the layers x_k under given masks m_k, and the result that `infer_layers` returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fcs_lab.checks import check_tensor, is_int, typed
from fcs_lab.constraints import ConstraintBase
from fcs_lab.contexts import ordinary
from fcs_lab.images import to_pil
from fcs_lab.trace import TraceEntry

__all__ = ["LayeredComposite", "LayersResult"]


@dataclass
class LayersResult:
    """What `infer_layers` returns. For one composite there is no leading B.

    Example:
        >>> model, composite = fcs_lab.load("mnist"), fcs_lab.load_digits(1)[0]
        >>> found = fcs_lab.infer_layers(model, composite, 2, num_inference_steps=2, inner_steps=1, progress=False)
        >>> tuple(found.compose(visible=[1], shifts={1: (0, 4)}).shape), [picture.mode for picture in found.to_pil()]
        ((1, 32, 32), ['RGBA', 'RGBA'])
    """

    layers: Tensor = field(repr=False)
    """x_k (B, K, C, H, W) in [-1, 1], what is hidden in the composite included."""
    masks: Tensor = field(repr=False)
    """m_k (B, K, H, W), at least 0, which sum to 1 over K."""
    trace: list[TraceEntry] = field(repr=False)
    """The sampler's own, of the batch of B·starts·U layers that were sampled (U of K: not those that were known)."""
    mask_trace: list[Tensor] = field(repr=False)
    """The masks (B, K, H, W) after each timestep, on the CPU."""
    nfe: float
    """Forward evaluations a layer, counted, of all starts together."""
    n_backward: float
    """Backward passes through the denoiser a layer, counted, of all starts together."""
    costs: Tensor = field(repr=False)
    """What each start left unexplained, (B, starts): Σ_k m_k (y − x_k)²/2 over the pixels, or ½‖y − Σ_k m_k ⊙ x_k‖² of fixed
    masks; the least is the one that was kept."""
    completed: bool = True
    """False if a callback ended the run early."""

    def compose(self, visible: Sequence[int] | None = None, shifts: Mapping[int, tuple[int, int]] | None = None) -> Tensor:
        """The composite anew, Σ m_k ⊙ x_k, with layers left out or moved.

        A mask moves with its layer. Pixels that lose their layer go to the layers that stay where they were, the nearest
        mask first, and so show what was hidden.

        Args:
            visible: The layers that are shown. None: all.
            shifts: Layer -> (down, right), in pixels.

        Returns:
            (B, C, H, W), without the B for one composite.

        Raises:
            ValueError: No layer is visible, or one is not there; a shift is not two whole numbers.
        """
        K = self.masks.shape[-3]
        visible = list(range(K) if visible is None else visible)
        shifts = dict(shifts or {})
        if not visible or not all(is_int(k) and 0 <= k < K for k in visible):
            raise ValueError(f"visible is {visible}; expected some of the layers 0 to {K - 1}")
        for k, shift in shifts.items():
            if not (is_int(k) and 0 <= k < K and len(shift) == 2 and all(map(is_int, shift))):
                raise ValueError(f"shifts holds {k!r}: {shift!r}; expected layers 0 to {K - 1}, each with (down, right)")
        layers, masks = self.layers.movedim(-4, 0), self.masks.movedim(-3, 0)  # K first
        moves = [tuple(shifts.get(k, (0, 0))) for k in visible]
        shown = torch.stack([_shifted(layers[k], move) for k, move in zip(visible, moves, strict=True)])
        weights = torch.stack([_shifted(masks[k], move, fill=0.0) for k, move in zip(visible, moves, strict=True)])
        # Where no mask is left, the nearest mask that did not move takes over; without one, all layers alike.
        stays = torch.tensor([move == (0, 0) for move in moves]).reshape(-1, *[1] * (weights.ndim - 1)).to(weights)
        weights = weights + stays * (1e-3 * blurred(weights, 2.0) + 1e-6) + 1e-9
        return ((weights / weights.sum(0)).unsqueeze(-3) * shown).sum(0)

    def to_pil(self) -> list[Image.Image] | list[list[Image.Image]]:
        """Each layer as a transparent picture of what is seen of it, its mask being alpha: K of mode "RGBA", or such a list
        for each of B composites."""
        if self.layers.ndim == 5:
            return [replace(self, layers=a, masks=b).to_pil() for a, b in zip(self.layers, self.masks, strict=True)]
        pictures = [picture.convert("RGB") for picture in to_pil(self.layers)]
        for picture, alpha in zip(pictures, to_pil(self.masks.to(self.layers)[:, None] * 2 - 1), strict=True):
            picture.putalpha(alpha)
        return pictures


class LayeredComposite(ConstraintBase):
    """y = Σ_k m_k ⊙ x_k on all the layers at once, for given masks.

    Fixed masks are a recipe, and a soft one blends: C = ½‖y − Σ_j m_j ⊙ x_j‖², e_k = m_k ⊙ (y − Σ_j m_j ⊙ x_j). Inferred
    ones are a doubt, the probability that a pixel shows layer k: C_k = ½ Σ m_k (y − x_k)², e_k = m_k ⊙ (y − x_k), and
    Σ_k C_k bounds the blend's C from above. Where the masks are 0 or 1 the two agree.

    The batch of B composites holds the U layers of each that are sampled, one composite after the other:
    (B·U, C, H, W). The K − U known layers are kept here.

    Args:
        composite: y (B, C, H, W) in [-1, 1].
        masks: m_k (B, K, H, W), which sum to 1 over K.
        known: Layer -> its image (B, C, H, W).
        fixed: Whether the masks are fixed, or inferred.
    """

    @typed
    def __init__(self, composite: Tensor, masks: Tensor, known: Mapping[int, Tensor] | None = None, fixed: bool = True):
        check_tensor("composite", composite, "B", "C", "H", "W")
        check_tensor("masks", masks, len(composite), "K", *composite.shape[-2:])
        for k, image in (known or {}).items():
            if k not in range(masks.shape[1]):
                raise ValueError(f"known has layer {k!r}; expected layers 0 to {masks.shape[1] - 1}")
            check_tensor(f"known[{k}]", image, *composite.shape)
        self.composite, self.masks, self.known, self.fixed = composite, masks, dict(known or {}), fixed
        self.sampled = [k for k in range(masks.shape[1]) if k not in self.known]
        self.batch_size = len(composite) * len(self.sampled)
        self.shape = tuple(composite.shape[1:])

    def to(self, device: torch.device, dtype: torch.dtype) -> LayeredComposite:
        known = {k: image.to(device, dtype) for k, image in self.known.items()}
        return LayeredComposite(self.composite.to(device, dtype), self.masks.to(device, dtype), known, self.fixed)

    def with_masks(self, masks: Tensor) -> LayeredComposite:
        """The same composite with other masks (B, K, H, W)."""
        return LayeredComposite(self.composite, masks, self.known, self.fixed)

    def layers(self, images: Tensor) -> Tensor:
        """All layers x_k (B, K, C, H, W), of the sampled ones (B·U, C, H, W)."""
        layers = self.composite[:, None].repeat(1, self.masks.shape[1], 1, 1, 1)
        layers[:, self.sampled] = images.to(layers).unflatten(0, (-1, len(self.sampled)))
        for k, image in self.known.items():
            layers[:, k] = image
        return layers

    @ordinary()
    def cost_and_error(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        layers, weights = self.layers(x0.detach()), self.masks[:, :, None]
        if self.fixed:
            residual = (self.composite - (weights * layers).sum(1))[:, None].expand_as(layers)
            cost = residual.square() / 2
        else:
            residual = self.composite[:, None] - layers
            cost = weights * residual.square() / 2
        cost, error = (part[:, self.sampled].flatten(0, 1) for part in (cost, weights * residual))
        return cost.flatten(1).sum(1), error


def blurred(x: Tensor, sigma: float) -> Tensor:
    """The Gaussian average over the last two axes."""
    if sigma == 0:
        return x
    return torch.from_numpy(gaussian_filter(x.cpu().numpy(), sigma, mode="nearest", axes=(-2, -1))).to(x)


def _shifted(x: Tensor, shift: tuple[int, int], fill: float | None = None) -> Tensor:
    """x (…, H, W) moved (down, right); what comes in at the edges is `fill`, or a copy of the edge."""
    for axis, by in zip((-2, -1), shift, strict=True):
        size = x.shape[axis]
        source = torch.arange(size, device=x.device) - by
        inside = (source >= 0) & (source < size)
        x = x.index_select(axis, source.clamp(0, size - 1))
        if fill is not None:
            x = torch.where(inside[:, None] if axis == -2 else inside, x, fill)
    return x
