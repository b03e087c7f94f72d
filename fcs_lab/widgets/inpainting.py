"""The interactive inpainting laboratory of notebook 01."""

from __future__ import annotations

import html
import io
import threading
from collections.abc import Callable

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fcs_lab.constraints import Inpainting
from fcs_lab.data import load_digits
from fcs_lab.denoisers import Denoiser
from fcs_lab.images import to_pil, to_tensor
from fcs_lab.plots import HIDDEN, image_grid, plot_error
from fcs_lab.sampler import Result, State, sample
from fcs_lab.widgets.mask_painter import MaskPainter, png
from fcs_lab.zoo import load

__all__ = ["InpaintingLab"]

COMPARED = ("identity", "gradient", "newton")
ZOOM = 6  # screen pixels an image pixel, in the pictures of results


class InpaintingLab(widgets.VBox):
    """Choose an image, paint a mask, set the sampler, press Run.

    Sampling runs in a thread of its own, so the kernel and the widgets stay responsive; Stop leaves the partial result.
    `run`, `compare`, `stop` and `wait` do from code what the buttons do; `result` and `results` are what they left.

    Args:
        model: A denoiser of images of at most 64 pixels a side, or what `fcs_lab.load` takes.
    """

    def __init__(self, model: Denoiser | str = "mnist") -> None:
        self.model = load(model) if isinstance(model, str) else model
        self.results: dict[str, Result] = {}
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._frames: list[tuple[str, Tensor]] = []  # (caption, x̂_0) for the scrubber
        self._digits = load_digits()[0] if tuple(self.model.shape) == (1, 32, 32) else None
        self.image = self._digits[:1] if self._digits is not None else torch.zeros(1, *self.model.shape)
        self._build()
        plots = widgets.VBox([self.comparison, self.curve], layout=widgets.Layout(align_items="flex-start"))
        super().__init__([self._controls(), self._buttons(), self.status, self.message, self._pictures(), plots])
        self._apply_preset()

    # What it looks like

    def _build(self) -> None:
        def control(kind: type[widgets.Widget], *values, description: str, **options) -> widgets.Widget:
            layout = widgets.Layout(width="330px")
            return kind(*values, description=description, style={"description_width": "105px"}, layout=layout, **options)

        self.painter = MaskPainter(self.image)
        self.digit = control(widgets.BoundedIntText, 0, 0, 255, description="bundled digit")
        self.upload_image = widgets.FileUpload(accept="image/*", description="image…", layout=widgets.Layout(width="110px"))
        self.upload_mask = widgets.FileUpload(accept="image/*", description="mask…", layout=widgets.Layout(width="110px"))
        self.preset = control(
            widgets.Dropdown, options=["right half", "top half", "middle", "nothing (paint)"], description="mask"
        )
        self.brush = control(widgets.IntSlider, 5, 1, 15, description="brush")
        widgets.jslink((self.brush, "value"), (self.painter, "brush"))
        self.direction = control(
            widgets.Dropdown,
            options=[
                ("newton: J e, finite difference", "newton"),
                ("newton-jvp: J e, forward mode", "newton-jvp"),
                ("gradient: Jᵀ e", "gradient"),
                ("identity: e", "identity"),
                ("exact: J⁻¹ e, regularised (slow)", "exact"),
            ],
            description="direction",
        )
        self.num_inference_steps = control(widgets.IntSlider, 20, 1, 100, description="timesteps")
        self.inner_steps = control(widgets.IntSlider, 5, 0, 20, description="inner steps K")
        self.step_size = control(
            widgets.FloatRangeSlider, value=(0.1, 0.5), min=0, max=2, step=0.05, description="λ, last – first"
        )
        self.fd_step = control(
            widgets.Dropdown,
            options=[("the dtype's", None), *((str(h), h) for h in (0.0005, 0.005, 0.05, 0.3, 1.0))],
            index=0,
            description="difference h",
        )
        self.regularization = control(widgets.FloatLogSlider, 0.1, min=-3, max=1, step=0.25, description="regularisation")
        self.eta = control(widgets.FloatSlider, 1.0, min=0, max=1, step=0.05, description="η")
        self.seed = control(widgets.IntText, 0, description="seed")
        button = widgets.Layout(width="130px")
        self.run_button = widgets.Button(description="Run", icon="play", button_style="success", layout=button)
        self.stop_button = widgets.Button(description="Stop", icon="stop", disabled=True, layout=button)
        self.compare_button = widgets.Button(
            description="Compare", icon="columns", layout=button, tooltip=", ".join(COMPARED)
        )
        self.progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="260px"))
        self.status = widgets.Label("ready")
        self.message = widgets.HTML()
        self.input_picture, self.result_picture, self.truth_picture = (self._picture() for _ in range(3))
        self.scrubber = control(widgets.IntSlider, 0, 0, 0, description="x̂_0 at step", disabled=True)
        self.frame_picture = self._picture()
        self.frame_caption = widgets.Label("")
        self.comparison, self.curve = (
            widgets.Image(format="png", layout=widgets.Layout(width="auto", display="none")) for _ in range(2)
        )

        self.digit.observe(self._on_digit, "value")
        self.upload_image.observe(self._guarded(self._on_image_upload), "value")
        self.upload_mask.observe(self._guarded(self._on_mask_upload), "value")
        self.preset.observe(self._apply_preset, "value")
        self.direction.observe(self._show_what_applies, "value")
        self.scrubber.observe(self._show_frame, "value")
        self.run_button.on_click(lambda _: self.run())
        self.compare_button.on_click(lambda _: self.compare())
        self.stop_button.on_click(lambda _: self.stop())
        self._show_what_applies()

    def _controls(self) -> widgets.Widget:
        uploads = widgets.HBox([self.upload_image, self.upload_mask])
        chooser = [self.digit, uploads] if self._digits is not None else [uploads]
        left = [*chooser, self.preset, self.brush, widgets.HTML("<small>drag to paint, Shift-drag to erase</small>")]
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
        def titled(title: str, *below: widgets.Widget) -> widgets.Widget:
            return widgets.VBox([widgets.HTML(f"<b>{title}</b>"), *below], layout=widgets.Layout(margin="0 12px 0 0"))

        return widgets.HBox(
            [
                titled("input", self.input_picture),
                titled("result", self.result_picture),
                titled("truth", self.truth_picture),
                titled("x̂_0 over the timesteps", self.frame_picture, self.scrubber, self.frame_caption),
            ]
        )

    # Choosing image and mask

    def _on_digit(self, change: dict) -> None:
        self._set_image(self._digits[change["new"] : change["new"] + 1])

    def _on_image_upload(self, change: dict) -> None:
        self._say("")
        channels, height, width = self.model.shape
        picture = _opened(change["new"])
        picture = picture.convert("L" if channels == 1 else "RGB")
        if picture.size != (width, height):
            self._say(f"The image was resized from {picture.width}×{picture.height} to {width}×{height} pixels.", "#555")
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        self._set_image(to_tensor(picture))

    def _on_mask_upload(self, change: dict) -> None:
        picture = _opened(change["new"]).convert("L").resize((self.painter.width, self.painter.height), Image.Resampling.BOX)
        values = np.asarray(picture) / 255
        grey = int(((values > 0) & (values < 1)).sum())
        self._say(f"The mask had {grey} grey pixels; it was thresholded at 0.5, as shown." if grey else "", "#555")
        self.painter.mask = torch.from_numpy(values >= 0.5)

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
        self.fd_step.layout.display = "" if self.direction.value == "newton" else "none"
        self.regularization.layout.display = "" if self.direction.value == "exact" else "none"

    # Running

    @property
    def result(self) -> Result | None:
        """The last result of `run`, or the last one that `compare` came to."""
        return next(reversed(self.results.values()), None)

    def run(self) -> None:
        """Start sampling with the settings shown. Returns at once; `wait` waits for the end."""
        self._start([self.direction.value])

    def compare(self) -> None:
        """The same settings and seed with every direction, side by side."""
        self._start(list(COMPARED))

    def stop(self) -> None:
        """End the run after its present timestep; what there is by then is shown."""
        self._stopping.set()

    def wait(self, timeout: float | None = None) -> None:
        """Until the run has ended, for at most `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _start(self, directions: list[str]) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._say("")
        try:
            task = Inpainting(self.image, self.painter.mask)
        except (TypeError, ValueError) as error:
            self._say(str(error))
            return
        last, first = self.step_size.value
        settings = {
            "num_inference_steps": self.num_inference_steps.value,
            "inner_steps": self.inner_steps.value,
            "step_size": (first, last),
            "fd_step": self.fd_step.value,
            "regularization": self.regularization.value,
            "eta": self.eta.value,
        }
        self._stopping.clear()
        self._frames, self.results = [], {}
        self.progress.max, self.progress.value = settings["num_inference_steps"] * len(directions), 0
        self.run_button.disabled = self.compare_button.disabled = True
        self.stop_button.disabled = False
        self._thread = threading.Thread(target=self._work, args=(task, directions, settings, self.seed.value), daemon=True)
        self._thread.start()

    def _work(self, task: Inpainting, directions: list[str], settings: dict, seed: int) -> None:
        """In the thread: sample, showing x̂_0 as it goes; errors become messages."""
        try:
            for direction in directions:
                self.status.value = f"{direction} …"
                self.results[direction] = sample(
                    self.model,
                    task,
                    direction=direction,
                    generator=torch.Generator().manual_seed(seed),
                    callback_on_step_end=self._after_timestep(direction),
                    progress=False,
                    **settings,
                )
                if self._stopping.is_set():
                    break
            self._show_results(task)
        except Exception as error:  # in a thread it would go unseen
            self.status.value = "failed"
            self._say(str(error) if isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {error}")
        finally:
            self.run_button.disabled = self.compare_button.disabled = False
            self.stop_button.disabled = True

    def _after_timestep(self, direction: str) -> Callable[[State, int, int, dict], None]:
        def callback(state: State, step_index: int, timestep: int, _: dict) -> None:
            self._frames.append((f"{direction}, t = {timestep}, {state.nfe} evaluations", state.x0.cpu()))
            self.progress.value += 1
            self.scrubber.disabled = False
            self.scrubber.max = len(self._frames) - 1
            self.scrubber.value = len(self._frames) - 1
            self._show_frame()
            state.interrupt = self._stopping.is_set()

        return callback

    def _show_results(self, task: Inpainting) -> None:
        hidden = _masked(self.image, task.mask)
        self.input_picture.value = png(hidden, ZOOM)
        self.truth_picture.value = png(to_pil(self.image)[0], ZOOM)
        result = self.result
        self.result_picture.value = png(result.to_pil()[0], ZOOM)
        self.comparison.layout.display = "none" if len(self.results) == 1 else ""
        if len(self.results) > 1:
            images = {"truth": self.image} | {name: one.images.cpu() for name, one in self.results.items()}
            grid = image_grid({"same seed": torch.cat(list(images.values()))}, column_titles=list(images))
            self.comparison.value = grid.png(dpi=170)
        self.curve.value = plot_error(self.results).png()
        self.curve.layout.display = ""
        counts = ", ".join(
            f"{name}: {one.nfe} evaluations" + (f" + {one.n_backward} backward" if one.n_backward else "")
            for name, one in self.results.items()
        )
        self.status.value = ("done" if result.completed else "stopped, partial result") + f" ({counts})"

    def _picture(self) -> widgets.Image:
        """An empty frame for a picture of the model's size."""
        _, height, width = self.model.shape
        blank = png(Image.new("L", (width, height), 230), ZOOM)
        return widgets.Image(value=blank, format="png", layout=widgets.Layout(width=f"{width * ZOOM}px"))

    def _show_frame(self, _: object = None) -> None:
        if self._frames:
            caption, x0 = self._frames[min(self.scrubber.value, len(self._frames) - 1)]
            self.frame_picture.value = png(to_pil(x0)[0], ZOOM)
            self.frame_caption.value = caption

    # Messages

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

        return guarded


def _opened(uploads: tuple) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(bytes(uploads[0]["content"])))
        picture.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{uploads[0]['name']} is not an image that can be read") from error
    return picture


def _masked(image: Tensor, mask: Tensor) -> Image.Image:
    """The image with what is hidden in the mask's colour."""
    pixels = np.asarray(to_pil(image)[0].convert("RGB")).copy()
    pixels[mask[0, 0].cpu().numpy()] = [round(255 * part) for part in HIDDEN]
    return Image.fromarray(pixels)
