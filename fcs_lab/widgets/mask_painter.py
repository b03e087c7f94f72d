"""A widget to paint a mask over an image with the mouse."""

from __future__ import annotations

import io
from pathlib import Path

import anywidget
import numpy as np
import torch
import traitlets
from PIL import Image
from torch import Tensor

from fcs_lab.images import to_mask, to_pil

__all__ = ["MaskPainter", "png"]


def png(image: Image.Image, zoom: int = 1) -> bytes:
    """A PIL image as PNG, each pixel made `zoom` pixels wide and high."""
    buffer = io.BytesIO()
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


class MaskPainter(anywidget.AnyWidget):
    """An image (1, C, H, W) in [-1, 1] with a mask to paint: drag paints, Shift or the right button erases."""

    _esm = Path(__file__).parent / "mask_painter.js"
    image_png = traitlets.Bytes(b"").tag(sync=True)
    mask_bytes = traitlets.CBytes(b"").tag(sync=True)  # cast, because the browser's bytes arrive as a memoryview
    height = traitlets.Int(32).tag(sync=True)
    width = traitlets.Int(32).tag(sync=True)
    brush = traitlets.Int(5, help="diameter in image pixels").tag(sync=True)
    zoom = traitlets.Int(9, help="screen pixels an image pixel").tag(sync=True)

    def __init__(self, image: Tensor, **traits) -> None:
        super().__init__(**traits)
        self.set_image(image)
        self.mask = torch.zeros(1, 1, self.height, self.width, dtype=torch.bool)

    def set_image(self, image: Tensor) -> None:
        """Show another image of any size; a mask of another size is cleared."""
        (picture,) = to_pil(image)
        self.height, self.width = picture.height, picture.width
        self.image_png = png(picture)
        if len(self.mask_bytes) != self.height * self.width:
            self.mask = torch.zeros(1, 1, self.height, self.width, dtype=torch.bool)

    @property
    def mask(self) -> Tensor:
        """What is painted, (1, 1, H, W), bool; True is to be filled in."""
        values = np.frombuffer(self.mask_bytes, dtype=np.uint8).reshape(1, 1, self.height, self.width)
        return torch.from_numpy(values > 0)

    @mask.setter
    def mask(self, mask: Tensor) -> None:
        self.mask_bytes = to_mask(mask)[0, 0].numpy().astype(np.uint8).tobytes()
