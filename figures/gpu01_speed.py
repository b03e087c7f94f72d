"""On a GPU: the time of one 512×512 inpainting at the paper's settings, and the memory that J e and Jᵀ e need.

The networks have Stable Diffusion 1.5's exact geometry and random weights, on which time and memory do not depend, so
nothing is downloaded. Every measurement is kept as soon as it is made; the same command goes on from there. `--minutes`
ends a run in time (the next one goes on). `--quick` runs a tiny geometry, on a CPU too, to see that it works.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tab04_half_precision import cosines
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

import fcs_lab
from fcs_lab.denoisers import Denoiser
from fcs_lab.latent import LatentDenoiser
from fcs_lab.latent_space import LatentInpainting
from fcs_lab.plots import Figure
from fcs_lab.records import save_figure
from fcs_lab.training.fashion import make_tokenizer

SEED, REPEATS = 0, 3
GIB = 2**30
SMALL_CARD = 23 * GIB
"""What a program gets of a card of 24 GiB: about a gibibyte is CUDA's own."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model, and of the run that is measured."""

    name: str
    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    steps: int
    inner: int
    batches: tuple[int, ...]
    """Tried for the best time an image."""
    memory_batches: tuple[int, ...]
    bundled: tuple[str, ...]
    """Trained models on which the fast paths are compared with float32."""
    compile: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"compiled": {"mode": "default"}, "CUDA graphs": {"mode": "reduce-overhead"}}
    )
    """Name -> options of torch.compile."""


SD15 = Geometry(
    name="Stable Diffusion 1.5",
    unet={
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    vae={
        "sample_size": 512,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "scaling_factor": 0.18215,
    },
    text={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    steps=20,
    inner=5,
    batches=(1, 2, 4, 8, 16, 32),
    memory_batches=(1, 8),
    bundled=("mnist", "fashion"),
)
QUICK = Geometry(
    name="tiny",
    unet=SD15.unet | {"sample_size": 8, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "attention_head_dim": 2,
                      "cross_attention_dim": 16, "layers_per_block": 1},
    vae=SD15.vae | {"sample_size": 64, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
    text=SD15.text | {"vocab_size": 1000, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                      "num_attention_heads": 2},
    steps=2,
    inner=1,
    batches=(1, 2),
    memory_batches=(1,),
    bundled=("mnist",),
    compile={"compiled": {"backend": "eager"}},
)  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """One way to run the networks."""

    name: str
    dtype: torch.dtype
    tf32: bool | None = None
    """In float32: whether matrix products and convolutions may round to TF32. None: torch's defaults."""
    channels_last: bool = False
    compile: dict[str, Any] | None = None
    """Options of torch.compile; None: eager."""


def loops(geometry: Geometry) -> list[Loop]:
    half = [
        Loop(f"{name}{how}", dtype, **options)
        for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
        for how, options in (
            ("", {}),
            (", channels last", {"channels_last": True}),
            *((f", {how}", {"channels_last": True, "compile": options}) for how, options in geometry.compile.items()),
        )
    ]
    return [Loop("float32, TF32 off", torch.float32, tf32=False), Loop("float32, torch's defaults", torch.float32), *half]


def random_model(geometry: Geometry, loop: Loop, device: torch.device) -> LatentDenoiser:
    """The model with random weights, made on the device; the empty prompt, as in the paper's inpainting."""
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer(geometry.text["max_position_embeddings"])
    with device:
        unet, vae = UNet2DConditionModel(**geometry.unet), AutoencoderKL(**geometry.vae)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                **geometry.text,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        *(nn.Module.to(module, loop.dtype) for module in (vae, text_encoder)),
        tokenizer,
        nn.Module.to(unet, loop.dtype),  # diffusers' own `to` warns of modules to be kept in float32, also if there are none
        scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    vae.enable_slicing()  # images are decoded one by one
    return speed_up(LatentDenoiser(pipeline, scheduler), loop)


def speed_up(model: Denoiser, loop: Loop) -> Denoiser:
    """The model's network, laid out and compiled as the loop says."""
    owner = model.pipeline if isinstance(model, LatentDenoiser) else model
    if loop.channels_last:
        owner.unet.to(memory_format=torch.channels_last)
    if loop.compile is not None:
        owner.unet = torch.compile(owner.unet, **loop.compile)
    return model


@contextmanager
def precision_of(loop: Loop) -> Iterator[None]:
    """While this lasts, TF32 is as the loop says."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    if loop.tf32 is not None:
        for place in places:
            place.allow_tf32 = loop.tf32
    yield
    for place, allowed in zip(places, before, strict=True):
        place.allow_tf32 = allowed


def picture(model: LatentDenoiser, batch: int) -> tuple[Tensor, Tensor]:
    """Smooth images (batch, 3, H, W) in [-1, 1], and a mask over their right half."""
    C, H, W = model.image_shape
    rough = torch.rand(batch, C, 8, 8, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    mask = torch.zeros(H, W, dtype=torch.bool)
    mask[:, W // 2 :] = True
    return torch.nn.functional.interpolate(rough, (H, W), mode="bilinear"), mask


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def inpaint(model: LatentDenoiser, batch: int, **options) -> fcs_lab.Result:
    """From images to images: encoding and decoding are in it."""
    images, mask = picture(model, batch)
    generator = torch.Generator(model.device).manual_seed(SEED)
    return fcs_lab.sample(
        model, fcs_lab.Inpainting(images, mask), batch_size=batch, generator=generator, progress=False, **options
    )


def measure_time(geometry: Geometry, loop: Loop, batch: int, device: torch.device) -> dict[str, Any]:
    """Seconds of whole runs, after one of a single step that warms up and compiles."""
    with precision_of(loop):
        model = random_model(geometry, loop, device)
        start = time.perf_counter()
        inpaint(model, batch, num_inference_steps=2, inner_steps=1)
        synchronize(device)
        warm_up, seconds = time.perf_counter() - start, []
        for _ in range(REPEATS if batch == 1 else 1):
            start = time.perf_counter()
            result = inpaint(model, batch, num_inference_steps=geometry.steps, inner_steps=geometry.inner)
            synchronize(device)
            seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "seconds_an_image": statistics.median(seconds) / batch,
        "warm_up_seconds": warm_up,
        "evaluations": result.nfe,
        "finite": bool(result.images.isfinite().all()),
    }


def measure_peak(geometry: Geometry, dtype: torch.dtype, direction: str, batch: int, device: torch.device) -> dict[str, Any]:
    """The peak of allocated memory above the weights: of the loop alone, and with the decoding of the images after it."""
    model = random_model(geometry, Loop("", dtype), device)
    images, mask = picture(model, batch)
    task = LatentInpainting(images, mask, model)
    synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    before, peak = torch.cuda.memory_allocated(), {}
    torch.cuda.reset_peak_memory_stats()

    def after_step(*_) -> None:
        peak.setdefault("loop", torch.cuda.max_memory_allocated() - before)

    options = {"num_inference_steps": 1, "inner_steps": 2, "callback_on_step_end": after_step, "progress": False}
    fcs_lab.sample(model, task, direction=direction, batch_size=batch, **options)
    return peak | {"with decoding": torch.cuda.max_memory_allocated() - before, "weights": before}


def largest_batch(fits: Callable[[int], bool], limit: int = 2048) -> int:
    """The largest batch that fits, to a twentieth: by doubling, then by bisection. 0 if none does."""
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    while high <= limit and high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def measure_largest_batch(
    geometry: Geometry, dtype: torch.dtype, backward: bool, limit: int | None, device: torch.device
) -> dict[str, Any]:
    """How many images go through one evaluation, with or without a backward pass, in `limit` bytes (None: the card)."""
    total = torch.cuda.get_device_properties(device).total_memory
    if limit is not None and limit >= total:
        raise ValueError(f"the card has {total / GIB:.0f} GiB, no more than the {limit / GIB:.0f} asked for")
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else limit / total)
    model, stopped_by = random_model(geometry, Loop("", dtype), device), {}

    def fits(batch: int) -> bool:
        try:
            x_t = torch.randn(batch, *model.shape, device=device, requires_grad=backward)
            with torch.set_grad_enabled(backward):
                x0 = model(x_t, 500)
            if backward:
                torch.autograd.grad(x0, x_t, torch.ones_like(x0))
            synchronize(device)
            return True
        except RuntimeError as error:  # torch.OutOfMemoryError is one; very large tensors have other limits besides
            stopped_by[batch] = str(error).splitlines()[0][:200]
            return False
        finally:
            x_t = x0 = None
            gc.collect()
            torch.cuda.empty_cache()

    try:
        found = largest_batch(fits)
        beyond = min(stopped_by, default=None)
        return {"batch": found, "did_not_fit": beyond, "because": stopped_by.get(beyond), "bytes": limit or total}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def measure_floor(geometry: Geometry, device: torch.device) -> dict[str, Any]:
    """The operations of one evaluation, counted, and the rate of a large matrix product in bfloat16."""
    model = random_model(geometry, Loop("", torch.bfloat16), device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *model.shape, device=device), 500)
    n = 8192 if device.type == "cuda" else 256
    a, rates = torch.randn(n, n, device=device, dtype=torch.bfloat16), []
    for _ in range(10):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            a @ a
        synchronize(device)
        rates.append(10 * 2 * n**3 / (time.perf_counter() - start))
    flop = counter.get_total_flops() * geometry.steps * (2 * geometry.inner + 1)
    return {
        "flop_an_evaluation": counter.get_total_flops(),
        "flop_an_image": flop,
        "matmul_flop_a_second": max(rates),
        "seconds_an_image": flop / max(rates),
    }


def measure_agreement(name: str, loop: Loop, device: torch.device) -> dict[str, Any]:
    """The cosines of tab04_half_precision for the loop's d on a trained model, by the same code, on this device."""
    with precision_of(Loop("", torch.float32, tf32=False)):
        model = fcs_lab.load(name, device=device)
        return cosines(model, dtypes=(loop.dtype,), speed_up=partial(speed_up, loop=loop))


def plan(geometry: Geometry, device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """Name -> measurement. What is compiled comes last, since its CUDA graphs keep some memory."""
    ways = loops(geometry)
    eager, fast = ([way for way in ways if (way.compile is not None) == compiled] for compiled in (False, True))
    work: dict[str, Callable] = {"floor": partial(measure_floor, geometry, device)}
    work |= {f"time | {way.name} | batch 1": partial(measure_time, geometry, way, 1, device) for way in eager}
    if device.type == "cuda":
        directions = {"newton": False, "gradient": True}
        for dtype, batch, direction in itertools.product(
            (torch.float16, torch.float32), geometry.memory_batches, directions
        ):
            key = f"peak | {str(dtype).removeprefix('torch.')} | batch {batch} | {direction}"
            work[key] = partial(measure_peak, geometry, dtype, direction, batch, device)
        for (card, limit), direction in itertools.product({"24 GB": SMALL_CARD, "whole card": None}.items(), directions):
            key = f"largest | float16 | {card} | {direction}"
            work[key] = partial(measure_largest_batch, geometry, torch.float16, directions[direction], limit, device)
    work |= {f"time | {way.name} | batch 1": partial(measure_time, geometry, way, 1, device) for way in fast}
    channels_last = next(way for way in eager if way.name == "float16, channels last")
    for way, batch in itertools.product((fast[-1], channels_last), geometry.batches[1:]):
        work[f"time | {way.name} | batch {batch}"] = partial(measure_time, geometry, way, batch, device)
    plain = next(way for way in eager if way.name == "float16")
    for name, way in itertools.product(geometry.bundled, (plain, *fast)):
        work[f"agreement | {name} | {way.name}"] = partial(measure_agreement, name, way, device)
    return work


def main(output: Path, quick: bool = False, minutes: float = 7.0, only: str = "", device: str | None = None) -> int:
    geometry = QUICK if quick else SD15
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type != "cuda" and not quick:
        raise SystemExit("this measures a GPU, and there is none: --quick runs a tiny geometry on the CPU")
    hardware = torch.cuda.get_device_name() if place.type == "cuda" else "CPU"
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"gpu01_speed{'_quick' if quick else ''}.json"
    measured = resume(path, geometry, hardware)
    start, failed, left = time.perf_counter(), [], 0
    for key, work in plan(geometry, place).items():
        if key in measured or not key.startswith(only):
            continue
        if time.perf_counter() - start > 60 * minutes:
            left += 1
            continue
        print(key, flush=True)
        try:
            found = work()
        except (RuntimeError, ValueError) as error:  # out of memory, no compiler: the others are still worth having
            failed.append(key)
            print(f"    failed: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr)
        else:
            print(f"    {found}", flush=True)
            measured[key] = found
        gc.collect()
        torch.compiler.reset()
        if place.type == "cuda":
            torch.cuda.empty_cache()
        report(path, geometry, hardware, measured)
    print(as_markdown(measured))
    print(f"{left} measurements are left: run again" if left else f"complete, but for {failed}" if failed else "complete")
    return 1 if failed else 0


def resume(path: Path, geometry: Geometry, hardware: str) -> dict[str, dict]:
    """What was measured before."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    settings = record["settings"]
    if (settings["geometry"], settings["hardware"]) != (geometry.name, hardware):
        raise SystemExit(
            f"{path} has measurements of {settings['geometry']} on {settings['hardware']}; this is {geometry.name} on "
            f"{hardware}: choose another folder with --output"
        )
    return record["timings"]["measured"]


def report(path: Path, geometry: Geometry, hardware: str, measured: dict[str, dict]) -> None:
    """The record, the table and the figure of what there is so far."""
    size, evaluations = 8 * geometry.unet["sample_size"], geometry.steps * (2 * geometry.inner + 1)
    title = f"{geometry.name}, one {size}×{size} inpainting of {evaluations} evaluations: {hardware}"
    path.with_suffix(".md").write_text(f"{title}, PyTorch {torch.__version__}\n\n{as_markdown(measured)}")
    save_figure(
        draw(measured, title),
        path.with_suffix(""),
        model=f"{geometry.name} with random weights",
        seed=SEED,
        settings={
            "geometry": geometry.name,
            "hardware": hardware,
            "num_inference_steps": geometry.steps,
            "inner_steps": geometry.inner,
            "repeats": REPEATS,
        },
        numbers={},
        timings={"measured": measured},
    )


def times_of(measured: dict[str, dict]) -> dict[str, dict[int, float]]:
    """Loop -> batch -> seconds an image."""
    times: dict[str, dict[int, float]] = {}
    for key, found in measured.items():
        kind, *rest = key.split(" | ")
        if kind == "time":
            times.setdefault(rest[0], {})[int(rest[1].removeprefix("batch "))] = found["seconds_an_image"]
    return times


def as_markdown(measured: dict[str, dict]) -> str:
    """The measurements as tables; those that are not made yet are left out."""
    times, floor = times_of(measured), measured.get("floor")
    slow = [times.get(name, {}).get(1) for name in ("float32, TF32 off", "float32, torch's defaults")]
    lines = []
    if times:
        lines += [
            "| loop | s an image, batch 1 | × faster than TF32 off | than float32's defaults | × the floor | best batch |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for name, at in times.items():
        one, (batch, best) = at.get(1), min(at.items(), key=lambda item: item[1])
        faster = [f"{s / one:.2f}" if s and one else "" for s in slow]
        above = f"{one / floor['seconds_an_image']:.1f}" if floor and one else ""
        best = f"{best:.3g} s an image (batch {batch})" if len(at) > 1 else ""
        lines.append(f"| {name} | {one:.3g} | {faster[0]} | {faster[1]} | {above} | {best} |")
    if floor:
        lines.append(
            f"\nThe floor: {floor['flop_an_image'] / 1e12:.4g} TFLOP an image, "
            f"{floor['flop_an_evaluation'] / 1e9:.4g} GFLOP an evaluation, at "
            f"{floor['matmul_flop_a_second'] / 1e12:.4g} TFLOP/s, which a large matrix product in bfloat16 "
            f"reaches here: {floor['seconds_an_image']:.3g} s."
        )
    peaks: dict[tuple[str, str], dict[str, dict]] = {}
    for key, found in measured.items():
        kind, *rest = key.split(" | ")
        if kind == "peak":
            peaks.setdefault((rest[0], rest[1]), {})[rest[2]] = found
    if peaks:
        lines += [
            "\n| peak above the weights, GiB | newton | gradient | ratio | newton and decoding | gradient and decoding |",
            "| --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
    for (dtype, batch), found in peaks.items():
        if len(found) == 2:
            n, g = found["newton"], found["gradient"]
            cells = [f"{one[what] / GIB:.2f}" for what in ("loop", "with decoding") for one in (n, g)]
            ratio = f"{n['loop'] / g['loop']:.2f}"
            lines.append(f"| {dtype}, {batch} | {cells[0]} | {cells[1]} | {ratio} | {cells[2]} | {cells[3]} |")
    largest = {key: found["batch"] for key, found in measured.items() if key.startswith("largest")}
    if largest:
        lines += ["\n| largest batch, float16 | newton | gradient |", "| --- | --- | --- |"]
        for card in dict.fromkeys(key.split(" | ")[2] for key in largest):
            cells = [str(largest.get(f"largest | float16 | {card} | {d}", "")) for d in ("newton", "gradient")]
            lines.append(f"| {card} | {' | '.join(cells)} |")
    agreement = {key: found for key, found in measured.items() if key.startswith("agreement")}
    if agreement:
        lines += [
            "\n| same direction? model | loop | h | cos with J e in float32: mean (least) |",
            "| --- | --- | --- | --- |",
        ]
    for key, found in agreement.items():
        _, model, way = key.split(" | ")
        for at in found.values():
            h, cosine = next(iter(at.items()))
            lines.append(f"| {model} | {way} | {h} | {cosine['mean']:.3f} ({cosine['least']:.3f}) |")
    return "\n".join(lines) + "\n"


def draw(measured: dict[str, dict], title: str) -> Figure:
    times, floor = times_of(measured), measured.get("floor")
    names = [name for name in times if 1 in times[name]]
    figure = Figure(figsize=(9, 1.4 + 0.28 * max(len(names), 6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    seconds = [times[name][1] for name in names]
    bars = left.barh(names, seconds, color=["0.6" if "float32" in name else "C0" for name in names])
    left.bar_label(bars, fmt=" %.3g s", fontsize=8)
    left.invert_yaxis()
    if floor:
        left.axvline(
            floor["seconds_an_image"], color="k", ls="--", lw=1, label="floor: all operations at a matrix product's rate"
        )
        left.legend(fontsize=7, loc="lower right")
    left.set(xlabel="seconds an image, batch 1", title="time")
    left.margins(x=0.15)
    shown = [key for key in measured if key.startswith("peak")]
    labels = [key.removeprefix("peak | ").replace(" | ", ", ") for key in shown]
    values = [measured[key]["loop"] / GIB for key in shown]
    bars = right.barh(labels, values, color=["C3" if "gradient" in label else "C0" for label in labels])
    right.bar_label(bars, fmt=" %.3g GiB", fontsize=8)
    right.invert_yaxis()
    right.set(xlabel="peak above the weights, GiB", title="memory of the loop")
    right.margins(x=0.2)
    for axes in (left, right):
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny geometry, on a CPU too: only to see that it works")
    parser.add_argument("--minutes", type=float, default=7, help="start no measurement after this time (%(default)s)")
    parser.add_argument("--only", default="", help="only measurements whose name begins so, such as 'time | float16'")
    parser.add_argument("--device", help="None: CUDA if there is one")
    sys.exit(main(**vars(parser.parse_args())))
