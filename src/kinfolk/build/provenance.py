"""Where a result comes from: the command, the versions and the machine that made it."""

import os
import platform
import shlex
import sys
from dataclasses import asdict
from typing import Any

import torch
import transformers

import kinfolk
from kinfolk.train.engine import Engine


def command_line() -> str:
    """How this process was called."""
    return shlex.join(["kinfolk", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "kinfolk": kinfolk.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def machine(engine: Engine) -> dict[str, Any]:
    """What computes: device, processes and how they share the work, threads."""
    name = torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else platform.machine()
    return {
        "device": engine.device.type,
        "name": name,
        "processes": engine.world_size,
        "layout": asdict(engine.layout),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
