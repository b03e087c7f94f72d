"""Jupyter widgets: paint a mask, press Run, look at what the sampler does. Needs ipywidgets and anywidget."""

from fcs_lab.widgets.inpainting import InpaintingLab
from fcs_lab.widgets.jacobian import JacobianLab, PixelPicker
from fcs_lab.widgets.mask_painter import MaskPainter
from fcs_lab.widgets.super_resolution import SuperResolutionLab

__all__ = ["InpaintingLab", "JacobianLab", "MaskPainter", "PixelPicker", "SuperResolutionLab"]
