"""What a study is: a model, images, tasks, methods, budgets and seeds, read from a TOML file and checked before any work."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fcs_lab.baselines import BUDGETS, METHODS, PEERS, WITHOUT_MODEL, budget
from fcs_lab.checks import check_count, check_number, check_seed, is_int
from fcs_lab.data import image_files
from fcs_lab.fast import FAST_STEPS
from fcs_lab.sampler import Settings
from fcs_lab.study.measures import DEFAULTS as DEFAULT_METRICS
from fcs_lab.study.measures import METRICS
from fcs_lab.study.tasks import TASKS, check_task_name

__all__ = ["Entry", "Study", "read_studies", "read_study"]

DTYPES = ("float32", "float16", "bfloat16", "float64")
NOT_SETTINGS = {
    "model",
    "task",
    "generator",
    "x_T",
    "batch_size",
    "progress",
    "trace_x0",
    "callback_on_step_end",
    "scheduler",
}
"""Arguments of a method's call that a study gives, or that no file can."""
ALGORITHM_1 = {"num_inference_steps": Settings.num_inference_steps, "inner_steps": Settings.inner_steps}
"""What `fcs_lab.sample` takes where it is told nothing."""


@dataclass(frozen=True)
class Entry:
    """A method of a study, with its settings."""

    name: str
    """As in `fcs_lab.baselines.METHODS`."""
    settings: dict[str, Any]
    """What is given; the rest are the method's own."""
    budget: int | None
    """Evaluations an image that the settings were made for. None: they are the file's own, or there is no network."""
    tasks: tuple[str, ...] | None
    """Those that it is for, as far as the study has them. None: all of the study's."""
    told: str
    """What the file says of it, in a table's row: "newton", or "ddnm (num_inference_steps = 110)"."""


@dataclass(frozen=True)
class Study:
    """A study, checked.

    Example:
        >>> study = fcs_lab.study.read_study({"model": "mnist", "tasks": ["sr4"], "methods": ["newton"]})
        >>> study.model, study.n, study.seeds
        ('mnist', 64, (0,))
    """

    model: str
    """A bundled model, a folder, or a hub id."""
    tasks: tuple[str, ...]
    methods: tuple[Entry, ...]
    masks: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Tasks with masks of one's own: their files, one for all images or one each, in the order of their names."""
    images: str = "test"
    """"test": the bundled test pictures, or a folder."""
    n: int = 64
    first: int = 0
    """How many of the images are left out before the first: those that settings were chosen on, say."""
    seeds: tuple[int, ...] = (0,)
    """The noise of image i is that of seed · 1,000,003 + i, the same for all methods."""
    prompts: str | tuple[str, ...] | None = None
    """One for all images, one each, or "names": those of the files, or of the bundled pictures."""
    guidance_scale: float | None = None
    dtype: str = "float32"
    device: str | None = None
    size: int | None = None
    """Height and width of the images, for a model that makes any. None: its own."""
    batch_size: int = 16
    """How many images are sampled together. It is part of the study: another one rounds otherwise."""
    compare: str = ""
    """What differences are taken to: a method's row as the tables name it, or its name. "": the first method."""
    metrics: tuple[str, ...] = DEFAULT_METRICS
    memory: float = 24.0
    """GiB that the largest batch is told for."""
    told: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What it was read from."""

    def identity(self) -> dict[str, Any]:
        """What all records of a results folder share; tasks, methods, images and seeds may be added."""
        names = ("model", "images", "first", "prompts", "guidance_scale", "dtype", "size", "batch_size")
        return {name: getattr(self, name) for name in names}


KEYS = (Study.__dataclass_fields__.keys() - {"told", "masks"}) | {"prompt", "budgets", "name"}


def read_studies(source: str | Path | Mapping[str, Any] | Study) -> dict[str, Study]:
    """The studies of a TOML file, of one of the package's own ("paper", "bundled"), or of the same as a dict.

    A file is one study, or has several in tables `[[studies]]`, which have what stands above them and say what differs, the
    model at least; `name` tells two of one model apart.

    Returns:
        By the folder, within the results', that each has: "" for one study, the names or else the models' for several.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: TOML that is none, with its line; an unknown key, method, task, metric or setting, with those that there
            are; a number out of its range; no images, no methods, no tasks.
        TypeError: A value of the wrong type.
    """
    if isinstance(source, Study):
        return {"": source}
    if isinstance(source, Mapping):
        return _several(dict(source))
    path, own = Path(source), resources.files("fcs_lab.study") / f"{source}.toml"
    if not path.suffix and own.is_file():
        path, text = Path(own.name), own.read_text(encoding="utf-8")
    elif path.is_file():
        text = path.read_text(encoding="utf-8")
    else:
        raise FileNotFoundError(f"{path} is no file; expected a TOML file, or 'paper' or 'bundled', the package's own")
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    try:
        return _several(told)
    except (TypeError, ValueError) as error:
        key = str(error).split(" ", 1)[0].split("[")[0]
        line = next((i for i, row in enumerate(text.splitlines(), 1) if row.split("=")[0].strip() == key), None)
        raise type(error)(f"{path}{'' if line is None else f', line {line}'}: {error}") from error


def read_study(source: str | Path | Mapping[str, Any] | Study) -> Study:
    """As `read_studies`, of a file with one.

    Raises:
        ValueError: It has several, or as for `read_studies`.

    Example:
        >>> config = {
        ...     "model": "mnist", "n": 1, "tasks": ["right-half"], "metrics": ["mse"],
        ...     "methods": ["biharmonic", {"name": "ddnm", "num_inference_steps": 3}],
        ... }
        >>> study = fcs_lab.study.read_study(config)
        >>> study.n, [entry.name for entry in study.methods]
        (1, ['biharmonic', 'ddnm'])
    """
    found = read_studies(source)
    if list(found) != [""]:
        raise ValueError(f"studies is given: {', '.join(found)}; expected one study")
    return found[""]


def _several(told: dict[str, Any]) -> dict[str, Study]:
    if "studies" not in told:
        return {"": _checked(told)}
    tables, common = told["studies"], {key: value for key, value in told.items() if key != "studies"}
    if not isinstance(tables, list) or not tables or not all(isinstance(one, Mapping) and "model" in one for one in tables):
        raise TypeError("studies has something else than tables with a model; expected [[studies]] and model = …")
    names = [str(one["name"]) if "name" in one else Path(str(one["model"])).name for one in tables]
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(
                f"studies has {name!r} {names.count(name)} times; expected a name of letters and digits for each"
            )
    return {name: _checked(common | dict(one)) for name, one in zip(names, tables, strict=True)}


def _checked(told: dict[str, Any]) -> Study:
    given = told
    for key in told.keys() - KEYS:
        raise ValueError(f"{key} is no key of a study; expected {', '.join(sorted(KEYS))}")
    for key in ("model", "tasks", "methods"):
        if key not in told:
            raise ValueError(f"{key} is missing; a study has a model, tasks and methods")
    for key, kind in {"model": str, "images": str, "compare": str, "device": str, "dtype": str}.items():
        if key in told and not isinstance(told[key], kind):
            raise TypeError(f"{key} is {told[key]!r}; expected a string")
    if told.get("dtype", "float32") not in DTYPES:
        raise ValueError(f"dtype is {told['dtype']!r}; expected one of {', '.join(map(repr, DTYPES))}")
    check_count("n", told.get("n", 64), 1)
    check_count("first", told.get("first", 0), 0)
    check_count("batch_size", told.get("batch_size", 16), 1)
    if "size" in told:
        check_count("size", told["size"], 8, 4096)
    if told.get("guidance_scale") is not None:
        check_number("guidance_scale", told["guidance_scale"], 0)
    check_number("memory", told.get("memory", 24.0), 0)
    for key in ("tasks", "methods", "metrics", "seeds", "budgets"):
        if key in told and (not isinstance(told[key], list | tuple) or not told[key]):
            raise TypeError(f"{key} is {told[key]!r}; expected a list with something in it")
    masks = {one["name"]: _mask_files(one, told.get("n", 64)) for one in told["tasks"] if isinstance(one, Mapping)}
    told = told | {"tasks": [one["name"] if isinstance(one, Mapping) else one for one in told["tasks"]]}
    for name in told["tasks"]:
        if name not in masks:
            check_task_name(name)
    for name in told.get("metrics", ()):
        if name not in METRICS:
            raise ValueError(f"metrics has {name!r}; expected some of {', '.join(METRICS)}")
    budgets = told.get("budgets")
    for evaluations in budgets or ():
        if not is_int(evaluations) or evaluations < 1:
            raise ValueError(f"budgets has {evaluations!r}; expected whole numbers of at least 1")
    for seed in told.get("seeds", ()):
        check_seed(seed)
    prompts = told.get("prompts", told.get("prompt"))
    if isinstance(prompts, list):
        if len(prompts) != told.get("n", 64) or not all(isinstance(one, str) for one in prompts):
            raise ValueError(
                f"prompts has {len(prompts)} entries; expected a string for each of n = {told.get('n', 64)} images"
            )
        prompts = tuple(prompts)
    elif prompts is not None and not isinstance(prompts, str):
        raise TypeError(f"prompts is {prompts!r}; expected a string, a list of them, or 'names'")
    entries = tuple(entry for one in told["methods"] for entry in _entries(one, budgets, told["tasks"]))
    compare = told.get("compare", "")
    if compare and compare not in {name for entry in entries for name in (entry.name, entry.told)}:
        raise ValueError(f"compare is {compare!r}; expected one of {', '.join(entry.told for entry in entries)}")
    single = ("model", "images", "n", "first", "guidance_scale", "dtype", "device", "size", "batch_size", "memory")
    chosen = {key: told[key] for key in single if key in told}
    lists = {key: tuple(dict.fromkeys(told[key])) for key in ("tasks", "seeds", "metrics") if key in told}
    return Study(methods=entries, masks=masks, prompts=prompts, compare=compare, told=given, **chosen, **lists)


def _mask_files(told: Mapping[str, Any], n: int) -> tuple[Path, ...]:
    """The files of a task {name = …, masks = a folder}."""
    name, folder = told.get("name"), told.get("masks")
    if set(told) != {"name", "masks"} or not isinstance(name, str) or not isinstance(folder, str):
        raise TypeError(f"tasks has {dict(told)!r}; expected a name, or {{name = …, masks = a folder}}")
    if not re.fullmatch(r"[\w-]+", name) or name in TASKS:
        raise ValueError(f"tasks has a task of masks named {name!r}; expected letters and digits, and a name of its own")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"tasks: the masks of {name!r} are in {folder!r}, which is no folder")
    files = tuple(image_files(Path(folder)))
    if len(files) != 1 and len(files) < n:
        raise ValueError(f"tasks: {name!r} has {len(files)} masks for {n} images; expected one, or one each")
    return files


def _entries(told: str | Mapping[str, Any], budgets: Sequence[int] | None, all_tasks: Sequence[str]) -> list[Entry]:
    """A method of the file as one entry, or as one for each budget where its settings are not given."""
    if not isinstance(told, str | Mapping) or (not isinstance(told, str) and not isinstance(told.get("name"), str)):
        raise TypeError(f"methods has {told!r}; expected a name, or a table with a name and settings")
    name = told if isinstance(told, str) else told["name"]
    given = {} if isinstance(told, str) else {key: value for key, value in told.items() if key not in ("name", "tasks")}
    tasks = None if isinstance(told, str) or "tasks" not in told else tuple(told["tasks"])
    for task in tasks or ():  # one that this study has not may be another's of the same file
        if task not in all_tasks:
            check_task_name(task)
    if name not in METHODS:
        raise ValueError(f"methods has {name!r}; expected some of {', '.join(map(repr, METHODS))}")
    known = settings_of(name)
    for key in given.keys() - known.keys():
        raise ValueError(f"methods: {name} has no setting {key!r}; expected some of {', '.join(sorted(known))}")
    given = {key: tuple(value) if isinstance(value, list) and key == "step_size" else value for key, value in given.items()}
    words = f" ({', '.join(f'{key} = {value}' for key, value in given.items())})" if given else ""
    if name in WITHOUT_MODEL or name not in BUDGETS or not budgets or given.keys() & {"num_inference_steps", "inner_steps"}:
        return [Entry(name, given, None, tasks, name + words)]
    return [Entry(name, budget(name, evaluations) | given, evaluations, tasks, name + words) for evaluations in budgets]


def settings_of(name: str) -> dict[str, Any]:
    """A method's settings and their own values."""
    if name == "fast":
        return {"num_inference_steps": FAST_STEPS, "fd_step": None}
    parameters = inspect.signature(getattr(METHODS[name], "func", METHODS[name])).parameters.values()
    fixed = getattr(METHODS[name], "keywords", {})
    own = {p.name: p.default for p in parameters
           if p.kind is not p.VAR_KEYWORD and p.name not in NOT_SETTINGS and p.name not in fixed}  # fmt: skip
    return own | {key: ALGORITHM_1[key] for key in ALGORITHM_1.keys() & own.keys() if own[key] is None}


def evaluations_of(entry: Entry) -> int | None:
    """How many evaluations an image takes, as far as that is known before it."""
    if entry.name in WITHOUT_MODEL:
        return 0
    own = settings_of(entry.name) | entry.settings
    T, K = own["num_inference_steps"], own.get("inner_steps")
    if entry.name in PEERS:
        other = {key: value for key, value in entry.settings.items() if key != "num_inference_steps"}
        return len(PEERS[entry.name](**other).plan(T))
    if entry.name in ("tuned", "fast"):
        return T if entry.name == "tuned" else 2 * T - 1
    inner = sum(K) if isinstance(K, list) else T * K
    each = {"newton": 2, "identity": 1, "gradient": 1}.get(entry.name)
    return None if each is None else T + each * inner


def digest(told: Any) -> str:
    """Twelve characters that tell one thing from another."""
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]
