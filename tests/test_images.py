import numpy as np
import pytest
import torch
from PIL import Image

from fcs_lab.images import fit_image, fit_mask, read_image, to_channels, to_mask, to_pil, to_tensor


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
        (Image.new("LAB", (4, 4)), ValueError, "LAB"),
        (Image.fromarray(np.full((4, 4), 2.0, np.float32)), ValueError, r"floating-point pixels from 2 to 2"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), ValueError, r"whole numbers of 32 bits from 70000"),
        (torch.zeros(1, 1, 4, 4, device="meta"), ValueError, "on the device 'meta'"),
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


RAMP = np.linspace(0, 1, 16 * 12).reshape(12, 16)


def saved(image, tmp_path, suffix=".png", **options):
    path = tmp_path / f"picture{suffix}"
    image.save(path, **options)
    return path


def files(tmp_path):
    """Pictures as people have them: what it is -> the file, and its grey levels or colours in [0, 1]."""
    grey8 = Image.fromarray((RAMP * 255).round().astype(np.uint8))
    grey16 = Image.fromarray((RAMP * 65535).round().astype(np.uint16))
    color = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 0.2)], -1)
    rgb = Image.fromarray((color * 255).round().astype(np.uint8))
    alpha = np.zeros((12, 16), np.uint8)
    alpha[3:9, 4:10] = 255
    half_grey = Image.merge("LA", [grey8, Image.fromarray(alpha)])
    on_white = np.where(alpha > 0, RAMP, 1.0)
    palette = rgb.quantize(255)
    frames = [rgb, Image.new("RGB", (16, 12), "red")]
    turned = Image.Exif()
    turned[0x112] = 6
    return {
        "8 bits": (saved(grey8, tmp_path), RAMP),
        "16 bits, PNG": (saved(grey16, tmp_path, "16.png"), RAMP),
        "16 bits, TIFF": (saved(grey16, tmp_path, "16.tif"), RAMP),
        "float TIFF": (saved(Image.fromarray(RAMP.astype(np.float32)), tmp_path, "f.tiff"), RAMP),
        "black and white": (saved(grey8.convert("1", dither=Image.Dither.NONE), tmp_path, "1.png"), (RAMP > 0.5) * 1.0),
        "RGB": (saved(rgb, tmp_path, "rgb.png"), color),
        "transparent": (saved(Image.merge("RGBA", [*rgb.split(), Image.fromarray(alpha)]), tmp_path, "a.png"),
                        np.where(alpha[..., None] > 0, color, 1.0)),
        "grey with alpha": (saved(half_grey, tmp_path, "la.png"), on_white),
        "palette": (saved(palette, tmp_path, "p.png"), np.asarray(palette.convert("RGB")) / 255),
        "CMYK": (saved(rgb.convert("CMYK"), tmp_path, "c.tif"), color),
        "animated": (saved(rgb, tmp_path, ".gif", save_all=True, append_images=frames[1:]), color),
        "turned": (saved(grey8, tmp_path, "t.png", exif=turned), np.rot90(RAMP, -1)),
    }  # fmt: skip


def test_picture_files_of_every_kind(tmp_path):
    for kind, (path, expected) in files(tmp_path).items():
        within = 0.04 if kind == "animated" else 2.1 / 255
        shape = expected.shape if expected.ndim == 3 else (*expected.shape, 1)
        for source in (path, str(path), path.read_bytes(), Image.open(path)):
            picture = read_image(source)
            assert picture.mode == ("L" if shape[-1] == 1 else "RGB"), kind
            found = np.asarray(picture).reshape(shape) / 255
            assert np.abs(found - expected.reshape(shape)).max() < within, kind
        found = to_tensor(Image.open(path))[0].permute(1, 2, 0).numpy() / 2 + 0.5
        assert np.abs(found - expected.reshape(shape)).max() < within, kind
    exact = to_tensor(Image.open(files(tmp_path)["16 bits, PNG"][0]))[0, 0].numpy() / 2 + 0.5
    assert np.abs(exact - RAMP).max() < 1e-4, "all of its bits are read"


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    whole = saved(Image.fromarray((RAMP * 255).astype(np.uint8)), tmp_path).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "half.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name} is not an image that can be read"):
            read_image(tmp_path / name)
    with pytest.raises(TypeError, match="image is 3; expected a file"):
        read_image(3)


def test_pillows_limit_is_kept(tmp_path, monkeypatch):
    path = saved(Image.new("L", (200, 100)), tmp_path)
    for limit in (15_000, 5_000):  # where Pillow warns, and where it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"picture.png has more pixels than Pillow's limit of {limit}"):
            read_image(path)


def test_a_picture_is_brought_to_a_models_shape(tmp_path):
    wide = Image.new("RGB", (60, 30), "red")
    wide.paste("blue", (15, 0, 45, 30))
    image, said = fit_image(wide, (3, 10, 10))
    inner = image[0, :, 1:-1, 1:-1]  # at the border its neighbours weigh in, as in any resize
    assert image.shape == (1, 3, 10, 10) and (inner[2] == 1).all() and (inner[0] == -1).all(), "the middle square"
    assert said == "The picture's middle was resized from 60×30 to 10×10 pixels."
    assert fit_image(image_of(10), (1, 10, 10))[1] == ""
    mask, said = fit_mask(image_of(60).resize((60, 30)), (10, 10))
    assert mask.shape == (10, 10) and mask.dtype == torch.bool


def image_of(side):
    return Image.fromarray(np.full((side, side), 7, np.uint8))


def test_grey_becomes_colour_and_colour_is_refused_unless_it_is_grey(tmp_path):
    grey = torch.full((2, 1, 4, 4), 0.5)
    assert torch.equal(to_channels(grey, 3), grey.expand(-1, 3, -1, -1))
    nearly = grey.expand(-1, 3, -1, -1) + torch.tensor([0, 1, 2])[:, None, None] / 127.5
    assert torch.allclose(to_channels(nearly, 1), grey + 1 / 127.5, atol=1e-6)
    with pytest.raises(ValueError, match=r"photo is in colour \(its channels differ by up to 3 of 255\).*makes grey images"):
        to_channels(grey.expand(-1, 3, -1, -1) + torch.tensor([0, 1, 3])[:, None, None] / 127.5, 1, "photo")
    with pytest.raises(ValueError, match="has 4 channels; the model takes 1"):
        to_channels(torch.zeros(1, 4, 2, 2), 1)
    scan = np.repeat((RAMP * 200)[..., None], 3, -1)
    scan[..., 0] += 6  # as JPEG's chroma may leave it
    (tmp_path / "scan.jpg").write_bytes(b"")
    Image.fromarray(scan.round().astype(np.uint8)).save(tmp_path / "scan.jpg", quality=100, subsampling=0)
    Image.fromarray(scan.round().astype(np.uint8)).save(tmp_path / "scan.png")
    assert fit_image(tmp_path / "scan.jpg", (1, 12, 12))[0].shape == (1, 1, 12, 12)
    with pytest.raises(ValueError, match=r"scan.png is in colour"):
        fit_image(tmp_path / "scan.png", (1, 12, 12))


def test_a_mask_with_an_alpha_channel():
    rgba = np.full((8, 8, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[2:5, 2:5, 3] = 255
    assert to_mask(Image.fromarray(rgba)).sum() == 9, "only alpha varies"
    opaque = rgba.copy()
    opaque[..., 3], opaque[..., :3] = 255, 0
    opaque[0, :4, :3] = 255
    assert to_mask(Image.fromarray(opaque)).sum() == 4, "alpha is constant"
    opaque[..., 3] = rgba[..., 3]
    with pytest.raises(ValueError, match="mask varies in its colour and in its alpha channel"):
        to_mask(Image.fromarray(opaque))
    sixteen = np.zeros((4, 4), np.uint16)
    sixteen[:2] = 65535
    assert to_mask(Image.fromarray(sixteen)).sum() == 8


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (Image.new("L", (4, 4)), TypeError, "images is <PIL.Image.Image.*expected a floating-point tensor"),
        (b"bytes", TypeError, "images is b'bytes'"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), TypeError, "torch.int64"),
        (torch.zeros(0, 1, 2, 2), ValueError, "no pixels"),
        (torch.full((1, 1, 2, 2), torch.nan), ValueError, "NaN pixels"),
        (torch.zeros(1, 1, 2, 2, device="meta"), ValueError, "on the device 'meta'"),
    ],
)
def test_to_pil_says_what_it_takes(images, error, words):
    with pytest.raises(error, match=words):
        to_pil(images)


def test_arrays_and_tensors_as_they_come():
    array = (RAMP * 255).astype(np.uint8)
    for one in (array[::-1, ::-1], np.asfortranarray(array), array.astype(np.float64)[::-1] / 255):
        expected = np.ascontiguousarray(one)
        assert torch.equal(to_tensor(one), to_tensor(expected))
        assert torch.equal(to_mask(one > one.mean()), to_mask(expected > expected.mean()))
    tensor = torch.rand(1, 3, 4, 6, requires_grad=True)
    assert not to_tensor(tensor).requires_grad and torch.equal(to_tensor(tensor.transpose(2, 3)), tensor.detach().mT)
