"""Probes of the Jacobian J = ∂x̂_0/∂x_t of any denoiser."""

from fcs_lab.probes.comparison import Compared, compare_directions
from fcs_lab.probes.fd_error import FdCurve, FdError, measure_fd_error, suggest_fd_step
from fcs_lab.probes.invertibility import (
    Invertibility,
    Reach,
    Solve,
    find_displacement,
    measure_invertibility,
)
from fcs_lab.probes.jacobian import JacobianOperator
from fcs_lab.probes.linear_reach import LinearReach, measure_linear_reach
from fcs_lab.probes.newton import (
    Convergence,
    ForcingBound,
    ForcingTerm,
    forcing_bound,
    measure_convergence,
    measure_forcing_term,
)
from fcs_lab.probes.spectrum import Spectrum, measure_spectrum
from fcs_lab.probes.symmetry import Symmetry, measure_symmetry

__all__ = [
    "Compared",
    "Convergence",
    "FdCurve",
    "FdError",
    "ForcingBound",
    "ForcingTerm",
    "Invertibility",
    "JacobianOperator",
    "LinearReach",
    "Reach",
    "Solve",
    "Spectrum",
    "Symmetry",
    "compare_directions",
    "find_displacement",
    "forcing_bound",
    "measure_convergence",
    "measure_fd_error",
    "measure_forcing_term",
    "measure_invertibility",
    "measure_linear_reach",
    "measure_spectrum",
    "measure_symmetry",
    "suggest_fd_step",
]
