"""Speed and memory, as ratios within one run: `sample` against the bare evaluations that it needs, and against Jᵀ e; and
`constrained` against the guided evaluations of the pipeline's network.

Seconds on one machine say little on another, and shared machines are noisy; so the runs are interleaved and what is
reported is the median ratio. Peak memory is the growth of the process's resident set (its high-water mark, reset
before the run, each method in a process of its own), or CUDA's own peak statistic on a GPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import memory
import torch
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

import fcs_lab
from fcs_lab.denoisers import as_model
from fcs_lab.records import save_record

MODELS, SEED, STEPS, INNER = {"mnist": fcs_lab.load_digits, "fashion": fcs_lab.load_garments}, 0, 20, 5
BATCHES = (1, 16)
PIPELINE, GUIDANCE = "fashion", 2.0


def half_hidden(name: str, batch: int) -> fcs_lab.Inpainting:
    truth = MODELS[name](batch)[0]
    mask = torch.zeros(truth.shape[-2:], dtype=torch.bool)
    mask[:, 16:] = True
    return fcs_lab.Inpainting(truth, mask)


def seeds(batch: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + i) for i in range(batch)]


def run(name: str, model: fcs_lab.Denoiser, batch: int, direction: str) -> fcs_lab.Result:
    return fcs_lab.sample(
        model,
        half_hidden(name, batch),
        num_inference_steps=STEPS,
        inner_steps=INNER,
        direction=direction,
        generator=seeds(batch),
        progress=False,
    )


def run_pipeline(pipe: DiffusionPipeline, batch: int) -> fcs_lab.Result:
    with fcs_lab.constrained(pipe, half_hidden(PIPELINE, batch), inner_steps=INNER) as made:
        pipe(
            ["a coat"] * batch,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=seeds(batch),
            output_type="latent",
        )
    return made.result


@torch.no_grad()
def bare_evaluations(model: fcs_lab.Denoiser, batch: int, count: int) -> None:
    model = as_model(model).snapshot()
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


def time_ratios(name: str, model: fcs_lab.Denoiser, batch: int, repeats: int) -> tuple[dict, dict]:
    nfe = run(name, model, batch, "newton").nfe  # also the warm-up
    run(name, model, batch, "gradient")
    times = {"newton": [], "bare": [], "gradient": []}
    for _ in tqdm(range(repeats), desc=f"{name}, batch {batch}"):
        times["newton"].append(seconds(run, name, model, batch, "newton"))
        times["bare"].append(seconds(bare_evaluations, model, batch, nfe))
        times["gradient"].append(seconds(run, name, model, batch, "gradient"))
    ratios = {
        "newton / its bare evaluations": statistics.median(
            n / b for n, b in zip(times["newton"], times["bare"], strict=True)
        ),
        "gradient / newton": statistics.median(g / n for g, n in zip(times["gradient"], times["newton"], strict=True)),
    }
    per_inner_step = {name: statistics.median(t) / (STEPS * INNER) for name, t in times.items()}
    return {name: round(ratio, 3) for name, ratio in ratios.items()}, per_inner_step


def pipeline_ratio(batch: int, repeats: int) -> float:
    """Wall time of a constrained pipeline over the guided evaluations that it needs, the median of pairs."""
    model = fcs_lab.load(PIPELINE).with_prompt("a coat", guidance_scale=GUIDANCE)
    pipe = model.pipeline
    pipe.set_progress_bar_config(disable=True)
    nfe, ratios = run_pipeline(pipe, batch).nfe, []
    for _ in tqdm(range(repeats), desc=f"{type(pipe).__name__}, batch {batch}"):
        ratios.append(seconds(run_pipeline, pipe, batch) / seconds(bare_evaluations, model, batch, nfe))
    return round(statistics.median(ratios), 3)


def measure_peak(name: str, direction: str, batch: int) -> int:
    """What a run adds to the memory at its peak, above the loaded model."""
    model = fcs_lab.load(name)
    bare_evaluations(model, 1, 1)
    return memory.peak(model.device, lambda: run(name, model, batch, direction))


def main(output: Path, repeats: int) -> None:
    timings, device = {}, "CPU"
    for name in MODELS:
        model = fcs_lab.load(name)
        device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        for batch in BATCHES:
            ratios, per_inner_step = time_ratios(name, model, batch, repeats)
            peak = {
                direction: memory.in_a_process(__file__, name, direction, str(batch)) for direction in ("newton", "gradient")
            }
            timings[f"{name}, batch {batch}"] = {
                "wall time": ratios,
                "seconds an inner step": {what: round(value, 4) for what, value in per_inner_step.items()},
                "peak MiB above the model": {what: round(value / 2**20, 1) for what, value in peak.items()},
                "peak memory, gradient / newton": round(peak["gradient"] / peak["newton"], 2),
            }
    timings["constrained pipeline / its bare guided evaluations"] = {
        f"batch {batch}": pipeline_ratio(batch, repeats) for batch in BATCHES
    }
    print(json.dumps(timings, indent=2))
    save_record(
        output / "tab02_speed.json",
        model=list(MODELS),
        seed=SEED,
        settings={"num_inference_steps": STEPS, "inner_steps": INNER, "repeats": repeats, "device": device},
        numbers={},
        timings=timings,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved runs of each (%(default)s)")
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "DIRECTION", "BATCH"), help="only print one peak, in bytes")
    options = parser.parse_args()
    if options.peak:
        print(measure_peak(*options.peak[:2], int(options.peak[2])))
    else:
        main(options.output, options.repeats)
