"""Images that mouse and keyboard work on: paint a mask, scribble for layers, pick a pixel. One script serves them all."""

from __future__ import annotations

import io
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from fcs_lab.checks import check_count, typed
from fcs_lab.images import to_mask, to_pil
from fcs_lab.plots import HIDDEN, LAYER_COLOURS

__all__ = ["MaskPainter", "PixelPicker", "ScribblePainter", "png"]

UNDONE = 50
"""How many changes can be taken back."""


@typed
def png(image: Image.Image, zoom: int = 1) -> bytes:
    """A PIL image as PNG, each pixel made `zoom` pixels wide and high."""
    check_count("zoom", zoom, 1, 256)
    buffer = io.BytesIO()
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def _levels(colour: tuple[float, ...]) -> list[int]:
    """A colour in [0, 1] as the browser has it, 0 to 255."""
    return [round(255 * part) for part in colour]


class _Canvas(anywidget.AnyWidget):
    """An image (1, C, H, W) in [-1, 1], enlarged."""

    _esm = Path(__file__).parent / "canvas.js"
    mode = traitlets.Unicode(help="what the mouse does, one of canvas.js's MODES").tag(sync=True)
    image_png = traitlets.Bytes(b"").tag(sync=True)
    height = traitlets.Int(32).tag(sync=True)
    width = traitlets.Int(32).tag(sync=True)
    zoom = traitlets.Int(9, help="screen pixels an image pixel").tag(sync=True)
    name = traitlets.Unicode("image", help="what a screen reader calls it").tag(sync=True)
    dropped = traitlets.CBytes(b"", help="the content of a picture's file that was dropped on it").tag(sync=True)

    def __init__(self, image: Tensor, **traits) -> None:
        super().__init__(**traits)
        self.set_image(image)

    def set_image(self, image: Tensor) -> None:
        """Show another image, of any size."""
        (picture,) = to_pil(image)
        self.height, self.width = picture.height, picture.width
        self.image_png = png(picture)


class _Painter(_Canvas):
    """Drag paints in the colour chosen, Shift or the right button erases.

    By the keyboard, once it has the focus: the arrows move the brush (with Shift five pixels), Space paints, Delete erases,
    Ctrl-Z takes the last change back.
    """

    mode = traitlets.Unicode("paint").tag(sync=True)
    # A byte a pixel: 0 where nothing is painted, n in the n-th colour. Cast, as the browser's bytes come as a memoryview.
    mask_bytes = traitlets.CBytes(b"").tag(sync=True)
    brush = traitlets.Int(5, help="diameter in image pixels").tag(sync=True)
    label = traitlets.Int(1, help="the number of the colour that is painted").tag(sync=True)
    colours = traitlets.List(help="(R, G, B), each 0 to 255").tag(sync=True)

    def __init__(self, image: Tensor, **traits) -> None:
        self._before: list[bytes] = []
        self._undoing = False
        super().__init__(image, **traits)
        self.observe(self._remember, "mask_bytes")
        self.on_msg(lambda _, content, __: self.undo() if content == "undo" else None)

    def undo(self) -> None:
        """Take the last stroke, or any other change of what is painted, back; up to fifty of them."""
        if self._before:
            self._undoing = True
            try:
                self.mask_bytes = self._before.pop()
            finally:
                self._undoing = False

    def _remember(self, change: dict) -> None:
        if len(change["old"]) != len(change["new"]):  # of an image of another size
            self._before = []
        elif not self._undoing:
            self._before = [*self._before[1 - UNDONE :], change["old"]]

    def set_image(self, image: Tensor) -> None:
        """Show another image of any size; what is painted on one of another size is cleared."""
        super().set_image(image)
        if len(self.mask_bytes) != self.height * self.width:
            self.clear()

    def clear(self) -> None:
        """Wipe off what is painted."""
        self._painted = np.zeros((self.height, self.width), np.uint8)

    @property
    def _painted(self) -> np.ndarray:
        return np.frombuffer(self.mask_bytes, dtype=np.uint8).reshape(self.height, self.width)

    @_painted.setter
    def _painted(self, labels: np.ndarray) -> None:
        self.mask_bytes = labels.astype(np.uint8).tobytes()


class MaskPainter(_Painter):
    """An image (1, C, H, W) in [-1, 1] with a mask to paint: drag paints, Shift or the right button erases.

    Example:
        >>> painter = fcs_lab.widgets.MaskPainter(fcs_lab.load_digits(1)[0])
        >>> painter.mask = torch.arange(32).ge(16).expand(32, 32)
        >>> painter.undo()
        >>> bool(painter.mask.any())
        False
    """

    colours = traitlets.List([_levels(HIDDEN)]).tag(sync=True)

    @property
    def mask(self) -> Tensor:
        """What is painted, (1, 1, H, W), bool; True is to be filled in."""
        return torch.from_numpy(self._painted > 0)[None, None]

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self._painted = to_mask(mask)[0, 0].numpy()


class ScribblePainter(_Painter):
    """An image (1, C, H, W) in [-1, 1] with scribbles to paint, a colour for each layer; layer k is `label` k + 1.

    Example:
        >>> painter = fcs_lab.widgets.ScribblePainter(fcs_lab.load_digits(1)[0])
        >>> tuple(painter.scribbles.shape)
        (32, 32)
    """

    colours = traitlets.List([_levels(colour) for colour in LAYER_COLOURS]).tag(sync=True)

    @property
    def scribbles(self) -> Tensor:
        """(H, W), int64: the layer that each pixel is said to belong to, −1 where nothing is painted."""
        return torch.from_numpy(self._painted.astype(np.int64)) - 1

    @scribbles.setter
    def scribbles(self, scribbles: Tensor) -> None:
        self._painted = scribbles.cpu().numpy() + 1


class PixelPicker(_Canvas):
    """An image (1, C, H, W) in [-1, 1] in which a click, or the arrow keys, pick the pixel (`row`, `column`).

    Example:
        >>> picker = fcs_lab.widgets.PixelPicker(fcs_lab.load_digits(1)[0], row=3, column=5)
        >>> picker.row, picker.column
        (3, 5)
    """

    mode = traitlets.Unicode("pick").tag(sync=True)
    zoom = traitlets.Int(8).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    column = traitlets.Int(0).tag(sync=True)

    def set_image(self, image: Tensor) -> None:
        """Show another image; a pixel outside of it is brought to its border."""
        super().set_image(image)
        self.row, self.column = min(self.row, self.height - 1), min(self.column, self.width - 1)
