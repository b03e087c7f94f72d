"""The bundled model `emoji`: its autoencoder, whether prompts come out as asked, how near it is to held-out pictures, and
how much of it is copied.

It needs the training pictures, which npm fetches and resvg-py draws (the extra "training"), once, into runs/emoji.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import fcs_lab
from fcs_lab.classifier import Classifier, load_classifier
from fcs_lab.data import EMOJI_CLASSES, on_white
from fcs_lab.metrics import clustered, psnr
from fcs_lab.plots import show
from fcs_lab.records import save_figure
from fcs_lab.training.emoji_pictures import STYLES, Pictures, held_out_concepts, read_pictures

MODEL, SEED, STEPS, GUIDANCE, BATCH = "emoji", 0, 25, 2.5, 32
PROMPTS, SAMPLES, HELD, PAIRS = 100, 256, 256, 12  # HELD pictures of concepts that it was not trained on
CACHE = Path(__file__).parents[1] / "runs" / "emoji"


def main(output: Path, read: Callable[[], Pictures] = lambda: read_pictures(None, CACHE)) -> None:
    start = time.perf_counter()
    pictures = read()
    pictures = pictures.without(set(held_out_concepts(pictures)))
    train, model, judge = on_white(pictures.rgba), fcs_lab.load(MODEL), load_classifier("emoji")
    test, _, names = fcs_lab.load_emoji(HELD)
    rng = random.Random(SEED)

    asked = [
        (c, s) for c in rng.sample(EMOJI_CLASSES, min(len(EMOJI_CLASSES), PROMPTS)) for s in rng.sample(list(STYLES), 2)
    ]
    asked = asked[:PROMPTS]
    images = generate(model, [", ".join(one) for one in asked])
    right = judge(images).argmax(1) == torch.tensor([EMOJI_CLASSES.index(concept) for concept, _ in asked])
    own = rng.sample(range(len(pictures)), SAMPLES)
    samples = generate(model, [f"{pictures.concepts[i]}, {pictures.styles[i]}" for i in own])
    with torch.no_grad():
        coded, coded_train = (model.decode(model.encode(x)).clamp(-1, 1).cpu() for x in (test, train[own]))
    nearest = {
        "samples": nearest_of(samples, train),
        "held-out pictures": nearest_of(test, train),
        "training pictures, coded and decoded": nearest_of(coded_train, train),
    }
    numbers = {
        "autoencoder": autoencoder(coded, test, names),
        "prompts": {
            "n": len(asked),
            "named": clustered(right.float(), [concept for concept, _ in asked]),
            "by_style": {s: right[[style == s for _, style in asked]].float().mean().item() for s in STYLES},
        },
        "distances": {
            "samples": distances(judge, samples, test),
            "training pictures": distances(judge, train[rng.sample(range(len(pictures)), SAMPLES)], test),
        },
        "memorisation": memorisation(nearest, own),
    }
    save_figure(
        draw(nearest, samples, train),
        output / "tab06_emoji",
        model=MODEL,
        seed=SEED,
        settings={
            "prompts": PROMPTS,
            "samples": SAMPLES,
            "held_out_pictures": HELD,
            "num_inference_steps": STEPS,
            "eta": 0.0,
            "guidance_scale": GUIDANCE,
            "training_pictures": len(pictures),
        },
        numbers=numbers,
        timings={"seconds": round(time.perf_counter() - start, 1)},
    )
    table = as_markdown(numbers)
    (output / "tab06_emoji.md").write_text(table)
    print(table)


def generate(model: fcs_lab.LatentDenoiser, prompts: list[str]) -> Tensor:
    """One sample of each prompt (N, 3, 64, 64), the i-th from seed SEED + 10,000 + i, which no sheet of samples has."""
    parts = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        result = fcs_lab.sample(
            model.with_prompt(some, guidance_scale=GUIDANCE),
            num_inference_steps=STEPS,
            eta=0.0,
            generator=[torch.Generator().manual_seed(SEED + 10_000 + first + i) for i in range(len(some))],
        )
        parts.append(result.images.cpu())
    return torch.cat(parts)


def autoencoder(coded: Tensor, truth: Tensor, names: list[str]) -> dict:
    """PSNR in dB and SSIM of held-out pictures, with standard errors clustered by concept."""
    concepts = [name.split(", ")[0] for name in names]
    pairs = zip(coded.permute(0, 2, 3, 1).numpy(), truth.permute(0, 2, 3, 1).numpy(), strict=True)
    ssim = torch.tensor([structural_similarity(a, b, channel_axis=2, data_range=2.0) for a, b in pairs])
    return {"n": len(truth), "psnr": clustered(psnr(coded, truth), concepts), "ssim": clustered(ssim, concepts)}


class Features(nn.Module):
    """The judge's last feature maps, averaged over the picture: uint8 (B, 3, H, W) -> (B, 64)."""

    num_features = 64

    def __init__(self, judge: Classifier):
        super().__init__()
        self.judge = judge

    def forward(self, images: Tensor) -> Tensor:
        return self.judge.features(images.float() / 127.5 - 1).mean((2, 3))


def distances(judge: Classifier, images: Tensor, truth: Tensor) -> dict:
    """KID and FID on the judge's features."""
    kid = KernelInceptionDistance(Features(judge), subsets=50, subset_size=min(100, len(images), len(truth)))
    fid = FrechetInceptionDistance(Features(judge))
    torch.manual_seed(SEED)  # of KID's subsets
    for metric in (kid, fid):
        for some, real in ((truth, True), (images, False)):
            metric.update((some * 127.5 + 127.5).round().to(torch.uint8), real=real)
    mean, deviation = kid.compute()
    return {
        "n": len(images),
        "kid": mean.item(),
        "kid_deviation_over_subsets": deviation.item(),
        "fid": fid.compute().item(),
    }


def nearest_of(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the distance to the nearest training picture, and which it is.

    The root mean square difference of their pixels, of levels from 0 to 1.
    """
    distance, index = torch.cdist(images.flatten(1), train.flatten(1)).min(1)
    return distance / (2 * train[0].numel() ** 0.5), index


def memorisation(nearest: dict[str, tuple[Tensor, Tensor]], own: list[int]) -> dict:
    """How near samples are to training pictures; a copy is as near as the autoencoder lets any picture be, for 95 of 100."""
    limit = nearest["training pictures, coded and decoded"][0].quantile(0.95).item()
    found, index = nearest["samples"]
    copied, ours = (found <= limit).float(), (index == torch.tensor(own)).float()
    n = len(found)
    return {
        "n": n,
        "median_distance": {name: one[0].median().item() for name, one in nearest.items()},
        "pictures": {name: len(one[0]) for name, one in nearest.items()},
        "copy_limit": limit,
        "copied": [copied.mean().item(), (copied.var(unbiased=True) / n).sqrt().item()],
        "nearest_is_the_prompts_own": [ours.mean().item(), (ours.var(unbiased=True) / n).sqrt().item()],
    }


def draw(nearest: dict[str, tuple[Tensor, Tensor]], samples: Tensor, train: Tensor) -> Figure:
    """The histogram of distances, and samples above their nearest training pictures, from the nearest to the farthest."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = upper.subplots()
    edges = torch.linspace(0, max(one[0].max().item() for one in nearest.values()), 41).numpy()
    for (name, (distance, _)), colour in zip(nearest.items(), ("#d55e00", "#0072b2", "#999999"), strict=True):
        axes.hist(distance.numpy(), edges, histtype="step", lw=1.8, color=colour, label=f"{name} (n = {len(distance)})")
    axes.set(xlabel="distance to the nearest training picture (RMS of levels from 0 to 1)", ylabel="pictures")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    distance, index = nearest["samples"]
    order = distance.argsort()[torch.linspace(0, len(distance) - 1, PAIRS).round().long()]
    panels = lower.subplots(2, PAIRS, squeeze=False)
    for column, i in enumerate(order.tolist()):
        show(panels[0, column], samples[i])
        show(panels[1, column], train[index[i]])
        panels[1, column].set_xlabel(f"{distance[i]:.2f}", fontsize=8)
    for row, label in enumerate(("sample", "nearest")):
        panels[row, 0].set_ylabel(label, fontsize=9)
    return figure


def as_markdown(numbers: dict) -> str:
    auto, prompts, memory = numbers["autoencoder"], numbers["prompts"], numbers["memorisation"]
    ours, theirs = numbers["distances"]["samples"], numbers["distances"]["training pictures"]
    rows = [
        ("autoencoder, held-out pictures", f"PSNR {auto['psnr'][0]:.2f} ± {auto['psnr'][1]:.2f} dB", auto["n"]),
        ("autoencoder, held-out pictures", f"SSIM {auto['ssim'][0]:.3f} ± {auto['ssim'][1]:.3f}", auto["n"]),
        ("trained prompts named as asked", f"{prompts['named'][0]:.0%} ± {prompts['named'][1]:.0%}", prompts["n"]),
        ("KID, FID: samples to held-out pictures", f"{ours['kid']:.4f}, {ours['fid']:.3f}", ours["n"]),
        ("KID, FID: training to held-out pictures", f"{theirs['kid']:.4f}, {theirs['fid']:.3f}", theirs["n"]),
        ("samples that are copies", f"{memory['copied'][0]:.0%} ± {memory['copied'][1]:.0%}", memory["n"]),
        (
            "samples whose nearest training picture is the prompt's own",
            f"{memory['nearest_is_the_prompts_own'][0]:.0%} ± {memory['nearest_is_the_prompts_own'][1]:.0%}",
            memory["n"],
        ),
        *(
            (f"median distance to the nearest training picture: {name}", f"{distance:.3f}", memory["pictures"][name])
            for name, distance in memory["median_distance"].items()
        ),
    ]
    lines = ["| measured | | n |", "| --- | --- | --- |", *(f"| {what} | {value} | {n} |" for what, value, n in rows)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
