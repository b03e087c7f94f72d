"""Images to work on: the bundled test digits and garments, and the data sets for training.

All of the package's digits and garments are 32×32: the data sets' 28×28 padded by two pixels of background on every
side, so that a U-Net can halve them three times.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import struct
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor

from fcs_lab.checks import check_count, is_int, typed
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.images import read_image, to_tensor

__all__ = [
    "EMOJI_CLASSES",
    "GARMENTS",
    "example_images",
    "load_digits",
    "load_emoji",
    "load_garments",
    "load_photographs",
    "read_cifar10",
    "read_fashion_mnist",
    "read_mnist",
]

GARMENTS = (
    "a t-shirt",
    "trousers",
    "a pullover",
    "a dress",
    "a coat",
    "a sandal",
    "a shirt",
    "a sneaker",
    "a bag",
    "an ankle boot",
)
"""Fashion-MNIST's ten classes, in the words that `fashion` was trained with."""

EMOJI_CLASSES = (
    *("red apple", "banana", "grapes", "strawberry", "carrot", "hamburger", "doughnut", "birthday cake", "cat face"),
    *("dog face", "panda", "lion", "frog", "monkey face", "rabbit face", "koala", "penguin", "owl", "butterfly"),
    *("lady beetle", "octopus", "tropical fish", "turtle", "rocket", "airplane", "bicycle", "automobile", "fire engine"),
    *("sailboat", "sun", "rainbow", "sunflower", "rose", "evergreen tree", "palm tree", "cactus", "red heart", "star"),
    *("soccer ball", "basketball", "trophy", "crown", "key", "alarm clock", "christmas tree", "house", "thumbs up"),
    *("robot", "smiling face with sunglasses", "scissors"),
)
"""Fifty things that all six styles of emoji draw and `emoji` was trained on, and that its judge tells apart."""

BUNDLED_EMOJI = Path(__file__).parent / "weights" / "emoji-pictures"

BUNDLED_DIGITS = Path(__file__).parent / "weights" / "digits.safetensors"

BUNDLED_GARMENTS = Path(__file__).parent / "weights" / "garments.safetensors"


@dataclass(frozen=True)
class _Source:
    """Where a data set is downloaded from, and the MD5 sums of its .gz files that are published with it."""

    url: str
    folder: str
    files: dict[str, str]


MNIST = _Source(
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "mnist",
    {
        "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION_MNIST = _Source(
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "fashion-mnist",
    {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)


@ordinary()
def load_digits(count: int = 256) -> tuple[Tensor, Tensor]:
    """The first `count` of the 256 bundled MNIST test digits.

    Args:
        count: How many, 1 to 256.

    Returns:
        Images (count, 1, 32, 32), float32 in [-1, 1] (−1 is background), and their labels (count,), int64 in 0…9.

    Raises:
        ValueError: `count` is not within 1…256.

    Example:
        >>> images, labels = fcs_lab.load_digits(3)
        >>> tuple(images.shape), labels.tolist()
        ((3, 1, 32, 32), [7, 2, 1])
    """
    return _load_bundled(BUNDLED_DIGITS, count)


@ordinary()
def load_garments(count: int = 256) -> tuple[Tensor, Tensor]:
    """The first `count` of the 256 bundled Fashion-MNIST test garments; as `load_digits`.

    Returns:
        Images (count, 1, 32, 32), float32 in [-1, 1], and their classes (count,), int64; `GARMENTS` names them.

    Example:
        >>> images, labels = fcs_lab.load_garments(3)
        >>> tuple(images.shape)
        (3, 1, 32, 32)
    """
    return _load_bundled(BUNDLED_GARMENTS, count)


def _load_bundled(path: Path, count: int) -> tuple[Tensor, Tensor]:
    bundled = load_file(path)
    if not is_int(count) or not 1 <= count <= len(bundled["labels"]):
        raise ValueError(f"count is {count!r}; {len(bundled['labels'])} {path.stem} are bundled, so expected 1 to that")
    return scale(bundled["images"][:count]), bundled["labels"][:count].long()


@ordinary()
def load_emoji(count: int = 256, *, split: Literal["test", "settings"] = "test") -> tuple[Tensor, Tensor, list[str]]:
    """The first `count` bundled pictures of concepts that no bundled model was trained on, on white.

    Six styles draw the same concept, so several pictures of one are not independent: standard errors over them are to be
    clustered by concept. The first 100 of "test" are of 100 concepts.

    Args:
        count: How many: of "test" 1 to 256, of 100 concepts; of "settings" 1 to 156, of 26 others.
        split: "test", for what is reported; "settings", for choosing settings.

    Returns:
        Images (count, 3, 64, 64), float32 in [-1, 1], on white; alpha (count, 1, 64, 64) in [0, 1], where the picture is
        opaque; and their names, "concept, style", as the prompts of `emoji` are.

    Raises:
        ValueError: `count` is not a whole number from 1 to what there is, or another split.

    Example:
        >>> images, alpha, names = fcs_lab.load_emoji(2)
        >>> tuple(images.shape), tuple(alpha.shape), len(names)
        ((2, 3, 64, 64), (2, 1, 64, 64), 2)
    """
    if not isinstance(split, str) or split not in ("test", "settings"):
        raise ValueError(f"split is {split!r}; expected 'test' or 'settings'")
    names = json.loads((BUNDLED_EMOJI / "names.json").read_text())[split]
    if not is_int(count) or not 1 <= count <= len(names):
        raise ValueError(f"count is {count!r}; {len(names)} emoji are bundled for {split!r}, so expected 1 to that")
    sheet = np.asarray(Image.open(BUNDLED_EMOJI / f"{split}.webp").convert("RGBA"))
    side = 64
    pictures = sheet.reshape(-1, side, sheet.shape[1] // side, side, 4).swapaxes(1, 2).reshape(-1, side, side, 4)[:count]
    pictures = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2)
    return on_white(pictures), pictures[:, 3:].float() / 255, names[:count]


def on_white(rgba: Tensor) -> Tensor:
    """Pictures (N, 4, H, W), uint8, not multiplied by alpha, as images (N, 3, H, W) on white, float32 in [-1, 1]."""
    color, alpha = rgba[:, :3].float() / 127.5 - 1, rgba[:, 3:].float() / 255
    return color * alpha + 1 - alpha


PHOTOGRAPHS = ("chelsea", "coffee", "astronaut", "rocket")
"""Colour photographs that come with scikit-image, in the public domain or CC0."""


@ordinary()
def load_photographs(height: int, width: int | None = None) -> Tensor:
    """`PHOTOGRAPHS`, the middle of each, (4, 3, height, width), float32 in [-1, 1].

    Args:
        height: In pixels, at most 4,096.
        width: None: as the height.

    Raises:
        ValueError: Not a size.
        ImportError: scikit-image is not installed.

    Example:
        >>> tuple(fcs_lab.data.load_photographs(64).shape)
        (4, 3, 64, 64)
    """
    width = height if width is None else width
    for name, value in {"height": height, "width": width}.items():
        check_count(name, value, 1, 4096)
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the example photographs are scikit-image's, which is not installed: pip install scikit-image, "
            "or use photographs of your own, fcs_lab.to_tensor(PIL.Image.open(...))"
        ) from error
    return to_tensor([ImageOps.fit(Image.fromarray(getattr(data, name)()), (width, height)) for name in PHOTOGRAPHS])


@ordinary()
def example_images(model: Denoiser, count: int | None = None) -> Tensor:
    """Images to try a model on, of its own size and channels.

    For a grey model the bundled digits, or garments if it takes prompts; for an RGB model of 64×64 the bundled emoji, of
    any other size four photographs from scikit-image, their middle squares.

    Args:
        model: Whose.
        count: How many. None: all there are, 256 or 4.

    Returns:
        (count, C, H, W), float32 in [-1, 1].

    Raises:
        ValueError: More than there are, or a model whose images are neither grey nor RGB.
        ImportError: An RGB model, and scikit-image is not installed.

    Example:
        >>> tuple(fcs_lab.data.example_images(fcs_lab.load("emoji"), 2).shape)
        (2, 3, 64, 64)
    """
    model = as_model(model)
    C, H, W = model.image_shape
    if C == 1:
        everything = _load_bundled(BUNDLED_DIGITS if model.num_prompts is None else BUNDLED_GARMENTS, 256)[0]
        if everything.shape[-2:] != (H, W):
            everything = torch.nn.functional.interpolate(everything, (H, W), mode="bicubic", antialias=True).clamp(-1, 1)
    elif (C, H, W) == (3, 64, 64):
        everything = load_emoji()[0]
    elif C == 3:
        everything = load_photographs(H, W)
    else:
        raise ValueError(f"the model's images have {C} channels; there are examples with 1 (grey) and 3 (RGB)")
    count = len(everything) if count is None else count
    if not is_int(count) or not 1 <= count <= len(everything):
        raise ValueError(f"count is {count!r}; there are {len(everything)} example images, so expected 1 to that")
    return everything[:count]


def scale(images: Tensor) -> Tensor:
    """Grey levels (N, H, W), uint8, to (N, 1, H, W), float32 in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


@ordinary()
@typed
def read_mnist(folder: str | Path | None = None, split: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """MNIST from its idx files, padded to 32×32.

    Args:
        folder: Where the idx files are (plain or .gz, at any depth). None downloads them, once, to ~/.cache/fcs_lab.
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        Images (N, 32, 32) and labels (N,), both uint8.

    Raises:
        FileNotFoundError: `folder` lacks the files of this split.
        OSError: `folder` is None and the download failed.
        ValueError: A file is not what MNIST's format says.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder, size = Path(tempfile.mkdtemp()), b"".join(n.to_bytes(4, "big") for n in (2, 28, 28))
        >>> _ = (folder / "t10k-images-idx3-ubyte").write_bytes(b"\\x00\\x00\\x08\\x03" + size + bytes(2 * 28 * 28))
        >>> _ = (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\\x00\\x00\\x08\\x01" + size[:4] + bytes([7, 2]))
        >>> images, labels = fcs_lab.data.read_mnist(folder, "test")  # in the files' own format
        >>> tuple(images.shape), labels.tolist()
        ((2, 32, 32), [7, 2])
    """
    return _read_split(MNIST, folder, split)


@ordinary()
@typed
def read_fashion_mnist(folder: str | Path | None = None, split: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Fashion-MNIST, which has MNIST's format and sizes; arguments, results and errors as for `read_mnist`.

    Example:
        >>> fcs_lab.data.read_fashion_mnist("a folder without them", "test")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    return _read_split(FASHION_MNIST, folder, split)


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder, by their suffixes, in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


@ordinary()
@typed
def read_cifar10(path: str | Path, size: int = 32) -> Tensor:
    """CIFAR-10's images, or any others, for training.

    Args:
        path: An .npz with the images as JPEG or PNG files (`jpeg`: uint8, all of them one after another; `offset`: integer,
            n + 1, image i is `jpeg[offset[i]:offset[i + 1]]`) or as pixels (one uint8 array (N, H, W, 3)); CIFAR-10's
            *binary version* (data_batch_1.bin …, test_batch.bin for the test images alone), a file or the folder with
            its training batches; or a folder of images of any size, at any depth, of which the middle square is taken.
        size: Images of a folder are resized to this; the others have to be of it.

    Returns:
        (N, 3, size, size), float32 in [-1, 1].

    Raises:
        FileNotFoundError: There is nothing at `path`, or no images in it.
        ValueError: An empty path; CIFAR-10's *python version*, whose pickles can run code when read; a file that is not
            what it should be, or has images of another size.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 50), "red").save(folder / "red.png")  # a folder of any pictures will do
        >>> tuple(fcs_lab.data.read_cifar10(folder).shape)
        (1, 3, 32, 32)
    """
    check_count("size", size, 1, 4096)
    if path == "":  # which Path takes for the current folder
        raise ValueError("path is ''; expected an .npz, .bin batches, or a folder of images")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"path is {path}, which does not exist; expected an .npz, .bin batches, or a folder of images"
        )
    if path.is_file():
        if path.suffix == ".npz":
            return _read_npz(path, size)
        if path.suffix == ".bin":
            return _read_binary_batch(path)
        raise ValueError(f"path is {path}; expected an .npz, a .bin batch of CIFAR-10's binary version, or a folder")
    batches = sorted(path.rglob("data_batch_*"))
    if any(batch.suffix == "" for batch in batches):
        raise ValueError(
            f"{path} is CIFAR-10's python version, whose batches are pickles, which can run code when read and are refused; "
            "get its binary version (cifar-10-binary.tar.gz, with data_batch_1.bin and so on) or a folder of images"
        )
    if batches:
        return torch.cat([_read_binary_batch(batch) for batch in batches])
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"no images in {path}; expected files named {', '.join(sorted(IMAGE_SUFFIXES))}, or data_batch_*.bin"
        )
    images, others = [], 0
    for file in files:
        picture = read_image(file)
        others += picture.size != (size, size)
        images.append(_to_bytes(picture if picture.size == (size, size) else ImageOps.fit(picture, (size, size))))
    if others:
        warnings.warn(
            f"of {others} of {len(files)} pictures in {path} the middle square was taken and resized to {size}×{size}",
            stacklevel=2,
        )
    return _from_bytes(torch.stack(images))


def _read_npz(path: Path, size: int) -> Tensor:
    with np.load(path, allow_pickle=False) as arrays:
        if {"jpeg", "offset"} <= set(arrays):
            content, offset = arrays["jpeg"], arrays["offset"]
            if content.dtype != np.uint8 or len(offset) < 2 or (np.diff(offset) <= 0).any() or offset[-1] > len(content):
                raise ValueError(f"{path} is damaged: offset does not mark out files within jpeg ({len(content)} bytes)")
            parts = [content[start:end].tobytes() for start, end in itertools.pairwise(offset)]
            images = [_read_image(part, f"image {i} of {path}", size) for i, part in enumerate(parts)]
            return _from_bytes(torch.stack(images))
        pixels = [array for array in map(arrays.__getitem__, arrays) if array.dtype == np.uint8 and array.ndim == 4]
    if len(pixels) != 1 or pixels[0].shape[1:] != (size, size, 3):
        raise ValueError(f"{path} has no arrays jpeg and offset, and no single uint8 array (N, {size}, {size}, 3)")
    return _from_bytes(torch.from_numpy(pixels[0]).permute(0, 3, 1, 2))


def _read_image(file: bytes, name: str, size: int) -> Tensor:
    """One image of an .npz, (3, size, size), uint8."""
    image = read_image(file, name)
    if image.size != (size, size):
        raise ValueError(f"{name} is {image.height}×{image.width}; expected {size}×{size}")
    return _to_bytes(image)


def _to_bytes(image: Image.Image) -> Tensor:
    """(3, H, W), uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _read_binary_batch(path: Path) -> Tensor:
    """CIFAR-10's binary version: records of a label and 3072 bytes, the channels one after another."""
    content = np.fromfile(path, dtype=np.uint8)
    if not content.size or content.size % 3073:
        raise ValueError(f"{path} has {content.size} bytes; expected records of 3073, a label and 3×32×32 pixels")
    return _from_bytes(torch.from_numpy(content.reshape(-1, 3073)[:, 1:]).reshape(-1, 3, 32, 32))


def _from_bytes(images: Tensor) -> Tensor:
    """(N, 3, H, W), uint8, to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _read_split(source: _Source, folder: str | Path | None, split: str) -> tuple[Tensor, Tensor]:
    if not isinstance(split, str) or split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    stem = "train" if split == "train" else "t10k"
    images = _read_idx(_find(source, folder, f"{stem}-images-idx3-ubyte"))
    labels = _read_idx(_find(source, folder, f"{stem}-labels-idx1-ubyte"))
    return torch.nn.functional.pad(torch.from_numpy(images), (2, 2, 2, 2)), torch.from_numpy(labels)


def _find(source: _Source, folder: str | Path | None, name: str) -> Path:
    if folder is None:
        return _download(source, name)
    for path in sorted(Path(folder).rglob(f"{name.replace('-idx', '?idx')}*")):
        if path.suffix in ("", ".gz", ".idx3-ubyte", ".idx1-ubyte"):
            return path
    raise FileNotFoundError(f"no {name}[.gz] in {folder}; expected a folder with the data set's idx files")


def _download(source: _Source, name: str) -> Path:
    target = Path.home() / ".cache" / "fcs_lab" / source.folder / f"{name}.gz"
    if not target.exists():
        try:
            with urllib.request.urlopen(f"{source.url}{name}.gz", timeout=60) as response:
                content = response.read()
        except OSError as error:
            raise OSError(
                f"could not download {source.url}{name}.gz ({error}); "
                "without a network, pass a folder that has the idx files"
            ) from error
        if hashlib.md5(content).hexdigest() != source.files[name]:
            raise OSError(f"{source.url}{name}.gz arrived damaged (its MD5 sum differs); try again")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return target


def _read_idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    zero, kind, rank = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != 8:
        raise ValueError(f"{path} is not an idx file of bytes")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} is truncated: its header says {shape}, it holds {values.size} values")
    return values.reshape(shape).copy()
