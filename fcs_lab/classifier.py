"""The bundled digit classifier: a judge of whether a completed digit is still the digit that it was."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcs_lab.zoo import WEIGHTS, verify

__all__ = ["DigitClassifier", "load_classifier"]


class DigitClassifier(nn.Module):
    """A small convolutional network: digits (B, 1, 32, 32), float32 in [-1, 1] -> logits (B, 10)."""

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


def load_classifier(device: str | torch.device = "cpu") -> DigitClassifier:
    """The bundled classifier, frozen; its accuracy on MNIST's test digits is in its model card.

    Raises:
        ValueError: Its weight file is damaged.
    """
    verify(WEIGHTS / "classifier")
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS / "classifier" / "model.safetensors"))
    return classifier.to(device).eval().requires_grad_(False)
