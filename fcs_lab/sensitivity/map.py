"""The map: its cells, on disk or in memory, what is missing and what that takes; its table, its picture, its call."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fcs_lab.checks import check_count, check_flag, check_function, check_seed, describe, is_int
from fcs_lab.data import example_images
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.images import ImageLike, to_tensor
from fcs_lab.records import save_record
from fcs_lab.sensitivity.axes import AXES, Grid
from fcs_lab.sensitivity.cells import MEASURES, Bench, Cell, Stopped, digest_of
from fcs_lab.zoo import load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fcs_lab.plots import Figure
    from fcs_lab.study.tasks import Posed

__all__ = ["MANY", "SensitivityMap"]

MANY = 10_000
"""From so many cells on a map has to be asked for with `many=True`."""


class SensitivityMap:
    """What two settings do to the result: a cell for each pair of their values, sampled once and kept.

    ```python
    step = fcs_lab.SensitivityMap(
        "mnist", 4, ("step_size_first", [0.1, 0.5, 2.0]), ("inner_steps", [1, 3, 5]), folder="maps/step"
    ).run()
    step.save("step.png")
    ```

    `run` computes the cells that are missing; iterating does so, too, and yields each as it is finished. A cell that raises
    keeps its error and the map goes on; an interrupt loses nothing that is finished. Image i has a generator of its own,
    seeded with seed · 1,000,003 + i as in a study, so that what it becomes does not hang on the others. It takes the extra
    'study', whose tasks these are.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.
        images: Of the model's size, in any form that `to_tensor` takes; or how many of its `example_images`.
        x, y: Each the name of an axis (`fcs_lab.sensitivity.AXES`) and at least two values: numbers that rise, or names.
            "hidden" is the share of the image under a rectangle, in whole per cents: a study's task "region-N".
        task: A study's task that has one right answer, such as "box" or "sr4". None: "right-half".
        folder: Where cells are kept, as JSON and PNG, each written whole. It belongs to one map, to whose axes values may be
            added later. None: they are kept in memory.
        seed: Of the noise.
        batch_size: How many images are sampled together. None: all.
        many: Do it although there are 10,000 cells or more.
        **settings: What is on no axis: the other axes' names, prompt and negative_prompt, and what the method takes besides
            (of `fcs_lab.sample`: step_size, regularization). Where "method" is an axis, each goes to those that have it.

    Raises:
        TypeError, ValueError: An argument is wrong, before any work; the folder is another map's.
        ImportError: The extra 'study' is not installed.

    Example:
        >>> axes = ("step_size_first", [0.1, 0.5]), ("inner_steps", [1, 2])
        >>> len(fcs_lab.SensitivityMap("mnist", 1, *axes, num_inference_steps=2).missing())
        4
    """

    def __init__(
        self,
        model: Denoiser | str | Path,
        images: ImageLike | int,
        x: tuple[str, Sequence[Any]],
        y: tuple[str, Sequence[Any]],
        *,
        task: str | None = None,
        folder: str | Path | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        many: bool = False,
        **settings: Any,
    ):
        check_flag("many", many)
        seed = check_seed(seed)
        if folder is not None and not (isinstance(folder, str | Path) and str(folder)):
            raise TypeError(f"folder is {describe(folder)}; expected a path, or None")
        self.grid = Grid(x, y, task, settings)
        loaded = load(model) if isinstance(model, str | Path) else model
        self.grid.check_model(loaded)
        self.name = str(model) if isinstance(model, str | Path) else None
        """What the model is called in the call and in records. None: it has no name."""
        self._told_images, self._identity = images, None
        tensor = _read(images, loaded)
        batch_size = len(tensor) if batch_size is None else check_count("batch_size", batch_size, 1)
        self.bench = Bench(loaded, tensor, self.grid, seed, batch_size)
        self._found: dict[tuple[Any, Any], Cell] = {}
        self.folder: Path | None = None
        if len(self.grid.pairs) >= MANY and not many:
            raise ValueError(
                f"x and y have {len(self.grid.pairs):,} cells, about {self.seconds_left() / 3600:,.1f} h; expected fewer "
                f"than {MANY:,}, or many=True"
            )
        if folder is not None:
            self.open(folder)

    @property
    def images(self) -> Tensor:
        """The true ones, (B, C, H, W) in [-1, 1]."""
        return self.bench.images

    # What there is, and what it takes

    @property
    def cells(self) -> dict[tuple[Any, Any], Cell]:
        """(x, y) -> those that are finished."""
        return {pair: self._found[pair] for pair in self.grid.pairs if pair in self._found}

    def missing(self, *, failed: bool = False) -> list[tuple[Any, Any]]:
        """(x, y) of those that are to be computed.

        Args:
            failed: Count those that failed as missing.
        """
        there = {pair for pair, cell in self._found.items() if cell.error is None or not failed}
        return [pair for pair in self.grid.pairs if pair not in there]

    def evaluations(self) -> tuple[int, int]:
        """Evaluations of the network in all cells, and in those that are missing; those of every image count."""
        each, n = self.grid.evaluations, len(self.images)
        return n * sum(each.values()), n * sum(each[pair] for pair in self.missing())

    def seconds_left(self) -> float:
        """What the missing cells take: by those of the same method that are there, else by any, else by one evaluation.

        NaN where nothing is there and the model fails.
        """
        spent: dict[str, list[float]] = {}  # method -> seconds, evaluations, cells; "": of all
        for pair, cell in self.cells.items():
            for name in (self.grid.told(*pair)["method"], "") if cell.error is None else ():
                new = (cell.seconds, self.grid.evaluations[pair], 1)
                spent[name] = [a + b for a, b in zip(spent.get(name, (0, 0, 0)), new, strict=True)]
        total = 0.0
        for pair in self.missing():
            work = self.grid.evaluations[pair]
            seconds, evaluations, cells = spent.get(self.grid.told(*pair)["method"]) or spent.get("") or (0.0, 0, 0)
            if work and evaluations:
                total += work * seconds / evaluations
            elif work:
                total += work * self.bench.seconds_of_an_evaluation()
            else:  # a method without a model
                total += seconds / max(cells, 1)
        return len(self.images) * total

    def posed(self, x: Any, y: Any) -> Posed:
        """A cell's task on the images: its constraint, what is hidden, and what is given as pictures."""
        return self.bench.posed(x, y)

    # On disk

    def identity(self) -> dict[str, Any]:
        """What all cells of a folder share, as JSON has it; the model's weights are looked at once."""
        if self._identity is not None:
            return self._identity
        grid, bench = self.grid, self.bench
        told = {"x": grid.x_name, "y": grid.y_name, "task": grid.task, "settings": grid.settings, "seed": bench.seed}
        told |= {"batch_size": bench.batch_size, "images": digest_of(self.images), "model": digest_of(bench.model)}
        self._identity = json.loads(json.dumps(told))
        return self._identity

    def open(self, folder: str | Path) -> None:
        """Keep cells in a folder from now on, and take those that it has.

        Raises:
            ValueError: The folder is another map's, or holds something else.
        """
        folder, told = Path(folder), self.identity()
        if (folder / "map.json").exists():
            known = json.loads((folder / "map.json").read_text(encoding="utf-8"))
            for name in told:
                if told[name] != known.get(name):
                    raise ValueError(
                        f"folder {str(folder)!r} has another map: {name} is {known.get(name)!r} there and {told[name]!r} "
                        "here; expected another folder"
                    )
        elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"folder {str(folder)!r} holds something else than a map; expected a new one, or an empty one")
        self.folder = folder
        for path in sorted((folder / "cells").glob("*.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            record |= {name: tuple(record[name]) for name in ("mse", "known_mse")}
            record["trace"] = tuple((nfe, tuple(costs)) for nfe, costs in record["trace"])
            picture = path.with_suffix(".png") if record["error"] is None else None
            self._found[record["x"], record["y"]] = Cell(**record, picture=picture)

    def _kept(self, cell: Cell) -> Cell:
        """The cell, its files written: the picture first, so that a record has one."""
        if self.folder is None:
            return cell
        from fcs_lab.study.config import digest
        from fcs_lab.study.store import Store

        store, name = Store(self.folder), f"cells/{digest([cell.x, cell.y])}"
        if not (self.folder / "map.json").exists():
            store.put("map.json", json.dumps(self.identity(), indent=1, ensure_ascii=False))
        if cell.picture is not None:
            store.put(f"{name}.png", cell.picture)
        record = {key: value for key, value in vars(cell).items() if key != "picture"}
        store.put(f"{name}.json", json.dumps(record, ensure_ascii=False))
        return cell if cell.picture is None else replace(cell, picture=self.folder / f"{name}.png")

    # Computing

    def run(self, *, progress: bool = True, retry: bool = False, stop: Callable[[], bool] | None = None) -> SensitivityMap:
        """Compute what is missing.

        Args:
            progress: Show a bar over the cells, with the time left.
            retry, stop: As for `computing`.

        Returns:
            The map itself.
        """
        check_flag("progress", progress)
        cells, missing = self.computing(retry=retry, stop=stop), len(self.missing(failed=retry))
        for _ in tqdm(cells, desc="cells", total=missing, disable=not progress):
            pass
        return self

    def __iter__(self) -> Iterator[Cell]:
        return self.computing()

    def computing(self, *, retry: bool = False, stop: Callable[[], bool] | None = None) -> Iterator[Cell]:
        """Compute what is missing, and yield each cell as it is finished and kept.

        Args:
            retry: Try anew those that failed.
            stop: Asked before every cell and after every timestep; True ends the run, and the present cell is as if it had
                not begun.
        """
        check_flag("retry", retry)
        if stop is not None:
            check_function("stop", stop, 0)
        return self._computing(self.missing(failed=retry), stop)

    def _computing(self, pairs: Sequence[tuple[Any, Any]], stop: Callable[[], bool] | None) -> Iterator[Cell]:
        for pair in pairs:
            if stop is not None and stop():
                return
            try:
                cell = self.bench.sampled(*pair, stop)
            except Stopped:
                return
            except Exception as error:  # that a cell fails is a finding; an interrupt is none
                cell = Cell(*pair, error=f"{type(error).__name__}: {error}")
            self._found[pair] = self._kept(cell)
            yield self._found[pair]

    # What is shown

    def values(self, measure: str = "mse") -> Tensor:
        """The means of one of `MEASURES`, (len(y), len(x)); NaN where a cell is missing or failed."""
        nothing = Cell(None, None, error="missing")
        cells = [[self._found.get((x, y), nothing) for x in self.grid.x] for y in self.grid.y]
        return torch.tensor([[cell.of(measure)[0] for cell in row] for row in cells], dtype=torch.float64)

    def plot(self, measure: str = "mse", *, axes: Axes | None = None, title: str | None = None) -> Figure:
        """The map as a heat map, of one of `MEASURES`: x to the right, y upwards; as `plot_sensitivity`."""
        from fcs_lab.sensitivity.plots import plot_sensitivity

        grid, values, cells = self.grid, self.values(measure), self.cells
        failed = [[(x, y) in cells and cells[x, y].error is not None for x in grid.x] for y in grid.y]
        labels = (AXES[grid.x_name].label, AXES[grid.y_name].label, MEASURES[measure])
        names = written(grid.x), written(grid.y)
        return plot_sensitivity(values, *names, labels=labels, failed=torch.tensor(failed), title=title, axes=axes)

    def table(self) -> list[dict[str, Any]]:
        """A row for each finished cell: its values by the axes' names, and what it tells; standard errors end in "_se"."""
        rows = []
        for (x, y), cell in self.cells.items():
            rows.append({self.grid.x_name: x, self.grid.y_name: y})
            for measure in ("mse", "known_mse"):
                rows[-1][measure], rows[-1][f"{measure}_se"] = cell.of(measure)
            rows[-1] |= {name: getattr(cell, name) for name in ("evaluations", "backward", "seconds")}
            rows[-1]["error"] = cell.error or ""
        return rows

    def call(self) -> str:
        """Python source that makes the map again; a model and images that have no name are `model` and `images` in it."""
        images, grid, bench, known = self._told_images, self.grid, self.bench, self.identity()
        kind, shape = type(bench.model).__name__, tuple(self.images.shape)
        settings = {"task": grid.task, "seed": bench.seed} | grid.settings
        if bench.batch_size != len(self.images):
            settings["batch_size"] = bench.batch_size
        if len(grid.pairs) >= MANY:
            settings["many"] = True
        lines = [
            f"{self.name!r}," if self.name is not None else f"model,  # a {kind}, {known['model']}",
            f"{int(images)}," if is_int(images) else f"images,  # {shape}, {known['images']}",
            f"x=({grid.x_name!r}, {grid.x!r}),",
            f"y=({grid.y_name!r}, {grid.y!r}),",
            *(f"{name}={value!r}," for name, value in settings.items() if value is not None),
        ]
        inside = "".join(f"    {line}\n" for line in lines)
        return f"from fcs_lab import SensitivityMap\n\nsensitivity = SensitivityMap(\n{inside}).run()\n"

    def save(self, path: str | Path, measure: str = "mse") -> Path:
        """Write the picture, its table beside it as CSV, and the record as JSON; call, model, seed and versions are in each.

        Args:
            path: Of the PNG; the others have its name.
            measure: One of `MEASURES`.

        Returns:
            The PNG's path.
        """
        from fcs_lab.study.store import Store

        if not isinstance(path, str | Path) or not Path(path).name:
            raise TypeError(f"path is {describe(path)}; expected a file's path")
        path, rows, figure = Path(path).with_suffix(".png"), self.table(), self.plot(measure)
        model = type(self.bench.model).__name__ if self.name is None else self.name
        timings = {"seconds": [row["seconds"] for row in rows]}
        numbers = [{key: _plain(value) for key, value in row.items() if key != "seconds"} for row in rows]
        record = save_record(path.with_suffix(".json"), model=model, seed=self.bench.seed,
                             settings={"call": self.call()} | self.identity(), numbers=numbers, timings=timings)  # fmt: skip
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        about = [*self.call().splitlines(), f"model {model}, seed {self.bench.seed}", versions]
        picture, text = io.BytesIO(), io.StringIO()
        figure.savefig(picture, format="png", dpi=200, metadata={"Description": "\n".join(about)})
        text.writelines(f"# {line}\n" for line in about)
        columns = list(rows[0]) if rows else [self.grid.x_name, self.grid.y_name]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
        Store(path.parent).put(path.with_suffix(".csv").name, text.getvalue())
        Store(path.parent).put(path.name, picture.getvalue())
        return path


def _read(images: ImageLike | int, model: Denoiser) -> Tensor:
    """Images of the model's size, (B, C, H, W)."""
    if is_int(images):
        return example_images(model, int(images))
    tensor, shape = to_tensor(images, "images"), tuple(as_model(model).image_shape)
    if tuple(tensor.shape[1:]) != shape:
        raise ValueError(f"images has shape {tuple(tensor.shape)}; expected (N, {', '.join(map(str, shape))})")
    return tensor.cpu()


def written(values: Sequence[Any]) -> list[str]:
    """An axis' values as people write them."""
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values]


def _plain(value: Any) -> Any:
    """NaN, which JSON has not, as None."""
    return None if value != value else value
