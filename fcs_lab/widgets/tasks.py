"""The laboratory of every other task: colour, deblurring, style, a class, a silhouette, two images joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import ipywidgets as widgets
import torch
from torch import Tensor

from fcs_lab.baselines import METHODS
from fcs_lab.classifier import JUDGES, Classifier, load_classifier
from fcs_lab.constraints import Colorization, Constraint, Inpainting
from fcs_lab.data import EMOJI_CLASSES, GARMENTS
from fcs_lab.denoisers import Denoiser
from fcs_lab.features import class_guidance, silhouette, style
from fcs_lab.filters import Blur, blur
from fcs_lab.images import to_pil
from fcs_lab.latent import image_shape
from fcs_lab.plots import plot_error
from fcs_lab.sampler import Result
from fcs_lab.widgets.canvas import MaskPainter, png
from fcs_lab.widgets.lab import DIRECTIONS, OTHERS, SamplerLab, Told

__all__ = ["TaskLab"]

CLASSES = {"digits": tuple("0123456789"), "garments": GARMENTS, "emoji": EMOJI_CLASSES}
HINTS = {
    "colourisation": "Given is how bright each pixel is.",
    "deblurring": "Given is the image as a camera sees it that moved sideways.",
    "style": "The image on the right is the style's; the result shows what its first noise holds. Guide early.",
    "class": "Asked for is what a classifier sees. Guide early: late, it is only fooled.",
    "silhouette": "Paint where there is to be an object. Guide late: then its outline is exact.",
    "two joined": "Paint, on each image, what of it is to be kept; on both: the left one's. The rest is made up.",
}
WHEN = ("throughout", "in the first half", "in the second half")
LINEAR = ("fast", "ddnm", "ddrm", "diffpir", "mpgd", "red_diff", "daps", "flowchef", "guess_and_guide",
          "dps", "pigdm", "lgd_mc", "freedom", "repaint", "lanpaint")  # fmt: skip
"""Peers that may stand beside; what one of them needs and a task has not is a message."""


@dataclass(frozen=True)
class _Posed:
    """A task, what is given, and the task as it is written."""

    constraint: Constraint
    given: Tensor
    told: Told


class TaskLab(SamplerLab):
    """Choose a task that is neither inpainting nor super-resolution, set the sampler, press Run; a second method beside it.

    Colourisation needs a model in colour; style and class need a classifier, and the bundled models have a bundled one.
    Sampling runs in a thread of its own; Stop leaves the partial result. `run`, `stop`, `wait` and `save` do from code what
    the buttons do; `task` is the constraint that the controls describe, `results` what each method found.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.

    Example:
        >>> lab = fcs_lab.widgets.TaskLab("mnist")
        >>> lab.chosen.value, lab.num_inference_steps.value, lab.inner_steps.value = "deblurring", 2, 1
        >>> lab.run()
        >>> lab.wait()
        >>> lab.results["newton"].nfe
        6
    """

    def __init__(self, model: Denoiser | str = "mnist") -> None:
        super().__init__(model)
        self.results: dict[str, Result] = {}
        self.images = self._bundled_images(2)
        self.image, self.other = self.images[:1], self.images[1:2]
        self.kind = JUDGES.get(self._name)
        self._posers: dict[str, Callable[[], _Posed]] = {
            "two joined": self._joined,
            "deblurring": self._deblurred,
            "silhouette": self._outlined,
        }
        if self.image.shape[1] == 3:
            self._posers = {"colourisation": self._coloured} | self._posers
        if self.kind is not None:
            self._posers |= {"style": self._styled, "class": self._of_a_class}
        self._build()
        self._on_task()

    @cached_property
    def _classifier(self) -> Classifier:
        return load_classifier(self.kind, device=self.model.device)

    # What it looks like

    def _build(self) -> None:
        control, W = self._control, image_shape(self.model)[-1]
        painter = partial(MaskPainter, zoom=max(1, 224 // W), brush=max(2, W // 6))
        self.painter, self.other_painter = painter(self.image, name="the image"), painter(self.other, name="the other image")
        self.chosen = control(widgets.Dropdown, options=list(self._posers), description="task")
        last = len(self.images) - 1
        self.example = control(widgets.BoundedIntText, 0, 0, last, description="bundled image")
        self.other_example = control(widgets.BoundedIntText, min(1, last), 0, last, description="the other")
        self.moved = control(
            widgets.IntSlider, W // 8 * 2 + 1, 3, max(5, W // 2) // 2 * 2 - 1, step=2, description="moved by"
        )
        names = CLASSES.get(self.kind, ())
        self.label = control(widgets.Dropdown, options=[(name, i) for i, name in enumerate(names)], description="class")
        self.brush = control(widgets.IntSlider, self.painter.brush, 1, max(5, W // 2), description="brush")
        for one in (self.painter, self.other_painter):
            widgets.jslink((self.brush, "value"), (one, "brush"))
        self.undo_button, self.clear_button = (
            widgets.Button(description=name, icon=icon, layout=widgets.Layout(width="100px"), tooltip=tip)
            for name, icon, tip in (
                ("Undo", "undo", "the last stroke (Ctrl-Z on the image)"),
                ("Clear", "eraser", "all strokes"),
            )
        )
        self.hint = widgets.HTML(layout=widgets.Layout(width="330px"))
        self.direction = self._direction_menu("newton", "gradient", "identity", description="method")
        others = [name for name in (*DIRECTIONS, *LINEAR) if name not in ("newton-jvp", "exact")]
        labels = DIRECTIONS | OTHERS
        self.beside = control(
            widgets.Dropdown, options=[("none", None), *((labels[name], name) for name in others)], description="beside it"
        )
        self._algorithm_controls(inner_steps=4, step_size=(0.1, 0.5), max=2, step=0.05)
        self.when = control(widgets.Dropdown, options=WHEN, description="inner steps")
        self._prompt_controls()
        self.given_picture, self.result_picture, self.beside_picture = (self._picture() for _ in range(3))
        self.curve = widgets.Image(format="png", layout=widgets.Layout(align_self="flex-start", display="none"))

        self._connect()
        self._lay_out()

    def _connect(self) -> None:
        self.chosen.observe(self._on_task, "value")
        self.example.observe(lambda change: self._set_image(self.images[change["new"] : change["new"] + 1]), "value")
        self.other_example.observe(self._on_other, "value")
        for one in (self.painter, self.other_painter):
            one.observe(self._show_given, "mask_bytes")
        self.moved.observe(self._show_given, "value")
        self.undo_button.on_click(lambda _: self._last_painted.undo())
        self.clear_button.on_click(lambda _: [one.clear() for one in (self.painter, self.other_painter)])
        self.painter.observe(lambda _: setattr(self, "_last_painted", self.painter), "mask_bytes")
        self.other_painter.observe(lambda _: setattr(self, "_last_painted", self.other_painter), "mask_bytes")
        self._last_painted = self.painter
        self._takes_drops(self.painter)

    def _lay_out(self) -> None:
        titled = self._titled
        self._second = titled("the other", self.other_painter)
        self._paints = widgets.HBox([self.undo_button, self.clear_button])
        text = [self.prompt, self.guidance_scale] if self.takes_prompts else []
        left = [self.chosen, self.hint, self.example, self.upload_image, self.other_example, self.moved, self.label]
        left += [self.brush, self._paints, *text]
        right = [self.direction, self.beside, self.num_inference_steps, self.inner_steps, self.when, self.step_size]
        right += [self.fd_step, self.eta, self.seed]
        self._beside_box = titled("beside it", self.beside_picture)
        frames = titled("x̂_0 over the timesteps", self.frame_picture, self.scrubber, self.frame_caption)
        pictures = [titled("given", self.given_picture), titled("result", self.result_picture), self._beside_box, frames]
        self.children = [
            widgets.HBox(
                [titled("the image", self.painter), self._second, widgets.VBox(left), widgets.VBox(right)],
                layout=widgets.Layout(flex_flow="row wrap"),
            ),
            widgets.HBox([self.run_button, self.stop_button, self.progress]),
            self.status,
            self.message,
            widgets.HBox(pictures),
            self.curve,
            widgets.HBox([self.path, self.save_button]),
            self.call,
        ]

    def _on_task(self, _: object = None) -> None:
        name = self.chosen.value
        paints = name in ("two joined", "silhouette")
        shown = {
            self._second: name in ("two joined", "style"),
            self.other_example: name in ("two joined", "style"),
            self.moved: name == "deblurring",
            self.label: name == "class",
            self.brush: paints,
            self._paints: paints,
        }
        for control, applies in shown.items():
            control.layout.display = "" if applies else "none"
        self._beside_box.layout.display = self.curve.layout.display = "none"
        self.result_picture.value = self._picture().value
        self.hint.value = f"<small>{HINTS[name]}</small>"
        self.when.value = {"style": WHEN[1], "class": WHEN[1], "silhouette": WHEN[2]}.get(name, WHEN[0])
        self._start_masks(name)
        self._show_given()

    def _start_masks(self, name: str) -> None:
        """Two thirds of each side, or a disc: something to begin with."""
        _, H, W = image_shape(self.model)
        for one in (self.painter, self.other_painter):
            one.clear()
        if name == "two joined":
            left, right = torch.zeros(2, H, W, dtype=torch.bool)
            left[:, : W * 3 // 8], right[:, W * 5 // 8 :] = True, True
            self.painter.mask, self.other_painter.mask = left, right
        elif name == "silhouette":
            y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
            self.painter.mask = (x / 0.45).square() + (y / 0.7).square() < 1

    def _set_image(self, image: Tensor) -> None:
        self.image = image
        self.painter.set_image(image)
        self._show_given()

    def _on_other(self, change: dict) -> None:
        self.other = self.images[change["new"] : change["new"] + 1]
        self.other_painter.set_image(self.other)
        self._show_given()

    def _show_given(self, _: object = None) -> None:
        try:
            self.given_picture.value = png(to_pil(self._posers[self.chosen.value]().given)[0], self.zoom)
        except ValueError:  # nothing is painted yet; Run says so
            self.given_picture.value = self._picture().value

    # The tasks

    @property
    def task(self) -> Constraint:
        """The constraint that the controls describe.

        Raises:
            ValueError: They describe none: nothing is painted, or all of it.
        """
        return self._posers[self.chosen.value]().constraint

    def _coloured(self) -> _Posed:
        _, H, W = image_shape(self.model)
        grey = Colorization(torch.zeros(1, 1, H, W)).A(self.image)
        lines = (
            "from fcs_lab.constraints import Colorization\n"
            f"grey = Colorization(torch.zeros(1, 1, {H}, {W})).A(fcs_lab.to_tensor(image))\ntask = Colorization(grey)\n"
        )
        return _Posed(Colorization(grey), grey, Told({"image": to_pil(self.image)[0]}, lines))

    def _deblurred(self) -> _Posed:
        n = self.moved.value
        kernel = torch.full((1, n), 1 / n)
        blurred = blur(self.image, kernel)
        lines = (
            f"kernel = torch.full((1, {n}), 1 / {n})\nblurred = fcs_lab.blur(fcs_lab.to_tensor(image), kernel)\n"
            "task = fcs_lab.Blur(blurred, kernel)\n"
        )
        return _Posed(Blur(blurred, kernel), blurred, Told({"image": to_pil(self.image)[0]}, lines))

    def _styled(self) -> _Posed:
        lines = (
            "from fcs_lab.classifier import load_classifier\nfrom fcs_lab.features import style\n"
            f"task = style(image, load_classifier({self.kind!r}, device=model.device).features[:7])\n"
        )
        constraint = style(self.other, self._classifier.features[:7])
        return _Posed(constraint, self.other, Told({"image": to_pil(self.other)[0]}, lines))

    def _of_a_class(self) -> _Posed:
        label = self.label.value
        lines = (
            "from fcs_lab.classifier import load_classifier\nfrom fcs_lab.features import class_guidance\n"
            f"task = class_guidance(load_classifier({self.kind!r}, device=model.device), {label})  # {self.label.label}\n"
        )
        return _Posed(class_guidance(self._classifier, label), torch.zeros_like(self.image), Told({}, lines))

    def _outlined(self) -> _Posed:
        mask = self.painter.mask
        if not bool(mask.any()) or bool(mask.all()):
            raise ValueError("nothing is painted, or everything; expected the outline of an object")
        bright = image_shape(self.model)[0] == 1  # objects are bright on black, or dark on white
        wanted, threshold = (mask, -0.8) if bright else (~mask, 0.7)
        picture = wanted.to(self.image.dtype) * 2 - 1
        lines = f"from fcs_lab.features import silhouette\ntask = silhouette(mask, threshold={threshold})\n"
        told = Told({"mask": to_pil(picture)[0]}, lines)
        return _Posed(silhouette(wanted, threshold=threshold), picture, told)

    def _joined(self) -> _Posed:
        left, right = self.painter.mask, self.other_painter.mask
        given = torch.where(left, self.image, self.other)
        hidden = ~(left | right)
        shown = given.masked_fill(hidden, 0)
        inputs = {"image": to_pil(given)[0], "mask": to_pil(hidden.to(given.dtype) * 2 - 1)[0]}
        return _Posed(Inpainting(given, hidden), shown, Told(inputs, "task = fcs_lab.Inpainting(image, mask)\n"))

    # Running

    def run(self) -> None:  # documented in the base class
        if self._running:
            return
        self._say("")
        try:
            posed, model = self._posers[self.chosen.value](), self._prompted()
        except (TypeError, ValueError) as error:
            self._say(str(error))
            return
        methods = [self.direction.value]
        if self.beside.value not in (None, self.direction.value):
            methods.append(self.beside.value)
        settings = {method: self._settings_of(method) for method in methods}
        told = Told(posed.told.inputs, self._prompt_told() + posed.told.lines)
        self.results = {}
        self._start(
            lambda: self._work(model, posed.constraint, settings, told), self.num_inference_steps.value * len(methods)
        )

    def _settings_of(self, method: str) -> dict[str, Any]:
        """What the controls say, of what the method has."""
        T, K = self.num_inference_steps.value, self.inner_steps.value
        settings: dict[str, Any] = {
            "num_inference_steps": T,
            "generator": torch.Generator().manual_seed(self.seed.value),
            "callback_on_step_end": partial(self._after_timestep, f"{method}, "),
            "progress": False,
        }
        if method in DIRECTIONS:
            half = T // 2
            steps = {WHEN[0]: K, WHEN[1]: [K] * half + [0] * (T - half), WHEN[2]: [0] * half + [K] * (T - half)}
            settings |= self._algorithm_settings() | {"inner_steps": steps[self.when.value]}
        return settings

    def _work(self, model: Denoiser, task: Constraint, settings: dict[str, dict[str, Any]], told: Told) -> None:
        """In the thread: sample, showing x̂_0 as it goes."""
        pictures = dict(zip(settings, (self.result_picture, self.beside_picture), strict=False))
        self._beside_box.layout.display = "" if len(settings) > 1 else "none"
        for method, own in settings.items():
            self.status.value = f"{method} …"
            self.results[method] = METHODS[method](model, task, **own)
            pictures[method].value = png(self.results[method].to_pil()[0], self.zoom)
            if self._stopping.is_set():
                break
        first = next(iter(settings))
        self._offer(self.results[first], told, first, settings[first])
        self.curve.value = plot_error(self.results).png()
        self.curve.layout.display = ""
        completed = len(self.results) == len(settings) and all(one.completed for one in self.results.values())
        self._ended(self.results, completed)
