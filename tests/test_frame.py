"""The project's frame: pins that agree, a lean import, a wheel that carries the model."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from PIL import Image

import fcs_lab

ROOT = Path(__file__).parents[1]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9][0-9A-Za-z.+!]*", line) for line in lines), "every line is a pin"
    return {canonical(line.split("==")[0]): line.split("==")[1] for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["study"]
    assert {canonical(re.split(r"[<>=\[]", line)[0]) for line in wanted} <= pins().keys()


def test_the_lock_takes_any_build_of_torch():
    text = (ROOT / "requirements.lock").read_text()
    assert re.search(r"^torch==[0-9.]+$", text, re.MULTILINE), "no local version such as +cpu"
    assert "--hash" not in text
    assert not [name for name in pins() if name.startswith(("nvidia", "cuda", "triton", "torchvision", "torchaudio"))]


def test_conda_leads_to_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."], "pip is left nothing to choose"
    others = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    assert [re.match("[a-z]+", entry)[0] for entry in others] == ["python", "pip"]
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert others[0].startswith(f"python{requires}")


def test_this_environment_is_the_locked_one():
    differing = {name: (version(name), pin) for name, pin in pins().items() if version(name).split("+")[0] != pin}
    assert not differing


def test_the_version_is_the_changelogs():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == fcs_lab.__version__


def test_import_brings_neither_plots_nor_widgets():
    script = (
        "import fcs_lab, sys; print([m for m in ('matplotlib', 'ipywidgets', 'anywidget', 'IPython') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_widgets_take_no_extra():
    """pandas is the study's; what shows a study's table is imported by itself."""
    script = "import sys, diffusers, transformers; sys.modules['pandas'] = None; import fcs_lab.widgets"
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_wheel_carries_the_model_and_not_its_checkpoints(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "fcs_lab/weights/mnist/model_index.json",
        "fcs_lab/weights/mnist/unet/diffusion_pytorch_model.safetensors",
        "fcs_lab/weights/mnist/scheduler/scheduler_config.json",
        "fcs_lab/weights/classifier/model.safetensors",
        "fcs_lab/weights/digits.safetensors",
        "fcs_lab/weights/checksums.json",
        "fcs_lab/widgets/canvas.js",
    ):
        assert needed in names
    assert not [name for name in names if "checkpoints" in name or name.startswith(("tests", "figures", "notebooks"))]
    licences = [name for name in names if ".dist-info/licenses/" in name]
    assert sorted(Path(name).name for name in licences) == ["LICENSE", "NOTICE"], "NOTICE has the bundled pictures' sources"

    # Installed without the repository, it samples with every bundled model.
    there = tmp_path / "installed"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(there),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    script = (
        "import fcs_lab\n"
        "print(fcs_lab.__file__)\n"
        "images = {'mnist': fcs_lab.load_digits, 'fashion': fcs_lab.load_garments, 'emoji': fcs_lab.load_emoji}\n"
        "for name, load in images.items():\n"
        "    task = fcs_lab.SuperResolution(fcs_lab.downsample(load(1)[0], 2), 2)\n"
        "    fcs_lab.sample(fcs_lab.load(name), task, num_inference_steps=1, inner_steps=1, progress=False)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(there)},
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0 and run.stdout.startswith(str(there)), run.stderr


@pytest.mark.parametrize("folder", ["fcs_lab", "figures"])
def test_the_layers_of_the_architecture(folder):
    """Nothing in the package reads notebooks or figures; the sampler's side knows neither plots nor widgets."""
    for path in (ROOT / folder).rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"^\s*(from|import) (figures|notebooks|tests)\b", source, re.MULTILINE), path
        if folder == "fcs_lab" and path.name not in ("plots.py",) and "widgets" not in path.parts:
            assert not re.search(r"^(from|import) (matplotlib|ipywidgets|fcs_lab\.(plots|widgets))", source, re.MULTILINE), (
                path
            )


def test_the_house_has_floors():
    """No circle of imports between modules and packages of `fcs_lab`; the floors are those that CONTRIBUTING draws."""
    imports: dict[str, set[str]] = {}
    for path in (ROOT / "fcs_lab").rglob("*.py"):
        part = path.relative_to(ROOT / "fcs_lab").with_suffix("").parts[0]
        if part == "__init__":
            continue
        found, tree = imports.setdefault(part, set()), ast.parse(path.read_text())
        of_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
        unread = {inner for node in of_types for inner in ast.walk(node)}
        for node in ast.walk(tree):
            package, *inside = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and package == "fcs_lab" and node not in unread:
                found.update(inside[:1] or [name.name for name in node.names])
    left, floors = {part: found & imports.keys() - {part} for part, found in imports.items()}, []
    while left:
        floor = sorted(part for part, found in left.items() if not found & left.keys())
        assert floor, f"a circle among {left}"
        floors.append(", ".join(floor))
        left = {part: found for part, found in left.items() if part not in floor}
    assert "\n".join(floors) in (ROOT / "CONTRIBUTING.md").read_text(), "\n".join(floors)


def test_modules_and_functions_are_short():
    """450 lines a module, examples aside; 80 a function: its arguments and docstring aside, which are read apart."""
    long = []
    for path in (ROOT / "fcs_lab").rglob("*.py"):
        source = path.read_text()
        lines = re.sub(r"^ *Example:\n(?: {8,}.*\n)+", "", source, flags=re.MULTILINE).splitlines()
        long += [path.name] if len(lines) > 450 else []
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1 if ast.get_docstring(node) else 0 :]
                long += [f"{path.name}, {node.name}"] if body and node.end_lineno - body[0].lineno >= 80 else []
    assert not long


def test_no_private_name_is_imported():
    for path in [*(ROOT / "fcs_lab").rglob("*.py"), *(ROOT / "figures").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.ImportFrom) else []
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            assert not private, f"{path.name} imports {private}"


def test_the_readmes_ten_lines_run(tmp_path, monkeypatch):
    code = re.search(r"```python\n(import torch.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert Image.open("completed.png").size == (64, 64)
