"""Every public name has an example that runs, and the API is written as pages."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fcs_lab


@pytest.mark.parametrize("name", fcs_lab.__all__)
def test_an_example_runs(name, capsys):
    told = inspect.getdoc(getattr(fcs_lab, name))
    test = doctest.DocTestParser().get_doctest(told, {"torch": torch, "fcs_lab": fcs_lab}, name, name, 0)
    assert test.examples, f"{name} has no example"
    assert not doctest.DocTestRunner().run(test).failed, capsys.readouterr().out


def test_the_pages(tmp_path):
    """What `make docs` does, of the top of the package."""
    command = [sys.executable, "-m", "pdoc", "--math", "--docformat", "google", "-o", str(tmp_path), "fcs_lab"]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(fcs_lab.__file__).parents[1])
    page = (tmp_path / "fcs_lab.html").read_text()
    assert not [name for name in fcs_lab.__all__ if f'id="{name}"' not in page]
