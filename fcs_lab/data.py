"""Images to work on: the bundled test digits and garments, and all of MNIST and Fashion-MNIST for training.

All of the package's digits and garments are 32×32: the data sets' 28×28 padded by two pixels of background on every
side, so that a U-Net can halve them three times.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fcs_lab.checks import is_int

__all__ = ["GARMENTS", "load_digits", "load_garments", "read_fashion_mnist", "read_mnist"]

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


def load_digits(count: int = 256) -> tuple[Tensor, Tensor]:
    """The first `count` of the 256 bundled MNIST test digits.

    Args:
        count: How many, 1 to 256.

    Returns:
        Images (count, 1, 32, 32), float32 in [-1, 1] (−1 is background), and their labels (count,), int64 in 0…9.

    Raises:
        ValueError: `count` is not within 1…256.
    """
    return _load_bundled(BUNDLED_DIGITS, count)


def load_garments(count: int = 256) -> tuple[Tensor, Tensor]:
    """The first `count` of the 256 bundled Fashion-MNIST test garments; as `load_digits`.

    Returns:
        Images (count, 1, 32, 32), float32 in [-1, 1], and their classes (count,), int64; `GARMENTS` names them.
    """
    return _load_bundled(BUNDLED_GARMENTS, count)


def _load_bundled(path: Path, count: int) -> tuple[Tensor, Tensor]:
    bundled = load_file(path)
    if not is_int(count) or not 1 <= count <= len(bundled["labels"]):
        raise ValueError(f"count is {count!r}; {len(bundled['labels'])} {path.stem} are bundled, so expected 1 to that")
    return scale(bundled["images"][:count]), bundled["labels"][:count].long()


def scale(images: Tensor) -> Tensor:
    """Grey levels (N, H, W), uint8, to (N, 1, H, W), float32 in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1


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
    """
    return _read_split(MNIST, folder, split)


def read_fashion_mnist(folder: str | Path | None = None, split: Literal["train", "test"] = "train") -> tuple[Tensor, Tensor]:
    """Fashion-MNIST, which has MNIST's format and sizes; arguments, results and errors as for `read_mnist`."""
    return _read_split(FASHION_MNIST, folder, split)


def _read_split(source: _Source, folder: str | Path | None, split: str) -> tuple[Tensor, Tensor]:
    if split not in ("train", "test"):
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
