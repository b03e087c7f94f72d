"""Figures and tables: they can be made again, say how they were made, and are those of the bundled model."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import fcs_lab
from fcs_lab.zoo import WEIGHTS

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "figures" / "output"
FIGURES = sorted((ROOT / "figures").glob("fig*.py"))
TABLES = sorted((ROOT / "figures").glob("tab*.py"))


def script(path: Path, monkeypatch, **settings):
    """The script as a module, its settings made small."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in settings.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
    monkeypatch.setattr("sys.argv", [str(path)])
    return module


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_twice_gives_the_same_numbers(path, tmp_path, monkeypatch):
    timesteps = () if path.stem == "fig08_invertibility" else (500,)  # of the trained model: a dense J takes long
    module = script(path, monkeypatch, DIGITS=2, DIGIT=0, SAMPLES=2, PAIRS=2, STEPS=3, INNER=2, TIMESTEPS=timesteps)
    records = []
    for run in ("first", "second"):
        module.main(tmp_path / run)
        (written,) = (tmp_path / run).glob("*.json")
        records.append(json.loads(written.read_text()))
        assert (tmp_path / run / f"{path.stem}.pdf").read_bytes().startswith(b"%PDF")
        assert Image.open(tmp_path / run / f"{path.stem}.png").text["Description"].startswith(f"python figures/{path.name}")
    first, second = records
    assert first.pop("timings") and second.pop("timings")
    assert first == second
    assert first["command"] == f"python figures/{path.name}"
    assert {"model", "seed", "settings", "numbers", "versions"} <= first.keys()


def test_the_table_of_peers(tmp_path, monkeypatch):
    """Two digits, three timesteps or so; and a finished cell is not run again."""
    path = ROOT / "figures" / "tab07_peers.py"
    module = script(path, monkeypatch, DIGITS=2, FIRST=0)
    cells = [
        *(("newton", 220, name) for name in ("right half", "box", "SR ×4", module.NOISY, *module.GARMENTS)),
        *((method, 60, "right half") for method in ("gradient", "fast", "repaint", "tuned")),
        ("newton, all noise fresh", 220, "SR ×4"),
        ("bicubic", 0, "SR ×4"),
        ("ddrm", 60, module.NOISY),
        ("newton 10×3", 70, module.GARMENTS[1]),
    ]
    monkeypatch.setattr(module, "cells", lambda: cells)

    def few(method, evaluations):
        inner = {"inner_steps": 1} if method.startswith(("newton", "gradient")) else {}
        return {} if method == "bicubic" else {"num_inference_steps": 3} | inner

    monkeypatch.setattr(module, "settings_of", few)
    pixels = ((fcs_lab.load_digits(2)[0] + 1) * 127.5).round().to(torch.uint8)[:, 0]
    records = []
    for run in ("first", "second"):
        module.main(tmp_path / run, lambda: (pixels, fcs_lab.load_digits(2)[1]), tmp_path / "cells")
        records.append(json.loads((tmp_path / run / "tab07_peers.json").read_text()))
    assert records[0]["numbers"] == records[1]["numbers"] and records[0]["timings"] == records[1]["timings"]
    rows = {(row["method"], row["task"]): row for row in records[0]["numbers"]["rows"]}
    assert len(rows) == len(cells) == len(list((tmp_path / "cells").iterdir()))
    assert rows["newton", "right half"]["to_newton"] == [0, 0]
    assert (rows["gradient", "right half"]["nfe"], rows["gradient", "right half"]["backward"]) == (6, 3)
    assert rows["repaint", "right half"]["settings"]["resamplings"] == 3
    assert (tmp_path / "first" / "tab07_peers.md").read_text().count("**") == 14


def test_the_half_image_table(tmp_path, monkeypatch):
    module = script(ROOT / "figures" / "tab01_half_image.py", monkeypatch, DIGITS=4, STEPS=4, INNER=2)
    module.main(tmp_path)
    models = json.loads((tmp_path / "tab01_half_image.json").read_text())["numbers"]
    assert models["mnist"]["accuracy_on_truth"] == 1  # of the first four digits
    for numbers in models.values():
        for hidden in ("right half", "top half"):
            assert numbers[hidden]["newton"]["nfe"] == 4 * 5
            assert numbers[hidden]["gradient"]["n_backward"] == 4 * 2
            assert numbers[hidden]["newton"]["mse_known"] < numbers[hidden]["unconditional"]["mse_known"] / 3
    assert (tmp_path / "tab01_half_image.md").read_text().count("\n| ") >= 16


def test_the_benchmark_measures_ratios(tmp_path, monkeypatch):
    module = script(ROOT / "figures" / "tab02_speed.py", monkeypatch, STEPS=1, INNER=2, BATCHES=(1,))
    module.main(tmp_path, repeats=2)
    timings = json.loads((tmp_path / "tab02_speed.json").read_text())["timings"]
    for name in ("mnist", "fashion"):
        assert all(ratio > 0 for ratio in timings[f"{name}, batch 1"]["wall time"].values())
        assert timings[f"{name}, batch 1"]["peak MiB above the model"]["gradient"] > 0
    assert timings["constrained pipeline / its bare guided evaluations"]["batch 1"] > 0


@pytest.mark.parametrize("path", FIGURES + TABLES, ids=lambda path: path.stem)
def test_what_is_committed_was_made_with_these_weights(path):
    record = json.loads((OUTPUT / path.stem).with_suffix(".json").read_text())
    sums = json.loads((WEIGHTS / "checksums.json").read_text())
    names = record["model"]["name"].split(", ")
    expected = {f"{name}/{file}": s for name in names for file, s in sums[name].items() if file.endswith(".safetensors")}
    assert record["model"]["sha256"] == expected
    assert record["command"] == f"python figures/{path.name}"
    if path in FIGURES:
        assert (OUTPUT / path.stem).with_suffix(".png").exists() and (OUTPUT / path.stem).with_suffix(".pdf").exists()


def test_the_readme_quotes_the_table_as_it_is():
    for table in ("tab01_half_image.md", "tab07_short.md"):
        assert (OUTPUT / table).read_text().strip() in (ROOT / "README.md").read_text()
