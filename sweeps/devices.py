"""This machine's processors and accelerators, and each worker's share of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dit.errors import UserError

DEV = Path("/dev")


@dataclass(frozen=True)
class Share:
    """What one worker keeps to: processors, and the variables that show JAX its accelerators alone."""

    cpus: tuple[int, ...]
    environment: dict[str, str] = field(default_factory=dict)


def processors() -> list[int]:
    """The processors that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def gpus() -> list[str]:
    """NVIDIA GPUs that this process may use, by number or name."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [name.removeprefix("nvidia") for name in _device_files(DEV, r"nvidia\d+")]


def tpu_chips() -> list[str]:
    """TPU chips of this host by number."""
    found = [name.removeprefix("accel") for name in _device_files(DEV, r"accel\d+")]
    return found or [str(number) for number, _ in enumerate(_device_files(DEV / "vfio", r"\d+"))]


def _device_files(folder: Path, pattern: str) -> list[str]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(
        (name for name in names if re.fullmatch(pattern, name)), key=lambda name: int(re.sub(r"\D", "", name))
    )


def has_accelerators() -> bool:
    """Whether JAX finds more than processors here."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    return bool(gpus() or tpu_chips() or (DEV / "kfd").exists())


def default_workers() -> int:
    """One worker per processor, eight at most; one per GPU; one in all for a host's TPU chips and other accelerators."""
    if has_accelerators():
        return len(gpus()) or 1
    return min(len(processors()) or os.cpu_count() or 1, 8)


def shares(workers: int) -> list[Share]:
    """The machine divided among so many workers, accelerators evenly and never shared.

    Raises:
        UserError: if there are more workers than accelerators.
    """
    cpus = processors()
    environments = list(_environments(workers))
    return [Share(tuple(cpus[k::workers] or cpus), environments[k]) for k in range(workers)]


def _environments(workers: int) -> Iterator[dict[str, str]]:
    on_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu"
    devices, name = (gpus(), "GPUs") if gpus() else (tpu_chips(), "TPU chips")
    if on_cpu or not devices or workers == 1:
        yield from ({} for _ in range(workers))
        return
    if workers > len(devices):
        raise UserError(
            f"--workers {workers}: expected at most one per accelerator, this machine has {len(devices)} {name}"
        )
    for k in range(workers):
        share = devices[k::workers] if name == "GPUs" else devices[k : k + 1]
        if name == "GPUs":
            yield {"CUDA_VISIBLE_DEVICES": ",".join(share)}
        else:
            yield {
                "TPU_VISIBLE_CHIPS": share[0],
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }


def out_of_memory_kills() -> int:
    """Processes that this kernel has killed for want of memory since it started; 0 where it does not tell."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0
