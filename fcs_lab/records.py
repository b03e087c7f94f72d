"""Records of how a figure or table came about: a JSON with the command, model, seed, versions and numbers."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fcs_lab.checks import check_seed, typed
from fcs_lab.zoo import WEIGHTS

__all__ = ["save_figure", "save_record"]


@typed
def save_record(
    path: str | Path,
    *,
    model: str | Sequence[str],
    seed: int,
    settings: dict[str, Any],
    numbers: Any,
    timings: Any = None,
) -> dict[str, Any]:
    """Write the record of a result as JSON.

    Args:
        path: The JSON file.
        model: The model's name, or several; for a bundled one its weights' SHA-256 are added.
        seed: The generator's seed; images of a batch use seed, seed + 1, ….
        settings: What the result depends on besides.
        numbers: What is shown; the same whenever the command is run again on the same machine.
        timings: Seconds and what follows from them; kept apart, because they are not.
    """
    seed = check_seed(seed)
    if Path(path).is_dir():
        raise ValueError(f"path is {str(path)!r}, a folder; expected a file")
    try:
        json.dumps([settings, numbers, timings])
    except TypeError as error:
        raise TypeError(f"settings, numbers or timings cannot be written as JSON: {error}") from error
    names = [model] if isinstance(model, str) else list(model)
    weights = [path for name in names for path in sorted((WEIGHTS / name).rglob("*.safetensors"))]
    record = {
        "command": shlex.join(["python", *_relative(sys.argv)]),
        "model": {
            "name": ", ".join(names),
            "sha256": {str(w.relative_to(WEIGHTS)): hashlib.sha256(w.read_bytes()).hexdigest() for w in weights},
        },
        "seed": seed,
        "settings": settings,
        "numbers": numbers,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("fcs-lab", "torch", "diffusers", "numpy", "scipy", "matplotlib")},
        "timings": {"machine": platform.machine(), **(timings or {})},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    return record


@typed
def save_figure(figure: Any, path: str | Path, **record: Any) -> None:
    """Write a matplotlib figure as PNG and PDF with its record beside them.

    Args:
        figure: The figure.
        path: Without suffix.
        record: The arguments of `save_record`.
    """
    path = Path(path)
    written = save_record(path.with_suffix(".json"), **record)
    about = f"{written['command']} | model {written['model']['name']} | seed {written['seed']}"
    figure.savefig(path.with_suffix(".png"), dpi=200, metadata={"Description": about})
    # Without its date, the same figure is the same file.
    figure.savefig(path.with_suffix(".pdf"), metadata={"Subject": about, "CreationDate": None})
    print(f"wrote {path.with_suffix('.png')}, .pdf and .json")


def _relative(arguments: list[str]) -> list[str]:
    """The command line as one would type it from the project's root."""
    script, *rest = arguments
    try:
        script = str(Path(script).resolve().relative_to(Path(__file__).parents[1]))
    except ValueError:
        script = Path(script).name
    return [script, *rest]
