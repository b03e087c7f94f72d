"""What the precision that a network runs in asks of what stands around it. How wrong it makes J e is `probes.fd_error`'s."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["HALF", "at_least_float32", "channels_last_if_half"]

HALF = (torch.float16, torch.bfloat16)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype, or float32 where that is more precise."""
    return torch.promote_types(dtype, torch.float32)


def channels_last_if_half(network: nn.Module, dtype: torch.dtype | None) -> None:
    """Lay the convolutions of a network on a CPU channels last, in place, if `dtype`, which it runs in, is a half precision.

    A processor without instructions for these takes several times as long for torch's usual layout.
    """
    if dtype in HALF and all(parameter.device.type == "cpu" for parameter in network.parameters()):
        nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
