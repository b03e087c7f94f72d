"""Layer inference where the truth is known: composites of emoji that the model was not trained on.

Two emoji on white, 64 composites, by e, J e and Jᵀ e, with prompts; against k-means of the pixels, regions of one colour
that k-means of their colours shares out, and layers that the prompts alone make. On 32, three; a coloured and a photographic
ground, given or inferred; two side by side, apart, and one behind the other. On 16, several starts, of which the one that
explains most is kept, as many evaluations in one longer run; and four emoji.

IoU and absolute error of the masks, over the pixels where the true layers differ, and PSNR of the layers, hidden parts
included, each under the best permutation. Standard errors, and those of the paired differences from "J e", are clustered by
the uppermost concept. Cells that are done are kept under runs/tab09, and skipped when the command is run again.
"""

import argparse
import functools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import kept
from options import mean_of_emoji
from scipy.ndimage import binary_fill_holes
from skimage.segmentation import felzenszwalb
from sklearn.cluster import KMeans
from torch import Tensor

import fcs_lab
from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.composites import Composites, make_emoji_composites
from fcs_lab.metrics import denoising_loss, layer_psnr, mask_error, mask_iou
from fcs_lab.records import save_record
from fcs_lab.zoo import WEIGHTS

SEED, COMPOSITES, FEWER, FEWEST, BATCH = 0, 64, 16, 16, 16
STEPS, STARTS, GUIDANCE, SMOOTHNESS, TEMPERATURE = 10, 4, 2.5, 3.0, (0.1, 0.02)
PLACE = 1.0  # of k-means: the best of 0, 0.3, 1 and 3 on 12 other composites, of the "settings" pictures
PERFECT = 40.0  # dB, beyond which layers count as found
SEGMENTS = {"scale": 40, "sigma": 0.4, "min_size": 12}
CACHE = Path(__file__).parents[1] / "runs" / "tab09"
MEASURES = {"iou": "IoU", "error": "mask error", "psnr": "PSNR, dB"}


@dataclass(frozen=True)
class Row:
    """Composites, and what is made of them."""

    num_layers: int
    method: str
    ground: str = "white"
    arrangement: str = "overlapping"
    given: bool = True
    """Whether a ground that is not white is given."""
    prompted: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    """Other arguments of `infer_layers`."""

    @property
    def composites(self) -> str:
        ground = "" if self.ground == "white" else f" over a {self.ground}"
        place = "" if self.arrangement == "overlapping" else f", {self.arrangement}"
        return f"{self.num_layers}{ground}{place}"

    @property
    def count(self) -> int:
        """How many composites: all of two on white by one run, fewer of the others, fewest where each costs most."""
        if self.options or self.num_layers == 4:
            return min(FEWEST, COMPOSITES)
        return COMPOSITES if self.composites == "2" else min(FEWER, COMPOSITES)

    @property
    def label(self) -> str:
        told = ", prompts" if self.prompted else ""
        ground = (
            "" if self.ground == "white" or self.method in BASELINES else f", ground {'given' if self.given else 'inferred'}"
        )
        more = {"starts": f", {STARTS} starts", "num_inference_steps": f", {STARTS} × the timesteps"}
        return self.method + told + ground + "".join(more[name] for name in self.options)

    @property
    def reference(self) -> str:
        """The label of what it is compared with, on the same composites."""
        return replace(self, method="J e", given=True, prompted=False, options={}).label


DIRECTIONS = {"e": "identity", "J e": "newton", "Jᵀ e": "gradient"}
BASELINES = ("k-means", "regions of a colour", "prompts alone")
ROWS = (
    *(Row(2, method) for method in (*DIRECTIONS, "k-means", "regions of a colour")),
    Row(2, "prompts alone", prompted=True),
    Row(2, "J e", options={"starts": STARTS}),
    Row(2, "J e", options={"num_inference_steps": STARTS * STEPS}),
    Row(2, "J e", prompted=True),
    *(Row(K, method, prompted=prompted) for K in (3, 4) for method, prompted in (("J e", 0), ("J e", 1), ("k-means", 0))),
    *(
        Row(2, method, ground, given=given, prompted=prompted)
        for ground in ("colour", "photograph")
        for method, given, prompted in (("J e", 1, 0), ("J e", 0, 0), ("J e", 1, 1), ("k-means", 1, 0))
    ),
    *(
        Row(2, method, arrangement=arrangement)
        for arrangement in ("touching", "apart", "behind")
        for method in ("J e", "k-means")
    ),
)


def infer(model: fcs_lab.Denoiser, row: Row, made: Composites, prompts: list[list[str]], first: int) -> tuple:
    """Layers, masks, evaluations and backward passes of a layer; without the ground, where that was given."""
    y, ground = made.images, row.ground != "white"
    K = row.num_layers + ground
    if row.method == "k-means":
        return *cluster_layers(y, K, place=PLACE, background=1.0), 0, 0
    if row.method == "regions of a colour":
        masks = coloured_regions(y, K)
        return torch.where(masks[:, :, None] > 0, y[:, None], 1.0), masks, 0, 0
    generators = [torch.Generator().manual_seed(SEED + first + i) for i in range(len(y))]
    settings = {"num_inference_steps": STEPS, "direction": DIRECTIONS.get(row.method, "newton"), "smoothness": SMOOTHNESS}
    if row.method == "prompts alone":
        settings["inner_steps"] = 0
    result = fcs_lab.infer_layers(
        model,
        y,
        K,
        prompts=prompts if row.prompted else None,
        guidance_scale=GUIDANCE if row.prompted else None,
        known_layers={K - 1: made.layers[:, -1]} if ground and row.given else None,
        generator=generators,
        temperature=TEMPERATURE,
        progress=False,
        **settings | row.options,
    )
    shape = (len(y), K, *y.shape[2:])  # which lacks the first of these for one composite
    layers, masks = result.layers.cpu().reshape(*shape[:2], 3, *shape[2:]), result.masks.cpu().reshape(shape)
    return layers, masks, result.nfe, result.n_backward


def coloured_regions(y: Tensor, K: int) -> Tensor:
    """Masks (B, K, H, W), of 0 and 1: regions of one colour (Felzenszwalb and Huttenlocher), shared out by k-means of their
    mean colours; a region that is white goes with the nearest."""
    masks = []
    for image in ((y + 1) / 2).permute(0, 2, 3, 1).numpy():
        regions = felzenszwalb(image, **SEGMENTS)
        count = np.bincount(regions.ravel())
        colours = np.stack([np.bincount(regions.ravel(), image[..., c].ravel()) / count for c in range(3)], 1)
        told = colours.min(1) < 0.95
        if told.sum() < K:
            told[:] = True
        found = KMeans(K, n_init=10, random_state=SEED).fit(colours[told], sample_weight=count[told]).predict(colours)
        masks.append(np.eye(K, dtype=np.float32)[found[regions]].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(masks))


def measure(model: fcs_lab.Denoiser | None, row: Row, made: Composites, prompts: list[list[str]], first: int) -> dict:
    """A value for each composite; the soft edges of the true masks, and pictures with holes, apart."""
    layers, masks, nfe, n_backward = infer(model, row, made, prompts, first)
    edges = ((made.masks > 0.05) & (made.masks < 0.95)).any(1)
    error = {name: mask_error(masks, made.masks, made.layers, where) for name, where in
             {"error": None, "edges": edges, "inside": ~edges}.items()}  # fmt: skip
    holes = [any(has_hole(x) for x in one[: row.num_layers]) for one in made.layers]
    return {
        "iou": mask_iou(masks, made.masks, made.layers).tolist(),
        "psnr": layer_psnr(layers, made.layers).clamp(max=PERFECT).tolist(),
        **{name: values.tolist() for name, values in error.items()},
        "holes": [float(one) for one in holes],
        "evaluations": nfe,
        "backward_passes": n_backward,
    }


def has_hole(layer: Tensor) -> bool:
    """Whether white is enclosed, by a hundredth of the picture at least."""
    opaque = (layer.amin(0) < 0.9).numpy()
    return bool((binary_fill_holes(opaque) & ~opaque).mean() > 0.01)


@functools.cache
def composites_of(num_layers: int, ground: str, arrangement: str) -> tuple[Composites, list[list[str]]]:
    return make_emoji_composites(COMPOSITES, num_layers, ground=ground, arrangement=arrangement, seed=SEED)


def measured(model: fcs_lab.Denoiser, row: Row, cache: Path) -> dict[str, Any]:
    """What `measure` finds, of all composites."""
    made, prompts = composites_of(row.num_layers, row.ground, row.arrangement)
    weights = json.loads((WEIGHTS / "checksums.json").read_text())["emoji"]
    told = [SEED, COMPOSITES, STEPS, STARTS, GUIDANCE, SMOOTHNESS, TEMPERATURE, PLACE, SEGMENTS, weights]
    cells = []
    for first in range(0, row.count, BATCH):
        some = slice(first, min(first + BATCH, row.count))

        def compute(some=some):
            print(f"{row.composites}: {row.label}, composites {some.start} to {some.stop - 1} …", flush=True)
            part = Composites(*(whole[some] for whole in vars(made).values()))
            return measure(model, row, part, prompts[some], some.start)

        name = f"{row.composites}-{row.label}-{first}".replace(" ", "-").replace(",", "")
        cells.append(kept(cache, name, [*told, row.composites, row.label, first, some.stop], compute))
    counts = {key: cells[0].pop(key) for key in ("evaluations", "backward_passes")}
    return {key: torch.tensor([value for cell in cells for value in cell[key]]) for key in cells[0]} | counts


def main(output: Path, cache: Path = CACHE) -> None:
    model = fcs_lab.load("emoji")
    found = {(row.composites, row.label): measured(model, row, cache) for row in ROWS}
    numbers: dict[str, dict[str, dict]] = {}
    for row in ROWS:
        values, reference = found[row.composites, row.label], found.get((row.composites, row.reference))
        tops = [names[0] for names in composites_of(row.num_layers, row.ground, row.arrangement)[1]][: row.count]
        entry = {"n": row.count} | {key: mean_of_emoji(values[key], tops) for key in MEASURES}
        entry |= {key: values[key] for key in ("evaluations", "backward_passes")}
        if values is reference:
            entry |= details(values, tops)
        elif reference is not None:
            entry["less J e"] = {key: mean_of_emoji(values[key] - reference[key][: row.count], tops) for key in MEASURES}
        numbers.setdefault(row.composites, {})[row.label] = entry
    numbers["2"]["the model's own loss"] = prior(model, cache)
    settings = {"num_inference_steps": STEPS, "starts": STARTS, "guidance_scale": GUIDANCE, "smoothness": SMOOTHNESS,
                "temperature": TEMPERATURE, "place": PLACE, "regions": SEGMENTS}  # fmt: skip
    save_record(output / "tab09_emoji_layers.json", model="emoji", seed=SEED, settings=settings, numbers=numbers)
    table = as_markdown(numbers)
    (output / "tab09_emoji_layers.md").write_text(table)
    print(table)


def prior(model: fcs_lab.Denoiser, cache: Path) -> dict[str, dict]:
    """The denoising loss of two emoji over one another, and of each by itself: whether the model could tell them apart."""
    made, prompts = composites_of(2, "white", "overlapping")
    weights = json.loads((WEIGHTS / "checksums.json").read_text())["emoji"]

    def compute() -> dict[str, list[float]]:
        both = [denoising_loss(model, some) for some in made.images.split(BATCH)]
        single = [[denoising_loss(model, some) for some in made.layers[:, k].split(BATCH)] for k in (0, 1)]
        return {
            "composite": torch.cat(both).tolist(),
            "layers": torch.stack([torch.cat(one) for one in single]).mean(0).tolist(),
        }

    found = kept(cache, "prior", [SEED, COMPOSITES, weights], compute)
    values, tops = {key: torch.tensor(some) for key, some in found.items()}, [names[0] for names in prompts]
    values["composite less its layers"] = values["composite"] - values["layers"]
    return {key: mean_of_emoji(some, tops) for key, some in values.items()}


def details(values: dict[str, Tensor], tops: list[str]) -> dict[str, dict]:
    """The masks' error at soft edges and inside, and the IoU of composites with and without holes."""
    found = {}
    for key in ("edges", "inside"):
        there = values[key].isfinite()  # a composite may have no soft edge where the layers differ
        found[key] = mean_of_emoji(values[key][there], [name for name, yes in zip(tops, there, strict=True) if yes])
    for kind, chosen in {"with holes": values["holes"] > 0, "without holes": values["holes"] == 0}.items():
        if chosen.any():
            names = [name for name, yes in zip(tops, chosen, strict=True) if yes]
            found[f"iou {kind}"] = mean_of_emoji(values["iou"][chosen], names) | {"n": len(names)}
    return found


def as_markdown(numbers: dict) -> str:
    head = ["emoji", "method", "n", *MEASURES.values(), "IoU less J e's", "evaluations", "backward passes"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    form = {"iou": ".3f", "error": ".3f", "psnr": ".1f"}
    loss = numbers["2"]["the model's own loss"]
    for composites, rows in numbers.items():
        for label, row in rows.items():
            if row is loss:
                continue
            cells = [f"{row[key]['mean']:{form[key]}} ± {row[key]['error']:{form[key]}}" for key in MEASURES]
            less = row.get("less J e")
            difference = "" if less is None else f"{less['iou']['mean']:+.3f} ± {less['iou']['error']:.3f}"
            counts = f"{row['evaluations']:g} | {row['backward_passes']:g}"
            lines.append(f"| {composites} | {label} | {row['n']} | " + " | ".join(cells) + f" | {difference} | {counts} |")
    lines.append("\nMeans of n composites ± standard errors, clustered by the uppermost concept; evaluations of a layer.")
    told = {key: f"{one['mean']:.3f} ± {one['error']:.3f}" for key, one in loss.items()}
    lines.append(f"The model's own denoising loss: {told['composite']} of two over one another, {told['layers']} of each by "
                 f"itself, {told['composite less its layers']} less.")  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
