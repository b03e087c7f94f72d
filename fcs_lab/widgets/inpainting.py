"""The interactive inpainting laboratory of notebook 01."""

from __future__ import annotations

from functools import partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fcs_lab.baselines import METHODS, WITHOUT_MODEL
from fcs_lab.constraints import Inpainting
from fcs_lab.denoisers import Denoiser
from fcs_lab.images import fit_mask, to_pil
from fcs_lab.plots import HIDDEN, image_grid, plot_error
from fcs_lab.sampler import Result
from fcs_lab.widgets.canvas import MaskPainter, png
from fcs_lab.widgets.lab import BUTTON, DIRECTIONS, OTHERS, SamplerLab, Told
from fcs_lab.zoo import load

__all__ = ["InpaintingLab"]

COMPARED = ("identity", "gradient", "newton")


class InpaintingLab(SamplerLab):
    """Choose an image, paint a mask, set the sampler, press Run.

    Sampling runs in a thread of its own, so the kernel and the widgets stay responsive; Stop leaves the partial result.
    `run`, `compare`, `stop` and `wait` do from code what the buttons do; `result` and `results` are what they left.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes. Of a latent model one paints and looks at the images.

    Example:
        >>> lab = fcs_lab.widgets.InpaintingLab("mnist")  # at the end of a cell it shows itself
        >>> lab.num_inference_steps.value, lab.inner_steps.value = 2, 1
        >>> lab.painter.mask = torch.arange(32).ge(16).expand(32, 32)
        >>> lab.run()  # what the button does, in a thread
        >>> lab.wait()
        >>> lab.result.nfe
        6
    """

    def __init__(self, model: Denoiser | str = "mnist") -> None:
        super().__init__(model)
        self.results: dict[str, Result] = {}
        self._examples = self._bundled_images()
        self.image = self._examples[:1]
        self._build()
        plots = widgets.VBox([self.comparison, self.curve], layout=widgets.Layout(align_items="flex-start"))
        kept = [widgets.HBox([self.path, self.save_button]), self.call]
        self.children = [self._controls(), self._buttons(), self.status, self.message, self._pictures(), plots, *kept]
        self._apply_preset()

    # What it looks like

    def _build(self) -> None:
        control = self._control
        self.painter = MaskPainter(self.image, zoom=max(1, 288 // self.image.shape[-1]), name="the mask")
        self.example = control(widgets.BoundedIntText, 0, 0, len(self._examples) - 1, description="bundled image")
        self.upload_mask = widgets.FileUpload(accept="image/*", description="mask…", layout=widgets.Layout(width="130px"))
        self.preset = control(
            widgets.Dropdown, options=["right half", "top half", "middle", "nothing (paint)"], description="mask"
        )
        self.brush = control(widgets.IntSlider, 5, 1, 15, description="brush")
        widgets.jslink((self.brush, "value"), (self.painter, "brush"))
        latent = self.takes_prompts
        tuned_to = self.model.shape == (1, 32, 32) and not latent
        left_out = {*(() if latent else ("psld",)), *(() if tuned_to else ("tuned",))}
        self.direction = self._direction_menu(
            *DIRECTIONS, *(name for name in OTHERS if name not in left_out), description="method"
        )
        self._algorithm_controls(inner_steps=5, step_size=(0.1, 0.5), max=2, step=0.05)
        self.regularization = control(widgets.FloatLogSlider, 0.1, min=-3, max=1, step=0.25, description="regularisation")
        self._prompt_controls()
        self.undo_button = widgets.Button(
            description="Undo", icon="undo", layout=BUTTON, tooltip="the last stroke (Ctrl-Z on the image)"
        )
        self.compare_button = widgets.Button(
            description="Compare", icon="columns", layout=BUTTON, tooltip=", ".join(COMPARED)
        )
        self._starters.append(self.compare_button)
        self.input_picture, self.result_picture, self.truth_picture = (self._picture() for _ in range(3))
        self.comparison, self.curve = (
            widgets.Image(format="png", layout=widgets.Layout(width="auto", display="none")) for _ in range(2)
        )

        self.example.observe(self._on_example, "value")
        self.upload_mask.observe(self._guarded(self._on_mask_upload), "value")
        self.preset.observe(self._apply_preset, "value")
        self.direction.observe(self._show_what_applies, "value")
        self.compare_button.on_click(lambda _: self.compare())
        self.undo_button.on_click(lambda _: self.painter.undo())
        self._takes_drops(self.painter)
        self._show_what_applies()

    def _controls(self) -> widgets.Widget:
        uploads = widgets.HBox([self.upload_image, self.upload_mask])
        hint = widgets.HTML("<small>drag to paint, Shift-drag to erase; or arrow keys, Space, Delete</small>")
        text = [self.prompt, self.guidance_scale] if self.takes_prompts else []
        left = [self.example, uploads, self.preset, self.brush, hint, self.undo_button, *text]
        right = [
            self.direction,
            self.num_inference_steps,
            self.inner_steps,
            self.step_size,
            self.fd_step,
            self.regularization,
            self.eta,
            self.seed,
        ]
        return widgets.HBox([self.painter, widgets.VBox(left), widgets.VBox(right)])

    def _buttons(self) -> widgets.Widget:
        return widgets.HBox([self.run_button, self.stop_button, self.compare_button, self.progress])

    def _pictures(self) -> widgets.Widget:
        titled = self._titled
        return widgets.HBox(
            [
                titled("input", self.input_picture),
                titled("result", self.result_picture),
                titled("truth", self.truth_picture),
                titled("x̂_0 over the timesteps", self.frame_picture, self.scrubber, self.frame_caption),
            ]
        )

    # Choosing image and mask

    def _on_example(self, change: dict) -> None:
        self._set_image(self._examples[change["new"] : change["new"] + 1])

    def _on_mask_upload(self, change: dict) -> None:
        upload = change["new"][0]
        mask, said = fit_mask(bytes(upload["content"]), (self.painter.height, self.painter.width), upload["name"])
        self._say(said, "#555")
        self.painter.mask = mask

    def _set_image(self, image: Tensor) -> None:
        self.image = image
        self.painter.set_image(image)

    def _apply_preset(self, _: object = None) -> None:
        height, width = self.painter.height, self.painter.width
        mask = torch.zeros(height, width, dtype=torch.bool)
        if self.preset.value == "right half":
            mask[:, width // 2 :] = True
        elif self.preset.value == "top half":
            mask[: height // 2] = True
        elif self.preset.value == "middle":
            mask[height // 4 : -height // 4, width // 4 : -width // 4] = True
        self.painter.mask = mask

    def _show_what_applies(self, _: object = None) -> None:
        method = self.direction.value
        shown = {
            self.fd_step: method in ("newton", "fast"),
            self.regularization: method == "exact",
            self.inner_steps: method in DIRECTIONS,
            self.step_size: method in DIRECTIONS,
            self.eta: method in DIRECTIONS,
            self.num_inference_steps: method not in WITHOUT_MODEL,
        }
        for control, applies in shown.items():
            control.layout.display = "" if applies else "none"

    # Running

    @property
    def result(self) -> Result | None:
        """The last result of `run`, or the last one that `compare` came to."""
        return next(reversed(self.results.values()), None)

    def run(self) -> None:  # documented in the base class
        self._sample([self.direction.value])

    def compare(self) -> None:
        """The same settings and seed with every direction, side by side."""
        self._sample(list(COMPARED))

    def _sample(self, directions: list[str]) -> None:
        if self._running:
            return
        self._say("")
        try:
            task, model = Inpainting(self.image, self.painter.mask), self._prompted()
        except (TypeError, ValueError) as error:
            self._say(str(error))
            return
        settings = {direction: self._settings_of(direction) for direction in directions}
        self.results = {}
        mask = to_pil(task.mask.to(task.y.dtype) * 2 - 1)[0]
        inputs = {"image": to_pil(self.image)[0], "mask": mask}
        told = Told(inputs, f"{self._prompt_told()}task = fcs_lab.Inpainting(image, mask)\n")
        self._start(lambda: self._work(model, task, settings, told), self.num_inference_steps.value * len(directions))

    def _settings_of(self, method: str) -> dict[str, Any]:
        """What the controls say, of what the method has."""
        settings: dict[str, Any] = {"progress": False}
        if method in WITHOUT_MODEL:
            seeded = method == "deep_image_prior"
            return settings | ({"generator": torch.Generator().manual_seed(self.seed.value)} if seeded else {})
        settings |= {
            "num_inference_steps": self.num_inference_steps.value,
            "generator": torch.Generator().manual_seed(self.seed.value),
            "callback_on_step_end": partial(self._after_timestep, f"{method}, "),
        }
        if method == "fast":
            settings["fd_step"] = self.fd_step.value
        if method in DIRECTIONS:
            settings |= self._algorithm_settings() | {"regularization": self.regularization.value}
        return settings

    def _work(self, model: Denoiser, task: Inpainting, settings: dict[str, dict[str, Any]], told: Told) -> None:
        """In the thread: sample, showing x̂_0 as it goes."""
        for method, own in settings.items():
            self.status.value = f"{method} …"
            asked = load("mnist-inpainting", device=model.device) if method == "tuned" else model
            self.results[method] = METHODS[method](asked, task, **own)
            if self._stopping.is_set():
                break
        self._show_results(task)
        last = next(reversed(self.results))
        self._offer(self.results[last], told, last, settings[last])

    def _show_results(self, task: Inpainting) -> None:
        hidden = _masked(self.image, task.mask)
        self.input_picture.value = png(hidden, self.zoom)
        self.truth_picture.value = png(to_pil(self.image)[0], self.zoom)
        result = self.result
        self.result_picture.value = png(result.to_pil()[0], self.zoom)
        self.comparison.layout.display = "none" if len(self.results) == 1 else ""
        if len(self.results) > 1:
            images = {"truth": self.image} | {name: one.images.cpu() for name, one in self.results.items()}
            grid = image_grid({"same seed": torch.cat(list(images.values()))}, column_titles=list(images))
            self.comparison.value = grid.png(dpi=170)
        traced = {name: one for name, one in self.results.items() if one.trace}
        self.curve.layout.display = "" if traced else "none"
        if traced:
            self.curve.value = plot_error(traced).png()
        self._ended(self.results, result.completed)


def _masked(image: Tensor, mask: Tensor) -> Image.Image:
    """The image with what is hidden in the mask's colour."""
    pixels = np.asarray(to_pil(image)[0].convert("RGB")).copy()
    pixels[mask[0, 0].cpu().numpy()] = [round(255 * part) for part in HIDDEN]
    return Image.fromarray(pixels)
