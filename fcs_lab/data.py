"""Images to work on: the bundled test digits, and MNIST itself for training.

All of the package's digits are 32×32: MNIST's 28×28 padded by two pixels of background on every side, so that
a U-Net can halve them three times.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import urllib.request
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["load_digits", "read_mnist"]

BUNDLED_DIGITS = Path(__file__).parent / "weights" / "digits.safetensors"

# The usual mirror and the MD5 sums that torchvision publishes for it.
MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def load_digits(count: int = 256) -> tuple[Tensor, Tensor]:
    """The first `count` of the 256 bundled MNIST test digits.

    Args:
        count: How many, 1 to 256.

    Returns:
        Images (count, 1, 32, 32), float32 in [-1, 1] (−1 is background), and their labels (count,), int64 in 0…9.

    Raises:
        ValueError: `count` is not within 1…256.
    """
    digits = load_file(BUNDLED_DIGITS)
    if not 1 <= count <= len(digits["labels"]):
        raise ValueError(f"count is {count!r}; {len(digits['labels'])} digits are bundled, so expected 1 to that")
    return scale(digits["images"][:count]), digits["labels"][:count].long()


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
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'")
    stem = "train" if split == "train" else "t10k"
    images = _read_idx(_find(folder, f"{stem}-images-idx3-ubyte"))
    labels = _read_idx(_find(folder, f"{stem}-labels-idx1-ubyte"))
    return torch.nn.functional.pad(torch.from_numpy(images), (2, 2, 2, 2)), torch.from_numpy(labels)


def _find(folder: str | Path | None, name: str) -> Path:
    if folder is None:
        return _download(name)
    for path in sorted(Path(folder).rglob(f"{name.replace('-idx', '?idx')}*")):
        if path.suffix in ("", ".gz", ".idx3-ubyte", ".idx1-ubyte"):
            return path
    raise FileNotFoundError(f"no {name}[.gz] in {folder}; expected a folder with MNIST's idx files")


def _download(name: str) -> Path:
    target = Path.home() / ".cache" / "fcs_lab" / f"{name}.gz"
    if not target.exists():
        try:
            with urllib.request.urlopen(f"{MNIST_URL}{name}.gz", timeout=60) as response:
                content = response.read()
        except OSError as error:
            raise OSError(
                f"could not download {MNIST_URL}{name}.gz ({error}); "
                "without a network, pass a folder that has MNIST's idx files"
            ) from error
        if hashlib.md5(content).hexdigest() != MNIST_FILES[name]:
            raise OSError(f"{MNIST_URL}{name}.gz arrived damaged (its MD5 sum differs); try again")
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
