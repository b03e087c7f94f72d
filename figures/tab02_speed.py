"""Speed and memory, as ratios within one run: `sample` against the bare evaluations that it needs, and against Jᵀ e.

Seconds on one machine say little on another, and shared machines are noisy; so the runs are interleaved and what is
reported is the median ratio. Peak memory is the growth of the process's resident set (its high-water mark, reset
before the run, each method in a process of its own), or CUDA's own peak statistic on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm

import fcs_lab
from fcs_lab.records import save_record

MODEL, SEED, STEPS, INNER = "mnist", 0, 4, 5
BATCHES = (1, 16)


def run(model: fcs_lab.Denoiser, batch: int, direction: str) -> fcs_lab.Result:
    truth = fcs_lab.load_digits(batch)[0]
    mask = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    mask[:, 16:] = True
    generator = [torch.Generator().manual_seed(SEED + i) for i in range(batch)]
    return fcs_lab.sample(
        model,
        fcs_lab.Inpainting(truth, mask),
        num_inference_steps=STEPS,
        inner_steps=INNER,
        direction=direction,
        generator=generator,
        progress=False,
    )


@torch.no_grad()
def bare_evaluations(model: fcs_lab.Denoiser, batch: int, count: int) -> None:
    x_t = torch.randn(batch, *model.shape, device=model.device)
    for _ in range(count):
        model(x_t, 500)


def seconds(work, *arguments) -> float:
    """Wall time, the GPU's queue emptied before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_ratios(model: fcs_lab.Denoiser, batch: int, repeats: int) -> tuple[dict, dict]:
    nfe = run(model, batch, "newton").nfe  # also the warm-up
    run(model, batch, "gradient")
    times = {"newton": [], "bare": [], "gradient": []}
    for _ in tqdm(range(repeats), desc=f"batch {batch}"):
        times["newton"].append(seconds(run, model, batch, "newton"))
        times["bare"].append(seconds(bare_evaluations, model, batch, nfe))
        times["gradient"].append(seconds(run, model, batch, "gradient"))
    ratios = {
        "newton / its bare evaluations": statistics.median(
            n / b for n, b in zip(times["newton"], times["bare"], strict=True)
        ),
        "gradient / newton": statistics.median(g / n for g, n in zip(times["gradient"], times["newton"], strict=True)),
    }
    per_inner_step = {name: statistics.median(t) / (STEPS * INNER) for name, t in times.items()}
    return {name: round(ratio, 3) for name, ratio in ratios.items()}, per_inner_step


def peak_bytes(direction: str, batch: int) -> int:
    """What one timestep adds to the memory at its peak, above the loaded model."""
    command = [sys.executable, __file__, "--peak", direction, str(batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(direction: str, batch: int) -> int:
    model = fcs_lab.load(MODEL)
    bare_evaluations(model, 1, 1)
    if model.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(model, batch, direction)
        return torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        raise SystemExit("peak memory on a CPU is read from /proc, which only Linux has")
    reset.write_text("5")  # the high-water mark becomes the present size
    before = _kilobytes(status, "VmHWM")
    run(model, batch, direction)
    return (_kilobytes(status, "VmHWM") - before) * 1024


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def main(output: Path, repeats: int) -> None:
    model = fcs_lab.load(MODEL)
    timings = {}
    for batch in BATCHES:
        ratios, per_inner_step = time_ratios(model, batch, repeats)
        peak = {direction: peak_bytes(direction, batch) for direction in ("newton", "gradient")}
        timings[f"batch {batch}"] = {
            "wall time": ratios,
            "seconds an inner step": {name: round(value, 4) for name, value in per_inner_step.items()},
            "peak MiB above the model": {name: round(value / 2**20, 1) for name, value in peak.items()},
            "peak memory, gradient / newton": round(peak["gradient"] / peak["newton"], 2),
        }
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps(timings, indent=2))
    save_record(
        output / "tab02_speed.json",
        model=MODEL,
        seed=SEED,
        settings={"num_inference_steps": STEPS, "inner_steps": INNER, "repeats": repeats, "device": device},
        numbers={},
        timings=timings,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="interleaved runs of each (%(default)s)")
    parser.add_argument("--peak", nargs=2, metavar=("DIRECTION", "BATCH"), help="only print one peak, in bytes")
    options = parser.parse_args()
    if options.peak:
        print(measure_peak(options.peak[0], int(options.peak[1])))
    else:
        main(options.output, options.repeats)
