"""The layer laboratory of notebook 07: scribble on a composite, watch its layers come apart, put them together anew."""

from __future__ import annotations

from pathlib import Path

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fcs_lab.composites import Composites, example_composites
from fcs_lab.denoisers import Denoiser, as_model
from fcs_lab.images import ImageLike, to_pil, to_tensor
from fcs_lab.latent import image_shape
from fcs_lab.layered import LayersResult
from fcs_lab.layers import infer_layers
from fcs_lab.metrics import layer_psnr, mask_iou
from fcs_lab.plots import LAYER_COLOURS, colour_masks
from fcs_lab.sampler import State
from fcs_lab.widgets.canvas import ScribblePainter, png
from fcs_lab.widgets.lab import SamplerLab

__all__ = ["LayersLab"]

MOST_LAYERS, MOST_STARTS = 4, 16
KNOWN = 4
"""Known composites to choose from, for each number of layers."""
OWN = "your image"


class LayersLab(SamplerLab):
    """Choose a composite, say what you know by scribbles (a colour for each layer) or prompts, press Run.

    The masks and layers are shown as they form, and the slider goes back through the timesteps afterwards; below, the layers
    can be left out and moved about. Sampling runs in a thread of its own; Stop leaves the partial result.
    `run`, `stop` and `wait` do from code what the buttons do, `result` is what they left, `recomposed` the picture of it.

    Args:
        model: A denoiser, or what `fcs_lab.load` takes.
        composite: What to take apart, in any form that `to_tensor` takes, one image of the model's size. None:
            `example_composites` of the model, whose layers are known.

    Example:
        >>> lab = fcs_lab.widgets.LayersLab("mnist")
        >>> lab.num_inference_steps.value, lab.inner_steps.value = 2, 1
        >>> lab.run()
        >>> lab.wait()
        >>> tuple(lab.result.layers.shape)  # of the one composite: (K, C, H, W)
        (2, 1, 32, 32)
    """

    def __init__(self, model: Denoiser | str = "mnist", composite: ImageLike | None = None) -> None:
        super().__init__(model)
        self.result: LayersResult | None = None
        """What the last run found."""
        self.recomposed: Tensor | None = None
        """The layers that are shown, where they were moved to, (1, C, H, W)."""
        C, H, W = image_shape(self.model)
        self._known = _known_composites(self.model) if composite is None else {}
        self.image = torch.zeros(1, C, H, W) if composite is None else to_tensor(composite, "composite")
        if tuple(self.image.shape) != (1, C, H, W):
            raise ValueError(f"composite has shape {tuple(self.image.shape)}; expected one image, (1, {C}, {H}, {W})")
        self._build()
        self._on_num_layers()
        if self._known:
            self._on_composite({"new": self.composite.value})

    # What it looks like

    def _build(self) -> None:
        control, titled = self._control, self._titled
        _, H, W = image_shape(self.model)
        self.painter = ScribblePainter(self.image, brush=max(1, W // 16), zoom=max(1, 288 // W))
        self.composite = control(widgets.Dropdown, options=[*self._known, OWN], description="composite")
        self.num_layers = control(widgets.IntSlider, 2, 1, MOST_LAYERS, description="layers K")
        self.brush = control(widgets.IntSlider, self.painter.brush, 1, max(5, W // 4), description="brush")
        widgets.jslink((self.brush, "value"), (self.painter, "brush"))
        self.colour_buttons = [
            widgets.Button(
                description=f"layer {k}",
                style={"button_color": _css(k), "text_color": "white", "font_weight": "bold"},
                layout=widgets.Layout(width="98px"),
                tooltip=f"paint what belongs to layer {k}",
            )
            for k in range(MOST_LAYERS)
        ]
        self.clear_button = widgets.Button(
            description="Clear scribbles", icon="eraser", layout=widgets.Layout(width="150px")
        )
        self.prompts = [control(widgets.Text, description=f"layer {k} is") for k in range(MOST_LAYERS)]
        self.guidance_scale = self._guidance_slider()
        self.direction = self._direction_menu("newton", "gradient", "identity")
        self.num_inference_steps = control(widgets.IntSlider, 10, 2, 100, description="timesteps")
        self.inner_steps = control(widgets.IntSlider, 5, 0, 20, description="inner steps")
        self.starts = control(widgets.IntSlider, 1, 1, MOST_STARTS, description="starts")
        # In the noisiest timesteps the layers are left to themselves, so that they differ before they share y out.
        self.free = control(widgets.IntSlider, 30, 0, 90, step=5, description="none in first %")
        self.frame_picture.layout.width = "auto"
        self.scrubber.description = "at step"
        self.truth_picture = widgets.Image(format="png", layout=widgets.Layout(width="auto"))
        self.scores = widgets.Label("")
        self.truth = titled("truth", self.truth_picture, self.scores)
        self.recomposed_picture = self._picture()
        self.shown = [
            widgets.Checkbox(True, description="show", indent=False, layout=widgets.Layout(width="120px"))
            for _ in range(MOST_LAYERS)
        ]
        shift = {"style": {"description_width": "20px"}, "layout": widgets.Layout(width="170px")}
        self.dx = [widgets.IntSlider(0, -W // 2, W // 2, description="dx", **shift) for _ in range(MOST_LAYERS)]
        self.dy = [widgets.IntSlider(0, -H // 2, H // 2, description="dy", **shift) for _ in range(MOST_LAYERS)]
        self.movers = [
            widgets.VBox(
                [widgets.HTML(_heading(k)), self.shown[k], self.dx[k], self.dy[k]],
                layout=widgets.Layout(margin="0 0 0 16px"),
            )
            for k in range(MOST_LAYERS)
        ]
        self.folder = control(widgets.Text, "layers", description="folder")
        self.export_button = widgets.Button(
            description="Export", icon="download", tooltip="each layer as a transparent PNG, its mask being alpha"
        )
        self.exported = widgets.Label("")
        moved = widgets.HBox([self.recomposed_picture, *self.movers])
        self.recompose = titled("put together anew", moved, widgets.HBox([self.folder, self.export_button, self.exported]))
        self.recompose.layout.display = self.truth.layout.display = "none"

        self.composite.observe(self._on_composite, "value")
        self.num_layers.observe(self._on_num_layers, "value")
        for k, button in enumerate(self.colour_buttons):
            button.on_click(lambda _, k=k: self._choose_colour(k))
        self.clear_button.on_click(lambda _: self.painter.clear())
        self.export_button.on_click(lambda _: self.export())
        for mover in (*self.shown, *self.dx, *self.dy):
            mover.observe(self._recompose, "value")

        hint = widgets.HTML("<small>drag to scribble what belongs to a layer, Shift-drag to erase</small>")
        colours = widgets.HBox(self.colour_buttons)
        left = [self.composite, self.upload_image, self.num_layers, colours, self.brush, self.clear_button, hint]
        right = [self.direction, self.num_inference_steps, self.inner_steps, self.free, self.starts, self.seed]
        if as_model(self.model).num_prompts is not None:
            right += [*self.prompts, self.guidance_scale]
        self.children = [
            widgets.HBox([self.painter, widgets.VBox(left), widgets.VBox(right)]),
            widgets.HBox([self.run_button, self.stop_button, self.progress]),
            self.status,
            self.message,
            titled("masks, and the layers x̂_0", self.frame_picture, self.scrubber, self.frame_caption),
            self.truth,
            self.recompose,
        ]

    # Choosing the composite and what is known of it

    def _on_composite(self, change: dict) -> None:
        if change["new"] in self._known:
            known = self._known[change["new"]]
            self.num_layers.value = known.masks.shape[1]
            self._set_image(known.images)

    def _on_image_upload(self, change: dict) -> None:
        super()._on_image_upload(change)
        self.composite.value = OWN

    def _set_image(self, image: Tensor) -> None:
        self.image = image
        self.painter.set_image(image)
        self.painter.clear()

    def _on_num_layers(self, _: object = None) -> None:
        for k in range(MOST_LAYERS):
            display = "" if k < self.num_layers.value else "none"
            for widget in (self.colour_buttons[k], self.prompts[k]):
                widget.layout.display = display
        scribbles = self.painter.scribbles
        self.painter.scribbles = scribbles.where(scribbles < self.num_layers.value, -1)
        self._choose_colour(min(self.painter.label, self.num_layers.value) - 1)

    def _choose_colour(self, layer: int) -> None:
        self.painter.label = layer + 1
        for k, button in enumerate(self.colour_buttons):
            button.icon = "paint-brush" if k == layer else ""

    # Running

    def run(self) -> None:  # documented in the base class
        if self._running:
            return
        self._say("")
        K, scribbles = self.num_layers.value, self.painter.scribbles
        timesteps = self.num_inference_steps.value
        free, inner_steps = self.free.value / 100 * timesteps, self.inner_steps.value
        prompts = [prompt.value for prompt in self.prompts[:K]]
        prompted = {"prompts": prompts, "guidance_scale": self.guidance_scale.value} if any(prompts) else {}
        settings = {
            "num_layers": K,
            **prompted,
            "scribbles": scribbles if bool((scribbles >= 0).any()) else None,
            "num_inference_steps": timesteps,
            "inner_steps": [inner_steps * (step >= free) for step in range(timesteps)],
            "direction": self.direction.value,
            "starts": self.starts.value,
            "generator": torch.Generator().manual_seed(self.seed.value),
        }
        self.result = None
        self.recompose.layout.display = self.truth.layout.display = "none"
        image, known = self.image, self._known.get(self.composite.value)
        self._start(lambda: self._work(image, known, settings), timesteps)

    def _work(self, image: Tensor, known: Composites | None, settings: dict) -> None:
        """In the thread: infer the layers, showing them as they form."""
        self.status.value = f"{settings['direction']} …"
        result = infer_layers(self.model, image, callback_on_step_end=self._after_timestep, progress=False, **settings)
        self.result = result
        if known is not None:
            self.truth_picture.value = png(_strip(known.masks[0], known.layers[0]), self.zoom)
            self.truth.layout.display = ""
            # Of another number of layers than the truth's there is no score.
            self.scores.value = _score(result, known) if known.masks.shape[1] == settings["num_layers"] else ""
        for k, mover in enumerate(self.movers):
            mover.layout.display = "" if k < settings["num_layers"] else "none"
            self.shown[k].value, self.dx[k].value, self.dy[k].value = True, 0, 0
        self.exported.value = ""
        self._recompose()
        self.recompose.layout.display = ""
        counts = f"{result.nfe} evaluations a layer" + (f" + {result.n_backward} backward" if result.n_backward else "")
        self.status.value = ("done" if result.completed else "stopped, partial result") + f" ({counts})"

    def _after_timestep(self, state: State, step_index: int, timestep: int, tensors: dict[str, Tensor]) -> None:
        caption = f"t = {timestep}, {state.nfe} evaluations a layer"
        masks, layers = tensors["masks"].cpu(), tensors["layers"].cpu()
        if masks.ndim == 4:  # of several starts the first is shown
            caption, masks, layers = f"{caption} and start; the first of {len(masks)} starts", masks[0], layers[0]
        state.interrupt = self._add_frame(caption, _strip(masks, layers))

    def export(self) -> list[Path]:
        """Write each layer as a transparent PNG, its mask being alpha, into the folder that is named; the files."""
        if self.result is None:
            return []
        folder = Path(self.folder.value)
        files = [folder / f"layer-{k}.png" for k in range(len(self.result.layers))]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, picture in zip(files, self.result.to_pil(), strict=True):
                picture.save(file)
        except OSError as error:
            self._say(f"folder is {self.folder.value!r}: {error}")
            return []
        self.exported.value = f"wrote layer-0.png to layer-{len(files) - 1}.png into {folder.resolve()}"
        return files

    def _recompose(self, _: object = None) -> None:
        """Draw the layers that are to be shown, moved."""
        if self.result is None:
            return
        layers = range(len(self.result.layers))
        visible = [k for k in layers if self.shown[k].value]
        shifts = {k: (self.dy[k].value, self.dx[k].value) for k in layers}
        if visible:
            self.recomposed = self.result.compose(visible, shifts)[None].cpu()
        else:
            self.recomposed = torch.full_like(self.image, -1)
        self.recomposed_picture.value = png(to_pil(self.recomposed)[0], self.zoom)


def _known_composites(model: Denoiser) -> dict[str, Composites]:
    """Composites to choose from, by what they show, the uppermost first; none if there are none for the model."""
    known = {}
    for K in range(2, MOST_LAYERS + 1):
        try:
            made, names = example_composites(model, KNOWN, K)
        except (ImportError, ValueError):  # no photographs, or a size that nothing is made for
            return {}
        for i in range(KNOWN):
            one = Composites(*(part[i : i + 1] for part in vars(made).values()))
            known[" over ".join(names[i])] = one
    return known


def _score(result: LayersResult, known: Composites) -> str:
    iou = mask_iou(result.masks[None].cpu(), known.masks, known.layers).item()
    psnr = layer_psnr(result.layers[None].cpu(), known.layers).item()
    return f"found against truth: mask IoU {iou:.2f}, layers {psnr:.1f} dB"


def _strip(masks: Tensor, layers: Tensor) -> Image.Image:
    """The masks (K, H, W) in the layers' colours, and the layers (K, C, H, W), each framed in its own, side by side."""
    width = layers.shape[-1]
    border, gap = max(1, width // 32), max(1, width // 16)
    (pictured,) = to_pil(colour_masks(masks)[None])
    tiles = [ImageOps.expand(pictured, border, "white")]
    tiles += [ImageOps.expand(one.convert("RGB"), border, _css(k)) for k, one in enumerate(to_pil(layers))]
    space = np.full((tiles[0].height, gap, 3), 255, np.uint8)
    parts = [part for tile in tiles for part in (np.asarray(tile), space)]
    return Image.fromarray(np.concatenate(parts[:-1], axis=1))


def _css(k: int) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in LAYER_COLOURS[k % len(LAYER_COLOURS)])


def _heading(k: int) -> str:
    return f'<b style="color: {_css(k)}">layer {k}</b>'
