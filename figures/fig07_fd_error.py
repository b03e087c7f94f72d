"""The error of a finite difference for J e over its step h: truncation against rounding, in four precisions."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import options
import torch
from options import DEFAULT, Options

import fcs_lab
from fcs_lab.directions import FD_STEP
from fcs_lab.latent import in_latents
from fcs_lab.plots import Figure
from fcs_lab.probes import FdError, measure_fd_error

MODEL, SEED, DIGIT = "mnist", 0, 0
T, PAPERS_H = 500, 0.005
STEPS = 20  # values of h, at most
TRUNCATED = 1e-6  # from this h on, float64's own rounding does not show in the truncation
# The least h, how many, and the schemes. float16 has few: its convolutions are slow on a CPU.
ALL = ("forward", "central", "fourth-order")
RANGES = {
    torch.float64: (1e-10, 20, ["forward"]),
    torch.float32: (1e-6, 15, ALL),
    torch.float16: (1e-3, 8, ALL),
    torch.bfloat16: (1e-3, 10, ALL),
}
COLOURS = {torch.float64: "C0", torch.float32: "C2", torch.float16: "C1", torch.bfloat16: "C3"}
LINES = {"forward": "-", "central": "--", "fourth-order": ":"}


def main(output: Path, asked: Options = DEFAULT) -> None:
    asked.refuse("this figure compares the precisions", "dtype")
    start, seed = time.perf_counter(), asked.seed_or(SEED)
    model = replace(asked, device=asked.device or "cpu").load(MODEL)
    truth = asked.picture(model, DIGIT)
    x_t = options.noisy(model, truth, T, seed)
    task = in_latents(fcs_lab.Inpainting(truth, options.right_half(model)), model).to(x_t.device, x_t.dtype)
    with torch.no_grad():
        e = task.error(model(x_t, T))

    found = FdError({}, {}, e)
    for dtype, (least, count, schemes) in RANGES.items():
        h = np.geomspace(least, 3, min(count, STEPS))
        part = measure_fd_error(model, x_t, T, e, h=h, dtypes=[dtype], schemes=schemes)
        found = FdError(found.curves | part.curves, found.forward_mode | part.forward_mode, part.Je)

    numbers, rounding = {}, {}  # what a machine's rounding decides is kept apart
    for (dtype, scheme), curve in found.curves.items():
        seen = curve.h > TRUNCATED
        told = {"h": curve.h, "truncation": curve.truncation[seen]}
        numbers.setdefault(_name(dtype), {})[scheme] = {part: values.tolist() for part, values in told.items()}
        told = {part: getattr(curve, part) for part in ("error", "cosine", "truncation", "rounding")}
        rounding.setdefault(_name(dtype), {})[scheme] = {part: values.tolist() for part, values in told.items()}
    for dtype, (error, cosine) in found.forward_mode.items():
        rounding[_name(dtype)]["forward mode"] = {"error": error, "cosine": cosine}
    settings = {"t": T, "image": DIGIT, "mask": "right half", "e": "the masked error", "device": "cpu"}
    asked.save(draw(found), output / "fig07_fd_error", model=MODEL, seed=seed,
                settings=settings, numbers=numbers, chaotic=rounding,
                timings={"seconds": round(time.perf_counter() - start, 1)})  # fmt: skip


def draw(found: FdError) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for dtype, colour in COLOURS.items():
        curve = found.curves[dtype, "forward"]
        left.plot(curve.h, curve.error, colour, marker=".", lw=1.4, label=_name(dtype))
        if dtype != torch.float64:
            left.plot(curve.h, curve.rounding, colour, lw=0.8, ls=":")
        used = np.exp(np.interp(np.log(FD_STEP[dtype]), np.log(curve.h), np.log(curve.error)))
        left.plot(FD_STEP[dtype], used, colour, marker="o", ms=7, mfc="none")
    reference = found.curves[torch.float64, "forward"]
    seen = reference.h > 1e-7  # where float64 itself does not round
    left.plot(reference.h[seen], reference.truncation[seen], "k--", lw=0.8, label="truncation alone")
    left.plot([], [], "k:", lw=0.8, label="rounding alone")
    left.plot([], [], "ko", ms=7, mfc="none", ls="none", label="what sample() uses")
    left.set(title="forward difference (Algorithm 1)", ylabel=r"$\|d - J e\| \, / \, \|J e\|$")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        colour = COLOURS[dtype]
        for scheme, line in LINES.items():
            if (dtype, scheme) in found.curves:
                curve = found.curves[dtype, scheme]
                right.plot(curve.h, curve.error, colour, ls=line, marker=".", lw=1.2)
        right.axhline(found.forward_mode[dtype][0], color=colour, lw=5, alpha=0.2)
        right.plot([], [], colour, label=_name(dtype))
    for scheme, line in LINES.items():
        right.plot([], [], "k", ls=line, lw=1, label=scheme)
    right.plot([], [], "k", lw=5, alpha=0.2, label="forward mode (no h)")
    right.set(title="other schemes, and forward mode in the same precision")
    for panel in (left, right):
        panel.axvline(PAPERS_H, color="0.5", lw=0.8)
        panel.text(PAPERS_H * 0.9, 7e-8, "the paper's h", rotation=90, ha="right", va="bottom", fontsize=7, color="0.4")
        panel.set(xscale="log", yscale="log", xlabel=r"h, relative to $\|e\|_\infty$", ylim=(5e-8, 1e3))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7, loc="upper left", ncols=2)
    return figure


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main(*options.parse(__doc__))
