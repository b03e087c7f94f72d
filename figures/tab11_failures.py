"""Where it fails: how Algorithm 1 depends on its settings and on what is hidden, and what it does of what it should not get.

The first part is a study, `fcs_lab/study/failures.toml`: digits 0 to 63, each row against the base (10 timesteps, K = 3, the
right half). The rest are the cases of `fcs_lab.failures`, on the first 64 pictures; what of hidden pixels reaches the known
latents of the two latent models; how much of the error is the initial noise's, 8 seeds of 16 digits; and what is drawn of a
posterior that is known exactly, 32 seeds of 8 digits' halves. Means ± standard errors over the images; differences image by
image.

What is done is kept under runs/tab11, and skipped when the command is run again.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from cells import kept
from options import mean
from torch import Tensor

import fcs_lab
from fcs_lab.failures import CASES, SHORT, Case, completed_modes, run_case, shared_half
from fcs_lab.metrics import masked_mse
from fcs_lab.records import save_record
from fcs_lab.study import read_study, run
from fcs_lab.study.measures import measure
from fcs_lab.study.store import cells_of
from fcs_lab.study.tasks import pose

SEED, PICTURES, BATCH, STUDY = 0, 64, 32, "failures"
MASKS = {"the right half": "right-half", "a box in the middle": "box", "free-form strokes": "free-form"}
LATENT = {"fashion": fcs_lab.load_garments, "emoji": fcs_lab.load_emoji}
SLOW = ("emoji",)  # the first mask alone
NOISED, SEEDS = 16, 8
KNOWN, COUNTS, DRAWS = 8, (1, 2, 3, 6), 32
DRAWN = {
    "J e, 10 × 3": {"method": "newton", **SHORT},
    "J e, 20 × 5": {"method": "newton"},
    "J e, 100 × 3": {"method": "newton", "num_inference_steps": 100, "inner_steps": 3},
    "Jᵀ e, 10 × 3": {"method": "gradient", **SHORT},
    "e, 10 × 3": {"method": "identity", **SHORT},
    "fast": {"method": "fast"},
    "repaint, 60": {"method": "repaint"},
    "ddnm, 60": {"method": "ddnm"},
}
RUNS = Path(__file__).parents[1] / "runs" / "tab11"


def main(output: Path, runs: Path = RUNS) -> None:
    numbers: dict[str, Any] = {"settings and masks": studied(runs / "study")}
    cells = runs / "cells"
    for section, cases in CASES.items():
        done, base = {}, None
        for name, case in cases.items():
            done[name] = kept(cells, "case", told(section, name), lambda case=case: ran(case))
            base = name if case.what == "nothing" else base
            print(f"{section}: {name} done", flush=True)
            done[name]["compared with"] = base
        numbers[section] = {name: row(values, done[values["compared with"]]) for name, values in done.items()}
        if "loss" in done[base]:
            alarms(numbers[section], done, done[base])
    numbers["through the encoder"] = {
        f"{model}, {mask}": {name: mean(torch.tensor(values)) for name, values in kept(
            cells, "latent", [model, mask, SHORT, PICTURES, SEED], lambda m=model, t=task: latent(m, t)).items()}
        for model in LATENT for mask, task in list(MASKS.items())[: 1 if model in SLOW else None]
    }  # fmt: skip
    numbers["initial noise"] = kept(cells, "noise", [SHORT, NOISED, SEEDS, SEED], initial_noise)
    numbers["a posterior that is known"] = {
        name: kept(cells, "modes", [settings, KNOWN, COUNTS, DRAWS, SEED], lambda s=settings: drawn(s))
        for name, settings in DRAWN.items()
    }
    settings = {"pictures": PICTURES, "study": STUDY, "short": SHORT, "counts": COUNTS, "draws": DRAWS, "known": KNOWN}
    save_record(
        output / "tab11_failures.json", model=["mnist", "fashion", "emoji"], seed=SEED, settings=settings, numbers=numbers
    )
    (output / "tab11_failures.md").write_text(markdown(numbers))


def studied(folder: Path) -> dict[str, dict[str, Any]]:
    """The study's rows: mean and error of each measure, and of the difference to the base, on its task."""
    table = run(STUDY, folder)
    shown = {("mse", "hidden"): "hidden", ("mse", "known"): "known", ("named", "all"): "named", ("realism", "all"): "loss",
             ("seam", "hidden"): "seam", ("evaluations", ""): "evaluations"}  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    values = table.set_index(["task", "row", "metric", "part", "image"]).value.sort_index()
    study = read_study(STUDY)
    base = study.methods[0].told
    for task, row_ in ((cell.task, cell.entry.told) for cell in cells_of(study)):
        named = differs(row_, base) if task == "right-half" else task
        found[named] = {}
        for (metric, part), name in shown.items():
            own = values.get((task, row_, metric, part))
            if own is None:
                continue
            found[named][name] = mean(torch.tensor(own.to_numpy(float)))
            reference = values.get(("right-half", base, metric, part))
            if named != "the base" and name != "evaluations" and task == "right-half":
                found[named][f"{name}, less the base's"] = mean(torch.tensor((own - reference).to_numpy(float)))
    return found


def differs(row_: str, base: str) -> str:
    """What a row's settings have that the base's have not."""
    inside = row_[row_.index("(") + 1 : -1]
    own = base[base.index("(") + 1 : -1]
    return "the base" if inside == own else inside.removeprefix(own + ", ")


def told(section: str, name: str) -> list[Any]:
    """What a case's values depend on."""
    case = CASES[section][name]
    return [section, name, SHORT, case.settings, case.guidance_scale, case.prompted_as, PICTURES, SEED]


def ran(case: Case) -> dict[str, list[float]]:
    """A case's values, image by image."""
    found = run_case(case, PICTURES, seed=SEED).values
    return {name: values.tolist() for name, values in found.items()}


def row(values: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """Means with errors, and of the differences to the base's."""
    made = {}
    for name, own in values.items():
        if name != "compared with":
            made[name] = mean(torch.tensor(own))
            if values is not base and name in base and name != "fit of the truth":
                made[f"{name}, less the base's"] = mean(torch.tensor(own) - torch.tensor(base[name]))
    return made


def alarms(rows: dict[str, Any], values: dict[str, Any], right: dict[str, Any]) -> None:
    """How often the loss or the fit of a wrong image is larger than a right one's: the area under the ROC curve."""
    for name, own in values.items():
        for measured in ("loss", "fit"):
            a, b = torch.tensor(own[measured])[:, None], torch.tensor(right[measured])[None]
            rows[name][f"alarm by the {measured}"] = ((a > b).float() + 0.5 * (a == b).float()).mean().item()


def latent(name: str, task: str) -> dict[str, list[float]]:
    """What reaches the known latents, the decoder's floor, and the border of what comes out."""
    model, truth = fcs_lab.load(name), LATENT[name](PICTURES)[0]
    found: dict[str, list[float]] = {}
    for numbers in torch.arange(len(truth)).split(BATCH):
        images = truth[numbers]
        posed = pose(task, images, numbers.tolist())
        carried = model.carry(posed.constraint)
        known = carried.known.bool().expand_as(carried.y)
        spread = carried.y[known].std()
        within = ~known[:, :1]
        far = known & ~(torch.nn.functional.max_pool2d(within.float(), 5, 1, 2) > 0)
        for what, fill in {"the truth": images, "white": torch.ones_like(images)}.items():
            change = model.encode(torch.where(posed.constraint.mask, fill, carried.image)) - carried.y
            for where, cells in {"known cells": known, "known cells 3 and more away": far}.items():
                if bool(cells.flatten(1).any(1).all()):
                    values = [change[i][cells[i]].square().mean().sqrt() / spread for i in range(len(images))]
                    found.setdefault(f"{where} change, {what} for grey", []).extend(float(v) for v in values)
        found.setdefault("known cells", []).extend(known[:, 0].flatten(1).float().mean(1).tolist())
        there = model.decode(model.encode(images)).clamp(-1, 1)
        out = fcs_lab.sample(
            model, posed.constraint, progress=False, generator=generators(numbers.tolist()), **SHORT
        ).images.cpu()
        for what, shown in {"decoder's floor": there, "sample": out}.items():
            found.setdefault(f"{what}, known", []).extend(masked_mse(shown, images, ~posed.hidden).tolist())
        border = measure(("seam",), out, images, posed)
        found.setdefault("sample, seam", []).extend(one["seam"]["hidden"] for one in border)
        shift = ((out - images) * ~posed.hidden).flatten(1).sum(1) / (~posed.hidden).flatten(1).sum(1) / images.shape[1]
        found.setdefault("sample, colour shift of the known", []).extend(shift.abs().tolist())
    return found


def initial_noise() -> dict[str, float]:
    """The share of the error's variance that is the noise's, not the image's."""
    model, truth = fcs_lab.load("mnist"), fcs_lab.load_digits(NOISED)[0]
    task = pose("right-half", truth, range(NOISED))
    each = []
    for s in range(SEEDS):
        drawn = generators(range(1000 * s, 1000 * s + NOISED))
        result = fcs_lab.sample(model, task.constraint, progress=False, generator=drawn, **SHORT)
        each.append(masked_mse(result.images.cpu(), truth, task.hidden))
    errors = torch.stack(each)
    between_seeds = errors.var(0).mean().item()
    between_images = errors.mean(0).var().item() - between_seeds / SEEDS
    return {"hidden": errors.mean().item(), "standard deviation between seeds": between_seeds**0.5,
            "standard deviation between images": max(0.0, between_images) ** 0.5,
            "best of the seeds, hidden": errors.min(0).values.mean().item(),
            "worst of the seeds, hidden": errors.max(0).values.mean().item()}  # fmt: skip


def drawn(settings: dict[str, Any]) -> dict[str, Any]:
    """Total variation between the modes drawn and the posterior, beside that of as many exact draws; modes missed."""
    digits = fcs_lab.load_digits()[0]
    exact = torch.Generator().manual_seed(SEED)
    measured = ("total variation", "of exact draws", "modes missed", "missed by exact draws", "rms to the nearest")
    found: dict[str, list[float]] = {name: [] for name in measured}
    shares = torch.zeros(len(COUNTS), dtype=torch.float64)
    for k in range(KNOWN):
        posterior = shared_half(digits[k * len(COUNTS) :], COUNTS)
        counts, distance = completed_modes(posterior, DRAWS, seed=SEED + 1000 * k, **settings)
        free = torch.multinomial(posterior.probabilities.expand(200, -1), DRAWS, replacement=True, generator=exact)
        other = torch.stack([torch.bincount(one, minlength=len(COUNTS)) for one in free])
        found["total variation"].append(off(counts, posterior.probabilities))
        found["of exact draws"].append(sum(off(one, posterior.probabilities) for one in other) / len(other))
        found["modes missed"].append(float((counts == 0).sum()))
        found["missed by exact draws"].append((other == 0).sum(1).double().mean().item())
        found["rms to the nearest"].append(distance.mean().item())
        shares += counts / DRAWS / KNOWN
    return {name: mean(torch.tensor(values)) for name, values in found.items()} | {"shares": shares.tolist()}


def off(counts: Tensor, probabilities: Tensor) -> float:
    return (counts / counts.sum() - probabilities).abs().sum().item() / 2


def generators(seeds: Any) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + i) for i in seeds]


def markdown(numbers: dict[str, Any]) -> str:
    blocks = [f"The first {PICTURES} test pictures, seed {SEED}; {SHORT['num_inference_steps']} timesteps, K = "
              f"{SHORT['inner_steps']}, where nothing else is said. MSE of images in [-1, 1], ± a standard error; in "
              "brackets the difference to the base (the first row, or the last before with nothing wrong), image by "
              "image. Alarm: the area under the ROC curve, right images against these; 0.5 says nothing."]  # fmt: skip
    for section, rows in numbers.items():
        if section == "initial noise":
            shown = ", ".join(f"{name} {value:.3f}" for name, value in rows.items())
            blocks.append(f"## {section}\n\n{NOISED} digits, {SEEDS} seeds each: {shown}.")
            continue
        columns = list(
            dict.fromkeys(name for values in rows.values() for name in values if not name.endswith("less the base's"))
        )
        lines = [f"## {section}", "", "| | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
        lines += [
            f"| {name} | " + " | ".join(cell(values, column) for column in columns) + " |" for name, values in rows.items()
        ]
        blocks.append("\n".join(lines))
    share = ", ".join(f"{count / sum(COUNTS):.2f}" for count in COUNTS)
    blocks.append(f"The posterior's shares are {share}: {KNOWN} known halves, {DRAWS} draws of each. Exact draws are "
                  "what as many draws from the posterior itself have.")  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def cell(values: dict[str, Any], column: str) -> str:
    found, less = values.get(column), values.get(f"{column}, less the base's")
    if found is None:
        return ""
    if isinstance(found, list):
        return ", ".join(f"{value:.2f}" for value in found)
    if isinstance(found, float):
        return f"{found:.2f}"
    if column == "evaluations":
        return f"{found['mean']:.0f}"
    told = f"{found['mean']:.3f} ± {found['error']:.3f}"
    return told if less is None else f"{told} ({less['mean']:+.3f} ± {less['error']:.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    main(parser.parse_args().output)
