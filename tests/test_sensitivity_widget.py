"""The sensitivity laboratory, its buttons pressed from code."""

import json

import pytest
import torch
from conftest import pictures

from fcs_lab import SensitivityMap
from fcs_lab.sensitivity.cells import Bench
from fcs_lab.widgets import SensitivityLab
from fcs_lab.widgets import sensitivity as module
from fcs_lab.widgets.heatmap import HeatMap

AXES = {"x": ("step_size_first", [0.1, 0.5]), "y": ("inner_steps", [1, 2])}


@pytest.fixture
def lab(ideal, tmp_path):
    lab = SensitivityLab(ideal, pictures(), tmp_path / "maps", num_inference_steps=2, **AXES)
    lab.count.value = 2
    return lab


def finished(lab):
    lab.wait(60)
    assert lab.run_button.disabled is False and lab.stop_button.disabled is True


def ran(lab):
    lab.run_button.click()
    finished(lab)
    return lab.status.value


def test_run_fills_the_map_that_the_controls_describe(lab, ideal):
    lab.seed.value, lab.task.value, lab.step_size.value, lab.eta.value = 5, "box", (0.2, 0.7), 0.5
    assert ran(lab) == "done: 4 of 4 cells"
    expected = SensitivityMap(
        ideal, pictures()[:2], *AXES.values(), task="box", seed=5, step_size_last=0.2, eta=0.5, num_inference_steps=2
    ).run(progress=False)
    assert {p: c.mse for p, c in lab.sensitivity.cells.items()} == {p: c.mse for p, c in expected.cells.items()}
    assert (lab.progress.value, lab.progress.max) == (4, 4) and not lab.save_button.disabled
    assert lab.call.value == lab.sensitivity.call() and "seed=5" in lab.call.value
    assert [cell["text"] for cell in lab.heat_map.cells] == [
        f"{value:.3g}" for value in expected.values().flatten().tolist()
    ]
    assert (lab.heat_map.columns, lab.heat_map.rows) == (["0.1", "0.5"], ["1", "2"])
    lab.measure.value = "evaluations"
    assert [cell["text"] for cell in lab.heat_map.cells] == ["6", "6", "10", "10"]


def test_a_chosen_cell_shows_what_it_holds(lab):
    ran(lab)
    assert lab.heat_map.selected == 3, "the last one finished"
    lab.select(0.5, 1)
    assert lab.heat_map.selected == 1
    cell = lab.sensitivity.cells[0.5, 1]
    assert "λ, first of a timestep: 0.5, inner steps K: 1" in lab.detail.value
    assert f"{cell.of('mse')[0]:.3g} ± {cell.of('mse')[1]:.2g}" in lab.detail.value
    assert "6 evaluations and" in lab.detail.value
    pictures_of = lab.cell_picture.value, lab.cost_picture.value
    lab.heat_map.selected = 2  # as a click in the browser
    assert (lab.cell_picture.value, lab.cost_picture.value) != pictures_of
    assert lab.cell_picture.layout.display == lab.cost_picture.layout.display == ""
    with pytest.raises(ValueError, match=r"x is 0.3 and y 1; expected values of the axes"):
        lab.select(0.3, 1)


def test_stop_and_go_on(lab, sampled, monkeypatch):
    own = Bench.sampled

    def stopping(self, x, y, stop=None):
        if (x, y) == (0.5, 1):
            lab.stop()
        return own(self, x, y, stop)

    monkeypatch.setattr(Bench, "sampled", stopping)
    assert ran(lab).startswith("stopped: 1 of 4 cells, about ") and lab.status.value.endswith("s left; Run goes on")
    assert list(lab.sensitivity.cells) == [(0.1, 1)] and lab.progress.value == 1
    assert [cell["text"] == "" for cell in lab.heat_map.cells] == [False, True, True, True]
    monkeypatch.setattr(Bench, "sampled", own)
    del sampled[:]
    assert ran(lab) == "done: 4 of 4 cells" and sampled == [(0.5, 1), (0.1, 2), (0.5, 2)]


def test_another_session_finds_the_map(lab, ideal, tmp_path, sampled):
    ran(lab)
    del sampled[:]
    other = SensitivityLab(ideal, pictures(), tmp_path / "maps", num_inference_steps=2, **AXES)
    other.count.value = 2
    assert ran(other) == "done: 4 of 4 cells" and not sampled
    other.seed.value = 1  # another map, in a folder of its own
    ran(other)
    assert len(sampled) == 4 and len(list((tmp_path / "maps").iterdir())) == 2


def test_a_cell_that_fails_says_so(lab, monkeypatch):
    own = Bench._run

    def broken(self, x, y, *others):
        if (x, y) == (0.5, 1):
            raise RuntimeError("out of <luck>")
        return own(self, x, y, *others)

    monkeypatch.setattr(Bench, "_run", broken)
    assert ran(lab) == "done: 4 of 4 cells, 1 failed"
    lab.select(0.5, 1)
    assert "RuntimeError: out of &lt;luck&gt;" in lab.detail.value and lab.cell_picture.layout.display == "none"
    assert lab.heat_map.cells[1]["text"] == "×" and lab.heat_map.cells[1]["title"].endswith("RuntimeError: out of <luck>")
    monkeypatch.setattr(Bench, "_run", own)
    assert ran(lab) == "done: 4 of 4 cells", "tried anew"
    assert lab.heat_map.cells[1]["text"] != "×" and lab.cell_picture.layout.display == ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("0.5, 0.1", "x has 0.5 before 0.1 of step_size_first; expected numbers that rise"),
        ("0.5", "x has 1 value of step_size_first; expected at least two"),
        ("", "x has 0 value of step_size_first; expected at least two"),
        ("a, b", "step_size_first has &#x27;a, b&#x27;; expected numbers, such as 0.05"),
        ("0.1, 1e999", "x (step_size_first) has inf; expected numbers from 0"),
    ],
)
def test_bad_values_are_a_message(lab, values, said):
    lab.x_values.value = values
    assert ran(lab) == "failed" and said in lab.message.value and lab.sensitivity is None


def test_the_same_axis_twice_is_a_message(lab):
    lab.y_axis.value = "step_size_first"
    assert ran(lab) == "failed" and "x and y are both" in lab.message.value


def test_many_cells_are_asked_for(lab, sampled, monkeypatch):
    monkeypatch.setattr(module, "ASKED_CELLS", 3)
    assert lab.confirm_button.layout.display == "none" and lab.run_button.layout.display != "none"
    assert ran(lab) == "not begun" and not sampled
    assert "4 cells, 64 evaluations: about 1 s. Run all the same?" in lab.message.value
    assert lab.confirm_button.layout.display == "" and lab.run_button.layout.display != "none"
    lab.confirm_button.click()
    finished(lab)
    assert lab.status.value == "done: 4 of 4 cells" and lab.confirm_button.layout.display == "none"
    assert ran(lab) == "done: 4 of 4 cells", "nothing is missing, nothing is asked"


def test_a_long_run_is_asked_for(lab, sampled, monkeypatch):
    monkeypatch.setattr(Bench, "seconds_of_an_evaluation", lambda self: 60.0)
    assert ran(lab) == "not begun" and not sampled
    assert "4 cells, 64 evaluations: about 64 min. Run all the same?" in lab.message.value


def test_what_is_saved(lab, tmp_path):
    lab.path.value = str(tmp_path / "out" / "map.png")
    lab.save()
    assert not (tmp_path / "out").exists(), "before a run there is nothing"
    ran(lab)
    lab.save_button.click()
    assert "saved" in lab.message.value
    assert json.loads((tmp_path / "out" / "map.json").read_text())["settings"]["call"] == lab.call.value
    lab.path.value = ""
    lab.save_button.click()
    assert "path is" in lab.message.value


def test_controls_are_those_that_apply(lab):
    def shown():
        return {name for name, control in lab._controls.items() if control.layout.display != "none"}

    assert shown() == {"task", "method", "num_inference_steps", "step_size", "fd_step", "eta", "seed"}
    lab.method.value = "gradient"
    assert shown() == {"task", "method", "num_inference_steps", "step_size", "eta", "seed"}
    lab.x_axis.value, lab.y_axis.value = "hidden", "noise_std"
    assert lab.x_values.value == module.VALUES["hidden"], "values that an axis begins with"
    assert shown() == {"method", "num_inference_steps", "inner_steps", "step_size", "eta", "seed"}
    lab.method.value = "dps"
    assert shown() == {"method", "num_inference_steps", "seed"}


def test_methods_side_by_side(lab):
    lab.x_axis.value, lab.x_values.value = "method", "newton, ddnm, biharmonic"
    lab.y_axis.value, lab.y_values.value = "noise_std", "0, 0.1"
    assert ran(lab) == "done: 6 of 6 cells"
    assert [cell.evaluations for cell in lab.sensitivity.cells.values()] == [22, 2, 0] * 2


def test_settings_without_a_control_are_kept(ideal):
    lab = SensitivityLab(ideal, pictures(), step_size=(0.1, 0.4), x=("eta", [0, 1]), y=("inner_steps", [1, 2]),
                         num_inference_steps=2, task="sr2", fd_step=0.123, batch_size=1)  # fmt: skip
    assert (lab.task.value, lab.num_inference_steps.value, lab.step_size.layout.display) == ("sr2", 2, "none")
    assert ran(lab) == "done: 4 of 4 cells"
    assert lab.sensitivity.grid.settings["step_size"] == (0.1, 0.4) and lab.sensitivity.grid.settings["fd_step"] == 0.123
    assert lab.sensitivity.grid.task == "sr2" and lab.sensitivity.bench.batch_size == 1


def test_the_axes_it_begins_with_are_looked_at(ideal):
    with pytest.raises(ValueError, match="y is 'speed'; expected one of"):
        SensitivityLab(ideal, pictures(), y=("speed", [1, 2]))
    lab = SensitivityLab(ideal, pictures(), x=("dtype", [torch.float32, torch.bfloat16]))
    assert lab.x_values.value == "float32, bfloat16"


def test_images_have_to_fit_the_model(ideal):
    with pytest.raises(ValueError, match=r"images has shape \(3, 1, 16, 16\); expected \(N, 1, 8, 8\)"):
        SensitivityLab(ideal, pictures(size=16))


def test_a_heat_map_of_nothing_is_hatched(ideal):
    heat_map = HeatMap()
    heat_map.show(SensitivityMap(ideal, pictures(), *AXES.values()))
    assert [cell["colour"] for cell in heat_map.cells] == [""] * 4
    assert heat_map.cells[2]["title"] == "λ, first of a timestep 0.1, inner steps K 2: not computed"
