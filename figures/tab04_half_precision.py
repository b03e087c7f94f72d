"""Is J e in half precision still J e? The difference that `sample` takes, in each precision, against float32's.

For each bundled model, images at several timesteps, with e the error of the hidden right half: the cosine of d, at the step
h of that precision (`FD_STEP`) and at the paper's h = 0.005, with J e in float32 (by a difference at h = 0.005, which is the
most accurate there); and then whether a whole run notices.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import fcs_lab
from fcs_lab.data import example_images
from fcs_lab.denoisers import Denoiser, add_noise
from fcs_lab.directions import FD_STEP, CountedDenoiser, newton
from fcs_lab.latent import encode, image_shape, in_latents
from fcs_lab.metrics import masked_mse
from fcs_lab.probes.fd_error import in_precision
from fcs_lab.records import save_record

MODELS, SEED, IMAGES, TIMESTEPS = ("mnist", "fashion"), 0, 8, (900, 700, 500, 300, 100)
PAPER = 0.005
RUN = {"num_inference_steps": 6, "inner_steps": 2}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def masked(model: Denoiser) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and a mask over their right half."""
    mask = torch.zeros(image_shape(model)[1:], dtype=torch.bool)
    mask[:, mask.shape[1] // 2 :] = True
    return example_images(model, IMAGES), mask


@torch.no_grad()
def cosines(
    model: Denoiser,
    dtypes: Sequence[torch.dtype] = DTYPES,
    speed_up: Callable[[Denoiser], Denoiser] = lambda twin: twin,
) -> dict[str, dict[str, dict[str, float]]]:
    """How near the difference d is to J e, and to the d of float32, over images and timesteps.

    Args:
        model: In float32.
        dtypes: The precisions of its copies.
        speed_up: What is done to a copy before it is used.

    Returns:
        Precision -> h, of `FD_STEP` and then the paper's -> mean and least cosine of an image's d with J e ("mean", "least")
        and with float32's ("float32_mean", "float32_least"), and the means of each timestep ("at_t").
    """
    images, mask = masked(model)
    x_0 = encode(model, images)
    task = in_latents(fcs_lab.Inpainting(images, mask), model).to(model.device, torch.float32)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(SEED)).to(x_0)
    twins = {dtype: speed_up(in_precision(model, dtype)) for dtype in dtypes}
    found = {(dtype, h): ([], []) for dtype in dtypes for h in (FD_STEP[dtype], PAPER)}
    for t in TIMESTEPS:
        x_t = add_noise(model, x_0, noise, t)
        f = CountedDenoiser(model)
        x0 = f(x_t, t)
        e = task.error(x0)
        references = [f.run(newton(x_t, t, x0, e, fd_step=h)) for h in (PAPER, FD_STEP[torch.float32])]
        for dtype, twin in twins.items():
            f = CountedDenoiser(twin)
            x0 = f(x_t, t)
            for h in (FD_STEP[dtype], PAPER):
                d = f.run(newton(x_t, t, x0, e, fd_step=h))
                for values, reference in zip(found[dtype, h], references, strict=True):
                    values.append(torch.cosine_similarity(d.flatten(1), reference.flatten(1)))
    numbers: dict[str, dict] = {}
    for (dtype, h), (with_Je, with_float32) in found.items():
        numbers.setdefault(short(dtype), {})[f"{h:g}"] = {
            "mean": torch.cat(with_Je).mean().item(),
            "least": torch.cat(with_Je).min().item(),
            "float32_mean": torch.cat(with_float32).mean().item(),
            "float32_least": torch.cat(with_float32).min().item(),
            "at_t": {str(t): values.mean().item() for t, values in zip(TIMESTEPS, with_Je, strict=True)},
        }
    return numbers


def runs(model: Denoiser) -> dict[str, dict[str, float]]:
    """Precision -> errors of a run of Algorithm 1, and its distance from float32's."""
    images, mask = masked(model)
    numbers, reference = {}, None
    for dtype in DTYPES:
        result = fcs_lab.sample(
            in_precision(model, dtype),
            fcs_lab.Inpainting(images, mask),
            generator=[torch.Generator().manual_seed(SEED + i) for i in range(IMAGES)],
            progress=False,
            **RUN,
        )
        made = result.images.float()
        reference = made if reference is None else reference
        numbers[short(dtype)] = {
            "mse_known": masked_mse(made, images, ~mask).mean().item(),
            "mse_hidden": masked_mse(made, images, mask).mean().item(),
            "mse_to_float32": (made - reference).square().mean().item(),
        }
    return numbers


def main(output: Path) -> None:
    numbers = {}
    for name in MODELS:
        print(f"{name}: {IMAGES} images at {len(TIMESTEPS)} timesteps")
        # Half precision on a GPU is another arithmetic than on a CPU: the table is the CPU's, which every reader has.
        model = fcs_lab.load(name, device="cpu")
        numbers[name] = {"cosine": cosines(model), "run": runs(model)}
    save_record(
        output / "tab04_half_precision.json",
        model=MODELS,
        seed=SEED,
        settings={"images": IMAGES, "timesteps": TIMESTEPS, "mask": "right half", "device": "cpu"} | RUN,
        numbers=numbers,
    )
    table = as_markdown(numbers)
    (output / "tab04_half_precision.md").write_text(table)
    print(table)


def as_markdown(numbers: dict) -> str:
    lines = [
        "| model | precision | h | cos with J e: mean (least) | with float32's d | J e at h = 0.005 | MSE, known | hidden |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for model, found in numbers.items():
        for dtype, at in found["cosine"].items():
            own, paper = at[f"{FD_STEP[getattr(torch, dtype)]:g}"], at[f"{PAPER:g}"]
            pairs = ((own, ""), (own, "float32_"), (paper, ""))
            cells = [f"{one[f'{to}mean']:.3f} ({one[f'{to}least']:.3f})" for one, to in pairs]
            run = found["run"][dtype]
            lines.append(
                f"| {model} | {dtype} | {FD_STEP[getattr(torch, dtype)]:g} | {' | '.join(cells)} | {run['mse_known']:.4f} | "
                f"{run['mse_hidden']:.3f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder (%(default)s)")
    main(parser.parse_args().output)
