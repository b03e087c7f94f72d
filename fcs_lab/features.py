"""Non-linear guidance: costs of images as features see them, for a class, a style or a silhouette.

Each function here makes a `CostConstraint` (v3's style- and mask-guided generation, and guidance to a class). They are
costs of images: on a latent model the sampler takes them through the decoder by itself.

A feature extractor is any function of images (B, C, H, W) in [-1, 1], built of torch operations, that returns feature maps
(B, F, h, w): `load_clip()` as in the paper, or the first blocks of a bundled classifier,
`load_classifier("digits").features[:7]` (F = 16), `[:14]` (F = 32) or all of it (F = 64). Extractors and classifiers are in
evaluation mode and on the model's device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcs_lab.checks import check_function, describe, is_int, is_number, refuse_meta, typed
from fcs_lab.constraints import CostConstraint
from fcs_lab.contexts import ordinary
from fcs_lab.images import ImageLike, MaskLike, to_mask, to_tensor

__all__ = ["CLIP", "CLIPFeatures", "class_guidance", "gram", "load_clip", "silhouette", "style"]

CLIP = "openai/clip-vit-base-patch16"
"""The paper's feature extractor for style, CLIP ViT-B/16, on the hub."""


@ordinary()
@typed
def class_guidance(classifier: Callable[[Tensor], Tensor], label: int | Sequence[int] | Tensor) -> CostConstraint:
    """An image that the classifier takes for the class: C = −log p(label | x̂_0).

    A classifier is easily fooled, so a low cost alone does not say that the image shows the class: judge by another one.

    Args:
        classifier: Images (B, C, H, W) in [-1, 1] -> logits (B, n); such as `load_classifier("digits")`.
        label: The class, 0 to n − 1: one for all images, or one for each.

    Raises:
        TypeError: `classifier` cannot be called, or `label` is not a whole number or several.
        ValueError: A negative label; at its first use, a label beyond the classifier's.

    Example:
        >>> from fcs_lab.classifier import load_classifier
        >>> task = fcs_lab.features.class_guidance(load_classifier("digits"), 7)
        >>> images, labels = fcs_lab.load_digits(4)
        >>> seven, two = task.cost(images[:1]), task.cost(images[1:2])  # labels: 7, 2, …
        >>> labels[:2].tolist(), bool(seven < two)
        ([7, 2], True)
    """
    check_function("classifier", classifier, 1)
    if isinstance(label, Tensor):
        refuse_meta("label", label)
    labels = label.tolist() if isinstance(label, Tensor) else label
    labels = [labels] if is_int(labels) else labels
    if not isinstance(labels, Sequence) or isinstance(labels, str | bytes) or not labels or not all(map(is_int, labels)):
        raise TypeError(f"label is {label!r}; expected a class as a whole number, or a list with one for each image")
    if min(labels) < 0:
        raise ValueError(f"label is {label!r}; expected classes from 0")
    wanted = torch.tensor(labels)

    def cost(x0: Tensor) -> Tensor:
        logits = classifier(x0)
        if max(labels) >= logits.shape[1]:
            raise ValueError(f"label is {label!r}; the classifier's classes are 0 to {logits.shape[1] - 1}")
        return F.cross_entropy(logits, wanted.to(x0.device).expand(len(x0)), reduction="none")

    return _for_images(cost, len(labels))


@ordinary()
@typed
def gram(features: Tensor) -> Tensor:
    """The Gram matrix of feature maps, which says what features there are together, and not where.

    Args:
        features: f (B, F, h, w).

    Returns:
        G_ij = 1/(h w) Σ_p f_i(p) f_j(p), (B, F, F). As a mean over positions it compares images of different sizes.

    Raises:
        ValueError: Another number of dimensions.

    Example:
        >>> features = torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]]]])  # (B, F, h, w): two maps of two places
        >>> fcs_lab.features.gram(features).tolist()
        [[[1.0, 1.0], [1.0, 2.0]]]
    """
    refuse_meta("features", features)
    if features.ndim != 4 or not features.is_floating_point() or 0 in features.shape:
        raise ValueError(f"the features have shape {tuple(features.shape)}; expected feature maps (B, F, h, w)")
    if not bool(features.isfinite().all()):
        raise ValueError("the features have NaN or infinite values; expected finite ones")
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


@ordinary()
@typed
def style(reference: ImageLike, features: Callable[[Tensor], Tensor]) -> CostConstraint:
    """An image in the style of another: C = ½‖G(x̂_0) − G(reference)‖²_F, with G the Gram matrix of the features.

    The paper's e is the gradient of the norm itself; it points the same way, and the sampler sets the step's length.

    Args:
        reference: The image whose style it is, in any form that `to_tensor` takes and of any size that the extractor
            takes: one for all images, or one for each.
        features: The feature extractor; the paper's is `load_clip()`.

    Raises:
        TypeError: `features` cannot be called, or the reference is of a type that is not taken.
        ValueError: The features are not maps (B, F, h, w), or the reference is one that `to_tensor` refuses.

    Example:
        >>> from fcs_lab.classifier import load_classifier
        >>> image = fcs_lab.load_digits(1)[0]
        >>> task = fcs_lab.features.style(image, load_classifier("digits").features[:7])
        >>> task.cost(image).item()  # it has its own style
        0.0
    """
    check_function("features", features, 1)
    images = to_tensor(reference, "reference")
    if isinstance(features, nn.Module):
        images = images.to(next((p.device for p in features.parameters()), images.device))
    with torch.no_grad():
        maps = features(images)
        if not isinstance(maps, Tensor):
            raise TypeError(f"features is {describe(features)}; expected a function of images that returns feature maps")
        wanted = gram(maps)

    def cost(x0: Tensor) -> Tensor:
        return (gram(features(x0)) - wanted.to(x0)).square().flatten(1).sum(1) / 2

    return _for_images(cost, len(wanted))


@ordinary()
@typed
def silhouette(mask: MaskLike, *, threshold: float = -0.8, softness: float = 0.1) -> CostConstraint:
    """A bright object on a dark background, of the given outline; what it looks like inside is left to the model.

    A pixel belongs to the object with probability σ((x − threshold)/softness), and the cost is the cross-entropy with the
    mask m, summed over the pixels. So e = (m − σ)/softness at each pixel of x̂_0: it pulls those that are on the wrong side
    of the threshold, and hardly touches the others. Colours are averaged first.

    Args:
        mask: Where the object is to be (True, 1 or white), in any form that `to_mask` takes; of the images' size, one for
            all or one for each.
        threshold: The grey level, in [-1, 1], that parts the object from the background.
        softness: The width of the transition, in grey levels.

    Raises:
        TypeError, ValueError: The mask is one that `to_mask` refuses; `threshold` or `softness` is not a number that it
            can be; at its first use, the mask is of another size than the images.

    Example:
        >>> outline = torch.zeros(32, 32, dtype=torch.bool)
        >>> outline[8:24, 8:24] = True
        >>> task = fcs_lab.features.silhouette(outline)
        >>> dark, bright = torch.full((1, 1, 32, 32), -1.0), torch.where(outline, 1.0, -1.0)[None, None]
        >>> bool(task.cost(bright) < task.cost(dark))
        True
    """
    wanted = to_mask(mask)
    if not is_number(threshold) or not -1 < threshold < 1:
        raise ValueError(f"threshold is {threshold!r}; expected a grey level between -1 and 1")
    if not is_number(softness) or softness <= 0:
        raise ValueError(f"softness is {softness!r}; expected a positive number")

    def cost(x0: Tensor) -> Tensor:
        logits = (x0.mean(1, keepdim=True) - threshold) / softness
        if logits.shape[-2:] != wanted.shape[-2:]:
            raise ValueError(f"mask is {tuple(wanted.shape[-2:])} (height, width); the images are {tuple(x0.shape[-2:])}")
        return (
            F.binary_cross_entropy_with_logits(logits, wanted.to(x0).expand_as(logits), reduction="none").flatten(1).sum(1)
        )

    return _for_images(cost, len(wanted))


def _for_images(cost: Callable[[Tensor], Tensor], count: int) -> CostConstraint:
    """The constraint of as many images as are described; one description does for any number."""
    constraint = CostConstraint(cost)
    constraint.batch_size = count if count > 1 else None
    return constraint


class CLIPFeatures(nn.Module):
    """Feature maps of the patches in a CLIP vision transformer: images (B, C, H, W) in [-1, 1] -> (B, F, h, w).

    CLIP's own preprocessing (antialiased bicubic resize, its mean and standard deviation) is part of it, in torch, so that
    gradients reach the images. The whole image is resized, a long one squeezed; CLIP itself would cut its ends off.
    Grey images are given three equal channels. The class token is left out. Made by `load_clip`.

    Args:
        vision: The network, cut after the block whose output is wanted; frozen and put into evaluation mode.

    Example:
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> tiny = CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **size))
        >>> tuple(fcs_lab.features.CLIPFeatures(tiny)(torch.zeros(1, 3, 32, 32)).shape)  # a map of 4×4 patches
        (1, 16, 4, 4)
    """

    def __init__(self, vision: nn.Module):
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        super().__init__()
        self.vision = vision.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(OPENAI_CLIP_MEAN).reshape(3, 1, 1))
        self.register_buffer("std", torch.tensor(OPENAI_CLIP_STD).reshape(3, 1, 1))

    def preprocess(self, images: Tensor) -> Tensor:
        """What the transformer sees: (B, 3, S, S) with S = 224 for the published models."""
        size = self.vision.config.image_size
        pixels = F.interpolate(images / 2 + 0.5, size=(size, size), mode="bicubic", antialias=True)
        return (pixels.expand(-1, 3, -1, -1) - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.vision(self.preprocess(images).to(self.vision.dtype)).last_hidden_state[:, 1:].to(images.dtype)
        side = self.vision.config.image_size // self.vision.config.patch_size
        return tokens.mT.unflatten(2, (side, side))


@ordinary()
@typed
def load_clip(
    name: str | Path = CLIP,
    *,
    block: int = 3,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype = torch.float32,
) -> CLIPFeatures:
    """CLIP's vision transformer up to a block, as a feature extractor (v3's for style: ViT-B/16, third block).

    Args:
        name: A hub id, or a folder that `save_pretrained` of a `CLIPModel` or `CLIPVisionModel` wrote; safetensors only.
        block: The block whose output is taken, from 1. Those after it are not kept in memory.
        device, torch_dtype: Where and in what precision it runs.

    Raises:
        ValueError: `block` is not one of the model's, the folder's files cannot be read, or it is not a CLIP model.
        OSError: The hub cannot be reached, or has no such model in safetensors.

    Example:
        >>> import tempfile
        >>> from transformers import CLIPVisionConfig, CLIPVisionModel
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> folder = tempfile.mkdtemp()  # or a name at the hub, as by default
        >>> CLIPVisionModel(CLIPVisionConfig(image_size=32, patch_size=8, **size)).save_pretrained(folder)
        >>> tuple(fcs_lab.features.load_clip(folder, block=1)(torch.zeros(1, 3, 32, 32)).shape)
        (1, 16, 4, 4)
    """
    from transformers import AutoConfig, CLIPConfig, CLIPVisionConfig, CLIPVisionModel
    from transformers.utils import logging

    if not is_int(block) or block < 1:
        raise ValueError(f"block is {block!r}; expected a whole number of at least 1")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report every block that is left out, and the text's half of CLIP
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, CLIPConfig | CLIPVisionConfig):
            raise ValueError(f"{name} is a {config.model_type!r} model; expected a CLIP model")
        config = getattr(config, "vision_config", config)
        if block > config.num_hidden_layers:
            raise ValueError(f"block is {block}; {name} has {config.num_hidden_layers}")
        config.num_hidden_layers = block
        vision = CLIPVisionModel.from_pretrained(name, config=config, dtype=torch_dtype, use_safetensors=True)
    except OSError as error:
        if Path(name).is_dir():
            raise ValueError(f"{name} cannot be read; expected a CLIP model's folder with safetensors: {error}") from error
        raise OSError(
            f"could not get {str(name)!r} from the hub: it is misspelt, gated, without safetensors weights, or the hub "
            f"cannot be reached. Without a network, use a bundled classifier's features, or fetch CLIP where there is one "
            f"(hf download {name} --local-dir FOLDER) and give the folder. ({type(error).__name__}: {error})"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return CLIPFeatures(vision).to(device)
