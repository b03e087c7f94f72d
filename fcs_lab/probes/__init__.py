"""Probes of the Jacobian J = ∂x̂_0/∂x_t of any denoiser."""

from fcs_lab.probes.jacobian import JacobianOperator

__all__ = ["JacobianOperator"]
