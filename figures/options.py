"""What the figures' commands have in common: which model, which pictures, and what the record says of them.

The figures that are committed are those of the defaults. `--output` has to be another folder if they are to stay.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fcs_lab
from fcs_lab.checks import check_seed
from fcs_lab.data import example_images, image_files
from fcs_lab.denoisers import as_model
from fcs_lab.images import fit_image
from fcs_lab.metrics import clustered, mean_and_error
from fcs_lab.records import TOLERANCE, save_figure

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
SOLVED = 0.2
"""The tolerance of figures with J⁻¹ e, whose iteration amplifies rounding: its cosine with J e differed by a twentieth."""
LARGE = 3 * 128 * 128
"""Values of an image, beyond which images are sampled one by one: a batch of Stable Diffusion's would not fit a GPU."""


@dataclass(frozen=True)
class Options:
    """What a figure is made with. None: what the script takes by default."""

    model: str | None = None
    """A bundled model's name, a folder in diffusers' layout, or a hub id."""
    images: Path | None = None
    """A folder of pictures, taken in the order of their names."""
    prompt: str | None = None
    """Of a text-conditional model; its guidance scale is that of `fcs_lab.load`, 7.5."""
    device: str | None = None
    dtype: str | None = None
    """What the network runs in, a name of `DTYPES`."""
    seed: int | None = None

    def load(self, default: str, dtype: torch.dtype | None = None) -> fcs_lab.Denoiser:
        """The model.

        Args:
            default: Its name if none was asked for.
            dtype: Its precision if none was asked for.
        """
        if self.images is not None and not _files(self.images):
            raise ValueError(f"images is {str(self.images)!r}; expected a folder with pictures in it")
        dtype = dtype if self.dtype is None else DTYPES[self.dtype]
        return fcs_lab.load(self.model or default, device=self.device, torch_dtype=dtype, prompt=self.prompt)

    def pictures(self, model: fcs_lab.Denoiser, count: int) -> Tensor:
        """Images of the model's size, (N, C, H, W): the first of the folder, or examples of what the model was trained on.

        Pictures of another size are cut to their middle and resized with antialiasing, which is said.

        Args:
            model: Whose.
            count: How many at most; N is less where there are fewer.
        """
        if self.images is None:
            return example_images(model)[:count]
        found = []
        for file in _files(self.images)[:count]:
            image, said = fit_image(file, tuple(as_model(model).image_shape))
            found.append(image)
            if said:
                print(f"{file.name}: {said}")
        return torch.cat(found)

    def picture(self, model: fcs_lab.Denoiser, i: int) -> Tensor:
        """The i-th of `pictures`, or the last where there are fewer: (1, C, H, W)."""
        return self.pictures(model, i + 1)[-1:]

    def seed_or(self, default: int) -> int:
        """The seed.

        Raises:
            ValueError: It is no seed.
        """
        return check_seed(default if self.seed is None else self.seed)

    @property
    def default(self) -> bool:
        """Whether model and pictures are the script's own, so that their labels are known."""
        return self.model is None and self.images is None

    def refuse(self, what: str, *names: str) -> None:
        """That none of these was asked for.

        Args:
            what: Why: what the figure is of.
            names: "model", "images" and so on.

        Raises:
            ValueError: One was; it is named.
        """
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is {str(getattr(self, name))!r}; {what}, so leave --{name} out")

    def save(
        self,
        figure: Any,
        path: Path,
        *,
        model: str | Sequence[str],
        settings: dict[str, Any],
        tolerance: float = TOLERANCE,
        **record: Any,
    ) -> None:
        """`fcs_lab.records.save_figure`, with what was asked for in the record.

        Args:
            figure, path, tolerance, record: As there.
            model: The default.
            settings: What the figure depends on besides.
        """
        asked = {name: getattr(self, name) for name in ("images", "prompt", "device", "dtype")}
        asked = {name: str(value) for name, value in asked.items() if value is not None}
        save_figure(figure, path, model=self.model or model, settings=settings | asked, tolerance=tolerance, **record)


DEFAULT = Options()


def sample(
    model: fcs_lab.Denoiser, task: Callable[[Tensor], Any] | None, images: Tensor, seed: int, **settings: Any
) -> fcs_lab.Result:
    """`fcs_lab.sample`, image by image where they are large; each comes out as it would alone, with seed, seed + 1, …

    Args:
        model: The model.
        task: Some of the images -> their constraint. None: there is none.
        images: What is to be restored, (N, C, H, W).
        seed: Of the first.
        settings: The other arguments of `fcs_lab.sample`.

    Returns:
        The samples, on the CPU; the evaluations are means, the trace is the last part's.
    """
    parts = []
    for part in torch.arange(len(images)).split(len(images) if images[0].numel() <= LARGE else 1):
        constraint = None if task is None else task(images[part])
        chosen = [torch.Generator().manual_seed(seed + i) for i in part.tolist()]
        parts.append(fcs_lab.sample(model, constraint, batch_size=len(part), generator=chosen, **settings))
    means = {name: statistics.mean(getattr(one, name) for one in parts) for name in ("nfe", "n_backward")}
    joined = {name: torch.cat([getattr(one, name).cpu() for one in parts]) for name in ("x0", "images")}
    return replace(parts[-1], **joined, **means)


def complete(model: fcs_lab.Denoiser, images: Tensor, seed: int, **settings: Any) -> fcs_lab.Result:
    """The images (N, C, H, W) with their right halves hidden and made up; otherwise as `sample`."""
    mask = right_half(model)
    return sample(model, lambda some: fcs_lab.Inpainting(some, mask), images, seed, **settings)


def mean(values: Tensor) -> dict[str, float | None]:
    """The mean of (n,) values and its standard error, by name; of one value there is no error."""
    if len(values) == 1:
        return {"mean": values.item(), "error": None}
    return dict(zip(("mean", "error"), mean_and_error(values), strict=True))


def mean_of_emoji(values: Tensor, names: Sequence[str]) -> dict[str, float]:
    """As `mean`, of pictures called "concept, style": those of one concept are not independent."""
    concepts = [name.rpartition(", ")[0] for name in names]
    return dict(zip(("mean", "error"), clustered(values, concepts), strict=True))


def right_half(model: fcs_lab.Denoiser) -> Tensor:
    """A mask that hides the right half of the model's images, (1, 1, H, W)."""
    mask = torch.zeros(1, 1, *as_model(model).image_shape[-2:], dtype=torch.bool)
    mask[..., mask.shape[-1] // 2 :] = True
    return mask


def noisy(model: fcs_lab.Denoiser, image: Tensor, t: int, seed: int) -> Tensor:
    """x_t of an image (1, C, H, W), in latent space for a latent model, on its device."""
    with torch.no_grad():
        x_0 = as_model(model).encode(image)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed)).to(x_0)
    return model.scheduler.add_noise(x_0, noise, torch.tensor([t]))


def place(model: fcs_lab.Denoiser, pixel: tuple[int, int]) -> tuple[int, int]:
    """A pixel of a 32×32 image as the same place, (row, column), of the model's x_t."""
    return tuple(i * size // 32 for i, size in zip(pixel, model.shape[-2:], strict=True))


def parser(description: str) -> argparse.ArgumentParser:
    """The parser of a figure's command line."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    output = Path(__file__).parent / "output"
    found.add_argument("--output", type=Path, default=output, help="folder (figures/output)")
    found.add_argument("--model", help="a bundled model's name, a folder in diffusers' layout, or a hub id")
    found.add_argument("--images", type=Path, help="a folder of pictures")
    found.add_argument("--prompt", help="of a text-conditional model")
    found.add_argument("--device", help="such as cuda; by default the GPU if there is one")
    found.add_argument("--dtype", choices=DTYPES, help="what the network runs in")
    found.add_argument("--seed", type=int, help="of the first image; the others have the next ones")
    return found


def parse(description: str, arguments: Sequence[str] | None = None) -> tuple[Path, Options]:
    """A figure's command line: the folder it is written into, and the options."""
    asked = vars(parser(description).parse_args(arguments))
    return asked.pop("output"), Options(**asked)


def _files(folder: Path) -> list[Path]:
    return image_files(folder) if folder.is_dir() else []
