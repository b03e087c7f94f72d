"""What the laboratories that sample have in common: a thread to sample in, Run and Stop, progress, messages."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from PIL import Image
from torch import Tensor

from fcs_lab.data import example_images
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.images import fit_image, to_pil
from fcs_lab.latent import decode, image_shape
from fcs_lab.sampler import Result, State
from fcs_lab.widgets.canvas import MaskPainter, png
from fcs_lab.zoo import load

__all__ = ["SamplerLab"]

BUTTON = widgets.Layout(width="130px")
DIRECTIONS = {
    "newton": "newton: J e, finite difference",
    "newton-jvp": "newton-jvp: J e, forward mode",
    "gradient": "gradient: Jᵀ e",
    "identity": "identity: e",
    "exact": "exact: J⁻¹ e, regularised (slow)",
}
OTHERS = {
    "fast": "fast: one J e a timestep",
    "repaint": "RePaint",
    "ddnm": "DDNM",
    "ddrm": "DDRM",
    "diffpir": "DiffPIR",
    "mpgd": "MPGD",
    "red_diff": "RED-diff",
    "daps": "DAPS",
    "flowchef": "FlowChef",
    "lanpaint": "LanPaint",
    "guess_and_guide": "Guess & Guide",
    "dps": "DPS (backward)",
    "pigdm": "ΠGDM (backward)",
    "lgd_mc": "LGD-MC (backward)",
    "freedom": "FreeDoM (backward)",
    "psld": "PSLD (backward)",
    "tuned": "a tuned model",
    "deep_image_prior": "Deep Image Prior (no model; slow)",
    "biharmonic": "biharmonic (no model)",
    "total_variation": "total variation (no model)",
}
"""The others that inpaint, by their names in `fcs_lab.baselines.METHODS`."""
FD_STEPS = [("the dtype's", None), *((str(h), h) for h in (0.0005, 0.005, 0.05, 0.3, 1.0))]
"""h in the menu."""


@dataclass(frozen=True)
class Told:
    """A task as it is written: the lines that make it of pictures, each of which they find under its name."""

    inputs: dict[str, Image.Image]
    lines: str


@dataclass(frozen=True)
class Kept:
    """A result, and what makes it again."""

    result: Image.Image
    inputs: dict[str, Image.Image]
    lines: str


class SamplerLab(widgets.VBox):
    """A laboratory whose `run` samples in a thread of its own, so that the kernel and the widgets stay responsive.

    A subclass lays the controls out, and its `run` calls `_start` with the work to do; that work calls `_add_frame` after
    every timestep, and stops when that says so.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.
    """

    def __init__(self, model: Denoiser | str) -> None:
        super().__init__()
        self._name = model if isinstance(model, str) else None
        self.model = load(model) if isinstance(model, str) else model
        self.zoom = max(1, 192 // image_shape(self.model)[-1])  # screen pixels an image pixel, in pictures of results
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._frames: list[tuple[str, bytes]] = []  # (caption, PNG) for the scrubber
        self.run_button = widgets.Button(description="Run", icon="play", button_style="success", layout=BUTTON)
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True, layout=BUTTON)
        self.progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="260px"))
        self.status = widgets.Label("ready")
        self.message = widgets.HTML()
        self.scrubber = self._control(widgets.IntSlider, 0, 0, 0, description="x̂_0 at step", disabled=True)
        self.frame_picture = self._picture()
        self.frame_caption = widgets.Label("")
        self.upload_image = widgets.FileUpload(accept="image/*", description="image…", layout=widgets.Layout(width="130px"))
        self.seed = self._control(widgets.IntText, 0, description="seed")
        self.path = self._control(widgets.Text, "result.png", description="file")
        self.save_button = widgets.Button(
            description="Save", icon="save", disabled=True, layout=BUTTON, tooltip="the result, its inputs and the call"
        )
        self.call = widgets.Textarea(
            placeholder="the call that makes the result again", rows=12, layout=widgets.Layout(width="720px")
        )
        self._keep: Kept | None = None
        self._starters = [self.run_button]
        self.run_button.on_click(lambda _: self.run())
        self.stop_button.on_click(lambda _: self.stop())
        self.save_button.on_click(lambda _: self.save())
        self.path.observe(self._show_call, "value")
        self.scrubber.observe(self._show_frame, "value")
        self.upload_image.observe(self._guarded(self._on_image_upload), "value")

    def run(self) -> None:
        """Start sampling with the settings shown. Returns at once; `wait` waits for the end."""
        raise NotImplementedError

    def stop(self) -> None:
        """End the run after its present timestep; what there is by then is shown."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> None:
        """Until the run has ended, for at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def save(self) -> None:
        """Write the last result where the file's name says, and beside it its inputs and the call that makes it again."""
        self._say("")
        try:
            if self._keep is None:
                raise ValueError("there is no result to save: press Run")
            path = Path(self.path.value)
            if path.suffix != ".png" or not path.parent.is_dir():
                raise ValueError(f"file is {self.path.value!r}; expected the name of a .png in a folder that is there")
            self._keep.result.save(path)
            for name, picture in self._keep.inputs.items():
                picture.save(_beside(path, name))
            path.with_suffix(".py").write_text(self.call.value)
        except (OSError, ValueError) as error:
            self._say(str(error))
            return
        self._say(f"saved {path}, and beside it its inputs and {path.with_suffix('.py').name}", "#555")

    # For subclasses

    def _offer(self, result: Result, posed: Told, method: str, settings: Mapping[str, Any]) -> None:
        """What Save writes from now on: the result, what the task is made of, and the call of the method."""
        call = f"result = {call_of(method)}{_settings_told(settings)})"
        self._keep = Kept(result.to_pil()[0], posed.inputs, f"{posed.lines}{call}")
        self.save_button.disabled = False
        self._show_call()

    def _show_call(self, _: object = None) -> None:
        if self._keep is None:
            return
        path = Path(self.path.value)
        pictures = "".join(f"{name} = Image.open({str(_beside(path, name))!r})\n" for name in self._keep.inputs)
        load_it = f"fcs_lab.load({self._name!r})" if self._name else "...  # yours"
        self.call.value = (
            f"import torch\nfrom PIL import Image\n\nimport fcs_lab\n\nmodel = {load_it}\n{pictures}"
            f"{self._keep.lines}\nresult.to_pil()[0].save({str(path)!r})\n"
        )

    @property
    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self, work: Callable[[], None], timesteps: int) -> None:
        """Do the work in a thread; its errors become messages."""
        self._stopping.clear()
        self._frames = []
        self.progress.max, self.progress.value = timesteps, 0
        for button in self._starters:
            button.disabled = True
        self.stop_button.disabled = False

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # in a thread it would go unseen
                self.status.value = "failed"
                self._say(str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}")
            finally:
                for button in self._starters:
                    button.disabled = False
                self.stop_button.disabled = True

        self._thread = threading.Thread(target=guarded, daemon=True)
        self._thread.start()

    def _after_timestep(self, told: str, state: State, step_index: int, timestep: int, _: dict) -> None:
        """A sampler's callback, once it knows what the caption begins with: show x̂_0, and stop where that was asked for."""
        (picture,) = to_pil(decode(self.model, state.x0))
        state.interrupt = self._add_frame(f"{told}t = {timestep}, {state.nfe} evaluations", picture)

    def _ended(self, results: Mapping[str, Result], completed: bool) -> None:
        """Say that a run is over, and what each method took."""
        counts = ", ".join(
            f"{name}: {one.nfe:g} evaluations" + (f" + {one.n_backward} backward" if one.n_backward else "")
            for name, one in results.items()
        )
        self.status.value = ("done" if completed else "stopped, partial result") + f" ({counts})"

    def _add_frame(self, caption: str, picture: Image.Image) -> bool:
        """Show the picture of a timestep that is done; whether the run is to stop."""
        self._frames.append((caption, png(picture, self.zoom)))
        self.progress.value += 1
        self.scrubber.disabled = False
        self.scrubber.max = len(self._frames) - 1
        self.scrubber.value = len(self._frames) - 1
        self._show_frame()
        return self._stopping.is_set()

    def _show_frame(self, _: object = None) -> None:
        if self._frames:
            self.frame_caption.value, self.frame_picture.value = self._frames[
                min(self.scrubber.value, len(self._frames) - 1)
            ]

    def _set_image(self, image: Tensor) -> None:
        """Take an image (1, C, H, W) of the model's size."""
        raise NotImplementedError

    def _bundled_images(self, count: int = 1) -> Tensor:
        """Images of the model's kind to choose from; where there are none, so many grey ones to begin with, and upload."""
        try:
            return example_images(self.model)
        except (ImportError, ValueError):
            return torch.zeros(count, *image_shape(self.model))

    def _on_image_upload(self, change: dict) -> None:
        self._say("")
        upload = change["new"][0]
        self._take_picture(upload["content"], upload["name"])

    def _take_picture(self, content: bytes | memoryview, name: str) -> None:
        """Take the picture of a file, and say what was done to it."""
        image, said = fit_image(bytes(content), image_shape(self.model), name)
        self._say(said, "#555")
        self._set_image(image)

    def _say(self, text: str, colour: str = "#b00020") -> None:
        self.message.value = f'<span style="color: {colour}">{html.escape(text)}</span>' if text else ""

    def _guarded(self, handler: Callable[[dict], None]) -> Callable[[dict], None]:
        """The handler, its errors shown as messages."""

        def guarded(change: dict) -> None:
            if change["new"]:
                try:
                    handler(change)
                except (TypeError, ValueError, OSError) as error:
                    self._say(str(error))
                finally:  # so that the same file, chosen again, is a change
                    change["owner"].value = ()

        return guarded

    def _takes_drops(self, painter: MaskPainter) -> None:
        """A picture that is dropped on the painter is taken as an uploaded one is."""

        def dropped(change: dict) -> None:
            if change["new"]:
                painter.dropped = b""  # so that the same picture, dropped again, is a change
                try:
                    self._take_picture(change["new"], "the dropped picture")
                except (TypeError, ValueError) as error:
                    self._say(str(error))

        painter.observe(dropped, "dropped")

    def _picture(self) -> widgets.Image:
        """An empty frame for a picture of the model's size."""
        _, height, width = image_shape(self.model)
        blank = png(Image.new("L", (width, height), 230), self.zoom)
        return widgets.Image(value=blank, format="png", layout=widgets.Layout(width=f"{width * self.zoom}px"))

    @staticmethod
    def _control(kind: type[widgets.Widget], *values, description: str, **options) -> widgets.Widget:
        layout = widgets.Layout(width="330px")
        return kind(*values, description=description, style={"description_width": "105px"}, layout=layout, **options)

    def _direction_menu(self, *names: str, description: str = "direction") -> widgets.Dropdown:
        labels = DIRECTIONS | OTHERS
        options = [(labels[name], name) for name in names]
        return self._control(widgets.Dropdown, options=options, description=description)

    def _algorithm_controls(self, inner_steps: int, step_size: tuple[float, float], **step_size_range: float) -> None:
        """Make the controls of Algorithm 1: timesteps, K, λ_1 … λ_K, h and η. `step_size` is (last, first), as λ falls."""
        control = self._control
        self.num_inference_steps = control(widgets.IntSlider, 20, 1, 100, description="timesteps")
        self.inner_steps = control(widgets.IntSlider, inner_steps, 0, 20, description="inner steps K")
        self.step_size = control(
            widgets.FloatRangeSlider, value=step_size, min=0, description="λ, last – first", **step_size_range
        )
        self.fd_step = control(widgets.Dropdown, options=FD_STEPS, index=0, description="difference h")
        self.eta = control(widgets.FloatSlider, 1.0, min=0, max=1, step=0.05, description="η")

    def _prompt_controls(self) -> None:
        self.prompt = self._control(widgets.Text, description="prompt")
        self.guidance_scale = self._guidance_slider()

    def _guidance_slider(self) -> widgets.FloatSlider:
        """At the model's own guidance scale; while it has no prompt, at 2.5, which the emoji model is documented with."""
        scale = getattr(self.model, "guidance_scale", 1.0)
        return self._control(
            widgets.FloatSlider, 2.5 if scale == 1 else scale, min=0, max=10, step=0.5, description="guidance w"
        )

    @property
    def takes_prompts(self) -> bool:
        """Whether the model is told in words what to make."""
        return as_model(self.model).num_prompts is not None

    def _prompted(self) -> Denoiser:
        """The model, told what the controls say.

        Raises:
            TypeError, ValueError: As for `with_prompt`.
        """
        if not (self.takes_prompts and self.prompt.value):
            return self.model
        return self.model.with_prompt(self.prompt.value, guidance_scale=self.guidance_scale.value)

    def _prompt_told(self) -> str:
        """The line that does the same, or none."""
        if not (self.takes_prompts and self.prompt.value):
            return ""
        return f"model = model.with_prompt({self.prompt.value!r}, guidance_scale={self.guidance_scale.value})\n"

    def _algorithm_settings(self) -> dict[str, Any]:
        """What those controls say, as arguments of `sample`; the number of timesteps aside."""
        last, first = self.step_size.value
        return {
            "inner_steps": self.inner_steps.value,
            "step_size": (first, last),
            "fd_step": self.fd_step.value,
            "eta": None if self.eta.value == 1 else self.eta.value,  # 1 where the scheduler has an η; a flow has none
        }

    @staticmethod
    def _titled(title: str, *below: widgets.Widget) -> widgets.Widget:
        # Pictures keep their own width, rather than the box's.
        layout = widgets.Layout(margin="0 12px 0 0", align_items="flex-start")
        return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), *below], layout=layout)


def _settings_told(settings: Mapping[str, Any]) -> str:
    """Arguments of a call as they are written, the seed among them; what only the laboratory needs left out."""
    told = {name: value for name, value in settings.items() if name not in ("progress", "callback_on_step_end")}
    generator = told.pop("generator", None)
    seeded = "" if generator is None else f", generator=torch.Generator().manual_seed({generator.initial_seed()})"
    return "".join(f", {name}={value!r}" for name, value in told.items()) + seeded


def _beside(path: Path, name: str) -> Path:
    """Where a picture that a result was made of is kept."""
    return path.with_name(f"{path.stem}_{name}.png")


def call_of(method: str) -> str:
    """A method of `fcs_lab.baselines.METHODS` as it is written: the beginning of its call, model and task among them."""
    if method in DIRECTIONS:
        return f"fcs_lab.sample(model, task, direction={method!r}"
    if method == "fast":
        return "fcs_lab.sample(model, task, preset='fast'"
    asked = "fcs_lab.load('mnist-inpainting')" if method == "tuned" else "model"
    return f"fcs_lab.baselines.{method}({asked}, task"
