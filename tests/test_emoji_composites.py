"""Composites of emoji: put together as transparent pictures are, with masks, layers and prompts that belong to them."""

import numpy as np
import pytest
import torch
from PIL import Image

import fcs_lab
from fcs_lab import composites
from fcs_lab.composites import make_emoji_composites


def rgba(seed, size=16):
    """Two transparent pictures, uint8 (size, size, 4), with soft edges."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (2, size, size, 3))
    alpha = np.clip(generator.normal(128, 150, (2, size, size, 1)), 0, 255)
    return np.concatenate([colours, alpha], -1).astype(np.uint8)


def premultiplied(pictures):
    straight = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float()
    alpha = straight[:, 3:] / 255
    return torch.cat([(straight[:, :3] / 127.5 - 1) * alpha, alpha], 1)


def test_they_lie_over_one_another_as_pil_lays_them():
    pictures = rgba(0)
    ground = np.full((16, 16, 4), (10, 200, 90, 255), np.uint8)
    seen = Image.fromarray(ground)
    for one in pictures[::-1]:  # the last lies lowest
        seen = Image.alpha_composite(seen, Image.fromarray(one))
    wanted = fcs_lab.to_tensor(seen.convert("RGB"))
    paper = fcs_lab.to_tensor(Image.fromarray(ground).convert("RGB"))[0]
    y, layers, masks = composites._over(premultiplied(pictures), paper)
    assert (y - wanted[0]).abs().max() < 4 / 255  # PIL rounds to a level, twice
    assert torch.allclose(masks.sum(0), torch.ones(16, 16)) and masks.min() >= 0
    assert torch.equal(layers[-1], paper)
    alpha = torch.from_numpy(pictures[:, :, :, 3].copy()).float() / 255
    assert torch.allclose(masks[0], alpha[0]) and torch.allclose(masks[1], alpha[1] * (1 - alpha[0]))
    on_white = fcs_lab.data.on_white(torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2))
    assert torch.allclose(layers[:2], on_white, atol=1e-6)


@pytest.mark.parametrize("ground", ["white", "colour", "photograph"])
def test_what_a_composite_has(ground):
    made, prompts = make_emoji_composites(3, 2, ground=ground, seed=4)
    K = 2 if ground == "white" else 3
    assert made.images.shape == (3, 3, 64, 64) and made.layers.shape == (3, K, 3, 64, 64)
    assert made.masks.shape == (3, K, 64, 64) and torch.allclose(made.masks.sum(1), torch.ones(3, 64, 64))
    assert min(part.min() for part in (made.images, made.layers)) >= -1 - 1e-6 and made.images.max() <= 1 + 1e-6
    names = fcs_lab.load_emoji()[2]
    for row, labels in zip(prompts, made.labels.tolist(), strict=True):
        assert len(row) == K and [names[i] if i >= 0 else "" for i in labels] == row
        assert row[0].rpartition(", ")[0] != row[1].rpartition(", ")[0]
    # Where one layer is all that one sees, y is that layer.
    for k in range(K):
        alone = (made.masks[:, k] == 1)[:, None].expand(-1, 3, -1, -1)
        assert alone.any() and torch.allclose(made.images[alone], made.layers[:, k][alone], atol=1e-5)
    again, _ = make_emoji_composites(2, 2, ground=ground, seed=4)
    assert torch.equal(again.images, made.images[:2])


def test_arrangements():
    apart, _ = make_emoji_composites(4, 4, arrangement="apart", ground="colour", seed=1)
    quarters = apart.masks[:, :4].unflatten(3, (2, 32)).unflatten(2, (2, 32)).sum((3, 5))  # (B, K, 2, 2)
    assert bool(((quarters > 0).flatten(2).sum(2) == 1).all())
    touching, _ = make_emoji_composites(4, 2, arrangement="touching", ground="colour", seed=1)
    for left, right in touching.masks[:, :2] > 0.5:
        columns = [one.any(0).nonzero() for one in (left, right)]
        assert columns[1].min() - columns[0].max() == 1
    behind, _ = make_emoji_composites(4, 2, arrangement="behind", ground="colour", seed=1)
    ink = (1 - behind.layers[:, 1].amin(1)) > 0.2
    assert bool((behind.masks[:, 1].flatten(1).sum(1) < 0.05 * ink.flatten(1).sum(1)).all())
    visible, _ = make_emoji_composites(4, 2, ground="colour", min_visible=0.7, seed=1)
    opaque = (visible.layers[:, :2].amin(2) < 0.9).flatten(2).sum(2)
    assert bool((visible.masks[:, :2].flatten(2).sum(2) > 0.6 * opaque).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 5}, "num_layers is 5"),
        ({"ground": "grass"}, "ground is 'grass'; expected one of 'white', 'colour', 'photograph'"),
        ({"arrangement": "above"}, "arrangement is 'above'; expected one of 'overlapping'"),
        ({"num_layers": 3, "arrangement": "behind"}, "num_layers is 3; 'behind' is an arrangement of two"),
        ({"min_visible": 1.0}, "min_visible is 1.0"),
        ({"num_layers": 4, "min_visible": 0.95}, "only 0 of 1 composites of 4 emoji"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_emoji_composites(**{"count": 1, "num_layers": 2} | arguments)
