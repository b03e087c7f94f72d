"""The recipe of `emoji`, a small latent text-to-image model in colour, in Stable Diffusion's layout.

Three runs: the autoencoder; its decoder alone, once the latents are fixed; and the U-Net with its text encoder. The last two
need only the first, so `only=` lets them run side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import AddedToken, CLIPTokenizer

from fcs_lab.data import on_white
from fcs_lab.training.emoji_pictures import STYLES, Pictures
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

__all__ = ["EMOJI", "EmojiRecipe", "make_tokenizer", "smoke", "train_emoji"]

EMPTY, NO_STYLE, NO_CONCEPT = 0.1, 0.15, 0.05
"""How often the caption is "", the concept alone, and the style alone."""

ONE_WAY = {"arrow", "button", "clock", "flag", "input", "keycap", "latin", "left", "letter", "oclock", "right"}
"""A picture whose concept has one of these words is never mirrored."""

SHEET = ("red apple", "cat face", "grinning face with big eyes", "dog face", "rocket", "sunflower", "blue car", "tree")
"""The prompts of the sheet of samples; some of them ("blue car") no picture is called."""


@dataclass(frozen=True)
class EmojiRecipe(LatentRecipe):
    """A latent recipe with a stage for the decoder alone."""

    decoder_stage: Stage | None = None


EMOJI = EmojiRecipe(
    vae=SMALL_AUTOENCODER
    | {"in_channels": 3, "out_channels": 3, "sample_size": 64, "mid_block_add_attention": False, "scaling_factor": 1.0},
    unet={
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (96, 192),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "cross_attention_dim": 128,
        "attention_head_dim": 6,
        "norm_num_groups": 16,
        # The caption, pooled, also goes to every block beside the timestep.
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    },
    text_encoder={
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
    },
    scheduler=STABLE_DIFFUSION_NOISE | {"prediction_type": "v_prediction"},
    vae_stage=Stage(steps=2600, batch_size=16, learning_rate=1e-3),
    decoder_stage=Stage(steps=2000, batch_size=16, learning_rate=5e-4, seed=1),
    latent_stage=Stage(
        steps=18_750, batch_size=32, learning_rate=5e-4, warmup_steps=300, cooldown_steps=2000, ema_decay=0.9995
    ),
    kl_weight=5e-4,
    l2_weight=1.0,
    noisy_share=0.5,
)


def make_tokenizer(words: list[str], max_length: int = 24) -> CLIPTokenizer:
    """A CLIP tokenizer to which each of the words is one token, and any other word its bytes.

    Its `closed_vocabulary` says that these are all words that the model ever saw; `LatentDenoiser` warns of others.
    """
    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length, closed_vocabulary=True)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return tokenizer


def train_emoji(
    recipe: EmojiRecipe,
    pictures: Pictures,
    out: str | Path,
    run: Run,
    *,
    only: Literal["autoencoder", "decoder", "unet"] | None = None,
    start_from: Path | None = None,
) -> Path:
    """Train all parts, or go on with the run in folder `out`.

    Args:
        recipe: What to train and how.
        pictures: The training pictures.
        out: Folder of the run. It receives `vae/`, `decoder/` and `latent/` (the states), `model/` (the pipeline in Stable
            Diffusion's layout) and `samples/step-NNNNN.png` (a row for each of `SHEET`).
        run: Device, precision, and so on.
        only: One part alone; "decoder" and "unet" need a finished "autoencoder". None: one after the other.
        start_from: A pipeline's folder, such as the bundled model's, to go on from where there is no state of a run: its
            autoencoder is taken as finished, and its U-Net and text encoder are trained on.

    Returns:
        The folder of the pipeline.
    """
    out = Path(out)

    def draw(generator: torch.Generator, n: int) -> Tensor:
        return arrange(pictures.rgba[torch.randint(len(pictures), (2 * n,), generator=generator)], generator)

    if start_from is not None:
        vae = AutoencoderKL.from_pretrained(start_from / "vae").float().to(run.device).requires_grad_(False).eval()
        latents = encode_all(vae, mirrored(pictures), run)
    else:
        vae = train_autoencoder(recipe, draw, out / "vae", run)
        if only == "autoencoder":
            return out / "vae" / "model"
        latents = _standardise(vae, encode_all(vae, mirrored(pictures), run))
    if only != "unet":
        vae = train_autoencoder(recipe, draw, out / "decoder", run, decoder_of=vae, stage=recipe.decoder_stage)
        if only == "decoder":
            return out / "decoder" / "model"

    concepts = sorted(set(pictures.concepts))
    # "", the styles, the concepts, and then each picture's own caption.
    texts = ["", *STYLES, *concepts, *(f"{c}, {s}" for c, s in zip(pictures.concepts, pictures.styles, strict=True))]
    style_row = torch.tensor([1 + list(STYLES).index(style) for style in pictures.styles])
    row_of = {concept: 1 + len(STYLES) + i for i, concept in enumerate(concepts)}
    concept_row = torch.tensor([row_of[concept] for concept in pictures.concepts])
    first = 1 + len(STYLES) + len(concepts)

    def draw_texts(generator: torch.Generator, batch: Tensor) -> Tensor:
        batch = batch % len(pictures)  # a mirror image has its picture's caption
        u = torch.rand(len(batch), generator=generator)
        rows = torch.where(u < EMPTY + NO_STYLE, concept_row[batch], first + batch)
        rows = torch.where(u < EMPTY, 0, rows)
        return torch.where(u > 1 - NO_CONCEPT, style_row[batch], rows)

    words = sorted({word for concept in concepts for word in concept.split()} | set(STYLES))
    tokenizer = make_tokenizer(words, recipe.text_encoder["max_position_embeddings"])
    train_text_to_image(
        recipe,
        vae,
        latents,
        tokenizer,
        texts,
        draw_texts,
        out,
        run,
        samples=[f"{what}, noto" for what in SHEET],
        columns=3,
        guidance_scale=2.5,
        start_from=start_from,
    )
    return out / "model"


def smoke(recipe: EmojiRecipe) -> EmojiRecipe:
    """The same recipe with runs of a few steps and small networks, which show that every part runs."""
    short = {"steps": 2, "batch_size": 4, "warmup_steps": 1}
    return replace(
        recipe,
        vae=recipe.vae | {"block_out_channels": (8, 8, 16)},
        unet=recipe.unet | {"block_out_channels": (16, 32), "attention_head_dim": 2},
        vae_stage=replace(recipe.vae_stage, **short),
        decoder_stage=replace(recipe.decoder_stage, **short),
        latent_stage=replace(recipe.latent_stage, **short, cooldown_steps=1),
    )


@torch.no_grad()
def _standardise(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Give every latent channel mean 0 and variance 1, by the VAE's own 1×1 convolutions before and after the latents.

    Stable Diffusion's pipeline knows one factor for all channels and no shift, which leaves white, the ground of all
    pictures, far from 0.

    Returns:
        The latents (N, c, h, w), likewise.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    after, before = vae.post_quant_conv, vae.quant_conv
    device = after.weight.device
    mean, std = mean.to(device), std.to(device)
    # D(W z + b) with z = std · z' + mean, and z' = (z − mean)/std; the variances, the second half of the moments, follow.
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    c = len(mean)
    before.weight[:c] /= std[:, None, None, None]
    before.bias[:c] = (before.bias[:c] - mean) / std
    before.bias[c:] -= 2 * std.log()
    return (latents - mean.cpu()[:, None, None]) / std.cpu()[:, None, None]


def mirrored(pictures: Pictures) -> Tensor:
    """N pictures on white, and then their mirror images, (2N, 3, H, W) in [-1, 1]; a one-way picture's is itself."""
    one_way = torch.tensor([not ONE_WAY.isdisjoint(concept.split()) for concept in pictures.concepts])
    images = on_white(pictures.rgba)
    return torch.cat([images, torch.where(one_way[:, None, None, None], images, images.flip(3))])


def arrange(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Of 2n drawings, n images for the autoencoder, (n, 3, H, W) in [-1, 1].

    Half of them are as they are, on white; the others two drawings, one over the other, moved, scaled and mirrored, on
    white, on a colour, or on one colour that runs into another. So composites, too, will be in the autoencoder's reach.
    """
    n = len(rgba) // 2
    plain, first, second = rgba[: n // 2], rgba[n // 2 : n], rgba[n : n + n - n // 2]
    m = len(first)
    colors = torch.rand(m, 2, 3, 1, 1, generator=generator) * 2 - 1
    kind = torch.randint(3, (m, 1, 1, 1), generator=generator)  # of the ground: white, one colour, two
    across = torch.linspace(0, 1, rgba.shape[-1]).expand(m, 1, rgba.shape[-1], -1)
    across = torch.where(torch.rand(m, 1, 1, 1, generator=generator) < 0.5, across, across.transpose(2, 3))
    images = colors[:, 0] + torch.where(kind == 2, across, 0.0) * (colors[:, 1] - colors[:, 0])
    images = torch.where(kind == 0, 1.0, images)
    for drawings in (second, first):
        color, alpha = drawings[:, :3].float() / 127.5 - 1, drawings[:, 3:].float() / 255
        premultiplied = move(torch.cat([(color + 1) * alpha, alpha], 1), generator)
        images = premultiplied[:, :3] + (images + 1) * (1 - premultiplied[:, 3:]) - 1
    return torch.cat([on_white(plain), images]).clamp(-1, 1)


def move(
    images: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.5, 1.1),
    shift: float = 0.5,
) -> Tensor:
    """Each image (n, C, H, W) scaled, mirrored or not, and moved by up to `shift`/2 of its size; 0 outside."""
    n = len(images)
    zoom = 1 / (scale[0] + (scale[1] - scale[0]) * torch.rand(n, generator=generator))
    flip = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
    theta[:, :, 2] = 2 * shift * (torch.rand(n, 2, generator=generator) - 0.5) * zoom[:, None]
    grid = torch.nn.functional.affine_grid(theta, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)
