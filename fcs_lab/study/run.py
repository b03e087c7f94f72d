"""The run of a study: the batches that are missing, each computed once, by one process or by many."""

from __future__ import annotations

import platform
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from fcs_lab.images import to_pil, to_tensor
from fcs_lab.study.config import Study, evaluations_of, read_studies
from fcs_lab.study.measures import SETS, measure, set_distances
from fcs_lab.study.plots import SHEET
from fcs_lab.study.store import Batch, Cell, Store, cells_of, stores
from fcs_lab.study.subject import Images, Subject
from fcs_lab.study.tables import frame, report

__all__ = ["Plan", "dry_run", "records", "run"]


@dataclass
class Plan:
    """What there is to do, told by `dry_run`; printed, it says so."""

    cells: int
    batches: int
    images: int
    evaluations: int
    unknown: int
    """Batches of methods whose evaluations are not known before they run."""
    seconds: float
    finished: int
    """Images that have records already."""

    def __str__(self) -> str:
        hours = f"{self.seconds / 3600:.1f} h" if self.seconds > 7200 else f"{self.seconds / 60:.0f} min"
        more = f"; {self.unknown} batches of methods that do not tell theirs come on top" if self.unknown else ""
        return (
            f"{self.cells} cells (method, task, seed): {self.images} samples in {self.batches} batches are to be made, "
            f"{self.finished} are there\n{self.evaluations:,} evaluations{more}: about {hours} in one process"
        )


@dataclass
class Outcome:
    """How a run ended."""

    table: pd.DataFrame
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False


def records(out: str | Path) -> pd.DataFrame:
    """All that a results folder has measured, in long form: one row per method, task, budget, image, seed, metric and part.

    Raises:
        FileNotFoundError: There is no study in the folder.

    Example:
        >>> config = {
        ...     "model": "mnist", "n": 1, "tasks": ["right-half"], "metrics": ["mse"],
        ...     "methods": ["biharmonic", {"name": "ddnm", "num_inference_steps": 3}],
        ... }
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> _ = fcs_lab.study.run(config, folder, progress=False)
        >>> measured = fcs_lab.study.records(folder)
        >>> sorted(set(measured[measured.metric == "mse"].part))
        ['all', 'hidden', 'known']
    """
    return pd.concat([frame(store) for store in stores(out)], ignore_index=True)


def run(
    config: str | Path | dict[str, Any] | Study, out: str | Path, *, progress: bool = True, other: bool = False,
    retry: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Run what is missing of a study, and write its tables.

    Args:
        config: A TOML file, the name of one of the package's ("paper", "bundled"), or the same as a dict.
        out: The results folder. What it has already is not computed again.
        progress: Show a bar over the batches.
        other: Take the folder although it is another study's; the old records are put aside.
        retry: Try anew what failed.

    Returns:
        The records, as `records` gives them. Several processes return the same, once all are done.

    Raises:
        ValueError, TypeError, FileNotFoundError: The study is wrong, before any work.
        Full: The disk is full. What was finished is kept.

    Example:
        >>> config = {
        ...     "model": "mnist", "n": 1, "tasks": ["right-half"], "metrics": ["mse"],
        ...     "methods": ["biharmonic", {"name": "ddnm", "num_inference_steps": 3}],
        ... }
        >>> import tempfile
        >>> table = fcs_lab.study.run(config, tempfile.mkdtemp(), progress=False)
        >>> sorted(set(table.method))
        ['biharmonic', 'ddnm']
    """
    return outcome(config, out, progress=progress, other=other, retry=retry).table


def outcome(
    config: str | Path | dict[str, Any] | Study, out: str | Path, *, progress: bool = True, other: bool = False,
    retry: bool = False,
) -> Outcome:  # fmt: skip
    """As `run`, with what failed."""
    ended = Outcome(pd.DataFrame())
    studies = read_studies(config)
    pictures = {name: Images(study) for name, study in studies.items()}
    for name, study in studies.items():
        if not ended.interrupted:
            one = _outcome(study, Store(Path(out) / name), pictures[name], progress=progress, other=other, retry=retry)
            ended.failures += one.failures
            ended.interrupted = one.interrupted
    ended.table = records(out)
    return ended


def _outcome(study: Study, store: Store, pictures: Images, *, progress: bool, other: bool, retry: bool) -> Outcome:
    state, device = _place(study)
    subject = Subject(study, device)
    if state.is_main_process:
        store.begin(study, subject.weights, pictures.digest(), other=other)
        store.keep(study)
    state.wait_for_everyone()
    work = [batch for cell in cells_of(study) for batch in store.missing(cell, study, failed=retry)]
    mine = work[state.process_index :: state.num_processes]
    worker = Worker(study, store, subject, pictures)
    stopped, elsewhere = False, []
    with _one_thread(device), _until_asked() as asked:
        bar = tqdm(mine, desc="study", unit="batch", disable=not (progress and state.is_main_process))
        for batch in bar:
            if asked():
                stopped = True
                break
            bar.set_postfix_str(f"{batch.cell.task}, {batch.cell.entry.told}")
            if not worker.do(batch, failed=retry):
                elsewhere.append(batch)
        for batch in () if stopped else elsewhere:  # another process has them; should it have died, they are ours
            worker.do(batch, failed=retry, wait=True)
    state.wait_for_everyone()
    failures = [
        f"{cell.task}, {cell.entry.told}, image {record['image']}: {record['error']}"
        for cell in cells_of(study) for record in store.of(cell) if "error" in record
    ]  # fmt: skip
    if state.is_main_process:
        worker.measure_sets()
        report(store, study, command=sys.argv)
    state.wait_for_everyone()
    return Outcome(frame(store), failures, stopped)


def dry_run(config: str | Path | dict[str, Any] | Study, out: str | Path) -> Plan:
    """What `run` would do: cells, evaluations, and the time that they take by what one evaluation of a batch takes here.

    Example:
        >>> config = {
        ...     "model": "mnist", "n": 1, "tasks": ["right-half"], "metrics": ["mse"],
        ...     "methods": ["biharmonic", {"name": "ddnm", "num_inference_steps": 3}],
        ... }
        >>> import tempfile
        >>> print(fcs_lab.study.dry_run(config, tempfile.mkdtemp()).evaluations)
        3
    """
    plans = [_plan(study, Store(Path(out) / name)) for name, study in read_studies(config).items()]
    return Plan(**{name: sum(getattr(plan, name) for plan in plans) for name in Plan.__dataclass_fields__})


def _plan(study: Study, store: Store) -> Plan:
    Images(study)
    subject = Subject(study, _place(study)[1])
    plan = Plan(cells=0, batches=0, images=0, evaluations=0, unknown=0, seconds=0.0, finished=0)
    for cell in cells_of(study):
        batches, each = store.missing(cell, study), evaluations_of(cell.entry)
        images = sum(len(batch.numbers) for batch in batches)
        plan.cells += 1
        plan.batches += len(batches)
        plan.images += images
        plan.finished += study.n - images
        plan.evaluations += 0 if each is None else each * images
        plan.unknown += len(batches) if each is None else 0
    plan.seconds = plan.evaluations * subject.seconds_of_an_evaluation() if plan.evaluations else 0.0
    return plan


def _place(study: Study) -> tuple[PartialState, torch.device]:
    """The processes, and this one's device."""
    state = PartialState(cpu=study.device == "cpu")
    return state, torch.device(study.device) if study.device else state.device


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU one thread: several add up in another order, which Algorithm 1 makes visible."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _until_asked() -> Iterator[Any]:
    """Whether Ctrl-C was pressed: the first ends the run after the present batch, the second at once."""
    asked = threading.Event()

    def ask(*_: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        print("\nending after this batch; Ctrl-C once more to end now", file=sys.stderr)

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


class Worker:
    """Who computes batches."""

    def __init__(self, study: Study, store: Store, subject: Subject, pictures: Images):
        self.study, self.store, self.subject, self.pictures = study, store, subject, pictures
        self.lpips = _lpips() if "lpips" in study.metrics else None

    def do(self, batch: Batch, *, failed: bool = False, wait: bool = False) -> bool:
        """Compute a batch if it is still missing; False if another process is at it."""
        with self.store.lock(batch, wait=wait) as ours:
            if not ours:
                return False
            if batch not in self.store.missing(batch.cell, self.study, failed=failed):
                return True
            images = self.pictures.read(batch.numbers, self.subject.shape)
            good = [i for i in batch.numbers if not isinstance(images[i], str)]
            records, samples, machine = {}, {}, {}
            if good:
                records, samples, machine = self._computed(batch.cell, good, torch.cat([images[i] for i in good]))
            records |= {i: self._told(batch.cell, i) | {"error": images[i]} for i in batch.numbers if i not in good}
            self.store.write(batch, [records[i] for i in batch.numbers], samples, machine)
        return True

    def _told(self, cell: Cell, i: int) -> dict[str, Any]:
        return {
            "method": cell.entry.name,
            "row": cell.entry.told,
            "budget": cell.entry.budget,
            "settings": cell.entry.settings,
            "task": cell.task,
            "seed": cell.seed,
            "image": i,
            "name": self.pictures.names[i],
            "group": self.pictures.groups[i],
        }

    def _computed(self, cell: Cell, numbers: list[int], truth: torch.Tensor) -> tuple[dict, dict, dict]:
        """Records, samples and the machine's own of some images; of a batch that fails, the error in each record."""
        told = {i: self._told(cell, i) for i in numbers}
        try:
            posed = self.subject.pose(cell.task, truth, numbers)
            start, before = time.perf_counter(), _memory_before(self.subject.device)
            sampled = self.subject.sample(cell.entry, posed, cell.seeds(numbers), self._prompts(numbers))
            machine = {"seconds": (time.perf_counter() - start) / len(numbers), "batch": len(numbers),
                       "memory": _memory_since(self.subject.device, before), "weights": before,
                       "device": _name(self.subject.device)}  # fmt: skip
        except torch.OutOfMemoryError:
            return self._failed(told, self._what_fits(cell, truth, numbers)), {}, {}
        except Exception as error:
            why = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")  # the same in every process
            return self._failed(told, why), {}, {}
        for i, whole, part in zip(numbers, to_pil(truth), to_pil(posed.given.clamp(-1, 1)), strict=True):
            if i < SHEET:
                self.store.show("truth", i, whole)
                self.store.show(f"given-{cell.task}", i, part)
        rows = measure(self.study.metrics, sampled.images, truth, posed, model=self._prompted(numbers),
                       judge=self.subject.judge, lpips=self.lpips)  # fmt: skip
        cost = {"evaluations": sampled.nfe, "backward": sampled.n_backward, "flops": self.subject.flops_of(sampled)}
        records = {i: told[i] | cost | {"metrics": row} for i, row in zip(numbers, rows, strict=True)}
        return records, dict(zip(numbers, to_pil(sampled.images.clamp(-1, 1)), strict=True)), machine

    @staticmethod
    def _failed(told: dict[int, dict[str, Any]], why: str) -> dict[int, dict[str, Any]]:
        return {i: one | {"error": why} for i, one in told.items()}

    def _what_fits(self, cell: Cell, truth: torch.Tensor, numbers: list[int]) -> str:
        """What to say of a batch that does not fit memory: the size of half, a quarter, … that does."""
        size = len(numbers) // 2
        while size >= 1:
            torch.cuda.empty_cache()
            try:
                posed = self.subject.pose(cell.task, truth[:size], numbers[:size])
                self.subject.sample(cell.entry, posed, cell.seeds(numbers[:size]), self._prompts(numbers[:size]))
            except torch.OutOfMemoryError:
                size //= 2
            else:
                return f"a batch of {len(numbers)} does not fit memory; batch_size = {size} would"
        return "not even a batch of 1 fits memory"

    def _prompts(self, numbers: list[int]) -> list[str] | None:
        prompts = self.study.prompts
        if prompts is None:
            return None
        if prompts == "names":
            return [self.pictures.names[i] for i in numbers]
        return [prompts] * len(numbers) if isinstance(prompts, str) else [prompts[i] for i in numbers]

    def _prompted(self, numbers: list[int]) -> Any:
        prompts = self._prompts(numbers)
        if self.subject.model is None or prompts is None:
            return self.subject.model
        return self.subject.model.with_prompt(prompts, guidance_scale=1.0)

    def measure_sets(self) -> None:
        """FID and KID of each cell: of the images that it has, where this machine has them all."""
        names = [name for name in self.study.metrics if name in SETS]
        for cell in cells_of(self.study) if names else ():
            there = [record["image"] for record in self.store.of(cell) if "error" not in record]
            known = self.store.sets(cell)
            if known.get("n") == len(there) or not there or not all(self.store.image(cell, i).exists() for i in there):
                continue
            truth = torch.cat(list(self.pictures.read(there, self.subject.shape).values()))
            found = torch.cat([to_tensor(Image.open(self.store.image(cell, i))) for i in there])
            features = None if self.subject.judge is None else self.subject.judge.features
            with warnings.catch_warnings():
                warnings.simplefilter("once")
                told = set_distances(names, found, truth, features)
            self.store.write_sets(cell, {"n": len(there)} | told)


def _lpips() -> nn.Module:
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity("alex")
    except (ModuleNotFoundError, RuntimeError) as error:
        raise ImportError("LPIPS needs the extra 'lpips' (torchvision): pip install 'fcs_lab[lpips]'") from error


def _memory_before(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _memory_since(device: torch.device, before: int | None) -> int | None:
    return None if before is None else torch.cuda.max_memory_allocated(device) - before


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})"
