"""Other methods for the same tasks, one a file, to stand beside Algorithm 1: the same call, the same `Result`.

Each runs in the same driver as `fcs_lab.sample`, so evaluations and backward passes are counted alike. Settings that are not
given were found on other images than any table here shows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fcs_lab.baselines.classical import bicubic, biharmonic, richardson_lucy, total_variation, wiener
from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.baselines.daps import daps, daps_budget, daps_peer
from fcs_lab.baselines.ddnm import ddnm, ddnm_peer
from fcs_lab.baselines.ddrm import ddrm, ddrm_peer
from fcs_lab.baselines.deep_image_prior import deep_image_prior
from fcs_lab.baselines.diffpir import diffpir, diffpir_peer
from fcs_lab.baselines.dps import dps, dps_peer
from fcs_lab.baselines.flowchef import flowchef, flowchef_peer
from fcs_lab.baselines.frame import Peer, Settings, one_a_timestep, repeated, run
from fcs_lab.baselines.freedom import freedom, freedom_budget, freedom_peer
from fcs_lab.baselines.guess_and_guide import guess_and_guide, guess_and_guide_budget, guess_and_guide_peer
from fcs_lab.baselines.lanpaint import lanpaint, lanpaint_budget, lanpaint_peer
from fcs_lab.baselines.lgd_mc import lgd_mc, lgd_mc_peer
from fcs_lab.baselines.mpgd import mpgd, mpgd_peer
from fcs_lab.baselines.pigdm import pigdm, pigdm_peer
from fcs_lab.baselines.psld import psld, psld_peer
from fcs_lab.baselines.red_diff import red_diff, red_diff_peer
from fcs_lab.baselines.repaint import repaint, repaint_budget, repaint_peer
from fcs_lab.baselines.tuned import tuned
from fcs_lab.checks import check_count
from fcs_lab.directions import DIRECTIONS
from fcs_lab.sampler import Result, sample

PEERS: dict[str, Callable[..., Peer]] = {
    "repaint": repaint_peer,
    "ddnm": ddnm_peer,
    "ddrm": ddrm_peer,
    "diffpir": diffpir_peer,
    "mpgd": mpgd_peer,
    "red_diff": red_diff_peer,
    "daps": daps_peer,
    "flowchef": flowchef_peer,
    "lanpaint": lanpaint_peer,
    "guess_and_guide": guess_and_guide_peer,
    "dps": dps_peer,
    "pigdm": pigdm_peer,
    "lgd_mc": lgd_mc_peer,
    "freedom": freedom_peer,
    "psld": psld_peer,
}
"""Those that ask a denoiser, by name: what makes each, with its settings."""

WITHOUT_MODEL = {
    "deep_image_prior": deep_image_prior,
    "biharmonic": biharmonic,
    "total_variation": total_variation,
    "wiener": wiener,
    "richardson_lucy": richardson_lucy,
    "bicubic": bicubic,
}
"""Those that ask none: their calls."""

METHODS: dict[str, Callable[..., Result]] = (
    {direction: partial(sample, direction=direction) for direction in DIRECTIONS}
    | {"fast": partial(sample, preset="fast")}
    | {
        "repaint": repaint,
        "ddnm": ddnm,
        "ddrm": ddrm,
        "diffpir": diffpir,
        "mpgd": mpgd,
        "red_diff": red_diff,
        "daps": daps,
        "flowchef": flowchef,
        "lanpaint": lanpaint,
        "guess_and_guide": guess_and_guide,
        "dps": dps,
        "pigdm": pigdm,
        "lgd_mc": lgd_mc,
        "freedom": freedom,
        "psld": psld,
        "tuned": tuned,
    }
    | WITHOUT_MODEL
)
"""All of them by name, Algorithm 1's directions and preset too: (model, task, **settings) -> `Result`."""

BUDGETS: dict[str, Callable[[int], Settings]] = dict.fromkeys([*PEERS, "tuned"], one_a_timestep) | {
    "repaint": repaint_budget,
    "daps": daps_budget,
    "lanpaint": lanpaint_budget,
    "guess_and_guide": guess_and_guide_budget,
    "freedom": freedom_budget,
    "newton": lambda evaluations: _inner_steps(evaluations, 2),
    "identity": lambda evaluations: _inner_steps(evaluations, 1),
    "gradient": lambda evaluations: _inner_steps(evaluations, 1),
    "fast": lambda evaluations: {"num_inference_steps": (evaluations + 1) // 2},
}
"""Evaluations -> settings; the directions of `fcs_lab.sample` and its preset among them."""

LEAST = {"fast": 3, "repaint": 3, "lanpaint": 3, "newton": 3, "identity": 2, "gradient": 2, "daps": 3, "guess_and_guide": 2}
"""The fewest evaluations that make sense of a method; 1 where nothing stands here."""

__all__ = [
    "BUDGETS",
    "METHODS",
    "PEERS",
    "WITHOUT_MODEL",
    "Peer",
    "bicubic",
    "biharmonic",
    "budget",
    "cluster_layers",
    "daps",
    "ddnm",
    "ddrm",
    "deep_image_prior",
    "diffpir",
    "dps",
    "flowchef",
    "freedom",
    "guess_and_guide",
    "lanpaint",
    "lgd_mc",
    "mpgd",
    "pigdm",
    "psld",
    "red_diff",
    "repaint",
    "repeated",
    "richardson_lucy",
    "run",
    "total_variation",
    "tuned",
    "wiener",
]


def budget(method: str, evaluations: int) -> dict[str, Any]:
    """How a method spends about so many evaluations of the network, an image: the settings for its call.

    Backward passes are not counted: those of "gradient" are as many as its updates, those of DPS and its kin as many as the
    evaluations.

    Args:
        method: A peer's name, "tuned", one of Algorithm 1's directions ("newton", "identity", "gradient"), or "fast", the
            preset of `fcs_lab.sample`.
        evaluations: At most so many.

    Returns:
        Arguments: `fcs_lab.baselines.repaint(model, task, **budget("repaint", 60))`, or of `fcs_lab.sample`.

    Raises:
        ValueError: An unknown method, or fewer evaluations than it needs.

    Example:
        >>> fcs_lab.baselines.budget("ddnm", 60), fcs_lab.baselines.budget("fast", 60)
        ({'num_inference_steps': 60}, {'num_inference_steps': 30})
    """
    if not isinstance(method, str) or method not in BUDGETS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(map(repr, BUDGETS))}")
    check_count(f"evaluations (of {method!r})", evaluations, LEAST.get(method, 1))
    return BUDGETS[method](evaluations)


def _inner_steps(evaluations: int, each: int) -> Settings:
    """Algorithm 1's: 20 timesteps, fewer where even one inner step of `each` evaluations is too much, and K as it fits."""
    T = min(20, max(1, evaluations // (1 + each)))
    return {"num_inference_steps": T, "inner_steps": (evaluations // T - 1) // each}
