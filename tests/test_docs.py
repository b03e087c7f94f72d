"""Every public name has an example that runs, and the API is written as pages."""

import dataclasses
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fcs_lab

ROOT = Path(fcs_lab.__file__).parents[1]
MODULES = re.search(r"patsubst %,fcs_lab.%,(.+?)\)", (ROOT / "Makefile").read_text().replace("\\\n", " "))[1].split()
"""Those that `make docs` writes beside the top of the package."""


def public(module: str) -> dict[str, object]:
    """What it offers to call; a result's example is that of the call that returns it."""
    there = vars(importlib.import_module(module))
    names = there.get("__all__") or [name for name in there if not name.startswith("_")]
    own = {name: there[name] for name in names if getattr(there[name], "__module__", "").startswith(module)}
    called = {name: one for name, one in own.items() if inspect.isfunction(one) or inspect.isclass(one)}
    shown = {name: one for name, one in called.items() if not dataclasses.is_dataclass(one) or ">>>" in one.__doc__}
    return {f"{module}.{name}": one for name, one in shown.items()}


NAMES = {f"fcs_lab.{name}": getattr(fcs_lab, name) for name in fcs_lab.__all__}
for _module in MODULES:
    NAMES |= {name: one for name, one in public(f"fcs_lab.{_module}").items() if one not in NAMES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name, capsys):
    told = inspect.getdoc(NAMES[name])
    test = doctest.DocTestParser().get_doctest(told, {"torch": torch, "fcs_lab": fcs_lab}, name, name, 0)
    assert test.examples, f"{name} has no example"
    assert not doctest.DocTestRunner().run(test).failed, capsys.readouterr().out


def test_the_pages(tmp_path):
    """What `make docs` does, of the top of the package."""
    command = [sys.executable, "-m", "pdoc", "--math", "--docformat", "google", "-o", str(tmp_path), "fcs_lab"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    page = (tmp_path / "fcs_lab.html").read_text()
    assert not [name for name in fcs_lab.__all__ if f'id="{name}"' not in page]
