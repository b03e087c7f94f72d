"""The recipe of `fashion`, a small latent text-to-image model of garments in Stable Diffusion's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from fcs_lab.data import GARMENTS
from fcs_lab.training.latent import (
    SMALL_AUTOENCODER,
    STABLE_DIFFUSION_NOISE,
    LatentRecipe,
    Run,
    Stage,
    byte_symbols,
    encode_all,
    train_autoencoder,
    train_text_to_image,
)

__all__ = ["FASHION", "captions", "make_tokenizer", "train_fashion"]

TEMPLATES = ("a photo of {}", "{}")
"""How captions are made of `GARMENTS`; the first is the one that the documentation uses."""

CAPTION_DROPOUT = 0.1
"""How often the caption is the empty one, so that there is a null prompt to guide away from."""

FASHION = LatentRecipe(
    vae=SMALL_AUTOENCODER | {"in_channels": 1, "out_channels": 1, "sample_size": 32},
    unet={
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (96, 128),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    },
    text_encoder={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 16,
    },
    scheduler=STABLE_DIFFUSION_NOISE | {"prediction_type": "epsilon"},
    vae_stage=Stage(steps=3000, batch_size=64, learning_rate=1e-3),
    latent_stage=Stage(steps=7000, batch_size=64, learning_rate=1e-3),
)


def captions() -> list[list[str]]:
    """For each of the ten classes, the captions that its garments are trained with."""
    return [[template.format(garment) for template in TEMPLATES] for garment in GARMENTS]


def make_tokenizer(max_length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that knows every byte, and the captions' words as single tokens."""
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    merges: dict[tuple[str, str], None] = {}  # an ordered set
    words = {word for group in captions() for caption in group for word in caption.replace("-", " - ").split()}
    for word in sorted(words):
        left = word[0]
        for i, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if i == len(word) else "")
            merges[left, right] = None
            left += right
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(merges), model_max_length=max_length)


def train_fashion(
    recipe: LatentRecipe,
    images: Tensor,
    labels: Tensor,
    out: str | Path,
    *,
    max_steps: int | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    save_every: int = 500,
    progress: bool = True,
) -> Path:
    """Train both parts, or go on with the run in folder `out`.

    Args:
        recipe: What to train and how.
        images: Training images (N, 1, H, W), float32 in [-1, 1].
        labels: Their classes (N,), 0…9.
        out: Folder of the run. It receives `vae/` and `latent/` (the states), `model/` (the pipeline in Stable
            Diffusion's layout) and `samples/step-NNNNN.png` (one row a template-0 caption).
        max_steps: Stop each of the two parts after this many steps of this call. None: to the recipe's end.
        device, bf16, save_every, progress: As for `fcs_lab.training.diffusion.train`.

    Returns:
        The folder of the pipeline.
    """
    out, run = Path(out), Run(torch.device(device), bf16, max_steps, save_every, progress)

    def draw(generator: torch.Generator, n: int) -> Tensor:
        return images[torch.randint(len(images), (n,), generator=generator)]

    vae = train_autoencoder(recipe, draw, out / "vae", run)
    latents = encode_all(vae, images, run)
    scaling = 1 / latents.std().item()  # to unit variance
    vae.register_to_config(scaling_factor=scaling)

    # Row 0 is the empty caption; class c with template j is row 1 + c · len(TEMPLATES) + j.
    texts = ["", *(caption for group in captions() for caption in group)]
    labels = labels.long()

    def draw_texts(generator: torch.Generator, batch: Tensor) -> Tensor:
        rows = 1 + labels[batch] * len(TEMPLATES) + torch.randint(len(TEMPLATES), batch.shape, generator=generator)
        rows[torch.rand(len(rows), generator=generator) < CAPTION_DROPOUT] = 0
        return rows

    tokenizer = make_tokenizer(recipe.text_encoder["max_position_embeddings"])
    samples = [group[0] for group in captions()]
    train_text_to_image(recipe, vae, latents * scaling, tokenizer, texts, draw_texts, out, run, samples=samples)
    return out / "model"
