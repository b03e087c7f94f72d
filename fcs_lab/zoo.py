"""Models to sample from: `load` takes the name of a bundled one, a folder in diffusers' layout, or a hub id."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils import logging

from fcs_lab.denoisers import UNetDenoiser

__all__ = ["BUNDLED", "checkpoints", "load", "verify"]

WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = ("mnist",)
"""Names that `load` takes without a network. Each has a model card, `fcs_lab/weights/<name>/README.md`."""


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
) -> UNetDenoiser:
    """A pre-trained model as a denoiser x̂_0(x_t, t).

    Args:
        name: A bundled model ("mnist"), a folder in diffusers' layout, or a hub id such as
            "google/ddpm-cat-256". Unconditional pixel models are supported.
        device: Where it runs. None: CUDA if there is one, else the CPU.
        torch_dtype: The precision that the network runs in. None: float32.

    Returns:
        The denoiser; its `scheduler` is a DDIM one with the model's own noise schedule.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A pipeline that is not supported, pickled weights, a damaged file.
        OSError: Nothing of that name was found, or the hub cannot be reached.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise TypeError(f"name is {name!r}; expected a bundled model's name, a folder, or a hub id")
    if torch_dtype is not None and not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
        raise TypeError(f"torch_dtype is {torch_dtype!r}; expected a floating-point torch.dtype")
    device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    if str(name) in BUNDLED:
        folder = WEIGHTS / str(name)
        verify(folder)
    else:
        folder = Path(name)
        if not folder.is_dir() and (isinstance(name, Path) or str(name).count("/") != 1 or str(name)[0] in "./~"):
            raise OSError(f"there is no bundled model and no folder {str(name)!r}; {_offered()}")
    pipeline = _read_pipeline(folder if folder.is_dir() else str(name), torch_dtype or torch.float32)

    unet = getattr(pipeline, "unet", None)
    if set(pipeline.components) != {"unet", "scheduler"} or not isinstance(unet, UNet2DModel):
        raise ValueError(
            f"{name} is a {type(pipeline).__name__}; supported are unconditional pixel pipelines: "
            "a UNet2DModel with a scheduler (DDPMPipeline, DDIMPipeline)"
        )
    own = pipeline.scheduler
    if not hasattr(own, "alphas_cumprod") or "prediction_type" not in own.config:
        raise ValueError(f"{name} has a {type(own).__name__}; supported are schedulers with a noise schedule ᾱ_t")
    if "DDIM" not in type(own).__name__ and "DDPM" not in type(own).__name__:
        warnings.warn(
            f"{name} comes with a {type(own).__name__}; sampling here uses DDIM with its noise schedule", stacklevel=2
        )
    return UNetDenoiser(unet.to(device), DDIMScheduler.from_config(own.config))


def checkpoints(name: str) -> list[Path]:
    """The folders of a bundled model's checkpoints along its training run, earliest first; `load` takes each.

    They are in the repository, not in the wheel.

    Raises:
        ValueError: Not a bundled model.
        FileNotFoundError: This installation came without them.
    """
    if name not in BUNDLED:
        raise ValueError(f"name is {name!r}; {_offered()}")
    folders = sorted((WEIGHTS / f"{name}-checkpoints").glob("step-*"))
    if not folders:
        raise FileNotFoundError(f"the checkpoints of {name!r} are in the project's repository, not in the installed package")
    return folders


def verify(folder: Path) -> None:
    """Check a bundled folder's files against the SHA-256 sums kept beside it.

    Raises:
        ValueError: A file is missing or differs; the message names it.
    """
    for file, expected in json.loads((WEIGHTS / "checksums.json").read_text())[folder.name].items():
        path = folder / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != expected:
            raise ValueError(
                f"{path} is damaged (SHA-256 {found[:12]}, expected {expected[:12]}): reinstall fcs_lab, "
                "or restore the file from the repository"
            )


def _offered() -> str:
    bundled = ", ".join(map(repr, BUNDLED))
    return f"expected a bundled model ({bundled}), a folder in diffusers' layout, or a hub id 'owner/name'"


def _read_pipeline(source: str | Path, torch_dtype: torch.dtype) -> DiffusionPipeline:
    """diffusers' own loader, held to safetensors, its errors put in words that help."""
    if isinstance(source, Path):
        if not (source / "model_index.json").is_file():
            raise ValueError(f"{source} has no model_index.json; expected a folder that save_pretrained of a pipeline wrote")
        if not list(source.rglob("*.safetensors")):
            pickled = sorted(path.name for suffix in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in source.rglob(suffix))
            if pickled:
                raise ValueError(
                    f"{source} has pickled weights ({', '.join(pickled)}), which can run code when read and are refused; "
                    "save them as safetensors (save_pretrained with safe_serialization=True)"
                )
            raise ValueError(f"{source} has no .safetensors weights")
    noisy = logging.is_progress_bar_enabled()
    if isinstance(source, Path):  # a bar is for downloads, not for two files on the disk
        logging.disable_progress_bar()
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=torch_dtype, use_safetensors=True)
    except Exception as error:
        if isinstance(source, Path):
            raise ValueError(f"{source} cannot be read, a file in it may be damaged or truncated: {error}") from error
        raise OSError(
            f"could not get {source!r} from the hub: it is misspelt, gated, without safetensors weights, or the hub cannot "
            f"be reached. Without a network, use a bundled model ({', '.join(map(repr, BUNDLED))}), or fetch it where there "
            f"is one (hf download {source} --local-dir FOLDER) and load the folder. ({type(error).__name__}: {error})"
        ) from error
    finally:
        if noisy:
            logging.enable_progress_bar()
