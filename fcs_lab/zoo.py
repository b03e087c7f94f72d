"""Models to sample from: `load` takes the name of a bundled one, a folder in diffusers' layout, or a hub id.

This is where loading is made safe: only safetensors are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, DiffusionPipeline, SchedulerMixin, UNet2DModel, pipelines
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

from fcs_lab.checks import describe
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import InpaintingDenoiser, UNetDenoiser, is_tuned
from fcs_lab.latent import LatentDenoiser
from fcs_lab.precision import channels_last_if_half
from fcs_lab.schedule import is_flow

T = TypeVar("T")

__all__ = ["BUNDLED", "checkpoints", "load", "load_pipeline", "verify"]

WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = ("mnist", "fashion", "emoji", "mnist-inpainting")
"""Names that `load` takes without a network. Each has a model card, `fcs_lab/weights/<name>/README.md`."""

PIXEL_PIPELINES = {"DDPMPipeline", "DDIMPipeline", "PNDMPipeline"}
LATENT_PIPELINES = {
    f"StableDiffusion{version}{task}Pipeline" for version in ("", "XL", "3") for task in ("", "Img2Img", "Inpaint")
} | {"FastConstrainedPipeline"}
"""The pipeline classes that `load` takes, by the name in their model_index.json."""
OWN_PIPELINES = {"FastConstrainedPipeline": "StableDiffusionPipeline"}
"""Those of this package, and the class of diffusers with the same parts."""


NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
"""What judges finished images or conditions on others is not the denoiser's; the checker alone is 1.2 GB."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@ordinary()
def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    torch_dtype: torch.dtype | None = None,
    prompt: str | list[str] | None = None,
    negative_prompt: str | list[str] | None = None,
    guidance_scale: float | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
) -> UNetDenoiser | LatentDenoiser:
    """A pre-trained model as a denoiser x̂_0(x_t, t).

    Args:
        name: A bundled model ("mnist", "fashion", "emoji", "mnist-inpainting"), a folder in diffusers' layout, a single
            .safetensors file of a whole pipeline, or a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5" or
            "google/ddpm-cat-256". Supported are unconditional pixel models, and Stable Diffusion 1.x, 2.x, XL and 3.
        device: Where it runs. None: CUDA if there is one, else the CPU.
        torch_dtype: The precision that the network runs in. None: float32.
        prompt, negative_prompt, guidance_scale: Of a text-conditional model; see `LatentDenoiser.with_prompt`, which
            changes them later. None: the null prompt, and for a prompt a guidance scale of 7.5.
        variant, config: As for `load_pipeline`.

    Returns:
        The denoiser: a `LatentDenoiser` for a latent model, an `InpaintingDenoiser` for a pixel model that also takes a mask
        and an image ("mnist-inpainting"). Its `scheduler` has the model's own noise schedule: a DDIM
        one, or for a rectified flow a flow-match Euler one.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A pipeline that is not supported, pickled weights, a damaged file, a device that is not there, a
            prompt for an unconditional model.
        OSError: Nothing of that name was found, or the hub cannot be reached.

    Example:
        >>> model = fcs_lab.load("mnist")
        >>> model.shape, model.dtype
        ((1, 32, 32), torch.float32)
    """
    if torch_dtype is not None and not (isinstance(torch_dtype, torch.dtype) and torch_dtype.is_floating_point):
        raise TypeError(f"torch_dtype is {torch_dtype!r}; expected a floating-point torch.dtype")
    device = _check_device(device)
    source, index = _look_up(name, config)
    kind = _check_kind(name, index)
    if kind in PIXEL_PIPELINES:
        text = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance_scale": guidance_scale}
        for argument, value in text.items():
            if value is not None:
                raise ValueError(f"{argument} is {value!r}, but {name} is an unconditional model; it takes no prompt")
    left_out = {part: None for part in index if part in NOT_NEEDED}
    if "safety_checker" in index:
        left_out["requires_safety_checker"] = False
    pipeline = _read_pipeline(source, index, config, dtype=torch_dtype or torch.float32, variant=variant, **left_out)
    scheduler = own_schedule(name, pipeline.scheduler)
    pipeline.to(device)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
            channels_last_if_half(part, torch_dtype)
    if kind in LATENT_PIPELINES:
        text = {} if prompt is None else {"prompt": prompt}
        scale = guidance_scale if guidance_scale is not None else 7.5 if prompt is not None else 1.0
        return LatentDenoiser(pipeline, scheduler, **text, negative_prompt=negative_prompt, guidance_scale=scale)
    unet = getattr(pipeline, "unet", None)
    if set(pipeline.components) != {"unet", "scheduler"} or not isinstance(unet, UNet2DModel):
        raise ValueError(f"{name} has {', '.join(pipeline.components)}; expected a UNet2DModel and a scheduler")
    return InpaintingDenoiser(unet, scheduler) if is_tuned(unet) else UNetDenoiser(unet, scheduler)


@ordinary()
def load_pipeline(
    name: str | Path, *, variant: str | None = None, config: str | Path | None = None, **options: Any
) -> DiffusionPipeline:
    """A diffusers pipeline of any class, from safetensors alone, and without running code that came with it.

    Args:
        name: As for `load`.
        variant: Of the weights' files, such as "fp16". None: those without, or, in a folder that has none such, its only
            variant.
        config: For a single file, a folder in diffusers' layout with the configurations (and the tokenizer) of a pipeline
            of the same kind; weights that the file lacks are taken from there.
        **options: As for `DiffusionPipeline.from_pretrained`: dtype, revision, token, a part such as vae=…, and so on.

    Raises:
        TypeError, ValueError, OSError: As for `load`; an option that would read pickles or run code.

    Example:
        >>> type(fcs_lab.zoo.load_pipeline(fcs_lab.zoo.WEIGHTS / "fashion")).__name__
        'StableDiffusionPipeline'
    """
    for option, harmless in {"use_safetensors": True, "custom_pipeline": None, "trust_remote_code": None}.items():
        if options.pop(option, harmless) not in (harmless, None):
            raise ValueError(
                f"{option} is given; only safetensors are loaded here, and no code that comes with a model is run"
            )
    source, index = _look_up(name, config, **{key: options[key] for key in HUB if key in options})
    _check_parts(name, index)
    return _read_pipeline(source, index, config, variant=variant, **options)


HUB = ("cache_dir", "force_download", "proxies", "token", "local_files_only", "revision")
"""Options of reading from the hub."""


def _look_up(name: str | Path, config: str | Path | None, **hub: Any) -> tuple[Path | str, dict[str, Any]]:
    """Where a model is (a folder, a file, a hub id), and its model_index.json."""
    if config is not None and not isinstance(config, str | Path):
        raise TypeError(f"config is {describe(config)}; expected a folder")
    if not isinstance(name, str | Path) or not str(name):
        raise TypeError(f"name is {name!r}; expected a bundled model's name, a folder, a .safetensors file, or a hub id")
    if str(name) in BUNDLED:
        path = WEIGHTS / str(name)
        verify(path)
    else:
        path = Path(name)
    if path.is_file():
        if path.suffix != ".safetensors":
            what = "pickled weights, which can run code when read and are refused" if path.suffix in PICKLED else "no model"
            raise ValueError(f"{path} is {what}; expected a .safetensors file")
        if config is None:
            raise ValueError(
                f"{path} is a single file, which lacks its pipeline's configuration: pass config=, a folder in diffusers' "
                "layout of a pipeline of the same kind (its json files and its tokenizer)"
            )
        folder = Path(config)
    else:
        if config is not None:
            raise ValueError(f"config is {str(config)!r}, but {name} is no single file; it has its own configuration")
        folder = path
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} has no model_index.json; expected a folder that save_pretrained of a pipeline wrote")
    elif path.is_file() or isinstance(name, Path) or str(name).count("/") != 1 or str(name)[0] in "./~":
        what = f"config is {str(config)!r}, and there is no such folder" if path.is_file() else ""
        raise OSError(what or f"there is no bundled model and no folder {str(name)!r}; {_offered()}")
    source = path if path.exists() else str(name)
    index = _read(source, lambda: DiffusionPipeline.load_config(folder if folder.is_dir() else source, **hub))
    if not isinstance(index, dict):
        raise ValueError(f"{name}: its model_index.json holds {index!r}; expected a pipeline's parts")
    return source, index


def _read_pipeline(
    source: Path | str, index: dict[str, Any], config: str | Path | None, *, variant: str | None = None, **options: Any
) -> DiffusionPipeline:
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise ValueError(f"variant is {describe(variant)}; expected a name such as 'fp16', or None")

    def kind() -> type[DiffusionPipeline]:
        return getattr(diffusers, OWN_PIPELINES.get(index["_class_name"], index["_class_name"]))

    # What the pipeline was saved without (often SD 3's T5), diffusers wants to be told again.
    left_out = {part: None for part, entry in index.items() if isinstance(entry, list | tuple) and entry[0] is None}
    options = left_out | options
    parts = [part for part, entry in index.items() if isinstance(entry, list | tuple) and options.get(part, entry) is entry]
    if isinstance(source, str):
        return _read(source, lambda: kind().from_pretrained(source, use_safetensors=True, variant=variant, **options))
    if source.is_file():
        _check_weights(Path(config), parts)
        local = {"config": str(config), "local_files_only": True}
        return _read(source, lambda: kind().from_single_file(str(source), **local, **options))
    with quiet():
        networks = [part for part in parts if _is_class(_find(*index[part]), nn.Module)]
    found = _check_weights(source, parts, networks)
    variant = found if variant is None else variant
    return _read(source, lambda: kind().from_pretrained(source, use_safetensors=True, variant=variant, **options))


def _check_device(device: str | torch.device | None) -> torch.device:
    """The device, once it is known to be there."""
    try:
        device = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; expected a torch device such as 'cpu', 'cuda' or 'mps'") from error
    there = {
        "cpu": 1,
        "meta": 0,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 1)
    if (device.index or 0) >= there:
        raise ValueError(f"device is {str(device)!r}; this machine has {there} of kind {device.type!r}; use device='cpu'")
    return device


def own_schedule(name: str | Path, own: SchedulerMixin) -> SchedulerMixin:
    """A scheduler that the method can use, with the noise schedule that the model `name` was trained on.

    Raises:
        ValueError: It has none, or one of another kind.
    """
    if is_flow(own):
        return own
    if not hasattr(own, "alphas_cumprod") or "prediction_type" not in own.config:
        raise ValueError(
            f"{name} has a {type(own).__name__}; supported are schedulers with a noise schedule ᾱ_t, and "
            "FlowMatchEulerDiscreteScheduler"
        )
    if "DDIM" not in type(own).__name__ and "DDPM" not in type(own).__name__:
        warnings.warn(
            f"{name} comes with a {type(own).__name__}; sampling here uses DDIM with its noise schedule", stacklevel=3
        )
    return DDIMScheduler.from_config(own.config)


def _supported() -> str:
    return (
        "unconditional pixel pipelines (a UNet2DModel with a scheduler: DDPMPipeline, DDIMPipeline) and "
        "Stable Diffusion 1.x, 2.x, XL and 3 (StableDiffusionPipeline, StableDiffusionXLPipeline, "
        "StableDiffusion3Pipeline); for other text-to-image pipelines use fcs_lab.constrained (fcs_lab.zoo.load_pipeline "
        "loads them)"
    )


def checkpoints(name: str) -> list[Path]:
    """The folders of a bundled model's checkpoints along its training run, earliest first; `load` takes each.

    They are in the repository, not in the wheel.

    Raises:
        ValueError: Not a bundled model.
        FileNotFoundError: This installation came without them.

    Example:
        >>> [folder.name for folder in fcs_lab.zoo.checkpoints("mnist")][0].startswith("step-")
        True
    """
    if not isinstance(name, str) or name not in BUNDLED:
        raise ValueError(f"name is {name!r}; {_offered()}")
    folders = sorted((WEIGHTS / f"{name}-checkpoints").glob("step-*"))
    if not folders:
        raise FileNotFoundError(
            f"there are no checkpoints of {name!r} here; those of 'mnist' are in the repository, not in the package"
        )
    return folders


def verify(folder: Path) -> None:
    """Check a bundled folder's files against the SHA-256 sums kept beside it.

    Raises:
        ValueError: A file is missing or differs; the message names it.

    Example:
        >>> fcs_lab.zoo.verify(fcs_lab.zoo.WEIGHTS / "mnist")  # says nothing where all is well
    """
    for file, expected in json.loads((WEIGHTS / "checksums.json").read_text())[folder.name].items():
        path = folder / file
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if found != expected:
            raise ValueError(
                f"{path} is damaged (SHA-256 {found[:12]}, expected {expected[:12]}): reinstall fcs_lab, "
                "or restore the file from the repository"
            )


def _check_kind(name: str | Path, index: dict[str, Any]) -> str:
    """The pipeline's class, once it is one that `load` takes, made of diffusers' and transformers' own parts."""
    kind = index.get("_class_name")
    if isinstance(kind, str | None) and kind not in PIXEL_PIPELINES | LATENT_PIPELINES:
        raise ValueError(f"{name} is a {kind}; supported are {_supported()}")
    _check_parts(name, index)
    return kind


def _check_parts(name: str | Path, index: dict[str, Any]) -> None:
    """That a pipeline and its parts are diffusers' and transformers' own, and its parts' folders within its own."""
    for part, entry in index.items():
        if not re.fullmatch(r"\w+", part):
            raise ValueError(f"{name} has a part named {part!r}; expected names that are folders of its own")
        if isinstance(entry, list | tuple) and (len(entry) != 2 or not all(isinstance(one, str | None) for one in entry)):
            raise ValueError(f"{name} is damaged: its {part} is {entry}; expected a library and a class")
        listed = isinstance(entry, list | tuple)  # (module, class), as a pipeline's class is if it is not diffusers' own
        if listed and (part == "_class_name" or not _is_known(entry[0])):
            what = "its pipeline" if part == "_class_name" else part
            raise ValueError(
                f"{name} comes with code of its own ({what} is {'.'.join(map(str, entry))}), which is not run; "
                f"supported are {_supported()}"
            )
    kind = index.get("_class_name")
    with quiet():  # what is only looked at is imported all the same
        known = isinstance(kind, str) and _is_class(
            getattr(diffusers, OWN_PIPELINES.get(kind, kind), None), DiffusionPipeline
        )
        if not known:
            raise ValueError(f"{name} is a {kind}; expected a pipeline of diffusers")
        for part, entry in index.items():
            if isinstance(entry, list | tuple) and entry[0] is not None and not _is_class(_find(*entry)):
                raise ValueError(f"{name} is damaged: its {part} is {'.'.join(entry)}; expected a class that can be loaded")


def _find(library: str, kind: str) -> object:
    """A class of diffusers, of one of its pipelines' packages, or of transformers, by its name."""
    module = {"diffusers": diffusers, "transformers": transformers}.get(library) or getattr(pipelines, library)
    return getattr(module, kind, None)


def _is_class(found: object, base: type = object) -> bool:
    return isinstance(found, type) and issubclass(found, base) and hasattr(found, "from_pretrained")


def _is_known(library: object) -> bool:
    """Whether a part comes from diffusers (also by the name of one of its pipelines' packages), or from transformers."""
    return library in (None, "diffusers", "transformers") or (isinstance(library, str) and hasattr(pipelines, library))


def _offered() -> str:
    bundled = ", ".join(map(repr, BUNDLED))
    return f"expected a bundled model ({bundled}), a folder in diffusers' layout, or a hub id 'owner/name'"


def _check_safetensors(path: Path) -> None:
    """That a safetensors file has all the bytes that its header tells of."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read, it may be damaged or truncated: {error}") from error


NAME = re.compile(r"[\w-]+?(\.(?P<before>[A-Za-z][\w-]*?))?(-\d{5}-of-\d{5})?(\.(?P<after>[A-Za-z]\w*))?\.safetensors")
"""A weights' file: its variant stands before or after the number of its part."""


def _check_weights(folder: Path, parts: list[str], needed: Sequence[str] = ()) -> str | None:
    """That the parts' weights in a folder are whole safetensors; the variant, if those of all are of one and the same."""
    variants = set()
    for part in parts:
        files = sorted(path.name for path in (folder / part).glob("*"))
        weights = [name for name in files if name.endswith(".safetensors")]
        pickled = [name for name in files if name.endswith(PICKLED)]
        if pickled and not weights:
            raise ValueError(
                f"{folder} has pickled weights ({', '.join(pickled)}) of its {part}, which can run code when read and are "
                "refused; save them as safetensors (save_pretrained with safe_serialization=True)"
            )
        if not weights and part in needed:
            raise ValueError(f"{folder} has no .safetensors weights of its {part}")
        for name in weights:
            _check_safetensors(folder / part / name)
        found = {match["before"] or match["after"] for match in map(NAME.fullmatch, weights) if match}
        variants |= {None} if None in found else found
    return variants.pop() if len(variants) == 1 else None


def _read(source: str | Path, read: Callable[[], T]) -> T:
    """What diffusers' own loader reads, its errors put in words that help."""
    try:
        with quiet(loading_bars=not isinstance(source, Path)):
            return read()
    except Exception as error:
        if isinstance(source, Path):
            raise ValueError(f"{source} cannot be read, a file in it may be damaged or truncated: {error}") from error
        raise OSError(
            f"could not get {source!r} from the hub: it is misspelt, gated, without safetensors weights, or the hub cannot "
            f"be reached. A gated model asks you to accept its terms on its page and to log in (hf auth login). Without a "
            f"network, use a bundled model ({', '.join(map(repr, BUNDLED))}), or fetch it where there is one "
            f"(hf download {source} --local-dir FOLDER) and load the folder. ({type(error).__name__}: {error})"
        ) from error


@contextmanager
def quiet(loading_bars: bool = False) -> Iterator[None]:
    """While this lasts, loading is silent about what its user need not see; warnings of any other kind come through.

    transformers says of each image processor which of its two backends it takes when torchvision is not installed, and
    draws a bar for weights that it reads from the disk, which `loading_bars` leaves on (for downloads).
    """
    with ExitStack() as stack:
        logger = logging.getLogger("transformers.utils.import_utils")
        logger.addFilter(_not_about_torchvision)
        stack.callback(logger.removeFilter, _not_about_torchvision)
        for library in () if loading_bars else (diffusers_logging, transformers_logging):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                stack.callback(library.enable_progress_bar)
        yield


def _not_about_torchvision(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in record.getMessage()
