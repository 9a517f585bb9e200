"""Where a run ran: versions, git revision and devices, kept beside its results and no part of its identity."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "dit-scaling",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "scipy",
    "scikit-learn",
    "mlxtend",
)


def cache_folder() -> Path:
    """Where extractors, compiled programs and plans are kept: `$DIT_CACHE`, else `~/.cache/dit-scaling`."""
    return Path(os.environ.get("DIT_CACHE", Path.home() / ".cache" / "dit-scaling"))


def environment() -> dict[str, Any]:
    """Versions, git revision (null outside a checkout), platform and devices of this process."""
    import jax

    devices = jax.devices()
    return {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in devices],
        "backend": jax.default_backend(),
        "processes": jax.process_count(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Revision of the checkout that this file is in, with `-dirty` where tracked files differ."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
