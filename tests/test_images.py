import numpy as np
import pytest
import torch
from PIL import Image

from fcs_lab.images import to_mask, to_pil, to_tensor


def test_uint8_black_and_white_are_minus_one_and_one():
    array = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    expected = torch.tensor([[[[-1.0, 1.0], [1.0, -1.0]]]])
    assert torch.equal(to_tensor(array), expected)
    assert torch.equal(to_tensor(Image.fromarray(array)), expected)
    assert torch.equal(to_tensor(array / 255), expected.double())


def test_colour_axes_and_lists():
    array = np.zeros((4, 6, 3), dtype=np.uint8)
    array[..., 1] = 255
    tensor = to_tensor([Image.fromarray(array), array])
    assert tensor.shape == (2, 3, 4, 6)
    assert torch.equal(tensor[:, 1], torch.ones(2, 4, 6))
    assert torch.equal(tensor[:, 0], -torch.ones(2, 4, 6))


def test_all_grey_levels_survive_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(to_pil(to_tensor(levels))[0]), levels)
    colour = np.stack([levels, levels.T, 255 - levels], axis=-1)
    assert np.array_equal(np.asarray(to_pil(to_tensor(Image.fromarray(colour)))[0]), colour)


def test_to_pil_clips():
    assert np.asarray(to_pil(torch.full((1, 1, 2, 2), 3.0))[0]).max() == 255


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        ("seven.png", TypeError, "str"),
        (np.zeros((4, 4), dtype=np.int64), TypeError, "int64"),
        (np.full((4, 4), 200.0), ValueError, r"\[200, 200\]"),
        (np.full((4, 4), -0.5), ValueError, r"\[0, 1\]"),
        (np.full((4, 4), np.nan), ValueError, "NaN or infinite"),
        (np.zeros((4, 4, 4), dtype=np.uint8), ValueError, r"\(4, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), dtype=np.uint8), ValueError, r"\(2, 4, 4, 3\)"),
        (Image.new("RGBA", (4, 4)), ValueError, "RGBA"),
        (torch.zeros(4, 4), ValueError, r"\(B, C, H, W\)"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), TypeError, "uint8"),
        (torch.full((1, 1, 4, 4), 2.0), ValueError, r"\[2, 2\]"),
        (torch.full((1, 1, 4, 4), torch.inf), ValueError, "NaN or infinite"),
        ([], ValueError, "empty list"),
        ([np.zeros((4, 4), np.uint8), np.zeros((5, 4), np.uint8)], ValueError, "different sizes"),
    ],
)
def test_ambiguous_images_are_refused(image, error, words):
    with pytest.raises(error, match=words) as info:
        to_tensor(image)
    assert "image" in str(info.value)


def test_white_is_filled_in():
    white_right = np.zeros((2, 4), dtype=np.uint8)
    white_right[:, 2:] = 255
    expected = torch.tensor([[False, False, True, True]] * 2)[None, None]
    for mask in (
        white_right,
        white_right // 255,
        white_right > 0,
        white_right / 255.0,
        Image.fromarray(white_right),
        Image.fromarray(white_right).convert("RGB"),
        Image.fromarray(white_right).convert("1"),
        torch.from_numpy(white_right > 0),
        torch.from_numpy(white_right // 255),
        torch.from_numpy(white_right / 255.0)[None, None],
    ):
        assert torch.equal(to_mask(mask), expected), mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.full((4, 4), 0.5), "not binary: 16 of its 16"),
        (np.full((4, 4), 128, dtype=np.uint8), "not binary"),
        (torch.full((4, 4), -1.0), "not binary"),
        (torch.full((4, 4), torch.nan), "not binary"),
        (torch.zeros(1, 3, 4, 4), r"\(1, 3, 4, 4\)"),
        (np.zeros((4, 4, 3), dtype=np.uint8), r"\(4, 4, 3\)"),
    ],
)
def test_masks_that_are_none_are_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        to_mask(mask)
    with pytest.raises(TypeError, match="list"):
        to_mask([mask])
