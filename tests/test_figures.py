"""Figures and tables: they can be made again, say how they were made, and are those of the bundled model."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.study.config import read_studies
from fcs_lab.study.run import Outcome
from fcs_lab.zoo import WEIGHTS

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "figures" / "output"
FIGURES = sorted((ROOT / "figures").glob("fig*.py"))
TABLES = sorted((ROOT / "figures").glob("tab*.py"))
ONE_MODEL = (
    "fig06_convergence",
    "fig08_invertibility",
    "fig17_emoji_layers",
    "fig19_failures",
    "fig20_diversity",
)  # of bundled models alone
ONCE = (
    "fig05_eigenvalues",
    "fig06_convergence",
    "fig07_fd_error",
    "fig12_style_mask",
    "fig17_emoji_layers",
)
"""Half a minute and more each; `make figures` leaves them alone where they come out as they were."""
SMALL = {"DIGITS": 2, "COMPOSITES": 2, "DIGIT": 0, "SAMPLES": 2, "PAIRS": 2, "STEPS": 3, "INNER": 2, "TIMESTEPS": (500,)}
EXPENSIVE = {  # what is small there
    "fig03_je_pixel": {"ITERATIONS": 3},
    "fig06_convergence": {"FORCING_T": (900,)},
    "fig08_invertibility": {"TIMESTEPS": ()},  # of the trained model: a dense J takes long
    "fig10_layers": {"LAYERS": (2,)},
    "fig13_inverse": {"DIGITS": 1, "STEPS": 1, "INNER": 1, "ITERATIONS": 2},
    "fig14_convergence_run": {"DIGITS": 1, "STEPS": 2},
    "fig16_emoji": {"STEPS": 1, "INNER": 1, "PICTURES": 1},
    "fig17_emoji_layers": {"SHOWN": (("behind", "white", "behind", 0),)},
    "fig18_sensitivity": {
        "IMAGES": 2,
        "MAPS": {
            "T′ = 2": {"x": ("inner_steps", [1, 2]), "y": ("step_size_first", [0.1, 2.0]), "num_inference_steps": 2},
            "K = 1": {"x": ("hidden", [0.25, 0.75]), "y": ("num_inference_steps", [1, 2]), "inner_steps": 1},
        },
    },
    "fig19_failures": {"IMAGES": 1, "SHOWN": {"wrong": ("a wrong operator", "×4, box told to be bicubic")}},
    "fig20_diversity": {"KNOWN": 2, "DRAWS": 4, "METHODS": {"e": {"method": "identity", "num_inference_steps": 3}}},
}


def script(path: Path, monkeypatch, **settings):
    """The script as a module, its settings made small."""
    monkeypatch.syspath_prepend(path.parent)  # as for a script that is run
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for owner in (module, getattr(module, "tab09", None)):  # whose settings fig17 takes
        for name, value in settings.items():
            if hasattr(owner, name):
                monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr("sys.argv", [str(path)])
    return module


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_a_figure_twice_gives_the_same_numbers(path, tmp_path, monkeypatch):
    module = script(path, monkeypatch, **SMALL | EXPENSIVE.get(path.stem, {}))
    records = []
    for run in ("first", "second") if path.stem not in ONCE else ("first",):
        module.main(tmp_path / run)
        (written,) = (tmp_path / run).glob("*.json")
        records.append(json.loads(written.read_text()))
        assert (tmp_path / run / f"{path.stem}.pdf").read_bytes().startswith(b"%PDF")
        assert Image.open(tmp_path / run / f"{path.stem}.png").text["Description"].startswith(f"python figures/{path.name}")
    first, last = records[0], records[-1]
    assert all(record.pop("timings") for record in records)
    assert first == last
    assert first["command"] == f"python figures/{path.name}"
    assert {"model", "seed", "settings", "numbers", "versions"} <= first.keys()
    assert f"figures/{path.name}" in first["drawn_by"]


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory) -> Path:
    """A tiny model in Stable Diffusion's layout, in a folder, with one of pictures of other sizes beside it."""
    folder = tmp_path_factory.mktemp("sd")
    tiny.sd().save_pretrained(folder / "model", safe_serialization=True)
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 50), (64, 48), (32, 32), (90, 90)]):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size)
        picture.save(folder / "pictures" / f"{i}.png")
    return folder


def run(path: Path, monkeypatch, output: Path, *arguments: str, **settings) -> dict:
    """The record of a command line, its settings made small."""
    module = script(path, monkeypatch, **SMALL | EXPENSIVE.get(path.stem, {}) | settings)
    command = [*arguments, "--output", str(output)]
    monkeypatch.setattr("sys.argv", [str(path), *command])
    module.main(*module.options.parse(module.__doc__, command))
    return json.loads((output / f"{path.stem}.json").read_text())


@pytest.mark.parametrize("path", [path for path in FIGURES if path.stem not in ONE_MODEL], ids=lambda path: path.stem)
def test_a_figure_of_another_model_and_pictures(path, stable_diffusion, tmp_path, monkeypatch, capsys):
    small = {
        "fig07_fd_error": {"STEPS": 2},
        "fig10_layers": {"LAYERS": (2,)},
        "fig12_style_mask": {"PAPERS": {"num_inference_steps": 3, "inner_steps": 1, "step_size": 0.5}},
    }.get(path.stem, {})
    clip = load_classifier("digits").features[:7]
    monkeypatch.setattr("fcs_lab.features.load_clip", lambda device: Grey(clip))
    model, images = str(stable_diffusion / "model"), str(stable_diffusion / "pictures")
    arguments = ["--model", model, "--images", images, "--prompt", "a dress", "--seed", "5", "--device", "cpu"]
    record = run(path, monkeypatch, tmp_path, *arguments, **small)
    assert record["seed"] == 5 and record["model"]["name"] == model
    asked = {"prompt": "a dress", "device": "cpu"}
    assert asked.items() <= record["settings"].items() and images in record["settings"].values()
    assert len(record["model"]["sha256"]) == 3  # the U-Net's, the VAE's and the text encoder's weights
    assert record["command"].startswith(f"python figures/{path.name} --model ")
    assert Image.open(tmp_path / f"{path.stem}.png").size[0] > 100
    said = capsys.readouterr().out
    assert "0.png: The picture's middle was resized from 40×50 to 32×32 pixels." in said


class Grey(torch.nn.Module):
    """A feature extractor of colours, of one of grey levels."""

    def __init__(self, features):
        super().__init__()
        self.features = features

    def forward(self, images):
        return self.features(images.mean(1, keepdim=True))


@pytest.mark.parametrize("stem", ["fig10_layers", "fig11_joined", "fig12_style_mask"])
def test_a_figure_of_emoji(stem, tmp_path, monkeypatch):
    """In colour: layers against truth, pictures joined, and guidance by the classifier of emoji."""
    path = ROOT / "figures" / f"{stem}.py"
    record = run(path, monkeypatch, tmp_path, "--model", "emoji", STEPS=2, INNER=1, SAMPLES=1, PAIRS=1, LAYERS=(2,))
    assert record["model"]["name"] == "emoji"
    numbers = str(record["numbers"])
    assert {"fig10_layers": "mask_iou", "fig11_joined": "naive blend", "fig12_style_mask": "no guidance"}[stem] in numbers


@pytest.mark.parametrize("stem", ["fig01_half_image", "fig03_je_pixel", "fig15_je_jt_sheet"])
def test_a_figure_of_the_bundled_latent_model(stem, tmp_path, monkeypatch):
    path = ROOT / "figures" / f"{stem}.py"
    record = run(path, monkeypatch, tmp_path, "--model", "fashion", "--dtype", "float32", STEPS=2)
    assert record["model"]["name"] == "fashion" and record["settings"]["dtype"] == "float32"
    assert next(iter(record["model"]["sha256"])).startswith("fashion/")


@pytest.mark.parametrize("stem", ONE_MODEL)
@pytest.mark.parametrize("option", [("model", "fashion"), ("images", "."), ("prompt", "a dress"), ("dtype", "float16")])
def test_a_figure_of_one_model_refuses_others(stem, option, tmp_path, monkeypatch):
    name, value = option
    with pytest.raises(ValueError, match=f"{name} is '{value}'; .* so leave --{name} out"):
        run(ROOT / "figures" / f"{stem}.py", monkeypatch, tmp_path, f"--{name}", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stem", "arguments", "error"),
    [
        ("fig07_fd_error", ["--dtype", "float16"], "dtype is 'float16'; this figure compares the precisions"),
        (
            "fig10_layers",
            ["--model", "mnist-inpainting"],
            "model is 'mnist-inpainting'; composites can be made for 'mnist', ",
        ),
        ("fig12_style_mask", ["--model", "mnist-inpainting"], "images is None"),
        ("fig12_style_mask", ["--images", "."], "images is '.'; the references of a bundled model"),
        ("fig01_half_image", ["--images", "no such folder"], "images is 'no such folder'; expected a folder with pictures"),
        ("fig01_half_image", ["--prompt", "a dress"], "prompt is 'a dress', but mnist is an unconditional model"),
        ("fig01_half_image", ["--device", "cuda:99"], "device is 'cuda:99'"),
        ("fig01_half_image", ["--seed", "-1"], "seed is -1"),
    ],
)
def test_a_wrong_option_is_named_before_any_work(stem, arguments, error, tmp_path, monkeypatch):
    monkeypatch.setattr("fcs_lab.sample", lambda *_, **__: pytest.fail("sampled"))
    module = script(ROOT / "figures" / f"{stem}.py", monkeypatch, **SMALL)
    with pytest.raises(ValueError, match=re.escape(error)):
        module.main(*module.options.parse(module.__doc__, ["--output", str(tmp_path), *arguments]))
    assert not list(tmp_path.iterdir())


def test_algorithm_1_in_the_whole_run_is_samples_own(tmp_path, monkeypatch):
    """fig14 drives Algorithm 1 with another scaling; with its own it is `sample`, and its errors are the trace's."""
    module = script(ROOT / "figures" / "fig14_convergence_run.py", monkeypatch, STEPS=2, INNER=2)
    monkeypatch.setattr(module, "largest_eigenvalue", lambda *_: 2.0)
    model, truth = fcs_lab.load("mnist", device="cpu"), fcs_lab.load_digits(1)[0]
    task = fcs_lab.Inpainting(truth, module.options.right_half(model))
    found = module.run(model, task, None, 3)
    trace = fcs_lab.sample(
        model, task, num_inference_steps=2, inner_steps=2, generator=torch.Generator().manual_seed(3), progress=False
    ).trace
    assert found["before"] == [entry.error_norm.item() for entry in trace if entry.inner_step == 0]
    assert found["after"] == [entry.error_norm.item() for entry in trace if entry.inner_step == 2]
    # λ = 400/μ_max² with μ_max = 2: steps a hundred times J e, which blow up.
    fixed = module.run(model, task, 400.0, 3)
    assert fixed["diverges at t"] and fixed["after"][-1] > 10 * found["after"][-1]


@pytest.mark.parametrize("stem", ["tab16_super_resolution", "tab17_joined", "tab18_guidance"])
def test_a_table_of_a_figures_methods(stem, tmp_path, monkeypatch):
    small = {"DIGITS": 2, "PAIRS": 2, "SAMPLES": 4, "STEPS": 2, "INNER": 1, "FACTORS": (8,), "MODELS": ("mnist",)}
    if stem == "tab16_super_resolution":
        del small["MODELS"]
    module = script(ROOT / "figures" / f"{stem}.py", monkeypatch, **small)
    if stem == "tab17_joined":
        monkeypatch.setattr(module, "JUDGES", {"mnist": "digits"})
    for figure in (getattr(module, name, None) for name in ("fig11", "fig12")):
        for name in ("STEPS", "INNER") if figure else ():
            monkeypatch.setattr(figure, name, small[name])
    module.main(tmp_path)
    numbers = json.loads((tmp_path / f"{stem}.json").read_text())["numbers"]["mnist"]
    table = (tmp_path / f"{stem}.md").read_text()
    if stem == "tab16_super_resolution":
        assert set(numbers["×8"]) == {"the truth", "bicubic", "newton", "newton, K doubled, λ = 0.1"}
        assert "psnr" not in numbers["×8"]["the truth"] and numbers["×8"]["the truth"]["data_consistency"]["mean"] < 1e-6
    elif stem == "tab17_joined":
        assert numbers["real images"]["loss"]["mean"] == 1 and numbers["naive blend"]["seam"]["error"] > 0
    else:
        assert set(numbers["class: newton  Je"]) == {"share", "share, nearest image"}
        assert set(numbers["style: gradient  Jᵀe"]) == {"gram", "gram, second block"}
        assert set(numbers["silhouette: identity  e"]) == {"iou", "loss"}
    assert table.count("±") > 5


def test_the_table_of_asymmetry(tmp_path, monkeypatch):
    """Of the exact denoiser plus s times a skew part the relative skew is s; with s = 0, J is symmetric and J e is Jᵀ e."""
    small = {"DIGITS": 2, "STEPS": 2, "INNER": 1, "TIMESTEPS": (500,), "PROBED": 1, "PROBES": 2, "DRAWN": 8}
    module = script(ROOT / "figures" / "tab08_asymmetry.py", monkeypatch, **small, SKEWS=(0.0, 0.4))
    for run in ("first", "second"):
        module.main(tmp_path / run, tmp_path / "cells")
    records = [json.loads((tmp_path / run / "tab08_asymmetry.json").read_text()) for run in ("first", "second")]
    assert records[0]["numbers"] == records[1]["numbers"] and len(list((tmp_path / "cells").iterdir())) == 5
    assert set(records[0]["numbers"]["networks"]) == {folder.name for folder in fcs_lab.zoo.checkpoints("mnist")}
    symmetric, skewed = records[0]["numbers"]["gaussians"].values()
    assert symmetric["relative_skew"][0] < 1e-12 and skewed["relative_skew"] == [0.4]
    assert symmetric["newton less gradient"]["hidden"] == pytest.approx([0, 0], abs=1e-6)
    assert abs(skewed["newton less gradient"]["hidden"][0]) > 1e-5


def test_the_table_of_emojis_layers(tmp_path, monkeypatch):
    """Two composites a row: measures are those of the truth, a finished cell is not run again, "behind" is hidden."""
    small = {"COMPOSITES": 2, "BATCH": 1, "STEPS": 2}
    module = script(ROOT / "figures" / "tab09_emoji_layers.py", monkeypatch, **small)
    made = module.make_emoji_composites(2, 2, seed=0)[0]
    measured = module.measure
    monkeypatch.setattr(module, "infer", lambda *_: (made.layers[:1], made.masks[:1].flip(1), 0, 0))
    perfect = measured(None, module.Row(2, "k-means"), module.Composites(*(part[:1] for part in vars(made).values())), [], 0)
    assert perfect["iou"] == [1] and perfect["error"] == perfect["edges"] == [0] and perfect["psnr"] == [module.PERFECT]
    monkeypatch.undo()
    module = script(ROOT / "figures" / "tab09_emoji_layers.py", monkeypatch, **small)
    rows = [module.Row(2, "J e"), module.Row(2, "J e", prompted=True), module.Row(2, "J e", options={"starts": 2})]
    rows += [
        module.Row(2, "k-means", arrangement="apart"),
        module.Row(2, "J e", "colour"),
        module.Row(2, "regions of a colour"),
    ]
    monkeypatch.setattr(module, "ROWS", rows)
    module.main(tmp_path, tmp_path / "cells")
    monkeypatch.setattr(module, "infer", lambda *_: pytest.fail("inferred again"))
    module.main(tmp_path, tmp_path / "cells")
    numbers = json.loads((tmp_path / "tab09_emoji_layers.json").read_text())["numbers"]
    assert set(numbers) == {"2", "2, apart", "2 over a colour"}
    assert set(numbers["2"]) == {"J e", "J e, prompts", "J e, 4 starts", "regions of a colour", "the model's own loss"}
    few, many = (numbers["2"][name] for name in ("J e", "J e, 4 starts"))
    assert many["evaluations"] == 2 * few["evaluations"]
    assert many["less J e"]["iou"]["mean"] == pytest.approx(many["iou"]["mean"] - few["iou"]["mean"], abs=2e-4)
    assert numbers["2, apart"]["k-means"]["iou"]["mean"] > few["iou"]["mean"]
    assert (tmp_path / "tab09_emoji_layers.md").read_text().count("±") > 15


def test_the_table_of_emoji(tmp_path, monkeypatch):
    """Errors are those of `sample`; differences are picture by picture; a finished cell is not run again."""
    small = {"PICTURES": 2, "BATCH": 1, "PROBED": 2, "PROBES": 2, "TIMESTEPS": (500,), "MODELS": ("emoji",)}
    small |= {
        "DTYPES": {"float32": torch.float32},
        "LATENT": ("emoji",),
        "CODED": 2,
        "CODED_FACTORS": (4,),
        "CODED_RUN": {"num_inference_steps": 2, "inner_steps": 1},
        "LENGTHS": (0.1,),
    }
    module = script(ROOT / "figures" / "tab10_emoji.py", monkeypatch, **small)
    monkeypatch.setattr(module, "H_STEPS", np.array([0.005, 0.05]))
    shown = (
        module.Setting(2, 1, False, ("e", "J e", "fast"), ("right half", "×4")),
        module.Setting(2, 1, True, ("J e",), ("box",)),
    )
    monkeypatch.setattr(module, "SETTINGS", shown)
    module.main(tmp_path, tmp_path / "cells")
    monkeypatch.setattr(module, "complete", lambda *_: pytest.fail("sampled again"))
    module.main(tmp_path, tmp_path / "cells")
    numbers = json.loads((tmp_path / "tab10_emoji.json").read_text())["numbers"]
    plain, prompted = numbers["sampling"].values()
    assert set(plain["right half"]) == {"e", "J e", "fast"} and set(plain["×4"]) == {"e", "J e"}
    assert plain["right half"]["J e"]["evaluations"] == 6 and prompted["box"]["J e"]["evaluations"] == 6
    assert plain["right half"]["fast"]["evaluations"] > 50
    e, newton = plain["×4"]["e"], plain["×4"]["J e"]
    assert e["J e less it"]["mean"] == pytest.approx(newton["mse"]["mean"] - e["mse"]["mean"], abs=2e-4)
    model, (truth, _, _) = fcs_lab.load("emoji", device="cpu"), fcs_lab.load_emoji(2)
    task = fcs_lab.SuperResolution(fcs_lab.downsample(truth, 4), 4)
    found = fcs_lab.sample(
        model,
        task,
        direction="identity",
        num_inference_steps=2,
        inner_steps=1,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        progress=False,
    )
    assert (found.images - truth).square().mean().item() == pytest.approx(e["mse"]["mean"], rel=1e-3)
    assert 0 < numbers["J"]["emoji"]["timesteps"]["500"]["relative_skew"]["mean"] < 1
    coded = numbers["through the encoder"]["emoji ×4"]
    assert 0 < coded["cosine"]["mean"] < 1 and 0 < coded["left, x̂_0, J_E e"]["mean"] < 1
    assert (tmp_path / "tab10_emoji.md").read_text().count("±") > 8


def test_the_table_of_failures(tmp_path, monkeypatch):
    """Rows are compared with their base; a finished cell is not run again; an exact draw misses what it should."""
    small = {"PICTURES": 2, "BATCH": 2, "NOISED": 2, "SEEDS": 2, "KNOWN": 2, "DRAWS": 4, "MASKS": {"a box": "box"}}
    small |= {"SHORT": {"num_inference_steps": 2, "inner_steps": 1}, "LATENT": {"fashion": fcs_lab.load_garments}}
    module = script(ROOT / "figures" / "tab11_failures.py", monkeypatch, **small)
    monkeypatch.setattr(module, "DRAWN", {"e": {"method": "identity", "num_inference_steps": 2}})
    cases = module.CASES
    section = "images that the model does not know"
    some = {"noise in y": ("no noise", "σ_y = 0.3"), section: ("digits", "digits, inverted")}
    monkeypatch.setattr(module, "CASES", {name: {case: cases[name][case] for case in kept} for name, kept in some.items()})
    monkeypatch.setattr(fcs_lab.failures, "SHORT", small["SHORT"])
    base = {"name": "newton", "num_inference_steps": 2, "inner_steps": 1}
    study = {"model": "mnist", "n": 2, "tasks": ["right-half", "box"], "metrics": ["mse", "named"],
             "methods": [base, base | {"step_size": [2.0, 0.4], "tasks": ["right-half"]}]}  # fmt: skip
    monkeypatch.setattr(module, "STUDY", study)
    module.main(tmp_path, tmp_path / "runs")
    monkeypatch.setattr(module, "run_case", lambda *_, **__: pytest.fail("sampled again"))
    module.main(tmp_path, tmp_path / "runs")
    numbers = json.loads((tmp_path / "tab11_failures.json").read_text())["numbers"]
    settings = numbers["settings and masks"]
    assert set(settings) == {"the base", "step_size = (2.0, 0.4)", "box"}
    far = settings["step_size = (2.0, 0.4)"]
    less = far["hidden"]["mean"] - settings["the base"]["hidden"]["mean"]
    assert far["hidden, less the base's"]["mean"] == pytest.approx(less, abs=2e-3)
    noisy = numbers["noise in y"]["σ_y = 0.3"]
    assert 0.1 < noisy["fit of the truth"]["mean"] < 0.3 and "hidden, less the base's" in noisy
    assert numbers[section]["digits"]["alarm by the loss"] == 0.5 < numbers[section]["digits, inverted"]["alarm by the loss"]
    assert set(numbers["through the encoder"]) == {"fashion, a box"}
    drawn = numbers["a posterior that is known"]["e"]
    assert sum(drawn["shares"]) == pytest.approx(1, abs=1e-3)
    chances = sum(
        (1 - count / 12) ** 4 for count in module.COUNTS
    )  # of four draws, the modes that are expected to be missed
    assert drawn["missed by exact draws"]["mean"] == pytest.approx(chances, abs=0.15)
    assert (tmp_path / "tab11_failures.md").read_text().count("±") > 20


def test_the_table_to_choose_by(tmp_path, monkeypatch, capsys):
    """It goes on from the archive where its folder is gone, chooses by the rule, and names what is compared."""
    module = script(ROOT / "figures" / "tab12_choosing.py", monkeypatch, REAL=(16,), DRAWS=2)
    monkeypatch.setattr(module, "COSTED", ("mnist",))
    monkeypatch.setattr(module, "BATCHES", (1, 2))
    monkeypatch.setattr(module, "REAL_OF", ("mnist",))
    common = {"model": "mnist", "tasks": ["right-half", "sr4"], "budgets": [5], "metrics": ["mse", "kid"]}
    search = common | {
        "n": 3,
        "first": 192,
        "methods": ["flowchef", {"name": "flowchef", "step_size": 0.01, "tasks": ["sr4"]}],
    }
    bundled = common | {
        "studies": [{"model": "mnist", "n": 2, "methods": ["newton", "identity", "bicubic"], "tasks": ["sr4"]}]
    }
    monkeypatch.setattr(module, "STUDIES", {"search": {"studies": [search]}, "bundled": bundled})
    monkeypatch.setattr(module, "ROUNDS", 1)
    least, most = module.memory.in_a_process(module.__file__, "mnist", "identity")
    assert most > least > 0, "a larger batch takes more"
    monkeypatch.setattr(module.memory, "in_a_process", lambda script, model, method: [2**20, 2**21])
    module.main(tmp_path, tmp_path / "runs", tmp_path / "records")
    assert "3 cells" in capsys.readouterr().out, "it says before what it will take"
    first = (tmp_path / "tab12_choosing.md").read_text()
    monkeypatch.setattr("fcs_lab.study.subject.Subject.sample", lambda *_: pytest.fail("sampled again"))
    archives = {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    module.main(tmp_path, tmp_path / "another machine's", tmp_path / "records")
    assert (tmp_path / "tab12_choosing.md").read_text() == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()} == archives
    own, slow = json.loads((tmp_path / "tab12_choosing.json").read_text())["numbers"]["settings"]
    assert own["taken"] and not slow["taken"] and slow["less its own"] > 0, "a step a hundredth as long"
    table = pd.read_csv(tmp_path / "tab12_choosing.csv")
    errors = table[table.metric == "mse"].set_index("method")
    assert errors.loc["identity", "diff"] == pytest.approx(
        errors.loc["identity", "mean"] - errors.loc["newton", "mean"], abs=1e-3
    )
    assert first.count("| newton | 2 |") == 1 and "KID" in first
    module.main(tmp_path / "reported", tmp_path / "runs", tmp_path / "records", run=False)
    assert (tmp_path / "reported" / "tab12_choosing.md").read_text() == first
    stopped = Outcome(pd.DataFrame(), interrupted=True)
    monkeypatch.setattr(module, "outcome", lambda *_: stopped)
    with pytest.raises(SystemExit, match="goes on"):
        module.main(tmp_path / "stopped", tmp_path / "runs", tmp_path / "records")
    assert (tmp_path / "stopped" / "tab12_choosing.md").read_text() == first


def test_a_setting_is_taken_where_it_is_better_beyond_the_noise(monkeypatch):
    choose = script(ROOT / "figures" / "tab12_choosing.py", monkeypatch).choose
    rng, rows = np.random.default_rng(0), []
    for task in ("right-half", "box", "sr4"):
        base = rng.uniform(0.1, 0.3, 16)
        for row, values in {
            "dps": base,
            "dps (step_size = 8.0)": base * 0.7 if task == "sr4" else base + rng.normal(0, 0.1, 16),
            "dps (step_size = 9.0)": base * 0.5,
        }.items():
            there = 15 if row.endswith("9.0)") else 16  # it failed on one image
            rows += [{"model": "mnist", "method": "dps", "row": row, "task": task, "image": i, "metric": "mse",
                      "part": "all" if task == "sr4" else "hidden", "value": values[i]} for i in range(there)]  # fmt: skip
    taken = {one["tasks"]: one["setting"] for one in choose(pd.DataFrame(rows)) if one["taken"]}
    assert taken == {"inpainting": "dps", "others": "dps (step_size = 8.0)"}


@pytest.mark.parametrize("name", read_studies("bundled"))
def test_the_large_study_has_the_settings_that_the_grid_took(name):
    """Of the peers just these; Algorithm 1's directions stand there with their own as well. Emoji's are the garments'."""
    study = read_studies("bundled")[name]
    numbers = json.loads((OUTPUT / "tab12_choosing.json").read_text())["numbers"]
    model = {"emoji": "fashion"}.get(study.model, study.model)
    taken = [one for one in numbers["settings"] if one["taken"] and one["model"] == model]
    for task in study.tasks:
        kind = "inpainting" if task in ("right-half", "box", "free-form") else "others"
        there = [entry for entry in study.methods if entry.tasks is None or task in entry.tasks]
        for one in (one for one in taken if one["tasks"] == kind):
            rows = {entry.told for entry in there if entry.name == one["method"]}
            own = {one["method"]} if one["method"] in ("newton", "identity", "gradient") else {one["setting"]}
            assert not rows or rows in (own, own | {one["setting"]}), (task, rows)


def test_the_table_of_what_the_notebooks_say(tmp_path, monkeypatch):
    """Every section with few digits; a finished one is not run again; a row is compared with its like."""
    module = script(ROOT / "figures" / "tab13_texts.py", monkeypatch, DIGITS=2, STEPS=2, EARLY=2, LATE=2)
    module.main(tmp_path, tmp_path / "cells")
    monkeypatch.setattr(module, "sample", lambda *_, **__: pytest.fail("sampled again"))
    module.main(tmp_path, tmp_path / "cells")
    numbers = json.loads((tmp_path / "tab13_texts.json").read_text())["numbers"]
    assert set(numbers) == set(module.SECTIONS)
    settings, enlarged = numbers["settings"], numbers["super-resolution"]
    assert settings["J e, K = 1"]["evaluations"] == [2 * 3, 0] and settings["J e, K = 5, η = 1"]["less the reference"] == {}
    (cell,) = (tmp_path / "cells").glob("settings-*.json")  # each digit's, not rounded
    plain, other = (
        torch.tensor(json.loads(cell.read_text())["rows"][name]["hidden MSE"], dtype=torch.float64).mean()
        for name in ("J e, K = 5, η = 1", "e in place of J e")
    )
    shown = settings["e in place of J e"]["less the reference"]["hidden MSE"][0]
    assert shown == pytest.approx((other - plain).item(), rel=1e-3)  # has four digits
    assert (
        enlarged["×4, newton"]["less the reference"]["PSNR"][0]
        > 0
        > enlarged["×4, newton"]["less the reference"]["rms of A x − y"][0]
    )
    assert (tmp_path / "tab13_texts.md").read_text().count("**") == 2 * len(module.SECTIONS)


def commands() -> list[str]:
    """The commands in the map from the paper, without what is to come."""
    return re.findall(r"`((?:python figures|make )[^`]*)`", (ROOT / "notebooks" / "PAPER.md").read_text())


def test_the_map_from_the_paper_has_commands():
    assert len(commands()) > 30
    assert {f"python figures/{path.name}" for path in FIGURES} <= set(commands())


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_the_map_exists_and_takes_its_arguments(command, monkeypatch):
    program, script_or_target, *arguments = shlex.split(command)
    if program == "make":
        assert f"\n{script_or_target}:" in (ROOT / "Makefile").read_text()
        return
    path = ROOT / script_or_target
    assert path.is_file()
    if path in FIGURES:
        module = script(path, monkeypatch)
        module.options.parse(module.__doc__, arguments)
    else:  # tables have none but --output
        assert not arguments and path in TABLES


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
    peak = module.memory.in_a_process
    monkeypatch.setattr(  # a process of its own, at the script's own settings, for two rows in place of four
        module.memory, "in_a_process", lambda file, *row: peak(file, *row) if row[1] == "gradient" else 2**20
    )
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
    # tab12 may be the report of a study that has more to do.
    assert record["command"].removesuffix(" --report") == f"python figures/{path.name}"
    if path in FIGURES:
        assert (OUTPUT / path.stem).with_suffix(".png").exists() and (OUTPUT / path.stem).with_suffix(".pdf").exists()


def test_the_long_tables_are_quoted_as_they_are():
    for table in ("tab01_half_image.md", "tab07_short.md"):
        assert (OUTPUT / table).read_text().strip() in (ROOT / "notebooks" / "RESULTS.md").read_text()
