"""The families of diffusers pipelines that `constrained` is proved with, and the table of them.

`python -m fcs_lab.families notebooks/PIPELINES.md` writes it into the file; a test holds it against what the tests prove.
"""

from __future__ import annotations

import argparse
import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import diffusers
from diffusers import DiffusionPipeline

from fcs_lab.checks import typed

__all__ = ["FAMILIES", "UNPROVED", "Family", "family_of", "table", "takes_a_callback", "takes_an_interrupt", "what_it_takes"]


@dataclass(frozen=True)
class Family:
    """Pipelines that keep and guide their latents alike.

    Example:
        >>> family = next(one for one in fcs_lab.families.FAMILIES if "StableDiffusion3Pipeline" in one.pipelines)
        >>> family.calls  # of the network for a guided estimate: both prompts in one
        1
    """

    name: str
    pipelines: tuple[str, ...]
    """Their classes in diffusers; a class derived from one counts as well."""
    calls: int = 1
    """Of the network for one guided estimate: 1 where both branches go in one batch."""
    note: str = ""
    example: str = ""
    """A model of this kind on the hub; none could be fetched to try."""


FAMILIES = (
    Family(
        "Stable Diffusion 1.x, 2.x",
        ("StableDiffusionPipeline",),
        note="LoRA, LCM, AutoencoderTiny too",
        example="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    Family("Stable Diffusion + ControlNet", ("StableDiffusionControlNetPipeline",)),
    Family(
        "Stable Diffusion XL",
        ("StableDiffusionXLPipeline",),
        note="Turbo too",
        example="stabilityai/stable-diffusion-xl-base-1.0",
    ),
    Family("Stable Diffusion 3", ("StableDiffusion3Pipeline",), example="stabilityai/stable-diffusion-3-medium-diffusers"),
    Family(
        "PixArt-Σ",
        ("PixArtSigmaPipeline",),
        note="`use_resolution_binning=False`",
        example="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    ),
    Family(
        "Sana",
        ("SanaPipeline",),
        note="`use_resolution_binning=False`",
        example="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    ),
    Family("AuraFlow", ("AuraFlowPipeline",), example="fal/AuraFlow"),
    Family(
        "Lumina 2",
        ("Lumina2Pipeline",),
        calls=2,
        note="a `cfg_trunc_ratio` that falls within a timestep is refused",
        example="Alpha-VLLM/Lumina-Image-2.0",
    ),
    Family("CogView 4", ("CogView4Pipeline",), calls=2, example="THUDM/CogView4-6B"),
    Family(
        "Flux 1",
        ("FluxPipeline",),
        calls=2,
        note="schnell too; two calls with `true_cfg_scale`, else one",
        example="black-forest-labs/FLUX.1-schnell",
    ),
    Family("Chroma", ("ChromaPipeline",), calls=2, example="lodestones/Chroma1-HD"),
    Family("Flux 2", ("Flux2Pipeline",), note="guidance is distilled", example="black-forest-labs/FLUX.2-dev"),
    Family("Flux 2 Klein", ("Flux2KleinPipeline",), calls=2, example="black-forest-labs/FLUX.2-klein-base-9B"),
    Family("Qwen-Image", ("QwenImagePipeline",), calls=2, example="Qwen/Qwen-Image"),
    Family("Z-Image", ("ZImagePipeline",), note="`cfg_truncation` too", example="Tongyi-MAI/Z-Image-Turbo"),
)
"""Proved: an unmodified pipeline, tiny and random, in float32 and bfloat16, of images that are not square, its network's
calls counted, everything as it was afterwards."""

UNPROVED = {
    "latents (B, c, h, w)": (
        "KolorsPipeline",
        "PixArtAlphaPipeline",
        "CogView3PlusPipeline",
        "HunyuanDiTPipeline",
        "HiDreamImagePipeline",
    ),
    "Flux 1's packed latents": ("BriaPipeline", "OvisImagePipeline", "LongCatImagePipeline"),
}
"""Not proved: from reading diffusers only; they are tried, with a warning."""

OTHER_INPUTS = ("strength", "mask_image", "video", "num_frames", "audio", "audio_end_in_s", "audio_length_in_s")
"""Arguments of a pipeline's call that tell that it does not go from text to an image."""

BEGIN, END = "<!-- families: written by python -m fcs_lab.families -->", "<!-- /families -->"


@typed
def family_of(pipe: DiffusionPipeline) -> Family | None:
    """The family of a pipeline, or None where it is of none that is proved.

    Example:
        >>> fcs_lab.families.family_of(fcs_lab.load("fashion").pipeline).name
        'Stable Diffusion 1.x, 2.x'
    """
    classes = {kind.__name__ for kind in type(pipe).__mro__}
    return next((family for family in FAMILIES if classes & set(family.pipelines)), None)


def takes_an_interrupt(kind: type[DiffusionPipeline]) -> bool:
    """Whether `pipe._interrupt = True` ends a run.

    Example:
        >>> import diffusers
        >>> fcs_lab.families.takes_an_interrupt(diffusers.FluxPipeline)
        True
    """
    return hasattr(kind, "interrupt")


def takes_a_callback(kind: type[DiffusionPipeline]) -> bool:
    """Whether its call takes `callback_on_step_end`.

    Example:
        >>> import diffusers
        >>> fcs_lab.families.takes_a_callback(diffusers.FluxPipeline)
        True
    """
    return "callback_on_step_end" in inspect.signature(kind.__call__).parameters


def what_it_takes(kind: type) -> str | None:
    """What tells that a class of pipelines does not go from text through latents to one image; None: nothing does.

    Example:
        >>> import diffusers
        >>> print(fcs_lab.families.what_it_takes(diffusers.FluxPipeline))
        None
        >>> fcs_lab.families.what_it_takes(diffusers.DDPMPipeline)
        'does not go from a prompt through latents'
    """
    takes = set(inspect.signature(kind.__call__).parameters)
    other = [argument for argument in OTHER_INPUTS if argument in takes]
    if other:
        return f"takes {', '.join(other)}"
    through_latents = "prompt" in takes and hasattr(kind, "prepare_latents")
    return None if through_latents else "does not go from a prompt through latents"


def table() -> str:
    """The families as a Markdown table.

    Example:
        >>> fcs_lab.families.table().splitlines()[0].split(" | ")[1]
        'pipeline'
    """
    rows = [
        "| family | pipeline | calls of the network, guided | `callback_on_step_end` | `_interrupt` | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in FAMILIES:
        kinds = [getattr(diffusers, name) for name in family.pipelines]
        cells = [
            family.name,
            ", ".join(f"`{name}`" for name in family.pipelines),
            str(family.calls),
            "yes" if all(map(takes_a_callback, kinds)) else "no",
            "yes" if all(map(takes_an_interrupt, kinds)) else "no",
            family.note,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    for how, names in UNPROVED.items():
        rows.append(f"| not proved: {how} | {', '.join(f'`{name}`' for name in names)} | | | | from reading only |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fcs_lab.families", description=__doc__)
    parser.add_argument("file", type=Path, help="a Markdown file with the marks between which the table stands")
    file = parser.parse_args(arguments).file
    text = file.read_text()
    if BEGIN not in text or END not in text:
        parser.error(f"{file} lacks the marks {BEGIN} and {END}")
    between = re.compile(f"(?<={re.escape(BEGIN)}).*(?={re.escape(END)})", re.DOTALL)
    file.write_text(between.sub(lambda _: f"\n{table()}\n", text))


if __name__ == "__main__":
    main()
