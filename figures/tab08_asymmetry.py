"""Does the asymmetry of J matter to a completion? J e, Jᵀ e and e, over networks and over denoisers of a known skew part.

Above, the checkpoints of `mnist`'s training: of each the relative skew ‖J − Jᵀ‖/‖J + Jᵀ‖, the cosine of J e and Jᵀ e for the
task's e, and what each direction makes of 64 digits with their right half hidden. The checkpoints differ in more than their
skew: they get better.

Below, what isolates it: the exact denoiser of one Gaussian (mean and covariance of the digits at 8×8, times 0.4; float64),
plus a skew linear map, x̂_0(x_t) + s c_t S (x_t − √ᾱ_t μ), with S = Σ^½ R Σ^½ for a random skew-symmetric R. Its J is the
exact symmetric J plus s c_t S, and c_t makes s the relative skew at every t. The truth is drawn from that Gaussian, so the
rows differ in nothing else.
"""

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from cells import kept
from torch import Tensor

import fcs_lab
from fcs_lab.classifier import load_classifier
from fcs_lab.denoisers import add_noise, alpha_bar_at
from fcs_lab.metrics import masked_mse, mean_and_error
from fcs_lab.plots import Figure
from fcs_lab.probes import JacobianOperator, measure_symmetry
from fcs_lab.records import save_figure
from fcs_lab.zoo import checkpoints

MODEL, SEED, DIGITS, STEPS, INNER = "mnist", 0, 64, 10, 5
TIMESTEPS, PROBED, PROBES = (900, 700, 500, 300), 4, 16
SKEWS, DRAWN = (0.0, 0.1, 0.2, 0.4, 0.8), 256
DIRECTIONS = {"identity": "e", "newton": "J e", "gradient": "Jᵀ e"}
CACHE = Path(__file__).parents[1] / "runs" / "tab08"


class Skewed:
    """The exact denoiser of one Gaussian, plus a skew part of J that is s times its symmetric part in Frobenius norm."""

    def __init__(self, mean: Tensor, covariance: Tensor, s: float):
        self.exact = fcs_lab.GaussianMixtureDenoiser(mean, covariance[None])
        self.scheduler, self.shape = self.exact.scheduler, self.exact.shape
        self.device, self.dtype = mean.device, mean.dtype
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
        R = torch.randn(covariance.shape, generator=torch.Generator().manual_seed(SEED), dtype=mean.dtype)
        self.S, self.s, self.mean = root @ (R - R.T) @ root, s, mean

    def __call__(self, x_t: Tensor, t: int) -> Tensor:
        x0 = self.exact(x_t, t)
        # One Gaussian's J is the same everywhere, so its norm at the mean is that at x_t.
        size = self.s * self.exact.jacobian(self.mean, t).norm() / self.S.norm()
        off = (x_t - alpha_bar_at(self, t, x_t).sqrt() * self.mean).flatten(1)
        return x0 + (size * off @ self.S.T).reshape(x_t.shape)


def right_half(size: int) -> Tensor:
    mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
    mask[..., size // 2 :] = True
    return mask


def complete(model: fcs_lab.Denoiser, truth: Tensor, labels: Tensor | None = None) -> dict[str, dict]:
    """What each direction makes of the truths with their right half hidden: a value for each image."""
    mask, found = right_half(truth.shape[-1]), {}
    for direction in DIRECTIONS:
        result = fcs_lab.sample(
            model,
            fcs_lab.Inpainting(truth, mask),
            direction=direction,
            num_inference_steps=STEPS,
            inner_steps=INNER,
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(len(truth))],
            progress=False,
        )
        images = result.images
        found[direction] = {
            "known": masked_mse(images, truth, ~mask).tolist(),
            "hidden": masked_mse(images, truth, mask).tolist(),
        }
        if labels is not None:
            with torch.no_grad():
                found[direction]["named"] = (load_classifier("digits")(images).argmax(1) == labels).float().tolist()
    return found


def asymmetry(model: fcs_lab.Denoiser, truth: Tensor) -> dict[str, list[float]]:
    """At each timestep, over some digits: the relative skew, and the cosine of J e and Jᵀ e."""
    known = ~right_half(truth.shape[-1]) * torch.ones_like(truth[:1])
    skew, cosine = [], []
    for t in TIMESTEPS:
        of_t = []
        for i in range(PROBED):
            noise = torch.randn(truth[:1].shape, generator=torch.Generator().manual_seed(SEED + i)).to(truth)
            x_t = add_noise(model, truth[i : i + 1], noise, t)
            J = JacobianOperator(model, x_t, t, "fd")
            of_t.append(measure_symmetry(J, known * (truth[i : i + 1] - J.x0), probes=PROBES))
        skew.append(float(np.mean([one.relative_skew for one in of_t])))
        cosine.append(float(np.mean([one.cosine for one in of_t])))
    return {"relative_skew": skew, "cosine": cosine}


def networks(cache: Path) -> dict[str, dict]:
    truth, labels = fcs_lab.load_digits(DIGITS)
    found = {}
    for folder in checkpoints(MODEL):

        def compute(folder=folder):
            print(f"{folder.name} …", flush=True)
            model = fcs_lab.load(folder, device="cpu")
            return asymmetry(model, truth) | {"completed": complete(model, truth, labels)}

        weights = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.glob("**/*.safetensors"))]
        told = [SEED, DIGITS, STEPS, INNER, TIMESTEPS, PROBED, PROBES, weights]
        found[folder.name] = kept(cache, folder.name, told, compute)
    return found


def gaussians() -> dict[str, dict]:
    # Shrunk, so that every draw lies in [-1, 1], where images do.
    small = 0.4 * torch.nn.functional.avg_pool2d(fcs_lab.load_digits(256)[0].double(), 4)
    flat = small.flatten(1)
    covariance = flat.T.cov() + 1e-4 * torch.eye(flat.shape[1], dtype=torch.float64)
    mean = flat.mean(0).reshape(1, 1, 8, 8)
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(DRAWN, flat.shape[1], generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    truth = mean + (z @ root.T).reshape(-1, 1, 8, 8)
    found = {}
    for s in SKEWS:
        model = Skewed(mean, covariance, s)
        t = TIMESTEPS[-1]
        measured = measure_symmetry(JacobianOperator(model, mean, t).dense(progress=False)).relative_skew
        found[f"s = {s:g}"] = {"relative_skew": [measured], "completed": complete(model, truth)}
    return found


def main(output: Path, cache: Path = CACHE) -> None:
    start = time.perf_counter()
    numbers = {"networks": summary(networks(cache)), "gaussians": summary(gaussians())}
    save_figure(
        draw(numbers),
        output / "tab08_asymmetry",
        model=MODEL,
        seed=SEED,
        settings={
            "digits": f"the first {DIGITS} bundled",
            "drawn": DRAWN,
            "num_inference_steps": STEPS,
            "inner_steps": INNER,
            "timesteps": TIMESTEPS,
            "probed": PROBED,
            "probes": PROBES,
        },
        numbers=numbers,
        timings={"seconds": round(time.perf_counter() - start, 1)},
    )
    table = as_markdown(numbers)
    (output / "tab08_asymmetry.md").write_text(table)
    print(table)


def summary(rows: dict[str, dict]) -> dict[str, dict]:
    """Means and standard errors, and J e less each of the others, paired by image."""
    found = {}
    for name, row in rows.items():
        values = {d: {metric: torch.tensor(v) for metric, v in of_d.items()} for d, of_d in row["completed"].items()}
        found[name] = {key: row[key] for key in ("relative_skew", "cosine") if key in row}
        for direction in DIRECTIONS:
            found[name][direction] = {metric: mean_and_error(v) for metric, v in values[direction].items()}
        for other in ("gradient", "identity"):
            found[name][f"newton less {other}"] = {
                m: mean_and_error(v - values[other][m]) for m, v in values["newton"].items()
            }
    return found


def draw(numbers: dict) -> Figure:
    """The hidden half's error over the relative skew; and J e less Jᵀ e, over the cosine of the two or over the skew."""
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    panels = figure.subplots(2, 2)
    titles = {
        "networks": f"checkpoints of {MODEL}, {DIGITS} digits",
        "gaussians": f"exact J plus a skew part, {DRAWN} draws",
    }
    for (left, right), (kind, rows) in zip(panels, numbers.items(), strict=True):
        skew = [np.mean(row["relative_skew"]) for row in rows.values()]
        joined = "o-" if kind == "gaussians" else "o"
        for (direction, label), colour in zip(DIRECTIONS.items(), ("#999999", "#d55e00", "#009e73"), strict=True):
            y, error = np.array([row[direction]["hidden"] for row in rows.values()]).T
            left.errorbar(skew, y, yerr=error, fmt=joined, ms=4, capsize=2, label=label, color=colour)
        y, error = np.array([row["newton less gradient"]["hidden"] for row in rows.values()]).T
        x = [np.mean(row["cosine"]) for row in rows.values()] if kind == "networks" else skew
        right.axhline(0, color="#999999", lw=0.8)
        right.errorbar(x, y, yerr=error, fmt="o", ms=4, capsize=2, color="#333333")
        if kind == "networks":
            for name, at, value in zip(rows, x, y, strict=True):
                right.annotate(
                    f"step {int(name.split('-')[1])}", (at, value), (5, 4), textcoords="offset points", fontsize=8
                )
            right.margins(x=0.2)
        left.set(ylabel="MSE of the hidden half", title=titles[kind])
        right.set(ylabel="MSE by J e less that by Jᵀ e", title="paired difference")
        label = "relative skew ‖J − Jᵀ‖ / ‖J + Jᵀ‖"
        left.set_xlabel(label)
        right.set_xlabel("cos(J e, Jᵀ e) of the task's e" if kind == "networks" else label)
        for axes in (left, right):
            axes.title.set_fontsize(10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def as_markdown(numbers: dict) -> str:
    lines = [
        f"Right half hidden, {STEPS} timesteps, K = {INNER}, MSE of the hidden half ± a standard error; differences are "
        f"paired by image. Skew: ‖J − Jᵀ‖/‖J + Jᵀ‖; of networks the mean over {PROBED} digits at t = "
        f"{', '.join(map(str, TIMESTEPS))} ({PROBES} probes each), and with it cos(J e, Jᵀ e).\n"
    ]
    titles = {
        "networks": f"**Checkpoints of `{MODEL}`**, the first {DIGITS} bundled digits, seeds {SEED} to {SEED + DIGITS - 1}",
        "gaussians": f"**The exact denoiser of one Gaussian plus a skew part**, {DRAWN} draws of 8×8 pixels",
    }
    for kind, rows in numbers.items():
        lines += [
            f"{titles[kind]}\n",
            "| | skew | cosine | e | J e | Jᵀ e | J e less Jᵀ e | J e less e | known half, J e | known half, Jᵀ e |",
            "| --- " * 10 + "|",
        ]
        for name, row in rows.items():
            three = (_entry(row[direction]["hidden"]) for direction in DIRECTIONS)
            two = (_entry(row[f"newton less {other}"]["hidden"], "+") for other in ("gradient", "identity"))
            known = (f"{row[direction]['known'][0]:.2g}" for direction in ("newton", "gradient"))
            cosine = f"{np.mean(row['cosine']):.3f}" if "cosine" in row else ""
            lines.append(
                f"| {name} | {np.mean(row['relative_skew']):.3f} | {cosine} | {' | '.join([*three, *two, *known])} |"
            )
        lines.append("")
    return "\n".join(lines)


def _entry(value: list[float], sign: str = "") -> str:
    return f"{value[0]:{sign}.4f} ± {value[1]:.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
