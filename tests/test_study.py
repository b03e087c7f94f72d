"""The study: resumable, the same in one process and in many, its numbers against what can be counted by hand."""

import errno
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image

import fcs_lab
from fcs_lab.study import dry_run, read_study, records, run
from fcs_lab.study.config import evaluations_of, read_studies
from fcs_lab.study.measures import measure, set_distances
from fcs_lab.study.plots import plot_differences, plot_trade_off, values_of
from fcs_lab.study.run import Worker, outcome
from fcs_lab.study.store import Full, Store, cells_of
from fcs_lab.study.subject import Images, Subject
from fcs_lab.study.tables import report, summary
from fcs_lab.study.tasks import Posed, mask, pose
from fcs_lab.widgets.study_table import StudyTable

SMALL = {
    "model": "mnist",
    "n": 3,
    "batch_size": 2,
    "tasks": ["right-half", "sr4"],
    "methods": ["identity", {"name": "ddnm", "num_inference_steps": 3}],
    "budgets": [4],
    "metrics": ["mse", "psnr", "consistency"],
}


def lines(folder: Path) -> dict[str, str]:
    """All records as they are on disk."""
    found = {}
    for path in sorted((folder / "records").rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found[f"{path.parent.name}/{record['image']}"] = line
    return found


def count(monkeypatch) -> list:
    """What is sampled from now on: (method, images)."""
    seen, sample = [], Subject.sample

    def counted(self, entry, posed, seeds, prompts):
        seen.append((entry.name, len(seeds)))
        return sample(self, entry, posed, seeds, prompts)

    monkeypatch.setattr(Subject, "sample", counted)
    return seen


def test_a_study_goes_on_and_grows(tmp_path, monkeypatch):
    seen = count(monkeypatch)
    first = run(SMALL, tmp_path / "a", progress=False)
    assert sorted(seen) == sorted([("identity", 2), ("identity", 1), ("ddnm", 2), ("ddnm", 1)] * 2)
    assert set(first.metric) == {"mse", "psnr", "consistency", "evaluations", "backward", "flops"}
    kept = lines(tmp_path / "a")
    del seen[:]
    assert run(SMALL, tmp_path / "a", progress=False).equals(first) and not seen
    grown = SMALL | {"n": 4, "methods": [*SMALL["methods"], "biharmonic"], "seeds": [0, 1], "tasks": ["right-half"]}
    run(grown, tmp_path / "a", progress=False)
    # One image more of either method, and all of what is new: four images by biharmonic, and everything of another seed.
    assert sorted(seen) == sorted(
        [("identity", 1), ("ddnm", 1)] + [(name, 2) for name in ("biharmonic", "biharmonic")]
        + [(name, 2) for name in ("identity", "ddnm", "biharmonic") for _ in range(2)]
    )  # fmt: skip
    assert kept.items() <= lines(tmp_path / "a").items()
    run(SMALL, tmp_path / "b", progress=False)
    assert lines(tmp_path / "b") == kept
    assert {path.name for path in (tmp_path / "a").iterdir()} >= {"table.md", "table.csv", "pareto.png", "sheet.png"}
    with pytest.raises(ValueError, match='another study: model was "mnist" there and is "fashion"'):
        run(SMALL | {"model": "fashion"}, tmp_path / "a", progress=False)
    assert kept.items() <= lines(tmp_path / "a").items()
    run(SMALL | {"model": "fashion", "tasks": ["sr4"], "methods": ["bicubic"]}, tmp_path / "a", progress=False, other=True)
    assert set(records(tmp_path / "a").model) == {"fashion"} and list((tmp_path / "a").glob("records-*"))


def test_records_are_those_of_sample(tmp_path):
    """A record has the error of the image that `sample` gives, with the noise of seed · 1,000,003 + image."""
    run(SMALL | {"seeds": [2], "n": 2, "tasks": ["right-half"], "methods": ["identity"]}, tmp_path, progress=False)
    truth = fcs_lab.load_digits(2)[0]
    hidden = torch.zeros(32, 32, dtype=torch.bool)
    hidden[:, 16:] = True
    generators = [torch.Generator().manual_seed(2 * 1_000_003 + i) for i in range(2)]
    result = fcs_lab.sample(
        fcs_lab.load("mnist", device="cpu"), fcs_lab.Inpainting(truth, hidden), direction="identity", progress=False,
        generator=generators, num_inference_steps=2, inner_steps=1,
    )  # fmt: skip
    found = records(tmp_path)
    for part, where in {"hidden": hidden, "known": ~hidden, "all": torch.ones_like(hidden)}.items():
        mse = ((result.images - truth).square() * where).flatten(1).sum(1) / where.sum()
        ours = found[(found.metric == "mse") & (found.part == part)].sort_values("image").value.to_numpy()
        np.testing.assert_allclose(ours, mse.numpy(), rtol=1e-3)
    assert set(found[found.metric == "evaluations"].value) == {result.nfe}
    folder = next((tmp_path / "images").glob("right-half-identity*"))
    picture = np.asarray(Image.open(folder / "00001.png")) / 127.5 - 1
    np.testing.assert_allclose(picture, result.images[1, 0].clamp(-1, 1).numpy(), atol=0.5 / 127.5 + 1e-3)


SERVER = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from fcs_lab.study.run import Worker, run
log = sys.argv[2]
computed = Worker._computed
def counted(self, cell, numbers, truth):
    found = computed(self, cell, numbers, truth)
    with open(log, "a") as file:
        file.write(f"{cell.folder} {numbers}\\n")
    return found
Worker._computed = counted
study = json.loads(sys.argv[1])
for line in sys.stdin:
    folder, *delays = line.split()
    children = []
    for delay in delays:
        child = os.fork()
        if not child:
            try:
                run(study, folder, progress=False)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append((child, float(delay)))
    ended = []
    for child, delay in children:
        if delay:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        ended.append(os.waitpid(child, 0)[1])
    print(json.dumps(ended), flush=True)
"""


@pytest.fixture
def server(tmp_path):
    """A process that forks others, each of which runs a study: "FOLDER 0.3 0" kills one after 0.3 s and lets one end."""
    study = SMALL | {"n": 8, "metrics": ["mse"]}
    command = [sys.executable, "-c", SERVER, json.dumps(study), str(tmp_path / "log")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(folder: Path, *delays: float) -> list[int]:
        process.stdin.write(f"{folder} {' '.join(map(str, delays))}\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    ask.study = study
    yield ask
    process.stdin.close()
    assert process.wait(60) == 0


def test_killed_at_random_moments(server, tmp_path):
    """With −9, ten times: nothing is half written, nothing that was finished is computed again, and the end is the same."""
    delays = random.Random(0)
    before: dict[str, str] = {}
    killed = 0
    for _ in range(10):
        killed += server(tmp_path / "killed", delays.uniform(0.05, 0.9))[0] != 0
        now = lines(tmp_path / "killed") if (tmp_path / "killed" / "records").exists() else {}
        assert before.items() <= now.items()
        before = now
    assert killed >= 3
    assert server(tmp_path / "killed", 0) == [0]
    batches = (tmp_path / "log").read_text().splitlines()
    # A batch may have been computed again only if its process died before it was written: at most one a kill.
    assert len(set(batches)) == 16 and len(batches) <= 16 + killed
    assert server(tmp_path / "whole", 0) == [0]
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed").glob("**/*.jsonl") if path.name.startswith(".")]


def test_two_processes_share_a_folder(server, tmp_path):
    assert server(tmp_path / "both", 0, 0) == [0, 0]
    batches = (tmp_path / "log").read_text().splitlines()
    assert len(batches) == len(set(batches)) == 16
    assert server(tmp_path / "one", 0) == [0]
    assert lines(tmp_path / "both") == lines(tmp_path / "one")
    assert server(tmp_path / "both", 0, 0, 0, 0) == [0] * 4, "all write the tables and pictures at the same moment"


def test_accelerate_splits_the_cells(tmp_path):
    (tmp_path / "study.toml").write_text(
        'model = "mnist"\nn = 4\nbatch_size = 2\ndevice = "cpu"\ntasks = ["box"]\nmethods = ["newton", "fast"]\n'
        'budgets = [6]\nmetrics = ["mse"]\n'
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "-m"]  # fmt: skip
    study = ["fcs_lab.study", str(tmp_path / "study.toml"), "-o"]
    for command, folder in ((launch, "two"), ([sys.executable, "-m"], "one")):
        done = subprocess.run([*command, *study, str(tmp_path / folder)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    assert lines(tmp_path / "two") == lines(tmp_path / "one") and len(lines(tmp_path / "one")) == 8
    table = [(tmp_path / folder / "table.csv").read_text().splitlines()[1:] for folder in ("one", "two")]
    assert [row for row in table[0] if "wall" not in row] == [row for row in table[1] if "wall" not in row]


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    study = SMALL | {"methods": ["tuned", "identity"], "tasks": ["sr4"]}
    ended = outcome(study, tmp_path, progress=False)
    assert len(ended.failures) == 3 and "sr4, tuned, image 0: TypeError: task is" in ended.failures[0]
    assert " at 0x" not in "".join(ended.failures)
    assert set(ended.table.method) == {"identity"}
    seen = count(monkeypatch)
    assert len(outcome(study, tmp_path, progress=False).failures) == 3 and not seen
    outcome(study, tmp_path, progress=False, retry=True)
    assert seen == [("tuned", 2), ("tuned", 1)]


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    """The system says so in the middle of a batch: what is finished stays, and the run goes on once there is room."""
    left, save = [16], Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, path, *a, **k: full_disk(left, lambda: save(self, path, *a, **k)))
    text = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda self, *a, **k: full_disk(left, lambda: text(self, *a, **k)))
    with pytest.raises(Full, match="what was finished is kept: make room"):
        run(SMALL, tmp_path, progress=False)
    monkeypatch.undo()
    kept = lines(tmp_path)
    assert 0 < len(kept) < 12 and not list(tmp_path.rglob("*.part"))
    run(SMALL, tmp_path, progress=False)
    assert kept.items() <= lines(tmp_path).items() and len(lines(tmp_path)) == 12


def full_disk(left, write):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write()


def test_interrupted_once_it_ends_after_the_batch(tmp_path, monkeypatch):
    sample = Subject.sample

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return sample(self, *arguments)

    monkeypatch.setattr(Subject, "sample", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    try:
        ended = outcome(SMALL, tmp_path, progress=False)
        assert ended.interrupted and len(lines(tmp_path)) == 2
        assert (tmp_path / "table.md").exists() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_folder_of_pictures(tmp_path, capsys):
    """The centre is taken; a file that is no picture is told at the end; prompts are the files' names."""
    from fcs_lab.study.__main__ import main

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate([(40, 32), (64, 64)]):
        Image.new("L", size, 60 * i + 40).save(folder / f"a_coat-{i}.png")
    (folder / "b.png").write_bytes(b"no picture")
    (tmp_path / "s.toml").write_text(
        f'model = "fashion"\nimages = "{folder}"\nn = 3\nprompts = "names"\nguidance_scale = 2.0\ntasks = ["box"]\n'
        'methods = [{ name = "newton", num_inference_steps = 2, inner_steps = 1 }]\nmetrics = ["mse", "seam"]\n'
    )
    assert main([str(tmp_path / "s.toml"), "-o", str(tmp_path / "out")]) == 1
    assert "b.png cannot be read" in capsys.readouterr().err
    found = records(tmp_path / "out")
    assert set(found.name) == {"a coat 0", "a coat 1"} and set(found.image) == {0, 1}
    assert main(["--report", str(tmp_path / "out")]) == 0
    assert main([str(tmp_path / "s.toml"), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "0 samples in 0 batches are to be made, 3 are there" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    base = {"model": "fashion", "tasks": ["box"], "methods": ["newton"]}
    with pytest.raises(ValueError, match="a folder without pictures"):
        run(base | {"images": str(tmp_path / "empty")}, tmp_path / "x")
    with pytest.raises(ValueError, match="n is 64; there are 3 images"):
        run(base | {"images": str(folder)}, tmp_path / "x")
    with pytest.raises(FileNotFoundError, match="images is 'nowhere'"):
        run(base | {"images": "nowhere"}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_masks_of_ones_own(tmp_path, monkeypatch):
    """White is hidden; other masks are another task, and masks of another size are refused before any work."""
    hidden = torch.zeros(2, 32, 32, dtype=torch.bool)
    hidden[0, :5] = hidden[1, :, 20:] = True
    study = SMALL | {"n": 2, "tasks": [{"name": "mine", "masks": str(tmp_path / "masks")}], "methods": ["identity"]}
    (tmp_path / "masks").mkdir()
    for i, one in enumerate(hidden):
        Image.fromarray(one.numpy()).save(tmp_path / "masks" / f"{i}.png")
    found = run(study, tmp_path / "out", progress=False)
    assert set(found.task) == {"mine"} and set(found[found.metric == "mse"].part) == {"all", "known", "hidden"}
    given = np.asarray(Image.open(tmp_path / "out" / "images" / "given-mine" / "00001.png"))
    assert (given[:, 20:] == 128).all() or (given[:, 20:] == 127).all()
    seen = count(monkeypatch)
    Image.fromarray(~hidden[0].numpy()).save(tmp_path / "masks" / "0.png")
    run(study, tmp_path / "out", progress=False)
    assert seen == [("identity", 2)]
    Image.fromarray(np.zeros((16, 16), bool)).save(tmp_path / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png of 'mine' is 16×16; expected masks of the images' size, 32×32"):
        run(study, tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="'mine' has 2 masks for 3 images"):
        run(study | {"n": 3}, tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("metric", "extra"), [("lpips", "lpips"), ("fid", "fid")])
def test_a_metric_that_is_not_installed_names_its_extra(metric, extra, tmp_path, monkeypatch):
    """Where the extra is there, this says nothing: the metric is then measured."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    images = fcs_lab.load_emoji(2)[0]
    with pytest.raises(ImportError, match=rf"pip install 'fcs_lab\[{extra}\]'"):
        if metric == "fid":
            set_distances(["fid"], images, images, None)
        else:
            run(SMALL | {"metrics": ["lpips"]}, tmp_path, progress=False)


def test_another_family_runs_through_constrained(tmp_path, monkeypatch):
    """Flux, which `load` does not take: methods of evaluations run, one with a backward pass is refused before any work."""
    pipe = tiny.flux()
    pipe.save_pretrained(tmp_path / "flux", safe_serialization=True)
    embeddings = tiny.flux_text(2)
    monkeypatch.setattr(
        type(pipe), "encode_prompt",
        lambda self, prompt, **_: (embeddings["prompt_embeds"][: len(prompt)],
                                   embeddings["pooled_prompt_embeds"][: len(prompt)], torch.zeros(6, 3)),
    )  # fmt: skip
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32), (80 * i, 40, 200)).save(folder / f"{i}.png")
    study = {"model": str(tmp_path / "flux"), "images": str(folder), "n": 2, "size": 32, "tasks": ["box"],
             "methods": ["newton", "ddnm"], "budgets": [6], "metrics": ["mse", "realism"]}  # fmt: skip
    ended = outcome(study, tmp_path / "out", progress=False)
    assert not ended.failures
    assert set(ended.table.metric) == {"mse", "evaluations", "backward"} and set(ended.table.method) == {"newton", "ddnm"}
    with pytest.raises(ValueError, match="methods has 'dps', which takes derivatives of the network; FluxPipeline"):
        run(study | {"methods": ["dps"]}, tmp_path / "other", progress=False)


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"tasks": ["rigth-half"]}, r"tasks has 'rigth-half'; expected some of right-half, top-half"),
        ({"tasks": ["sr1"]}, "expected a factor of 2 to 64"),
        ({"tasks": ["random-100"]}, "expected a share of 1 to 99"),
        ({"tasks": []}, "tasks is \\[\\]; expected a list"),
        ({"methods": ["newtun"]}, "methods has 'newtun'; expected some of 'newton', "),
        ({"methods": [{"name": "ddnm", "K": 1}]}, "ddnm has no setting 'K'; expected some of eta, num_inference_steps"),
        ({"methods": [{"name": "ddnm", "tasks": ["bux"]}]}, "tasks has 'bux'; expected some of right-half"),
        ({"metrics": ["psrn"]}, "metrics has 'psrn'; expected some of mse, psnr"),
        ({"budgets": [0]}, "budgets has 0"),
        ({"seeds": [-1]}, "seed is -1"),
        ({"n": 0}, "n is 0"),
        ({"n": 257}, "n is 257; there are 256 images"),
        ({"n": 56, "first": 201}, "n is 56 after the first 201; there are 256 images"),
        ({"first": -1}, "first is -1"),
        ({"dtype": "float8"}, "dtype is 'float8'"),
        ({"prompts": ["a"]}, "prompts has 1 entries; expected a string for each of n = 3"),
        ({"compare": "dps"}, "compare is 'dps'"),
        ({"size": 64}, "size is 64; mnist makes images of 32×32 only"),
        ({"colour": 1}, "colour is no key of a study; expected batch_size, "),
        ({"model": "google/ddpm-cat-256"}, "there are no bundled pictures for google/ddpm-cat-256"),
    ],
)
def test_a_wrong_study_is_refused_before_any_work(told, error, tmp_path, monkeypatch):
    monkeypatch.setattr(Subject, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises((ValueError, TypeError), match=error):
        run(SMALL | told, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_images_that_are_left_alone_and_studies_with_names(tmp_path):
    """A search's images are not the table's, and one file may have two studies of one model."""
    truth, _ = fcs_lab.load_digits()
    assert torch.equal(Images(read_study(SMALL | {"n": 2, "first": 5})).read([1], (1, 32, 32))[1], truth[6:7])
    named = SMALL | {"studies": [{"model": "mnist"}, {"model": "mnist", "name": "more", "n": 5}]}
    assert {name: study.n for name, study in read_studies(named).items()} == {"mnist": 3, "more": 5}
    with pytest.raises(ValueError, match="studies has 'mnist' 2 times; expected a name of letters and digits for each"):
        read_studies(SMALL | {"studies": [{"model": "mnist"}] * 2})


def test_a_files_error_has_its_line(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('model = "mnist"\ntasks = ["sr4"\nmethods = ["newton"]\n')
    with pytest.raises(ValueError, match=r"s\.toml is no TOML: .*line 3"):
        read_study(path)
    path.write_text('model = "mnist"\ntasks = ["sr4"]\nmethods = ["newtun"]\n')
    with pytest.raises(ValueError, match=r"s\.toml, line 3: methods has 'newtun'"):
        read_study(path)
    with pytest.raises(FileNotFoundError, match="expected a TOML file, or 'paper' or 'bundled'"):
        read_study(tmp_path / "none.toml")


def test_the_readmes_study_is_one():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (told,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    study = read_study(tomllib.loads(told))
    assert study.n == 64 and len(cells_of(study)) == 5 * (3 * 2 + 1)


def test_the_packages_own_studies():
    models = {name: study.model for name, study in read_studies("bundled").items()}
    parts = {"mnist": ["seeds", "budgets", "tasks", "again"], "fashion": ["budgets", "tasks"], "emoji": []}
    assert models == {name: model for model, more in parts.items() for name in [model, *(f"{model}-{one}" for one in more)]}
    paper = read_study("paper")
    assert paper.n == 1000 and paper.tasks == ("free-form", "sr8")
    ours = {entry.tasks: evaluations_of(entry) for entry in paper.methods if entry.name == "newton"}
    assert ours == {("free-form",): 20 * 11, ("sr8",): 20 * 21}  # (2K + 1) T', as published
    search, tables = read_studies("search"), read_studies("bundled")
    assert all(study.first >= 192 for study in search.values())
    assert all(study.first + study.n <= 192 for study in tables.values()), "no setting is chosen on a table's images"
    first, again = tables["mnist"], tables["mnist-again"]
    assert again.first >= first.n, "what was best of the first is seen on others"
    (failures,) = read_studies("failures").values()
    base, *others = failures.methods
    assert base.tasks is None and all(entry.tasks == ("right-half",) for entry in others)


def test_a_table_is_read_the_best_first_and_drawn():
    rows = [
        ("newton", 60, 0.2, 0.02, math.nan, math.nan),
        ("dps", 60, 0.1, 0.02, -0.1, 0.01),
        ("ddnm", 60, 0.21, 0.02, 0.01, 0.02),
    ]
    table = pd.DataFrame(rows, columns=["method", "budget", "mean", "se", "diff", "diff_se"])
    table = table.assign(task="box", metric="mse", part="hidden", n=4)
    table = pd.concat([table, table.assign(part="known", mean=0.0), table.assign(metric="ssim")])
    assert list(values_of(table, "box", "mse").method) == ["dps", "newton", "ddnm"]
    assert list(values_of(table, "box", "ssim").method) == ["ddnm", "newton", "dps"], "of SSIM more is better"
    assert values_of(table, "box", "mse", "known")["mean"].max() == 0
    (axes,) = plot_differences(table, "box", "mse").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ddnm, 60", "newton, 60", "dps, 60"], "the best on top"
    better, same = (line.get_children()[0] for line in axes.containers)
    assert (list(better.get_xdata()), list(same.get_xdata())) == ([-0.1], [0.01])
    prices = pd.Series([1.0, 2.0, 3.0], pd.MultiIndex.from_product([["newton", "dps", "ddnm"], [60]]))
    first, second = plot_trade_off(table, "box", "mse", {"evaluations": prices, "none": prices * math.nan}).axes
    assert [text.get_text() for text in first.texts] == ["newton, 60", "dps, 60"], "who is not beaten in both"
    assert not second.texts
    (varied,) = plot_trade_off(table, "box", "mse", {"diversity": prices}, high=["diversity"]).axes
    assert [text.get_text() for text in varied.texts] == ["ddnm, 60", "dps, 60"], "the most diverse, and the best"
    for wrong, found in ({"task": "bex"}, "task is 'bex'; the table has box"), ({"metric": "msr"}, "metric is 'msr'"):
        with pytest.raises(ValueError, match=found):
            values_of(table, **{"task": "box", "metric": "mse"} | wrong)
    with pytest.raises(ValueError, match="part is 'all'; mse on box has 'hidden', 'known'"):
        values_of(table, "box", "mse", "all")
    with pytest.raises(ValueError, match=r"no columns.*diff_se"):
        values_of(table.drop(columns="diff_se"), "box", "mse")
    with pytest.raises(TypeError, match="table"):
        values_of([1], "box", "mse")


def test_the_menus_of_a_table():
    """A choice keeps what it can of the others', and the picture is of what the menus say."""

    def rows(study, task, metric):
        both = pd.DataFrame({"method": ["newton", "dps"], "mean": [0.2, 0.1], "diff": [math.nan, -0.1]})
        return both.assign(study=study, task=task, metric=metric, budget=60, part="hidden", n=4, se=0.1, diff_se=0.01)

    table = pd.concat([rows("a", "box", "mse"), rows("a", "box", "ssim"), rows("a", "sr4", "ssim"), rows("b", "sr4", "mse")])
    lab = StudyTable(table.reset_index(drop=True))

    def shown():
        axes = lab.figure.axes[0]
        return lab.study.value, axes.get_title().partition(",")[0], axes.get_xlabel().partition(",")[0]

    assert shown() == ("a", "box", "mse")
    lab.task.value = "sr4"
    assert shown() == ("a", "sr4", "ssim"), "the only one that the task has"
    lab.study.value = "b"
    assert shown() == ("b", "sr4", "mse")
    lab.study.value = "a"
    assert shown() == ("a", "sr4", "ssim"), "the task is kept"
    assert len(StudyTable(rows("a", "box", "mse").drop(columns="study")).children[0].children) == 2, "no menu of one study"
    with pytest.raises(ValueError, match="no differences"):
        StudyTable(table.assign(diff=math.nan))


def test_evaluations_are_told_before_they_are_made(tmp_path):
    methods = ["newton", "identity", "gradient", "fast", "repaint", "daps", "dps", "biharmonic", "deep_image_prior"]
    methods = [m if m != "deep_image_prior" else {"name": m, "num_inference_steps": 2} for m in methods]
    study = SMALL | {"n": 1, "tasks": ["box"], "methods": methods, "budgets": [7], "metrics": ["mse"]}
    plan = dry_run(study, tmp_path)
    assert "9 cells" in str(plan) and not (tmp_path / "records").exists()
    found = run(study, tmp_path, progress=False)
    made = found[found.metric == "evaluations"].set_index("method").value
    for entry in read_study(study).methods:
        assert evaluations_of(entry) in (made[entry.name], 7), entry.name
    assert dry_run(study, tmp_path).batches == 0


@pytest.mark.parametrize("name", ["free-form", "region-5", "region-30", "region-90", "random-50", "random-99"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_masks_are_drawn_by_the_images_number(name, size):
    masks = [mask(name, *size, number) for number in range(20)]
    assert all(torch.equal(one, mask(name, *size, number)) for number, one in enumerate(masks))
    assert len({one.numpy().tobytes() for one in masks}) > 10
    shares = torch.stack([one.float().mean() for one in masks])
    wanted = 0.25 if name == "free-form" else int(name.split("-")[1]) / 100
    if name == "free-form":
        assert ((shares >= 0.25) & (shares < 0.6)).all()
    else:
        assert (shares - wanted).abs().max() < 0.03
    if name.startswith("region"):  # one rectangle
        for one in masks:
            rows, columns = one.any(1), one.any(0)
            assert one.sum() == rows.sum() * columns.sum()


def test_tasks_of_images(tmp_path):
    truth = fcs_lab.load_emoji(2)[0]
    features = fcs_lab.classifier.load_classifier("emoji").features[:7]
    for name in (
        "right-half",
        "top-half",
        "box",
        "free-form",
        "region-25",
        "random-50",
        "sr2",
        "sr4",
        "deblur",
        "colorization",
    ):
        posed = pose(name, truth, [0, 1])
        assert posed.constraint.cost(truth).max() < 1e-6 and posed.compared  # the truth meets it
        assert posed.given.shape[0] == 2
    posed = pose("style", truth, [0, 1], features)
    assert posed.constraint.cost(truth).max() < 1e-6 and not posed.compared
    with pytest.raises(ValueError, match="needs images in colour"):
        pose("colorization", truth[:, :1], [0, 1])


def test_measures_of_parts():
    """Errors planted in one part are found there; a seam is a step across the border that the truth has not."""
    truth = torch.zeros(1, 1, 32, 32)
    truth[..., ::2] = 0.2
    hidden = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
    hidden[..., 16:] = True
    posed = Posed(fcs_lab.Inpainting(truth, hidden), hidden, truth)
    shifted = truth + 0.5 * hidden
    names = ["mse", "psnr", "ssim", "consistency", "seam"]
    (row,) = measure(names, shifted, truth, posed)
    assert row["mse"] == {"all": 0.125, "known": 0.0, "hidden": 0.25}
    assert row["psnr"]["hidden"] == pytest.approx(10 * math.log10(4 / 0.25), abs=1e-3)
    assert row["ssim"]["known"] > row["ssim"]["hidden"] and row["consistency"] == {"all": 0.0}
    assert row["seam"] == {"hidden": pytest.approx(abs(0.5 + 0.2) - 0.2, abs=1e-5)}  # a step of .2 up, and .5 more
    (same,) = measure(names, truth, truth, posed)
    assert same["seam"] == {"hidden": 0.0} and same["ssim"]["all"] == pytest.approx(1, abs=1e-5)
    from skimage.metrics import structural_similarity

    noisy = (truth + 0.3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    (row,) = measure(["ssim"], noisy, truth, Posed(fcs_lab.SuperResolution(torch.zeros(1, 1, 8, 8), 4), None, truth))
    reference = structural_similarity(noisy[0, 0].numpy(), truth[0, 0].numpy(), data_range=2.0, gaussian_weights=True,
                                      sigma=1.5, use_sample_covariance=False)  # fmt: skip
    assert row["ssim"]["all"] == pytest.approx(reference, abs=0.02)


def test_set_distances_of_features():
    """FID against its closed form; the same pictures are at no distance; few images are warned of."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(64, 1, 4, 4, generator=generator) * scale - 0.5 for scale in (1.0, 1.4))
    features = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4, bias=False))
    with torch.no_grad(), pytest.warns(UserWarning, match="FID of 64 images is biased upwards"):
        found = set_distances(["fid", "kid"], b, a, features)
        x, y = (features(some).double() for some in (a, b))
        cov = [torch.cov(some.T) for some in (x, y)]
        root = torch.linalg.eigvals(cov[0] @ cov[1]).sqrt().real.sum()
        fid = (x.mean(0) - y.mean(0)).square().sum() + cov[0].trace() + cov[1].trace() - 2 * root
        assert found["fid"][0] == pytest.approx(fid.item(), rel=1e-3)
        assert abs(set_distances(["fid"], a, a, features)["fid"][0]) < 1e-4
        assert found["kid"][0] > set_distances(["kid"], a, a, features)["kid"][0]


def test_the_table_is_what_the_records_say(tmp_path):
    """Means, standard errors and paired differences, by NumPy; and nothing is computed for a report."""
    study = read_study(SMALL | {"n": 4, "tasks": ["box"], "methods": ["identity", "newton", "biharmonic"], "seeds": [0, 1],
                                "metrics": ["mse", "psnr", "diversity"]})  # fmt: skip
    found = run(study, tmp_path, progress=False)
    table = report(Store(tmp_path), study)
    hidden = found[(found.metric == "mse") & (found.part == "hidden")]
    values = hidden.groupby(["row", "image"]).value.mean().unstack("image")
    for row in ("identity", "newton", "biharmonic"):
        (told,) = table[(table.method == row) & (table.metric == "mse") & (table.part == "hidden")].to_dict("records")
        x = values.loc[row].to_numpy()
        assert (told["n"], told["mean"], told["se"]) == (4, pytest.approx(x.mean()), pytest.approx(x.std(ddof=1) / 2))
        if row != "identity":
            difference = x - values.loc["identity"].to_numpy()
            assert told["diff"] == pytest.approx(difference.mean())
            assert told["diff_se"] == pytest.approx(difference.std(ddof=1) / 2)
        else:
            assert math.isnan(told["diff"])
    (none,) = table[(table.method == "biharmonic") & (table.metric == "diversity")]["mean"]
    assert none == 0  # it draws nothing
    images = [np.asarray(Image.open(Store(tmp_path).image(cell, 0)), float) / 127.5 for cell in cells_of(study)
              if cell.entry.name == "newton"]  # fmt: skip
    each = table[(table.method == "newton") & (table.metric == "diversity")]["mean"].item()
    assert each > 0 and np.sqrt(((images[0] - images[1]) ** 2).mean()) > 0
    assert summary(Store(tmp_path), study).equals(table)
    assert table[table.metric.str.contains("wall")]["mean"].gt(0).all()
    text = (tmp_path / "table.md").read_text()
    assert "## box" in text and "±" in text and "fcs_lab" in text.splitlines()[-1]
    assert Image.open(tmp_path / "sheet.png").text["Description"].startswith("fcs_lab.study; model mnist")


def test_a_batch_too_large_says_which_would_fit(tmp_path, monkeypatch):
    sample = Subject.sample

    def limited(self, entry, posed, seeds, prompts):
        if len(seeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(self, entry, posed, seeds, prompts)

    monkeypatch.setattr(Subject, "sample", limited)
    study = SMALL | {"n": 8, "batch_size": 8, "tasks": ["box"], "methods": ["identity"]}
    ended = outcome(study, tmp_path, progress=False)
    assert len(ended.failures) == 8 and "a batch of 8 does not fit memory; batch_size = 2 would" in ended.failures[0]


def test_evaluations_of_a_worker_are_by_one_thread(tmp_path, monkeypatch):
    threads, computed = [], Worker._computed
    monkeypatch.setattr(
        Worker, "_computed", lambda self, *a: (threads.append(torch.get_num_threads()), computed(self, *a))[1]
    )
    before = torch.get_num_threads()
    run(SMALL | {"n": 1, "tasks": ["box"], "methods": ["identity"], "device": "cpu"}, tmp_path, progress=False)
    assert threads == [1] and torch.get_num_threads() == before


def test_differences_are_to_the_row_that_is_named(tmp_path):
    """Where a method stands there with other settings, too, it is the row without them that others are compared with."""
    methods = ["identity", {"name": "identity", "step_size": [2.0, 0.4]}, {"name": "ddnm", "num_inference_steps": 3}]
    study = SMALL | {"methods": methods, "tasks": ["right-half"], "metrics": ["mse"]}
    run(study, tmp_path, progress=False)
    table = summary(Store(tmp_path), read_study(study))
    mse = table[(table.metric == "mse") & (table.part == "hidden")].set_index("method")
    assert math.isnan(mse["diff"]["identity"])
    for row in mse.index.drop("identity"):
        assert mse["diff"][row] == pytest.approx(mse["mean"][row] - mse["mean"]["identity"], abs=1e-9)
