"""Jupyter widgets: paint a mask, press Run, look at what the sampler does. Needs ipywidgets and anywidget.

`fcs_lab.widgets.study_table`, the menus of a study's table, takes the extra 'study' and is imported by itself.
"""

from fcs_lab.widgets.canvas import MaskPainter, PixelPicker, ScribblePainter
from fcs_lab.widgets.families import FamilyMenu
from fcs_lab.widgets.inpainting import InpaintingLab
from fcs_lab.widgets.jacobian import JacobianLab
from fcs_lab.widgets.layers import LayersLab
from fcs_lab.widgets.sensitivity import SensitivityLab
from fcs_lab.widgets.super_resolution import SuperResolutionLab
from fcs_lab.widgets.tasks import TaskLab

__all__ = [
    "FamilyMenu",
    "InpaintingLab",
    "JacobianLab",
    "LayersLab",
    "MaskPainter",
    "PixelPicker",
    "ScribblePainter",
    "SensitivityLab",
    "SuperResolutionLab",
    "TaskLab",
]
