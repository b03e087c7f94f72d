"""A map of two settings: cells are what `sample` gives, none is computed twice, what is wrong is said before any work."""

import csv
import io
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_pipelines as tiny
import torch
from conftest import pictures, tiny_denoiser
from diffusers import DDIMScheduler
from PIL import Image

import fcs_lab
from fcs_lab import SensitivityMap
from fcs_lab.latent import LatentDenoiser
from fcs_lab.metrics import masked_mse
from fcs_lab.sensitivity.cells import Bench
from fcs_lab.sensitivity.plots import MISSING, heat, plot_costs, plot_sensitivity
from fcs_lab.study.tasks import mask

STEPS, K = ("step_size_first", [0.1, 0.5]), ("inner_steps", [1, 2])
FEW = {"num_inference_steps": 2}


def generators(seed, *numbers):
    return [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in numbers]


def right_half(truth):
    hidden = mask("right-half", *truth.shape[-2:], 0)
    return fcs_lab.Inpainting(truth, hidden), hidden[None, None]


def close(found, expected):
    """Equal to the six digits that are kept."""
    return found == pytest.approx(expected, rel=6e-6, abs=1e-9)


def test_a_cell_is_what_sample_gives(ideal):
    truth = pictures()
    found = SensitivityMap(ideal, truth, STEPS, K, seed=7, step_size_last=0.2, eta=0.5, **FEW).run(progress=False)
    task, hidden = right_half(truth)
    assert list(found.cells) == [(0.1, 1), (0.5, 1), (0.1, 2), (0.5, 2)]
    for (first, inner), cell in found.cells.items():
        expected = fcs_lab.sample(
            ideal,
            task,
            num_inference_steps=2,
            inner_steps=inner,
            step_size=(first, 0.2),
            eta=0.5,
            generator=generators(7, 0, 1, 2),
            progress=False,
        )
        assert close(cell.mse, masked_mse(expected.images, truth, hidden).tolist())
        assert close(cell.known_mse, masked_mse(expected.images, truth, ~hidden).tolist())
        assert (cell.images - expected.images).abs().max() <= 1 / 255 + 1e-6, "8 bits"
        assert (cell.evaluations, cell.backward) == (expected.nfe, expected.n_backward)
        assert [nfe for nfe, _ in cell.trace] == [entry.nfe for entry in expected.trace]
        for (_, costs), entry in zip(cell.trace, expected.trace, strict=True):
            assert costs == pytest.approx(entry.cost.tolist(), rel=1e-3), "four digits"
        mean, error = cell.of("mse")
        mse = masked_mse(expected.images, truth, hidden).double()
        assert close(mean, mse.mean().item()) and error == pytest.approx(mse.std().item() / 3**0.5, rel=1e-4)
    assert found.evaluations() == (3 * sum(cell.evaluations for cell in found.cells.values()), 0)


def test_an_image_is_the_same_alone_and_in_batches():
    model = tiny_denoiser()  # in float64, where J e does not hang on the batch
    truth, few = pictures(3).double(), ("inner_steps", [0, 1])
    together = SensitivityMap(model, truth, STEPS, few, **FEW).run(progress=False)
    in_two = SensitivityMap(model, truth, STEPS, few, batch_size=2, **FEW).run(progress=False)
    alone = SensitivityMap(model, truth[:1], STEPS, few, **FEW).run(progress=False)
    for pair, cell in together.cells.items():
        assert close(in_two.cells[pair].mse, cell.mse) and close(alone.cells[pair].mse, cell.mse[:1])
        assert len(in_two.cells[pair].trace) == len(cell.trace) and len(in_two.cells[pair].trace[0][1]) == 3
        assert in_two.cells[pair].evaluations == cell.evaluations
    assert math.isnan(alone.cells[0.1, 1].of("mse")[1]), "no standard error of one image"


@pytest.mark.parametrize("method", ["gradient", "identity", "fast", "ddnm", "dps", "biharmonic"])
def test_methods_are_those_of_the_package(ideal, method):
    truth = pictures(2)
    found = SensitivityMap(ideal, truth, ("method", [method, "newton"]), ("hidden", [0.2, 0.4]), num_inference_steps=3).run(
        progress=False
    )
    cell = found.cells[method, 0.4]
    hidden = torch.stack([mask("region-40", 8, 8, i) for i in range(2)])[:, None]
    task = fcs_lab.Inpainting(truth, hidden)
    own = {} if method == "biharmonic" else {"generator": generators(0, 0, 1), "num_inference_steps": 3}
    expected = fcs_lab.baselines.METHODS[method](ideal, task, progress=False, **own)
    assert cell.error is None and close(cell.mse, masked_mse(expected.images, truth, hidden).tolist())
    assert (cell.evaluations, cell.backward) == (expected.nfe, expected.n_backward)
    assert found.grid.evaluations[method, 0.4] == expected.nfe


def test_noise_is_added_and_told(ideal):
    truth = pictures(2) * 0.5
    found = SensitivityMap(ideal, truth, ("noise_std", [0, 0.05]), ("method", ["ddnm", "diffpir"]), **FEW)
    clean, noisy = (found.posed(sigma, "ddnm") for sigma in (0.0, 0.05))
    known = ~mask("right-half", 8, 8, 0).expand_as(truth)
    added = (noisy.constraint.y - clean.constraint.y)[known]
    assert noisy.constraint.noise_std == 0.05 and clean.constraint.noise_std == 0
    assert added.std() == pytest.approx(0.05, rel=0.4) and (noisy.constraint.y[~known] == 0).all()
    assert torch.equal(found.posed(0.05, "diffpir").constraint.y, noisy.constraint.y), "the same in every cell"
    cell = found.run(progress=False).cells[0.05, "diffpir"]
    task = fcs_lab.Inpainting(noisy.constraint.y, mask("right-half", 8, 8, 0), noise_std=0.05)
    expected = fcs_lab.baselines.diffpir(ideal, task, generator=generators(0, 0, 1), progress=False, **FEW)
    assert close(cell.mse, masked_mse(expected.images, truth, ~known[:, :1]).tolist())
    assert cell.known_mse != found.cells[0.0, "diffpir"].known_mse


def test_what_has_no_known_pixels_is_compared_as_a_whole(ideal):
    truth = pictures(2)
    cell = SensitivityMap(ideal, truth, STEPS, K, task="sr2", **FEW).run(progress=False).cells[0.5, 2]
    task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, 2), 2)
    expected = fcs_lab.sample(
        ideal,
        task,
        num_inference_steps=2,
        inner_steps=2,
        step_size=(0.5, 0.1),
        generator=generators(0, 0, 1),
        progress=False,
    ).images
    assert close(cell.mse, (expected - truth).square().flatten(1).mean(1).tolist())
    residual = (task.A(expected) - task.y).square().flatten(1).mean(1)
    assert cell.known_mse == pytest.approx(residual.tolist(), rel=1e-5)


def test_precision_is_that_of_the_networks():
    model = tiny_denoiser(torch.float32)
    found = SensitivityMap(model, pictures(1), ("dtype", [torch.float32, "bfloat16"]), K, **FEW).run(progress=False)
    assert [x for x, _ in found.cells] == ["float32", "float32", "bfloat16", "bfloat16"], "one copy after the other"
    half = tiny_denoiser(torch.bfloat16)
    for dtype, one in {"float32": model, "bfloat16": half}.items():
        expected = fcs_lab.sample(one, right_half(pictures(1))[0], inner_steps=2, generator=generators(0, 0), progress=False,
                                  **FEW)  # fmt: skip
        assert close(
            found.cells[dtype, 2].mse, masked_mse(expected.images, pictures(1), right_half(pictures(1))[1]).tolist()
        )
    assert model.dtype == torch.float32 and found.cells["float32", 2].mse != found.cells["bfloat16", 2].mse


@pytest.fixture(scope="module")
def latent():
    pipe = tiny.sd(DDIMScheduler(**tiny.SD15, clip_sample=False))
    return LatentDenoiser(pipe, pipe.scheduler)


def test_guidance_is_under_a_prompt(latent):
    C, H, W = latent.image_shape
    truth = torch.rand(1, C, H, W, generator=torch.Generator().manual_seed(0)) * 2 - 1
    axes = ("guidance_scale", [1, 4]), ("inner_steps", [0, 1])
    with pytest.raises(ValueError, match="prompt is missing"):
        SensitivityMap(latent, truth, *axes)
    found = SensitivityMap(latent, truth, *axes, prompt="a dress", num_inference_steps=2).run(progress=False)
    task, hidden = right_half(truth)
    expected = fcs_lab.sample(
        latent.with_prompt("a dress", guidance_scale=4.0), task, inner_steps=1, generator=generators(0, 0), progress=False,
        **FEW)  # fmt: skip
    assert found.cells[4.0, 1].mse == pytest.approx(masked_mse(expected.images.cpu(), truth, hidden).tolist(), rel=1e-4)
    assert found.cells[4.0, 1].mse != found.cells[1.0, 1].mse and latent.prompt == ""


def test_a_map_stopped_in_the_middle_goes_on(ideal, tmp_path, sampled, monkeypatch):
    whole = SensitivityMap(ideal, pictures(), STEPS, K, **FEW).run(progress=False)
    del sampled[:]
    half = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path / "map", **FEW)
    for cell in half:  # as a reader's own loop, interrupted
        if (cell.x, cell.y) == (0.5, 1):
            break
    assert sampled == [(0.1, 1), (0.5, 1)] and half.missing() == [(0.1, 2), (0.5, 2)]
    again = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path / "map", **FEW)
    assert list(again.cells) == [(0.1, 1), (0.5, 1)]
    assert again.evaluations()[1] == sum(3 * (2 + 2 * 2 * inner) for _, inner in again.missing())

    calls, own = [], fcs_lab.IdealDenoiser.__call__

    def interrupted(self, x_t, t):
        calls.append(t)
        if len(calls) == 13:  # in the second cell of these two, of 10 evaluations each
            raise KeyboardInterrupt
        return own(self, x_t, t)

    monkeypatch.setattr(fcs_lab.IdealDenoiser, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        again.run(progress=False)
    monkeypatch.setattr(fcs_lab.IdealDenoiser, "__call__", own)
    del sampled[:]
    last = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path / "map", **FEW).run(progress=False)
    assert sampled == [(0.5, 2)], "nothing that was finished is computed again"
    for pair, cell in last.cells.items():
        assert (cell.mse, cell.known_mse, cell.trace) == (whole.cells[pair].mse, whole.cells[pair].known_mse,
                                                          whole.cells[pair].trace)  # fmt: skip
        assert torch.equal(cell.images, whole.cells[pair].images)
    assert not list((tmp_path / "map").rglob("*.part"))


def test_a_process_that_is_killed_leaves_whole_cells(tmp_path):
    folder = tmp_path / "map"
    script = (
        "import fcs_lab, torch, sys\n"
        "g = torch.Generator().manual_seed(0)\n"
        "model = fcs_lab.IdealDenoiser(torch.rand(20, 1, 8, 8, generator=g) * 2 - 1)\n"
        "truth = torch.rand(2, 1, 8, 8, generator=g) * 2 - 1\n"
        "fcs_lab.SensitivityMap(model, truth, ('step_size_first', [0.1 + i / 100 for i in range(90)]),\n"
        "                       ('inner_steps', [1, 2]), folder=sys.argv[1], num_inference_steps=2).run(progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(fcs_lab.__file__).parents[1]), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("cells/*.json"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    g = torch.Generator().manual_seed(0)
    model = fcs_lab.IdealDenoiser(torch.rand(20, 1, 8, 8, generator=g) * 2 - 1)
    truth = torch.rand(2, 1, 8, 8, generator=g) * 2 - 1
    axes = ("step_size_first", [0.1 + i / 100 for i in range(90)]), ("inner_steps", [1, 2])
    found = SensitivityMap(model, truth, *axes, folder=folder, num_inference_steps=2)
    there = len(found.cells)
    assert 3 <= there < 180, "another process' model of the same weights goes on"
    assert all(cell.images.shape == truth.shape for cell in found.cells.values())


def test_values_may_be_added_to_an_axis(ideal, tmp_path, sampled):
    folder = tmp_path / "map"
    SensitivityMap(ideal, pictures(), STEPS, K, folder=folder, **FEW).run(progress=False)
    del sampled[:]
    more = SensitivityMap(ideal, pictures(), ("step_size_first", [0.1, 0.3, 0.5]), K, folder=folder, **FEW)
    assert more.run(progress=False).values().isfinite().all() and sampled == [(0.3, 1), (0.3, 2)]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"task": "box"}, "task is 'right-half' there and 'box' here"),
        ({"num_inference_steps": 3}, "settings is"),
        ({"images": pictures(seed=5)}, "images is"),
        ({"model": fcs_lab.IdealDenoiser(pictures(20, seed=2))}, "model is"),
        ({"x": ("step_size_last", [0.1, 0.5])}, "x is 'step_size_first' there and 'step_size_last' here"),
        ({"batch_size": 1}, "batch_size is 3 there and 1 here"),
    ],
)
def test_a_folder_belongs_to_one_map(ideal, tmp_path, other, named):
    arguments = {"model": ideal, "images": pictures(), "x": STEPS, "y": K, "folder": tmp_path} | FEW
    next(iter(SensitivityMap(**arguments)))
    with pytest.raises(ValueError, match=f"has another map: {named}"):
        SensitivityMap(**arguments | other)


def test_a_folder_of_something_else_is_left_alone(ideal, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="something else than a map"):
        SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_model_that_throws_in_one_cell(ideal, tmp_path, monkeypatch, sampled):
    own = Bench._run

    def broken(self, x, y, *others):
        if (x, y) == (0.5, 1):
            raise RuntimeError("the model is broken")
        return own(self, x, y, *others)

    monkeypatch.setattr(Bench, "_run", broken)
    found = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path, **FEW).run(progress=False)
    failed = found.cells[0.5, 1]
    assert failed.error == "RuntimeError: the model is broken" and failed.images is None
    assert math.isnan(failed.of("mse")[0]) and sum(cell.error is None for cell in found.cells.values()) == 3
    assert "×" in {text.get_text() for text in found.plot().axes[0].texts}
    assert found.values().isnan().tolist() == [[False, True], [False, False]]
    monkeypatch.setattr(Bench, "_run", own)
    again = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path, **FEW)
    assert again.cells[0.5, 1].error == failed.error and again.missing() == [] and again.missing(failed=True) == [(0.5, 1)]
    del sampled[:]
    assert again.run(progress=False, retry=True).cells[0.5, 1].error is None and sampled == [(0.5, 1)]


def test_a_run_may_be_stopped_within_a_cell(ideal):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) == 5  # before a cell, after its two timesteps, before the next, after its first

    found = SensitivityMap(ideal, pictures(), STEPS, K, **FEW).run(progress=False, stop=stop)
    assert list(found.cells) == [(0.1, 1)]
    assert len(found.run(progress=False).cells) == 4


def test_the_call_makes_the_same_map(ideal):
    found = SensitivityMap(ideal, pictures(), STEPS, K, seed=3, task="box", step_size_last=0.2, inner_steps=None,
                           batch_size=2, **FEW).run(progress=False)  # fmt: skip
    place = {"model": ideal, "images": pictures()}
    exec(found.call(), place)
    again = place["sensitivity"]
    assert {p: c.mse for p, c in again.cells.items()} == {p: c.mse for p, c in found.cells.items()}
    assert again.identity() == found.identity() and "IdealDenoiser" in found.call()


def test_the_call_of_a_bundled_model_needs_nothing(mnist):
    found = SensitivityMap("mnist", 2, ("method", ["identity", "ddnm"]), ("num_inference_steps", [1, 2]))
    place = {}
    exec(found.call().replace(".run()", ""), place)
    assert place["sensitivity"].identity() == found.identity()
    assert torch.equal(found.images, fcs_lab.load_digits(2)[0])


def test_what_is_saved_says_how_it_came_about(ideal, tmp_path):
    found = SensitivityMap(ideal, pictures(), STEPS, K, **FEW).run(progress=False)
    path = found.save(tmp_path / "new" / "map")
    assert sorted(one.name for one in path.parent.iterdir()) == ["map.csv", "map.json", "map.png"]
    about = Image.open(path).text["Description"]
    text = path.with_suffix(".csv").read_text()
    record = json.loads(path.with_suffix(".json").read_text())
    for line in found.call().splitlines():
        assert line in about and f"# {line}" in text
    assert record["settings"]["call"] == found.call() and f"torch {record['versions']['torch']}" in about
    assert "seed 0" in about and "IdealDenoiser" in text
    rows = list(csv.DictReader(io.StringIO("".join(line for line in text.splitlines(True) if line[0] != "#"))))
    assert [(float(row["step_size_first"]), int(row["inner_steps"])) for row in rows] == list(found.cells)
    assert [float(row["mse"]) for row in rows] == [cell.of("mse")[0] for cell in found.cells.values()]
    assert [row["mse"] for row in record["numbers"]] == pytest.approx([float(row["mse"]) for row in rows], rel=1e-3)


def test_nothing_computed_can_be_saved(ideal, tmp_path):
    path = SensitivityMap(ideal, pictures(), STEPS, K).save(tmp_path / "empty.png")
    assert path.with_suffix(".csv").read_text().splitlines()[-1] == "step_size_first,inner_steps"


def test_the_time_left_is_that_of_the_cells_that_are_there(ideal, tmp_path):
    found = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path, **FEW)
    assert 0 < found.seconds_left() < 60
    for _ in range(2):
        next(iter(found))
    for path in tmp_path.glob("cells/*.json"):  # of 6 evaluations each, as if they had taken 3 s an image
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 3.0}))
    again = SensitivityMap(ideal, pictures(), STEPS, K, folder=tmp_path, **FEW)
    assert again.seconds_left() == pytest.approx(2 * 3 * 10 * 3.0 / 6)
    assert again.run(progress=False).seconds_left() == 0


BAD = [
    ({"x": ("inner_steps", [3, 1])}, ValueError, r"x has 3 before 1 of inner_steps; expected numbers that rise"),
    ({"x": ("inner_steps", [1, 5, 3])}, ValueError, r"x has 5 before 3"),
    ({"x": ("inner_steps", [1, 1])}, ValueError, r"x has 1 of inner_steps more than once"),
    ({"x": ("inner_steps", [1])}, ValueError, r"x has 1 value of inner_steps; expected at least two"),
    ({"x": ("inner_steps", [1, 2.5])}, ValueError, r"x \(inner_steps\) has 2.5; expected whole numbers from 0"),
    ({"x": ("inner_steps", 3)}, TypeError, r"x has 3 for inner_steps; expected a list"),
    ({"x": ("speed", [1, 2])}, ValueError, r"x is 'speed'; expected one of 'step_size_first', .*'method'"),
    ({"x": "inner_steps"}, TypeError, r"x is 'inner_steps'; expected a pair"),
    ({"x": ("step_size_first", [0.1, math.nan])}, ValueError, r"x \(step_size_first\) has nan; expected numbers from 0"),
    ({"x": ("step_size_first", [-1, 1])}, ValueError, r"x \(step_size_first\) has -1"),
    ({"x": ("hidden", [0.2, 1.0])}, ValueError, r"x \(hidden\) has 1.0; expected numbers from 0.01 to 0.99"),
    ({"x": ("hidden", [0.2, 0.333])}, ValueError, r"hidden has 0.333; expected shares of whole per cents"),
    ({"x": ("hidden", [0.2, 0.3]), "task": "box"}, ValueError, r"task is 'box', and hidden makes a task"),
    ({"x": ("method", ["newton", "magic"])}, ValueError, r"x \(method\) has 'magic'; expected some of 'newton'"),
    ({"x": ("dtype", [torch.float32, torch.int8])}, ValueError, r"x \(dtype\) has 'int8'; expected some of 'float32'"),
    ({"x": ("dtype", ["float32", "float16"])}, ValueError, r"dtype is given, and the model, .*has no network"),
    ({"y": STEPS}, ValueError, r"x and y are both 'step_size_first'"),
    ({"inner_steps": 3}, ValueError, r"inner_steps is 3, and y is 'inner_steps'; expected one of them"),
    ({"x": ("fd_step", [0.1, 0.2]), "method": "gradient"}, ValueError, r"x is 'fd_step', which 'gradient' ignores"),
    ({"x": ("fd_step", [0.1, 0.2]), "direction": "gradient"}, ValueError, r"x is 'fd_step', which 'gradient' ignores"),
    ({"y": ("method", ["newton", "ddnm"])}, ValueError, r"x is 'step_size_first', which 'ddnm' ignores"),
    ({"step_size": 0.3}, ValueError, r"step_size is given, and step_size_first; expected step_size_last"),
    ({"speed": 3}, ValueError, r"speed is no setting of newton; expected some of dtype"),
    ({"generator": torch.Generator()}, ValueError, r"generator is no setting of newton"),
    ({"regularization": 1.0}, ValueError, r"regularization is no setting of newton"),
    ({"eta": -1}, ValueError, r"eta has -1; expected numbers from 0"),
    ({"x": ("num_inference_steps", [2, 2000])}, ValueError, r"num_inference_steps is 2000; expected 1 to 1000"),
    ({"x": ("guidance_scale", [1, 2])}, ValueError, r"guidance_scale is given, and the model takes no prompt"),
    ({"images": pictures(size=16)}, ValueError, r"images has shape \(3, 1, 16, 16\); expected \(N, 1, 8, 8\)"),
    ({"images": pictures() * math.nan}, ValueError, r"images has NaN"),
    ({"model": 3}, TypeError, r"model is 3"),
    ({"task": "style"}, ValueError, r"task is 'style'; expected a study's task that has one right answer"),
    ({"task": "ceiling"}, ValueError, r"task"),
    ({"seed": -1}, ValueError, r"seed is -1"),
    ({"batch_size": 0}, ValueError, r"batch_size is 0"),
    ({"folder": 3}, TypeError, r"folder is 3"),
    ({"many": 1}, TypeError, r"many is 1"),
]


@pytest.mark.parametrize(("bad", "error", "said"), BAD, ids=lambda one: next(iter(one)) if isinstance(one, dict) else "")
def test_what_is_wrong_is_said_before_any_work(ideal, bad, error, said, monkeypatch):
    def refuse(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(fcs_lab.IdealDenoiser, "__call__", refuse)
    with pytest.raises(error, match=said):
        SensitivityMap(**{"model": ideal, "images": pictures(), "x": STEPS, "y": K} | bad)


def test_ten_thousand_cells_have_to_be_asked_for(ideal):
    values = [i / 100 for i in range(1, 101)]
    axes = ("step_size_first", values), ("step_size_last", values)
    with pytest.raises(ValueError, match=r"10,000 cells, about [\d.]+ h; expected fewer than 10,000, or many=True"):
        SensitivityMap(ideal, pictures(), *axes)
    found = SensitivityMap(ideal, pictures(), *axes, many=True, inner_steps=1, num_inference_steps=2)
    assert found.evaluations() == (180_000, 180_000) and "many=True" in found.call()


def test_the_colours_are_one_scale():
    values = torch.tensor([[1.0, 10.0, 100.0], [torch.nan, 1.0, 100.0]])
    scale, colours = heat(values)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0, 0.5, 1]), "logarithmic over decades"
    assert (colours[1, 0] == MISSING).all() and (colours[0, 0] == colours[1, 1]).all()
    assert (colours[0, 0] != colours[0, 1]).any()
    linear, _ = heat(torch.tensor([[1.0, 2.0, 3.0]]))
    assert linear(2) == pytest.approx(0.5)
    figure = plot_sensitivity(values, ["a", "b", "c"], ["0", "1"], labels=("left", "up", "cost"), title="t")
    assert figure.axes[0].get_xlabel() == "left" and figure.axes[1].get_ylabel() == "cost"
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "1", "10", "100", "100"]
    assert len(figure.axes[0].patches) == 1, "the missing one, hatched"
    with pytest.raises(ValueError, match=r"values has shape \(2, 3\); expected \(Y, X\) = \(2, 2\)"):
        plot_sensitivity(values, ["a", "b"], ["0", "1"])
    plot_sensitivity(torch.full((2, 2), torch.nan), ["a", "b"], ["0", "1"]).png()


def test_costs_are_drawn_over_what_they_took():
    axes = plot_costs([1.0, 2.0, 4.0], torch.tensor([[4.0, 3.0], [2.0, 1.0], [1.0, 0.5]])).axes[0]
    assert (
        len(axes.lines) == 2
        and list(axes.lines[0].get_xdata()) == [1, 2, 4]
        and list(axes.lines[1].get_ydata()) == [3, 1, 0.5]
    )
    without = plot_costs([0.0, 0.0], torch.zeros(2, 1)).axes[0]
    assert without.get_xlabel() == "steps" and list(without.lines[0].get_xdata()) == [0, 1]
