"""A results folder: one record per method, task, image and seed, written once and whole; locks that die with their process.

    config.json                    the study as it was given last
    study.json                     what all records share: the model and its weights, the images, prompts, precision, batches
    records/CELL/0000-0015.jsonl   a batch, one line an image
    machine/CELL/0000-0015.json    what depends on the machine: seconds, memory
    images/CELL/0000.png           the samples
    sets/CELL.json                 FID and KID of a cell's images, once it is finished
    locks/                         held while a batch is computed

A batch appears by one rename, so a process that is killed leaves nothing half done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from fcs_lab.study.config import Entry, Study, digest, read_study, settings_of


class Full(OSError):
    """The disk is full; what was finished is kept."""


def seeds_of(seed: int, numbers: Sequence[int]) -> list[int]:
    """Of the noise of the images of these numbers."""
    return [seed * 1_000_003 + i for i in numbers]


@dataclass(frozen=True)
class Cell:
    """A method with its settings, a task and a seed."""

    entry: Entry
    task: str
    seed: int
    masks: str = ""
    """Of a task with masks of one's own: a digest of them."""

    def seeds(self, numbers: Sequence[int]) -> list[int]:
        """Of the noise of these images; see `Study.seeds`."""
        return seeds_of(self.seed, numbers)

    @property
    def folder(self) -> str:
        """Of its records: to be read by people, and no two alike."""
        own = settings_of(self.entry.name) | self.entry.settings
        name = f"{self.task}-{self.entry.name}-{self.entry.budget or 'own'}-{self.seed}"
        told = [self.entry.name, own, self.entry.budget, self.entry.told, self.task, self.seed]
        return f"{name}-{digest([*told, self.masks] if self.masks else told)}"


def _masks_digest(files: Sequence[Path]) -> str:
    """What tells masks from others, "" of none."""
    return digest([hashlib.sha256(file.read_bytes()).hexdigest() for file in files]) if files else ""


def cells_of(study: Study) -> list[Cell]:
    """All cells of a study: a task after the other, so that methods can be compared soon."""
    masks = {task: _masks_digest(study.masks.get(task, ())) for task in study.tasks}
    return [
        Cell(entry, task, seed, masks[task])
        for seed in study.seeds
        for task in study.tasks
        for entry in study.methods
        if entry.tasks is None or task in entry.tasks
    ]


@dataclass(frozen=True)
class Batch:
    """Some images of a cell, sampled together."""

    cell: Cell
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.numbers[0]:05d}-{self.numbers[-1]:05d}"


def stores(out: str | Path) -> list[Store]:
    """Of a results folder: its own, or where a file has several studies, one for each."""
    within = [path.parent for path in sorted(Path(out).glob("*/study.json"))]
    return [Store(folder) for folder in within if not (Path(out) / "study.json").exists()] or [Store(out)]


class Store:
    """A results folder.

    Args:
        folder: It is made if it is not there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def begin(self, study: Study, weights: dict[str, str], images: str, *, other: bool = False) -> None:
        """Begin or go on with a study.

        Args:
            study: The study.
            weights: SHA-256 of the model's files.
            images: What tells the images from others; more of them may be added behind.
            other: Go on although the folder is another study's; its records stay, and are no longer this one's.

        Raises:
            ValueError: The folder is of another model, other images or batches, and `other` is not given.
        """
        told = json.loads(json.dumps(study.identity() | {"weights": weights, "pictures": images}))
        path = self.folder / "study.json"
        if path.exists():
            known = json.loads(path.read_text())
            differing = [name for name in told if told[name] != known.get(name)]
            if differing and not other:
                name = differing[0]
                raise ValueError(
                    f"{self.folder} has the results of another study: {name} was {_short(known.get(name))} there and is "
                    f"{_short(told[name])}; take another folder, or --other to put the old records aside"
                )
            if differing:
                for part in ("records", "images", "machine", "sets"):
                    if (self.folder / part).exists():
                        (self.folder / part).rename(self.folder / f"{part}-{digest(known)}")
        self._write(path, json.dumps(told, indent=1))

    def keep(self, study: Study) -> None:
        """Keep the study as it is now, for the report."""
        self._write(self.folder / "config.json", json.dumps(study.told, indent=1, ensure_ascii=False))

    def study(self) -> Study:
        """The study that was run last.

        Raises:
            FileNotFoundError: There is none in the folder.
        """
        path = self.folder / "config.json"
        if not path.exists():
            raise FileNotFoundError(f"{self.folder} has no config.json; expected a study's results folder")
        return read_study(json.loads(path.read_text()))

    def missing(self, cell: Cell, study: Study, *, failed: bool = False) -> list[Batch]:
        """The batches of a cell that are to be computed: whole groups of `batch_size` images, less those that are there.

        Args:
            failed: Count those that failed as missing.
        """
        there = {record["image"] for record in self.of(cell) if not (failed and "error" in record)}
        groups = [range(first, min(first + study.batch_size, study.n)) for first in range(0, study.n, study.batch_size)]
        left = [tuple(i for i in group if i not in there) for group in groups]
        return [Batch(cell, numbers) for numbers in left if numbers]

    def of(self, cell: Cell) -> list[dict[str, Any]]:
        """A cell's records; of an image that was tried again, the last."""
        files = sorted((self.folder / "records" / cell.folder).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        found = {}
        for file in files:
            for line in file.read_text().splitlines():
                record = json.loads(line)
                if "error" not in record or record["image"] not in found:
                    found[record["image"]] = record
        return [found[i] for i in sorted(found)]

    def write(
        self, batch: Batch, records: list[dict[str, Any]], images: dict[int, Image.Image], machine: dict[str, Any]
    ) -> None:
        """Write a finished batch, the records last.

        Raises:
            Full: There is no space left; nothing of the batch is counted as finished.
        """
        for number, image in images.items():
            self._write(self.image(batch.cell, number), image)
        self._write(self.folder / "machine" / batch.cell.folder / f"{batch.name}.json", json.dumps(machine))
        lines = "".join(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n" for record in records)
        name = batch.name + ("-failed" if any("error" in record for record in records) else "")
        self._write(self.folder / "records" / batch.cell.folder / f"{name}.jsonl", lines)

    def write_sets(self, cell: Cell, told: dict[str, Any]) -> None:
        """Keep what was measured of all of a cell's images."""
        self._write(self.folder / "sets" / f"{cell.folder}.json", json.dumps(told))

    def sets(self, cell: Cell) -> dict[str, Any]:
        """What was measured of all of a cell's images, {} if nothing was."""
        path = self.folder / "sets" / f"{cell.folder}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def machine(self, cell: Cell) -> list[dict[str, Any]]:
        """What each of a cell's batches took."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "machine" / cell.folder).glob("*.json"))]

    def image(self, cell: Cell | str, number: int) -> Path:
        """Where a sample is; or the truth, or what a task gives, of which the first ones are kept for the sheet."""
        folder = cell if isinstance(cell, str) else cell.folder
        return self.folder / "images" / folder / f"{number:05d}.png"

    def show(self, folder: str, number: int, image: Image.Image) -> None:
        """Keep a picture for the sheet, once."""
        path = self.image(folder, number)
        if not path.exists():
            self._write(path, image)

    @contextmanager
    def lock(self, batch: Batch, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process has the batch, which no other then has. The system frees it whatever the process dies of."""
        path = self.folder / "locks" / f"{batch.cell.folder}-{batch.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def put(self, name: str, what: str | bytes) -> None:
        """A file beside the records, such as the table; whole, whoever else writes it at the same moment."""
        self._write(self.folder / name, what)

    def _write(self, path: Path, what: str | bytes | Image.Image) -> None:
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(what, str):
                partial.write_text(what, encoding="utf-8")
            elif isinstance(what, bytes):
                partial.write_bytes(what)
            else:
                what.save(partial, "PNG")
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Full(
                    error.errno, f"no space is left for {path}; what was finished is kept: make room and run it again"
                ) from error
            raise


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
