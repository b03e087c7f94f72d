"""Training of the digit and the garment classifier: minutes on a CPU; it starts over if interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from fcs_lab.classifier import Classifier
from fcs_lab.data import scale

__all__ = ["fit", "train_classifier"]


def fit(
    classifier: nn.Module,
    loss_of: Callable[[], Tensor],
    steps: int,
    learning_rate: float,
    *,
    last: int | None = None,
    what: str | None = None,
    progress: bool = True,
) -> None:
    """Minimise a loss with AdamW over one cycle of the learning rate, and put the classifier into evaluation mode.

    Args:
        classifier: What is trained.
        loss_of: Draws a batch and returns its loss.
        steps: Length of the cycle; `last` cuts it short.
        what: Said by the progress bar.
    """
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for _ in tqdm(range(steps if last is None else last), desc=what, unit="step", disable=not progress):
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier.eval()


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
    generator = torch.Generator().manual_seed(seed)

    def loss_of() -> Tensor:
        batch = torch.randint(len(images), (batch_size,), generator=generator)
        dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
        x = images[batch].roll((dy, dx), (2, 3))
        if flip and torch.rand((), generator=generator) < 0.5:
            x = x.flip(3)
        return torch.nn.functional.cross_entropy(classifier(x.to(device)), labels[batch].long().to(device))

    fit(classifier, loss_of, steps, learning_rate, last=min(steps, max_steps or steps), progress=progress)
    with torch.no_grad():
        guesses = torch.cat([classifier(scale(part).to(device)).argmax(1).cpu() for part in test_images.split(500)])
    accuracy = (guesses == test_labels).float().mean().item()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), out / "model.safetensors")
    (out / "accuracy.json").write_text(json.dumps({"test_accuracy": accuracy, "steps": steps, "seed": seed}) + "\n")
    return out
