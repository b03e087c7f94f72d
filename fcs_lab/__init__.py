"""Training-free constrained sampling with pre-trained diffusion models: a laboratory.

After "Fast constrained sampling in pre-trained diffusion models", A. Graikos, N. Jojic, D. Samaras, arXiv 2410.18804.
"""

from fcs_lab.constrained import ConstrainedRun, constrained
from fcs_lab.constraints import Colorization, CostConstraint, Inpainting, LinearConstraint
from fcs_lab.data import load_digits, load_emoji, load_garments
from fcs_lab.denoisers import Denoiser
from fcs_lab.diagnosis import Diagnosis, Finding, diagnose
from fcs_lab.exact import GaussianMixtureDenoiser, IdealDenoiser
from fcs_lab.filters import Blur, SuperResolution, blur, downsample, upsample
from fcs_lab.images import to_pil, to_tensor
from fcs_lab.latent import LatentDenoiser
from fcs_lab.latent_space import LatentInpainting, Layout
from fcs_lab.layered import LayersResult
from fcs_lab.layers import infer_layers
from fcs_lab.sampler import Result, sample
from fcs_lab.sensitivity import SensitivityMap
from fcs_lab.zoo import load

__all__ = [
    "Blur",
    "Colorization",
    "ConstrainedRun",
    "CostConstraint",
    "Denoiser",
    "Diagnosis",
    "Finding",
    "GaussianMixtureDenoiser",
    "IdealDenoiser",
    "Inpainting",
    "LatentDenoiser",
    "LatentInpainting",
    "LayersResult",
    "Layout",
    "LinearConstraint",
    "Result",
    "SensitivityMap",
    "SuperResolution",
    "blur",
    "constrained",
    "diagnose",
    "downsample",
    "infer_layers",
    "load",
    "load_digits",
    "load_emoji",
    "load_garments",
    "sample",
    "to_pil",
    "to_tensor",
    "upsample",
]
__version__ = "0.2.0"
