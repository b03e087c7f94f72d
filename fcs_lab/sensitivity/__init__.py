"""How results hang on two settings: a map whose cells are sampled one after another, kept on disk, and gone on with."""

from fcs_lab.sensitivity.axes import AXES
from fcs_lab.sensitivity.cells import MEASURES, Cell
from fcs_lab.sensitivity.map import SensitivityMap

__all__ = ["AXES", "MEASURES", "Cell", "SensitivityMap"]
