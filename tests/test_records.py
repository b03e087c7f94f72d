"""Records: numbers to what means something, and figures that are left alone where nothing but rounding changed."""

import json
from pathlib import Path

import pytest

from fcs_lab.plots import Figure
from fcs_lab.records import rounded, same_numbers, save_figure, save_record

NUMBERS = {"mse": 0.123456789, "nfe": 220, "curve": [1.0, 1234.5678, 3e-9], "named": None, "t": (900, 100)}


def figure(text: str = "") -> Figure:
    made = Figure(figsize=(1, 1))
    made.text(0.5, 0.5, text)
    return made


def test_numbers_are_rounded_and_counts_are_not(tmp_path):
    save_record(tmp_path / "x.json", model="mnist", seed=0, settings={"h": 0.123456789}, numbers=NUMBERS | {"n": 123456})
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["numbers"] == {
        "mse": 0.1235, "nfe": 220, "curve": [1.0, 1235.0, 3e-9], "named": None, "t": [900, 100], "n": 123456
    }  # fmt: skip
    assert record["settings"] == {"h": 0.123456789}
    assert rounded(float("inf")) == float("inf")


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (1.0, 1.009, True),
        (1.0, 1.011, False),
        (-1.0, 1.0, False),
        (3e-9, -5e-8, True),  # rounding about zero
        (0.0, 1e-5, False),
        (220, 221, False),  # a count
        (220, 220, True),
        (1, 1.0001, False),  # a count does not become a number
        (1.0, 1, False),
        (True, 1, False),
        ("a", "b", False),
        (None, 0.0, False),
        ([1.0, 2.0], [1.0], False),
        ({"a": 1.0}, {"b": 1.0}, False),
        ({"a": [1.0, {"b": 2.0}]}, {"a": [1.001, {"b": 2.001}]}, True),
        ({"a": [1.0, {"b": 2.0}]}, {"a": [1.001, {"b": 2.1}]}, False),
        (float("nan"), float("nan"), True),
        (float("inf"), 1.0, False),
    ],
)
def test_what_is_the_same(old, new, same):
    assert same_numbers(old, new, 0.01) == same
    assert same_numbers(new, old, 0.01) == same


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    """A script that draws, and what it wrote."""
    script = tmp_path / "fig99.py"
    script.write_text("# draws")
    monkeypatch.setattr("sys.argv", [str(script)])
    path = tmp_path / "out" / "fig99"

    def save(text: str = "a", **changed) -> bool:
        record = {"model": "mnist", "seed": 0, "settings": {"K": 5}, "numbers": NUMBERS, "tolerance": 0.01} | changed
        return save_figure(figure(text), path, **record)

    return save, path, script


def contents(path: Path) -> dict[str, bytes]:
    return {file.suffix: file.read_bytes() for file in path.parent.iterdir()}


def test_a_figure_that_came_out_as_it_was_is_left_alone(drawing, capsys):
    save, path, _ = drawing
    assert save(timings={"seconds": 1.0}, chaotic=[1.0])
    assert json.loads(path.with_suffix(".json").read_text())["chaotic"] == [1.0]
    first = contents(path)
    assert set(first) == {".json", ".png", ".pdf"}
    # Other rounding, other seconds, and a picture that shows them.
    assert not save("b", numbers=NUMBERS | {"mse": 0.1239}, timings={"seconds": 2.0}, chaotic=[2.0])
    assert contents(path) == first
    assert "left alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed",
    [
        {"numbers": NUMBERS | {"mse": 0.13}},
        {"numbers": NUMBERS | {"nfe": 221}},
        {"settings": {"K": 6}},
        {"seed": 1},
        {"model": "fashion"},
        {"tolerance": None},
    ],
)
def test_what_changed_is_written(drawing, changed):
    save, path, _ = drawing
    save()
    first = contents(path)
    assert save("b", **changed)
    second = contents(path)
    assert second[".png"] != first[".png"] and second[".pdf"] != first[".pdf"]
    assert (second[".json"] == first[".json"]) == ("tolerance" in changed)


def test_another_drawing_of_the_same_numbers_is_written(drawing):
    save, path, script = drawing
    save()
    first = contents(path)
    script.write_text("# draws otherwise")
    assert save("b")
    assert contents(path)[".png"] != first[".png"]


@pytest.mark.parametrize("lost", [".png", ".pdf", ".json"])
def test_what_is_missing_is_written(drawing, lost):
    save, path, _ = drawing
    save()
    path.with_suffix(lost).unlink()
    assert save()
    assert path.with_suffix(lost).exists()


def test_a_record_names_the_weights_of_a_folder(tmp_path):
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "sd" / "unet" / "model.safetensors").write_bytes(b"weights")
    record = save_record(tmp_path / "x.json", model=str(tmp_path / "sd"), seed=0, settings={}, numbers={})
    assert list(record["model"]["sha256"]) == ["sd/unet/model.safetensors"]
    assert record["model"]["name"] == str(tmp_path / "sd")
    assert not save_record(tmp_path / "y.json", model="owner/name", seed=0, settings={}, numbers={})["model"]["sha256"]


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), "a"])
def test_a_tolerance_is_a_number(drawing, tolerance):
    with pytest.raises(ValueError, match="tolerance is"):
        drawing[0](tolerance=tolerance)
