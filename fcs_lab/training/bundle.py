"""`python -m fcs_lab.training bundle RUN NAME`: a run's model, finished or not, as a bundled one, in float16."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

from fcs_lab.zoo import WEIGHTS, quiet

with quiet():  # this import asks transformers for an image processor
    from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline

__all__ = ["bundle_model", "write_checksums"]


def bundle_model(run: str | Path, name: str) -> Path:
    """Write the pipeline of a run to `fcs_lab/weights/NAME` in float16, with its sample sheet and checksums.

    Args:
        run: The run's folder, of a latent or a pixel model; a finished decoder in it is taken.
        name: The bundled model's name. Its model card, if there is one, stays.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: The run has no model yet.
    """
    run, out = Path(run), WEIGHTS / name
    if not (run / "model" / "model_index.json").exists():
        raise FileNotFoundError(f"{run} has no model yet: {run / 'model'} is not there")
    if not (run / "model" / "vae").exists():
        pipeline = DDPMPipeline.from_pretrained(run / "model")
        torch.nn.Module.to(pipeline.unet, torch.float16)
        pipeline.save_pretrained(out)
        return _finished(run, name)
    with quiet():
        pipeline = StableDiffusionPipeline.from_pretrained(run / "model", safety_checker=None, requires_safety_checker=False)
        if (run / "decoder" / "model" / "config.json").exists():
            pipeline.vae = AutoencoderKL.from_pretrained(run / "decoder" / "model")
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        torch.nn.Module.to(part, torch.float16)
    pipeline.save_pretrained(out)
    shutil.copy(run / "model" / "training.json", out / "training.json")
    return _finished(run, name)


def _finished(run: Path, name: str) -> Path:
    """The bundled folder, once it has its sheet of samples and its checksums."""
    out = WEIGHTS / name
    sheets = sorted((run / "samples").glob("step-*.png"))
    if sheets:
        shutil.copy(sheets[-1], out / "samples.png")
    write_checksums(name)
    return out


def write_checksums(name: str) -> None:
    """Note the SHA-256 sums of a bundled folder's files, which `fcs_lab.zoo.verify` checks; its card is not one of them."""
    folder, path = WEIGHTS / name, WEIGHTS / "checksums.json"
    sums = json.loads(path.read_text())
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".md")
    sums[name] = {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    path.write_text(json.dumps(dict(sorted(sums.items())), indent=2) + "\n")
