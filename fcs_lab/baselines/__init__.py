"""Other methods for the same tasks, one a file, to stand beside Algorithm 1: the same call, the same `Result`.

Each runs in the same driver as `fcs_lab.sample`, so evaluations and backward passes are counted alike.
"""

from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.baselines.ddnm import ddnm, ddnm_peer
from fcs_lab.baselines.diffpir import diffpir, diffpir_peer
from fcs_lab.baselines.dps import dps, dps_peer
from fcs_lab.baselines.flowchef import flowchef, flowchef_peer
from fcs_lab.baselines.lgd_mc import lgd_mc, lgd_mc_peer
from fcs_lab.baselines.mpgd import mpgd, mpgd_peer
from fcs_lab.baselines.pigdm import pigdm, pigdm_peer
from fcs_lab.baselines.red_diff import red_diff, red_diff_peer
from fcs_lab.baselines.repaint import repaint, repaint_peer

PEERS = {
    "ddnm": ddnm_peer,
    "diffpir": diffpir_peer,
    "dps": dps_peer,
    "flowchef": flowchef_peer,
    "lgd_mc": lgd_mc_peer,
    "mpgd": mpgd_peer,
    "pigdm": pigdm_peer,
    "red_diff": red_diff_peer,
    "repaint": repaint_peer,
}
"""By name: what makes each, with its settings."""

__all__ = [
    "PEERS",
    "cluster_layers",
    "ddnm",
    "diffpir",
    "dps",
    "flowchef",
    "lgd_mc",
    "mpgd",
    "pigdm",
    "red_diff",
    "repaint",
]
