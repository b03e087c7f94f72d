"""Training of the digit and the garment classifier: minutes on a CPU; it starts over if interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.classifier import Classifier
from fcs_lab.data import scale

__all__ = ["train_classifier"]


def train_classifier(
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    out: str | Path,
    *,
    steps: int = 3000,
    flip: bool = False,
    max_steps: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Path:
    """Train on images shifted by up to two pixels, and write weights and test accuracy to `out`.

    Args:
        images, labels: Training images (N, 1, 32, 32) float32 in [-1, 1], and (N,).
        test_images, test_labels: As uint8, (M, 32, 32) and (M,).
        flip: Mirror half of the batches.
        steps: Length of the run (one cycle of the learning rate); `max_steps` cuts it short.

    Returns:
        The folder, with `model.safetensors` and `accuracy.json`.
    """
    torch.manual_seed(seed)
    classifier = Classifier().to(device)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(min(steps, max_steps or steps)), unit="step", disable=not progress):
        batch = torch.randint(len(images), (batch_size,), generator=generator)
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
        x = images[batch].roll((dy, dx), (2, 3))
        if flip and torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
        logits = classifier(x.to(device))
        loss = torch.nn.functional.cross_entropy(logits, labels[batch].long().to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()

    classifier.eval()
    with torch.no_grad():
        guesses = torch.cat([classifier(scale(part).to(device)).argmax(1).cpu() for part in test_images.split(500)])
    accuracy = (guesses == test_labels).float().mean().item()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), out / "model.safetensors")
    (out / "accuracy.json").write_text(json.dumps({"test_accuracy": accuracy, "steps": steps, "seed": seed}) + "\n")
    return out
