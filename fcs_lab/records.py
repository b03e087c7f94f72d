"""Records of how a figure or table came about: a JSON with the command, model, seed, versions and numbers.

Numbers are rounded to `DIGITS` significant digits: what follows is another machine's rounding. A figure that is made again
and comes out as it was (`save_figure`, its tolerance) is left alone on disk, so that git shows what changed and no more.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fcs_lab.checks import check_seed, is_number, typed
from fcs_lab.zoo import WEIGHTS

__all__ = ["DIGITS", "TOLERANCE", "save_figure", "save_record"]

DIGITS = 4
"""The significant digits of a record's numbers."""

TOLERANCE = 0.02
"""By how much, relatively, a figure's numbers may differ from those on disk to be the same. Between machines, a run's errors
differ by up to about a hundredth: rounding goes through a hundred normalised steps."""

SMALL = 1e-6
"""What is less than this in magnitude counts as 0."""


@typed
def save_record(
    path: str | Path,
    *,
    model: str | Sequence[str],
    seed: int,
    settings: dict[str, Any],
    numbers: Any,
    timings: Any = None,
    chaotic: Any = None,
) -> dict[str, Any]:
    """Write the record of a result as JSON.

    Args:
        path: The JSON file.
        model: The model's name, or several; for a bundled one, or a folder, its weights' SHA-256 are added.
        seed: The generator's seed; images of a batch use seed, seed + 1, ….
        settings: What the result depends on besides.
        numbers: What is shown; the same whenever the command is run again on the same machine. Written with `DIGITS`
            significant digits.
        timings: Seconds and what follows from them; kept apart, because they are not.
        chaotic: Numbers that the machine's rounding decides, such as of steps that overshoot; kept apart as well.

    Returns:
        What was written.
    """
    record = _record(path, model, seed, settings, numbers, timings, chaotic)
    _write(record, Path(path))
    return record


def _record(
    path: str | Path,
    model: str | Sequence[str],
    seed: int,
    settings: dict[str, Any],
    numbers: Any,
    timings: Any,
    chaotic: Any,
) -> dict[str, Any]:
    """What `save_record` writes."""
    seed = check_seed(seed)
    if Path(path).is_dir():
        raise ValueError(f"path is {str(path)!r}, a folder; expected a file")
    try:
        json.dumps([settings, numbers, timings, chaotic])
    except TypeError as error:
        raise TypeError(f"settings, numbers, timings or chaotic cannot be written as JSON: {error}") from error
    names = [model] if isinstance(model, str) else list(model)
    return {
        "command": shlex.join(["python", *_relative(sys.argv)]),
        "model": {
            "name": ", ".join(names),
            "sha256": {file: sha for name in names for file, sha in weights_of(name).items()},
        },
        "seed": seed,
        "settings": settings,
        "numbers": rounded(numbers),
        **({} if chaotic is None else {"chaotic": rounded(chaotic)}),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fcs-lab", "torch", "diffusers", "numpy", "scipy", "matplotlib")},
        "timings": {"machine": platform.machine(), **(timings or {})},
    }


@typed
def save_figure(figure: Any, path: str | Path, *, tolerance: float | None = None, **record: Any) -> bool:
    """Write a matplotlib figure as PNG and PDF with its record beside them.

    Args:
        figure: The figure.
        path: Without suffix.
        tolerance: A figure on disk of the same command, weights, seed, settings and drawing code whose numbers differ by no
            more than this, relatively, is left as it is. Versions, timings and what is chaotic are not compared. None: it is
            written in any case.
        record: The arguments of `save_record`.

    Returns:
        Whether anything was written.
    """
    if tolerance is not None and not (is_number(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance!r}; expected a number of at least 0, or None")
    path = Path(path)
    files = {suffix: path.with_suffix(suffix) for suffix in (".json", ".png", ".pdf")}
    new = _record(files[".json"], **{"timings": None, "chaotic": None} | record)
    new["drawn_by"] = _sums([Path(sys.argv[0]), Path(__file__).with_name("plots.py")])
    there = tolerance is not None and all(file.is_file() for file in files.values())
    if there and _same_record(json.loads(files[".json"].read_text()), json.loads(json.dumps(new)), tolerance):
        print(f"{path} is as it was, to within {tolerance:g}, and was left alone")
        return False
    about = f"{new['command']} | model {new['model']['name']} | seed {new['seed']}"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(files[".png"], dpi=200, metadata={"Description": about})
    # Without its date, the same figure is the same file.
    figure.savefig(files[".pdf"], metadata={"Subject": about, "CreationDate": None})
    _write(new, files[".json"])  # the last, so that a record on disk has its figure
    print(f"wrote {files['.png']}, .pdf and .json")
    return True


def rounded(numbers: Any, digits: int = DIGITS) -> Any:
    """Dicts and lists of numbers with the floating-point ones to so many significant digits."""
    if isinstance(numbers, dict):
        return {key: rounded(value, digits) for key, value in numbers.items()}
    if isinstance(numbers, list | tuple):
        return [rounded(value, digits) for value in numbers]
    return float(f"{numbers:.{digits}g}") if isinstance(numbers, float) else numbers


def same_numbers(old: Any, new: Any, tolerance: float) -> bool:
    """Whether dicts and lists of numbers, as read from JSON, have the same form and differ by rounding at most.

    Args:
        old, new: What is compared. Whole numbers are counts, and have to be equal; so does text.
        tolerance: The largest relative difference of floating-point numbers; those below 1e-6 in magnitude count as 0.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(same_numbers(old[key], new[key], tolerance) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(same_numbers(a, b, tolerance) for a, b in zip(old, new, strict=True))
    if not (isinstance(old, float) and isinstance(new, float)):
        return type(old) is type(new) and old == new
    if not (math.isfinite(old) and math.isfinite(new)):
        return str(old) == str(new)
    size = max(abs(old), abs(new))
    return size < SMALL or abs(old - new) <= tolerance * size


def _same_record(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> bool:
    exact = ("command", "model", "seed", "settings", "drawn_by")
    return all(old.get(key) == new[key] for key in exact) and same_numbers(old.get("numbers"), new["numbers"], tolerance)


def _write(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def weights_of(name: str) -> dict[str, str]:
    """The SHA-256 of a model's weights, by their place in its folder; none for a hub id."""
    bundled = (WEIGHTS / name).is_dir() and not Path(name).is_absolute()
    folder = WEIGHTS / name if bundled else Path(name)
    found = {}
    for file in sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        found[str((Path(name) if bundled else Path(folder.name)) / file.relative_to(folder))] = digest
    return found


def _sums(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of those that there are, without docstrings, which draw nothing, by their place in the project."""
    return {_relative([str(f)])[0]: _sum(f.read_text("utf8")) for f in files if f.is_file()}


def _sum(source: str) -> str:
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            told = node.body[0]
            lines[told.lineno - 1 : told.end_lineno] = [""] * (told.end_lineno - told.lineno + 1)
    return hashlib.sha256("\n".join(line for line in lines if line.strip()).encode()).hexdigest()


def _relative(arguments: list[str]) -> list[str]:
    """The command line as one would type it from the project's root."""
    script, *rest = arguments
    try:
        script = str(Path(script).resolve().relative_to(Path(__file__).parents[1]))
    except ValueError:
        script = Path(script).name
    return [script, *rest]
