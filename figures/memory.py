"""Peak memory above a loaded model: CUDA's statistic, or on Linux the growth of the process's resident set."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak(device: torch.device, run: Callable[[], Any]) -> int:
    """Bytes that `run()` adds at its peak. On a CPU it is the first run of its process that tells: see `in_a_process`."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        raise SystemExit("peak memory on a CPU is read from /proc, which only Linux has")
    reset.write_text("5")  # the high-water mark becomes the present size
    before = _kilobytes(status, "VmHWM")
    run()
    return (_kilobytes(status, "VmHWM") - before) * 1024


def in_a_process(script: str, *arguments: str) -> int:
    """What `python script --peak ARGUMENTS` prints."""
    # glibc is told to give freed memory back, or what is measured is its fragmentation, which grows with the run.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--peak", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
