"""Other methods for the same tasks, one a file, to stand beside Algorithm 1: the same call, the same `Result`.

Each runs in the same driver as `fcs_lab.sample`, so evaluations and backward passes are counted alike.
"""

from fcs_lab.baselines.clustering import cluster_layers
from fcs_lab.baselines.ddnm import ddnm
from fcs_lab.baselines.diffpir import diffpir
from fcs_lab.baselines.dps import dps
from fcs_lab.baselines.flowchef import flowchef
from fcs_lab.baselines.mpgd import mpgd
from fcs_lab.baselines.red_diff import red_diff
from fcs_lab.baselines.repaint import repaint

__all__ = ["cluster_layers", "ddnm", "diffpir", "dps", "flowchef", "mpgd", "red_diff", "repaint"]
