"""Training of the judge of emoji: which of fifty things is it, or none of them?

Its accuracy on a style that it never saw says how far it can be trusted on pictures that are not copies of those that it
was trained on; it is measured by leaving out one style at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fcs_lab.classifier import EMOJI, Classifier
from fcs_lab.data import EMOJI_CLASSES, on_white
from fcs_lab.training.classifier import fit
from fcs_lab.training.emoji import move
from fcs_lab.training.emoji_pictures import Pictures
from fcs_lab.training.latent import Run

__all__ = ["train_emoji_classifier"]

OTHER = len(EMOJI_CLASSES)
OTHERS_SHARE = 0.4
"""How much of a batch is pictures of anything else."""


def train_emoji_classifier(
    pictures: Pictures,
    out: str | Path,
    *,
    steps: int = 1500,
    leave_out: Sequence[str] = ("noto", "fluent", "emojione"),
    max_steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    progress: bool = True,
) -> Path:
    """Train on all styles, and on all but one in turn, and write weights and accuracies to `out`.

    Args:
        pictures: The training pictures; those of other concepts than `EMOJI_CLASSES` are the class "something else".
        out: The folder, which receives `model.safetensors` and `accuracy.json`.
        steps: Length of each run (one cycle of the learning rate); `max_steps` cuts them short.
        leave_out: The styles that a run of its own is made without, to be tried on.
        bf16: Run the network under bfloat16 autocast.

    Returns:
        The folder.
    """
    steps, out = min(steps, max_steps or steps), Path(out)
    common = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    run = Run(torch.device(device), bf16, progress=progress)
    accuracy = {}
    for style in leave_out:
        rest = pictures.select([i for i, s in enumerate(pictures.styles) if s != style])
        unseen = pictures.select([i for i, s in enumerate(pictures.styles) if s == style])
        accuracy[style] = _accuracy(_train(rest, f"without {style}", run, **common), unseen, device)
    classifier = _train(pictures, "all styles", run, **common)
    out.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), out / "model.safetensors")
    record = {"on_a_style_left_out": accuracy, "on_its_training_pictures": _accuracy(classifier, pictures, device)}
    (out / "accuracy.json").write_text(json.dumps(record | {"steps": steps, "seed": seed}, indent=2) + "\n")
    return out


def _train(
    pictures: Pictures,
    what: str,
    run: Run,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Classifier:
    torch.manual_seed(seed)
    classifier = Classifier(**EMOJI).to(run.device)
    generator = torch.Generator().manual_seed(seed)
    labels = _labels(pictures)
    known, others = (labels < OTHER).nonzero()[:, 0], (labels == OTHER).nonzero()[:, 0]
    counts = ((known, batch_size - int(OTHERS_SHARE * batch_size)), (others, int(OTHERS_SHARE * batch_size)))

    def loss_of() -> Tensor:
        batch = torch.cat([rows[torch.randint(len(rows), (n,), generator=generator)] for rows, n in counts])
        images = run.put(_augmented(on_white(pictures.rgba[batch]), generator))
        with run.autocast():
            logits = classifier(images)
        return F.cross_entropy(logits.float(), labels[batch].to(run.device), label_smoothing=0.05)

    fit(classifier, loss_of, steps, learning_rate, what=what, progress=run.progress)
    return classifier


def _labels(pictures: Pictures) -> Tensor:
    row = {concept: i for i, concept in enumerate(EMOJI_CLASSES)}
    return torch.tensor([row.get(concept, OTHER) for concept in pictures.concepts])


@torch.no_grad()
def _accuracy(classifier: Classifier, pictures: Pictures, device: str | torch.device) -> dict[str, float]:
    """Of the fifty things, the share named rightly; of all others, the share said to be something else."""
    labels, images = _labels(pictures), on_white(pictures.rgba)
    right = torch.cat([classifier(part.to(device)).argmax(1).cpu() for part in images.split(250)]) == labels
    return {"named": right[labels < OTHER].float().mean().item(), "refused": right[labels == OTHER].float().mean().item()}


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved, scaled, mirrored; of other brightness, contrast and tint; some blurred; with a little noise."""
    n = len(images)
    x = move(1 - images, generator, scale=(0.75, 1.1), shift=0.25)  # so that what comes in is white
    x = 1 - x

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, 1, 1, generator=generator)

    x = x * uniform(0.7, 1.1, 1) + uniform(-0.15, 0.15, 3)
    half = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(uniform(0, 1, 1) < 0.3, half, x)
    return (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
