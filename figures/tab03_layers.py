"""Layer inference measured: masks and layers of 64 composites of 2, 3 and 4 digits or garments, against the truth.

A batch that is done is kept in a file under runs/, and skipped when the command is run again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

import fcs_lab
from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.composites import MIN_VISIBLE, Composites, make_composites
from fcs_lab.data import GARMENTS
from fcs_lab.layers import late_inner_steps
from fcs_lab.metrics import layer_psnr, mask_iou
from fcs_lab.records import save_record

SEED, COMPOSITES, BATCH, LAYERS = 0, 64, 8, (2, 3, 4)
SETTINGS = {
    "num_inference_steps": 10,
    "inner_steps": late_inner_steps(10),
    "step_size": (0.5, 0.1),
    "temperature": (0.1, 0.02),
}
SMOOTHNESS = {"digits": 1.5, "garments": 2.0}
GUIDANCE = 2.0
MODELS = {"digits": "mnist", "garments": "fashion"}
KIND = {"digits": "stroke", "garments": "silhouette"}  # what of a picture is opaque
PLACE = {"digits": 3.0, "garments": 1.0}  # weight of a pixel's place in k-means: the best of 0.3, 1 and 3, other composites
METHODS = ("newton", "gradient", "identity", "k-means")
PROMPTED = "newton, prompts"


def main(output: Path, done: Path) -> None:
    kept, tables = Kept(done), []
    numbers: dict[str, dict] = {}
    seconds: dict[str, dict] = {}
    for data, name in MODELS.items():
        model = None
        numbers[data], seconds[data] = {}, {}
        for K in LAYERS:
            composites = composites_of(data, K)
            rows, times = numbers[data].setdefault(str(K), {}), seconds[data].setdefault(str(K), {})
            values: dict[str, list] = {}
            for method in methods_of(data, K):
                batches = []
                for first in range(0, COMPOSITES, BATCH):
                    chosen = slice(first, min(first + BATCH, COMPOSITES))
                    key = f"{data}, {K} layers, {method}, composites {chosen.start} to {chosen.stop - 1}"
                    if key not in kept.batches:
                        if model is None and method != "k-means":
                            model = fcs_lab.load(name, device="cpu")
                        kept.add(key, measure(model, data, method, composites, chosen))
                    batches.append(kept.batches[key])
                rows[method], times[method] = summarise(batches)
                values[method] = batches
                print(f"{data}, {K} layers, {method}: IoU {rows[method]['iou']:.3f}, PSNR {rows[method]['psnr']:.2f} dB")
            for method in values.keys() - {"newton"}:
                rows[method]["newton_minus_it"] = paired(values["newton"], values[method])
        tables.append(as_markdown(data, numbers[data], seconds[data]))
    save_record(
        output / "tab03_layers.json",
        model=list(MODELS.values()),
        seed=SEED,
        settings=settings(),
        numbers=numbers,
        timings={"seconds_per_composite": seconds},
    )
    (output / "tab03_layers.md").write_text(table := "\n".join([*tables, about()]))
    print(table)


def about() -> str:
    return f"""\
Each of {COMPOSITES} composites; ± is a standard error. Mask IoU: over the pixels where the true layers differ. PSNR: of the
layers, hidden parts included. Each under the best permutation of the layers. Evaluations and backward passes of the denoiser
are a layer's; seconds a composite's, in batches of {BATCH}, on a machine shared with other work: rough. The differences are
paired, over the same composites and seeds.
"""


def settings() -> dict:
    return {
        "composites": COMPOSITES,
        "batch": BATCH,
        "seed": SEED,
        "guidance_scale": GUIDANCE,
        "smoothness": SMOOTHNESS,
        **SETTINGS,
    }


def methods_of(data: str, K: int) -> tuple[str, ...]:
    return (*METHODS, PROMPTED) if data == "garments" and K == 2 else METHODS


def composites_of(data: str, K: int, count: int = 0, seed: int = SEED) -> Composites:
    """The composites of the study; the first ones are the same whatever the count."""
    images, labels = (fcs_lab.load_digits if data == "digits" else fcs_lab.load_garments)()
    return make_composites(images, labels, count or COMPOSITES, K, kind=KIND[data], min_visible=MIN_VISIBLE[K], seed=seed)


def infer(
    model: fcs_lab.Denoiser | None, data: str, method: str, composites: Composites, chosen: slice
) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """Layers (B, K, C, H, W), masks (B, K, H, W), evaluations and backward passes of the chosen composites."""
    y = composites.images[chosen]
    K = composites.layers.shape[1]
    if method == "k-means":
        return *cluster_layers(y, K, place=PLACE[data]), 0, 0
    text = {}
    if method == PROMPTED:
        words = [[f"a photo of {GARMENTS[label]}" for label in row] for row in composites.labels[chosen].tolist()]
        text = {"prompts": words, "guidance_scale": GUIDANCE}
    result = fcs_lab.infer_layers(
        model,
        y,
        K,
        direction=method.split(",")[0],
        generator=[torch.Generator().manual_seed(SEED + i) for i in range(chosen.start, chosen.stop)],
        progress=False,
        smoothness=SMOOTHNESS[data],
        **SETTINGS,
        **text,
    )
    shape = (len(y), K, *y.shape[1:])
    masks = result.masks.reshape(len(y), K, *y.shape[2:])
    return result.layers.reshape(shape).cpu(), masks.cpu(), result.nfe, result.n_backward


def measure(
    model: fcs_lab.Denoiser | None, data: str, method: str, composites: Composites, chosen: slice
) -> dict[str, list[float]]:
    """What the table is made of, with one value for each of the chosen composites."""
    start = time.perf_counter()
    layers, masks, nfe, n_backward = infer(model, data, method, composites, chosen)
    seconds = (time.perf_counter() - start) / len(layers)
    return {
        "iou": mask_iou(masks, composites.masks[chosen], composites.layers[chosen]).tolist(),
        "psnr": layer_psnr(layers, composites.layers[chosen]).tolist(),
        "nfe": [nfe] * len(layers),
        "n_backward": [n_backward] * len(layers),
        "seconds": [seconds] * len(layers),
    }


class Kept:
    """The batches done, one JSON line each, after a line with the settings that they were done with."""

    def __init__(self, path: Path):
        self.path, self.batches = path, {}
        if path.exists():
            found, *lines = (json.loads(line) for line in path.read_text().splitlines())
            if found != json.loads(json.dumps(settings())):
                raise ValueError(
                    f"{path} was made with other settings, {found}; expected {settings()}: remove it to start anew"
                )
            self.batches = {line.pop("key"): line for line in lines}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings()) + "\n")

    def add(self, key: str, batch: dict[str, list[float]]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"key": key, **batch}) + "\n")
        self.batches[key] = batch


def summarise(batches: list[dict[str, list[float]]]) -> tuple[dict[str, float], float]:
    """Means and standard errors over the composites; and the seconds that one took."""
    values = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    row = {}
    for name in ("iou", "psnr"):
        row[name] = float(values[name].mean())
        row[f"{name}_standard_error"] = float(values[name].std(ddof=1) / len(values[name]) ** 0.5)
    row |= {name: float(values[name].mean()) for name in ("nfe", "n_backward")}
    return row, round(float(values["seconds"].mean()), 2)


def paired(newton: list[dict[str, list[float]]], other: list[dict[str, list[float]]]) -> dict[str, float]:
    """How much better newton is on the same composites, with the standard error of that mean."""
    row = {}
    for name in ("iou", "psnr"):
        a, b = (np.concatenate([batch[name] for batch in batches]) for batches in (newton, other))
        row[name], row[f"{name}_standard_error"] = float((a - b).mean()), float((a - b).std(ddof=1) / len(a) ** 0.5)
    return row


def as_markdown(data: str, numbers: dict, seconds: dict) -> str:
    lines = [
        f"| {data}, layers | method | mask IoU | PSNR of the layers, dB | evaluations | backward passes | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for K, rows in numbers.items():
        for method, n in rows.items():
            iou = f"{n['iou']:.3f} ± {n['iou_standard_error']:.3f}"
            psnr = f"{n['psnr']:.2f} ± {n['psnr_standard_error']:.2f}"
            lines.append(
                f"| {K} | {method} | {iou} | {psnr} | {n['nfe']:g} | {n['n_backward']:g} | {seconds[K][method]:.2f} |"
            )
    lines += [
        "",
        f"| {data}, layers | newton minus … | mask IoU | PSNR, dB |",
        "| --- | --- | --- | --- |",
    ]
    for K, rows in numbers.items():
        for method, n in rows.items():
            if "newton_minus_it" in n:
                d = n["newton_minus_it"]
                iou = f"{d['iou']:+.3f} ± {d['iou_standard_error']:.3f}"
                lines.append(f"| {K} | {method} | {iou} | {d['psnr']:+.2f} ± {d['psnr_standard_error']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=root / "figures" / "output", help="folder (%(default)s)")
    parser.add_argument("--done", type=Path, default=root / "runs" / "layers_study.jsonl", help="file (%(default)s)")
    arguments = parser.parse_args()
    main(arguments.output, arguments.done)
