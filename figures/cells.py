"""Cells of a table that are computed once: an interrupted table loses nothing that was finished."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept(folder: Path, name: str, told: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `compute()` returns, as read back from JSON; computed only if there is no file of it yet.

    Args:
        folder: Where the files are, one a cell.
        name: The cell's, in its file's name.
        told: All that the cell depends on, as JSON: with other settings, or other weights, it is another file.
        compute: It is written once it is finished, in one move.
    """
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    stored = folder / f"{name}-{key}.json"
    if not stored.exists():
        found = compute()
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".part")
        partial.write_text(json.dumps(found))
        partial.replace(stored)
    return json.loads(stored.read_text())
