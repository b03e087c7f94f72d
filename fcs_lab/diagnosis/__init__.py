"""Before a long run: what may be wrong with a model, a task and settings."""

from fcs_lab.diagnosis.checks import Diagnosis, Finding, diagnose

__all__ = ["Diagnosis", "Finding", "diagnose"]
