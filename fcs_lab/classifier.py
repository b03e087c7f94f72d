"""The bundled classifiers, judges of whether an image is still the digit, or the garment, that it should be."""

from __future__ import annotations

from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcs_lab.zoo import WEIGHTS, verify

__all__ = ["Classifier", "load_classifier"]

CLASSIFIERS = {"digits": "classifier", "garments": "fashion-classifier"}
"""The folders of their weights."""


class Classifier(nn.Module):
    """A small convolutional network: images (B, 1, 32, 32), float32 in [-1, 1] -> logits (B, 10)."""

    def __init__(self) -> None:
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

        self.features = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64))
        self.head = nn.Linear(64 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).flatten(1))


def load_classifier(name: Literal["digits", "garments"] = "digits", device: str | torch.device = "cpu") -> Classifier:
    """A bundled classifier, frozen; its accuracy on the test split is in its model card.

    Args:
        name: What it tells apart: MNIST's "digits" or Fashion-MNIST's "garments".
        device: Where it runs.

    Raises:
        ValueError: Another name, or its weight file is damaged.
    """
    if name not in CLASSIFIERS:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, CLASSIFIERS))}")
    folder = WEIGHTS / CLASSIFIERS[name]
    verify(folder)
    classifier = Classifier()
    classifier.load_state_dict(load_file(folder / "model.safetensors"))
    return classifier.to(device).eval().requires_grad_(False)
