"""A cell of a map: what is measured of it, and how it is sampled."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from fcs_lab.baselines import METHODS, WITHOUT_MODEL
from fcs_lab.constraints import Inpainting
from fcs_lab.contexts import ordinary
from fcs_lab.denoisers import Denoiser, networks_of
from fcs_lab.forecast import seconds_of_an_evaluation
from fcs_lab.images import read_image, to_pil, to_tensor
from fcs_lab.metrics import mean_and_error
from fcs_lab.records import rounded
from fcs_lab.sampler import Result
from fcs_lab.sensitivity.axes import PROMPTED, Grid

if TYPE_CHECKING:
    from fcs_lab.study.tasks import Posed

__all__ = ["MEASURES", "Bench", "Cell", "Stopped", "digest_of"]

MEASURES = {
    "mse": "MSE of what is hidden",
    "known_mse": "MSE of what is known",
    "evaluations": "evaluations an image",
    "seconds": "seconds an image",
}
"""What a cell tells, by the name that `SensitivityMap.plot` takes."""

NOISE = 2**40
"""The noise of σ_y in image i has this seed + i, the same in every cell, and no seed that x_T has."""


@dataclass(frozen=True)
class Cell:
    """What came of one pair of values."""

    x: Any
    y: Any
    mse: tuple[float, ...] = ()
    """Of each image, of what is hidden; of the whole where no pixels are (super-resolution, say)."""
    known_mse: tuple[float, ...] = ()
    """Of each image, of the known pixels; of A x − y where there are none."""
    evaluations: float = 0.0
    """Of the network, an image."""
    backward: float = 0.0
    """Backward passes, an image."""
    seconds: float = 0.0
    """An image."""
    trace: tuple[tuple[float, tuple[float, ...]], ...] = ()
    """(evaluations so far, C of each image) at every inner step."""
    error: str | None = None
    """Why there is nothing; None where there is."""
    picture: bytes | Path | None = None
    """The images side by side, a PNG."""

    @property
    def images(self) -> Tensor | None:
        """(B, C, H, W) in [-1, 1], of 8 bits; None where it failed."""
        if self.picture is None:
            return None
        return torch.cat(to_tensor(read_image(self.picture)).chunk(len(self.mse), -1))

    def of(self, measure: str) -> tuple[float, float]:
        """The mean over the images of one of `MEASURES`, and its standard error; NaN where there is none.

        Raises:
            ValueError: An unknown measure.
        """
        if not isinstance(measure, str) or measure not in MEASURES:
            raise ValueError(f"measure is {measure!r}; expected one of {', '.join(map(repr, MEASURES))}")
        values = getattr(self, measure)
        if self.error is not None:
            return math.nan, math.nan
        if not isinstance(values, tuple):
            return float(values), math.nan
        return mean_and_error(torch.tensor(values, dtype=torch.float64)) if len(values) > 1 else (values[0], math.nan)


class Stopped(BaseException):
    """The run is to end within a cell."""


class Bench:
    """Where cells are sampled: a model, images, and what is the same for all of them.

    Args:
        model: The model.
        images: (B, C, H, W) in [-1, 1], on the CPU.
        grid: The settings.
        seed: Image i has a generator of seed · 1,000,003 + i, as in a study.
        batch_size: How many images are sampled together.
    """

    def __init__(self, model: Denoiser, images: Tensor, grid: Grid, seed: int, batch_size: int):
        self.model, self.images, self.grid, self.seed, self.batch_size = model, images, grid, seed, batch_size
        self._converted: tuple[str, Denoiser] | None = None
        self._seconds: float | None = None

    def sampled(self, x: Any, y: Any, stop: Callable[[], bool] | None = None) -> Cell:
        """A cell, computed.

        Args:
            x, y: Its values.
            stop: Asked after every timestep.

        Raises:
            Stopped: `stop` said so.
        """
        from fcs_lab.study.measures import measure

        n, start = len(self.images), time.perf_counter()
        rows, images, traces = [], [], []
        for first in range(0, n, self.batch_size):
            numbers = range(first, min(first + self.batch_size, n))
            posed = self.posed(x, y, numbers)
            result = self._run(x, y, posed, numbers, stop)
            images.append(result.images.detach().cpu())
            traces.append(result.trace)
            rows += measure(("mse", "consistency"), images[-1], self.images[list(numbers)], posed)
        mse = [row["mse"].get("hidden", row["mse"]["all"]) for row in rows]
        known = [row["mse"]["known"] if "known" in row["mse"] else row["consistency"]["all"] ** 2 for row in rows]
        trace = [
            (float(entries[0].nfe), tuple(rounded([cost for entry in entries for cost in entry.cost.tolist()])))
            for entries in zip(*traces, strict=True)
        ]
        return Cell(
            x,
            y,
            mse=tuple(mse),
            known_mse=tuple(known),
            evaluations=float(result.nfe),
            backward=float(result.n_backward),
            seconds=(time.perf_counter() - start) / n,
            trace=tuple(trace),
            picture=_side_by_side(torch.cat(images)),
        )

    def posed(self, x: Any, y: Any, numbers: Sequence[int] | None = None) -> Posed:
        """A cell's task on the images of these numbers; None: on all."""
        from fcs_lab.study.tasks import pose

        numbers = list(range(len(self.images)) if numbers is None else numbers)
        posed, sigma = pose(self.grid.task_of(x, y), self.images[numbers], numbers), self.grid.told(x, y).get("noise_std")
        if not sigma:
            return posed
        task = copy.copy(posed.constraint)
        noise = [torch.randn(task.y.shape[1:], generator=torch.Generator().manual_seed(NOISE + i)) for i in numbers]
        task.y, task.noise_std = task.y + sigma * torch.stack(noise).to(task.y), sigma
        if isinstance(task, Inpainting):  # whose measurements are pixels
            task.y = task.known * task.y.clamp(-1, 1)
        return replace(posed, constraint=task, given=task.y.clamp(-1, 1))

    def _run(self, x: Any, y: Any, posed: Posed, numbers: Sequence[int], stop: Callable[[], bool] | None) -> Result:
        """A cell's method on some images."""
        from fcs_lab.study.store import seeds_of

        told, call = self.grid.told(x, y), self.grid.call_of(x, y)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(self.seed, numbers)]
        if told["method"] in WITHOUT_MODEL:
            call |= {"generator": generators} if told["method"] == "deep_image_prior" else {}
            return METHODS[told["method"]](None, posed.constraint, progress=False, **call)

        def after_timestep(state: Any, step_index: int, timestep: int, tensors: dict) -> None:
            if stop is not None and stop():
                raise Stopped

        call |= {"generator": generators, "batch_size": len(numbers), "callback_on_step_end": after_timestep}
        return METHODS[told["method"]](self._model_of(told), posed.constraint, progress=False, **call)

    def _model_of(self, told: dict[str, Any]) -> Denoiser:
        """The model in a cell's precision, under its prompt."""
        model, dtype = self.model, told.get("dtype")
        if dtype is not None and str(model.dtype) != f"torch.{dtype}":
            if self._converted is None or self._converted[0] != dtype:
                self._converted = None  # so that no two copies are there at once
                self._converted = dtype, _converted(model, getattr(torch, dtype))
            model = self._converted[1]
        text = {name: told[name] for name in PROMPTED if name in told}
        if not text:
            return model
        own = {"prompt": model.prompt, "negative_prompt": model.negative_prompt} if "prompt" not in text else {}
        return model.with_prompt(**own | text)

    @ordinary()
    def seconds_of_an_evaluation(self) -> float:
        """Of one image in a batch, measured once; NaN where the model fails, as its cells will say."""
        if self._seconds is None:
            try:
                model = self._model_of(self.grid.told(*self.grid.pairs[0]))
                self._seconds = seconds_of_an_evaluation(model, min(self.batch_size, len(self.images)))
            except Exception:
                self._seconds = math.nan
        return self._seconds


def _converted(model: Denoiser, dtype: torch.dtype) -> Denoiser:
    """A copy of the model whose networks are in another precision."""
    model = copy.deepcopy(model)
    for network in networks_of(model):
        nn.Module.to(network, dtype)  # diffusers' own does the same, and warns of a list of modules that is empty
    if model.dtype != dtype:
        raise TypeError(f"dtype: the model is still in {model.dtype} with its networks in {dtype}")
    return model


def _side_by_side(images: Tensor) -> bytes:
    """Images (B, C, H, W) as one PNG."""
    buffer = io.BytesIO()
    picture: Image.Image = to_pil(torch.cat(list(images), -1)[None])[0]
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def digest_of(*what: Tensor | Denoiser) -> str:
    """What tells tensors or models from others: a model's weights and schedule count, or what it has for weights."""
    found = hashlib.sha256()
    for one in what:
        for tensor in [one] if isinstance(one, Tensor) else _numbers_of(one):
            found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        if not isinstance(one, Tensor):
            # What begins with _ is diffusers' own, and a set's order is another in every process.
            config = {key: value for key, value in one.scheduler.config.items() if not key.startswith("_")}
            scheduler = json.dumps(config, sort_keys=True, default=str)
            text = [getattr(one, name, None) for name in PROMPTED]
            found.update(f"{type(one).__name__} {scheduler} {text}".encode())
    return found.hexdigest()[:16]


def _numbers_of(model: Denoiser) -> Iterable[Tensor]:
    """The tensors that a model is made of."""
    networks: list[nn.Module] = networks_of(model)
    own = vars(model).values() if hasattr(model, "__dict__") and not networks else ()
    yield from (value for value in own if isinstance(value, Tensor))
    for network in networks:
        yield from (value for _, value in sorted(network.state_dict().items()))
