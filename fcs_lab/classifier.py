"""The bundled classifiers, judges of whether an image is the digit, the garment or the emoji that it should be."""

from __future__ import annotations

from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcs_lab.checks import typed
from fcs_lab.contexts import ordinary
from fcs_lab.data import EMOJI_CLASSES
from fcs_lab.zoo import WEIGHTS, verify

__all__ = ["Classifier", "load_classifier"]

CLASSIFIERS = {"digits": "classifier", "garments": "fashion-classifier", "emoji": "emoji-classifier"}
"""The folders of their weights."""

JUDGES = {"mnist": "digits", "fashion": "garments", "emoji": "emoji"}
"""Of a bundled model the classifier that tells its images apart."""

EMOJI = {"channels": 3, "size": 64, "classes": len(EMOJI_CLASSES) + 1}
"""The emoji classifier's arguments; its last class is everything that is not in `EMOJI_CLASSES`."""


class Classifier(nn.Module):
    """A small convolutional network: images (B, channels, size, size), float32 in [-1, 1] -> logits (B, classes)."""

    def __init__(self, channels: int = 1, size: int = 32, classes: int = 10) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> list[nn.Module]:
            return [
                nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
                nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]

        self.features = nn.Sequential(*block(channels, 16), *block(16, 32), *block(32, 64))
        self.head = nn.Linear(64 * (size // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(1))


@ordinary()
@typed
def load_classifier(
    name: Literal["digits", "garments", "emoji"] = "digits", device: str | torch.device = "cpu"
) -> Classifier:
    """A bundled classifier, frozen; its accuracy on pictures that it was not trained on is in its model card.

    Args:
        name: What it tells apart: MNIST's "digits", Fashion-MNIST's "garments", or "emoji": those of
            `fcs_lab.data.EMOJI_CLASSES` and, as the last class, any other picture.
        device: Where it runs.

    Raises:
        ValueError: Another name, or its weight file is damaged.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; expected a torch device such as 'cpu' or 'cuda'") from error
    folder = WEIGHTS / CLASSIFIERS[name]
    verify(folder)
    classifier = Classifier(**(EMOJI if name == "emoji" else {}))
    classifier.load_state_dict(load_file(folder / "model.safetensors"))
    return classifier.to(device).eval().requires_grad_(False)
