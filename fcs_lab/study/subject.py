"""What a study is about: its model, its images, and who judges the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fcs_lab.baselines import METHODS, PEERS, WITHOUT_MODEL
from fcs_lab.classifier import JUDGES, load_classifier
from fcs_lab.constrained import constrained
from fcs_lab.data import GARMENTS, IMAGE_SUFFIXES, image_files, load_digits, load_emoji, load_garments
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.directions import EVALUATIONS
from fcs_lab.features import load_clip
from fcs_lab.forecast import seconds_of_an_evaluation
from fcs_lab.images import fit_image
from fcs_lab.records import weights_of
from fcs_lab.study.config import Entry, Study
from fcs_lab.study.tasks import Posed, pose, read_masks
from fcs_lab.zoo import load, load_pipeline


class Images:
    """The pictures of a study: those of the package, or of a folder, whose names are sorted.

    Args:
        study: The study.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: There are none, or fewer than the study wants.
    """

    def __init__(self, study: Study):
        self.files: list[Path] | None = None
        self.bundled: Tensor | None = None
        if study.images == "test":
            if study.model not in JUDGES:
                raise ValueError(f"images is 'test', but there are no bundled pictures for {study.model}; give a folder")
            self.bundled, self.names, self.groups = _bundled(study.model)
        else:
            folder = Path(study.images)
            if not folder.is_dir():
                raise FileNotFoundError(f"images is {study.images!r}; expected 'test' or a folder")
            self.files = image_files(folder)
            self.names = [file.stem.replace("_", " ").replace("-", " ") for file in self.files]
            self.groups = [file.name for file in self.files]
        if not self.names:
            raise ValueError(f"images is {study.images!r}, a folder without pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
        if study.first + study.n > len(self.names):
            raise ValueError(
                f"n is {study.n}{f' after the first {study.first}' if study.first else ''}; "
                f"there are {len(self.names)} images"
            )
        kept = slice(study.first, None)
        self.names, self.groups = self.names[kept], self.groups[kept]
        self.files = None if self.files is None else self.files[kept]
        self.bundled = None if self.bundled is None else self.bundled[kept]

    def digest(self) -> str:
        """What tells these pictures from others: the first one's name and bytes, so that more may be added behind."""
        if self.files is None:
            return "bundled"
        first = self.files[0]
        return hashlib.sha256(first.name.encode() + first.read_bytes()).hexdigest()[:12]

    def read(self, numbers: Sequence[int], shape: tuple[int, int, int]) -> dict[int, Tensor | str]:
        """The images of these numbers, (1, C, H, W) each, or why one cannot be read."""
        found: dict[int, Tensor | str] = {}
        for i in numbers:
            if self.bundled is not None:
                found[i] = self.bundled[i : i + 1]
                continue
            try:
                found[i] = fit_image(self.files[i], shape)[0]
            except (OSError, ValueError, TypeError) as error:
                found[i] = f"{self.files[i].name} cannot be read: {error}"
        return found


def _bundled(model: str) -> tuple[Tensor, list[str], list[str]]:
    """The test pictures of a bundled model, what they show, and what groups them."""
    if model == "emoji":
        images, _, names = load_emoji()
        return images, names, [name.rpartition(", ")[0] for name in names]
    images, labels = load_digits() if model == "mnist" else load_garments()
    names = [f"a photo of {GARMENTS[label]}" if model == "fashion" else str(int(label)) for label in labels]
    return images, names, [str(i) for i in range(len(images))]


@dataclass
class Sampled:
    """What a method made of a batch."""

    images: Tensor
    nfe: int
    n_backward: int


class Subject:
    """A model, loaded, and how a study's methods run on it.

    Args:
        study: The study.
        device: Where it runs.

    Raises:
        ValueError: As `fcs_lab.load`; a method that takes derivatives of a pipeline that has none to give.
    """

    def __init__(self, study: Study, device: torch.device):
        self.study, self.device = study, device
        self.guidance = {} if study.guidance_scale is None else {"guidance_scale": study.guidance_scale}
        self.model: Denoiser | None = None
        self.pipeline: DiffusionPipeline | None = None
        dtype = getattr(torch, study.dtype)
        try:
            self.model = load(study.model, device=device, torch_dtype=dtype)
            shape, any_size = tuple(as_model(self.model).image_shape), as_model(self.model).any_size
            if study.size not in (None, shape[1]) and not any_size:
                raise ValueError(f"size is {study.size}; {study.model} makes images of {shape[1]}×{shape[2]} only")
            self.shape = shape if study.size is None else (shape[0], study.size, study.size)
        except ValueError as error:
            if "supported are" not in str(error):
                raise
            self.pipeline = load_pipeline(study.model, torch_dtype=dtype).to(device)
            self.pipeline.set_progress_bar_config(disable=True)
            side = study.size or self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
            self.shape = (3, side, side)
            for entry in study.methods:
                self._refuse(entry.name)
        kind = JUDGES.get(study.model)
        self.judge = None if kind is None else load_classifier(kind)
        self.tuned: Denoiser | None = None
        self.weights = weights_of(study.model)
        self.flops: dict[str, int] | None = None
        self.masks = {name: read_masks(files, name, *self.shape[1:]) for name, files in study.masks.items()}

    def _refuse(self, name: str) -> None:
        takes = [*EVALUATIONS, "fast", *(peer for peer, make in PEERS.items() if not make().differentiates), *WITHOUT_MODEL]
        if name not in takes:
            raise ValueError(
                f"methods has {name!r}, which takes derivatives of the network; {type(self.pipeline).__name__} runs through "
                f"`constrained`, which has {', '.join(takes)}"
            )

    def pose(self, task: str, truth: Tensor, numbers: Sequence[int]) -> Posed:
        """A task of the study on these images."""
        features = self._features() if task == "style" else None
        return pose(task, truth, numbers, features, self.masks.get(task))

    def _features(self) -> nn.Module:
        """What styles are compared by: the classifier's first block, or CLIP."""
        return load_clip(device=self.device) if self.judge is None else self.judge.features[:7]

    def sample(self, entry: Entry, posed: Posed, seeds: Sequence[int], prompts: Sequence[str] | None) -> Sampled:
        """A method on a batch, an image with noise of its own."""
        call, settings = METHODS[entry.name], dict(entry.settings)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if entry.name in WITHOUT_MODEL:
            drawn = {"generator": generators} if entry.name == "deep_image_prior" else {}
            result = call(None, posed.constraint, progress=False, **drawn, **settings)
        elif self.pipeline is not None:
            return self._through_pipeline(entry, posed, generators, prompts)
        else:
            model = self._tuned() if entry.name == "tuned" else self.model
            if prompts is not None and entry.name != "tuned":
                model = model.with_prompt(list(prompts), **self.guidance)
            result = call(model, posed.constraint, batch_size=len(seeds), generator=generators, progress=False, **settings)
        return Sampled(result.images.detach().float().cpu(), result.nfe, result.n_backward)

    def _through_pipeline(
        self, entry: Entry, posed: Posed, generators: list[torch.Generator], prompts: Sequence[str] | None
    ) -> Sampled:
        settings = dict(entry.settings)
        T = settings.pop("num_inference_steps", 20)
        method = {"preset": "fast"} if entry.name == "fast" else {"method": entry.name}
        prompts = [""] * len(generators) if prompts is None else list(prompts)
        with constrained(self.pipeline, posed.constraint, **method, **settings) as run:
            self.pipeline(prompts, num_inference_steps=T, generator=generators, output_type="pt",
                          height=self.shape[1], width=self.shape[2], **self.guidance)  # fmt: skip
        return Sampled(run.result.images.detach().float().cpu(), run.result.nfe, run.result.n_backward)

    def _tuned(self) -> Denoiser:
        if self.tuned is None:
            self.tuned = load(f"{self.study.model}-inpainting", device=self.device)
        return self.tuned

    def seconds_of_an_evaluation(self) -> float:
        """Of one image, in a batch as the study has it."""
        if self.model is None:
            raise ValueError(f"the time of {self.study.model} is not forecast here; see fcs_lab.forecast.forecast")
        return seconds_of_an_evaluation(self.model, min(self.study.batch_size, self.study.n))

    def flops_of(self, sampled: Sampled) -> int | None:
        """Floating-point operations of the network for one image, by torch's counter; the VAE's are not in it."""
        if self.model is None:
            return None
        if self.flops is None:
            model = as_model(self.model).snapshot()
            x = torch.zeros(1, *model.shape, device=self.device)
            counts = []
            for differentiated in (False, True):
                with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(differentiated):
                    x0 = model(x.requires_grad_(differentiated), 500)
                    if differentiated:
                        x0.sum().backward()
                counts.append(counter.get_total_flops())
            self.flops = {"forward": counts[0], "backward": counts[1] - counts[0]}
        return sampled.nfe * self.flops["forward"] + sampled.n_backward * self.flops["backward"]
