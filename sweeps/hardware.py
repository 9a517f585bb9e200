"""The accelerators a study can be planned for: chips, memory, peaks, hosts, interconnect, and the utilisation to expect of them.

A slice's name is its vendor's: `v5e-N` and `v6e-N` count chips, `v3-N`, `v4-N` and `v5p-N` count TensorCores, two to a chip (v4-8 has
four chips); `h100xN` counts GPUs, eight to a host; `cpu` is this machine. Peaks are those of `dit.train.throughput`.

Sources: bandwidths and slice shapes of TPUs, Google's Cloud TPU documentation (pages v3, v4, v5e, v5p, v6e); GPUs, NVIDIA's data sheets
(A100 and H100 SXM 80 GB, H200 SXM). `memory_gib` of a TPU is what its compiler allows a program, read from libtpu 0.0.42's own refusal
of one too large; of a GPU, the three quarters of its memory that JAX reserves unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.

Utilisation is model FLOPs over peak, as (low, expected, high) for transformers of DiT's sizes, from published rates:
- v3: 6.6 % is the paper's own (XL/2 at 5.7 steps/s on v3-256, one image a core); nothing better is published for DiT on it.
- other TPUs: MaxDiffusion publishes 30 % (Wan 2.1, Flux on v5p), MaxText 55-70 % for language models; half of the first is the floor.
- A100: DiT codes span 12.5 % (DiC) and 16.4 % (MaskDiT) to 24.5 % (fast-DiT, 33 % with its recomputation).
- H100, H200: LightningDiT reaches 20 %, MaxText's Llama2-7B 50 %.
- cpu: FLOP/s a core, two to a multiply-add. S/8 to S/2 trained at 32 to 43e9 on AVX-512 cores of 2.5 GHz; nano models, bound by
  overheads, are far below.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from dit.design.config import Precision
from dit.errors import UserError
from dit.train.throughput import peak_flops


@dataclass(frozen=True)
class Band:
    """A quantity with its lower and upper end."""

    low: float
    expected: float
    high: float

    def __mul__(self, factor: float | Band) -> Band:
        by = factor if isinstance(factor, Band) else Band(factor, factor, factor)
        return Band(self.low * by.low, self.expected * by.expected, self.high * by.high)

    def __add__(self, other: Band) -> Band:
        return Band(self.low + other.low, self.expected + other.expected, self.high + other.high)


@dataclass(frozen=True)
class Chip:
    """One kind of chip.

    Attributes:
        device_kind: JAX's name of it. A JAX device is a chip, on v3 one of its two cores: then `devices` is 2.
        others: further names under which JAX has shown it.
        memory_gib: what a program may use of a device.
        bandwidth: of a chip's memory, bytes a second.
        utilisation: of the peak; on a CPU, FLOP/s.
    """

    kind: str
    device_kind: str
    memory_gib: float
    bandwidth: float | None
    interconnect: str
    utilisation: Band
    devices: int = 1
    others: tuple[str, ...] = ()

    def peak(self, precision: Precision) -> float | None:
        """FLOP/s of a chip, two to a multiply-add; `None` on a CPU."""
        peak = peak_flops(self.device_kind, precision)
        if peak is None and precision == "float32" and self.kind in CORES_PER_CHIP:
            half = peak_flops(self.device_kind, "bfloat16")
            peak = None if half is None else half / TPU_FLOAT32_PASSES
        return None if peak is None else peak * self.devices


@dataclass(frozen=True)
class Hardware:
    """A machine or slice to plan for. `topology` is libtpu's name of a TPU slice, with its chip configuration and chips along a host."""

    name: str
    chip: Chip
    chips: int
    hosts: int
    topology: str | None = None
    chip_config: str = "default"
    host_bounds: tuple[int, int, int] = (1, 1, 1)

    @property
    def devices(self) -> int:
        """JAX devices: what a batch is divided over."""
        return self.chips * self.chip.devices

    def flops(self, precision: Precision) -> Band | None:
        """FLOP/s to expect of all of it, two to a multiply-add; `None` where no peak is known."""
        if self.chip.kind == "cpu":
            return self.chip.utilisation
        peak = self.chip.peak(precision)
        return None if peak is None else self.chip.utilisation * (peak * self.chips)

    def is_that_of(self, device_kinds: list[str]) -> bool:
        """Whether a run that listed these devices ran on it. Virtual devices of a CPU all count as the CPU."""
        known = set(device_kinds) <= {self.chip.device_kind, *self.chip.others}
        return bool(device_kinds) and known and (self.chip.kind == "cpu" or len(device_kinds) == self.devices)


TPU = Band(0.15, 0.30, 0.55)
HOPPER = Band(0.20, 0.35, 0.50)
CORES_PER_CHIP = {"v3": 2, "v4": 2, "v5p": 2, "v5e": 1, "v6e": 1}
TPU_FLOAT32_PASSES = 6
"""Products that a TPU makes of one in full float32: it multiplies bfloat16 alone."""
CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v3", "TPU v3", 15.48, 0.90e12, "2-D torus", Band(0.066, 0.15, 0.35), devices=2),
        Chip("v4", "TPU v4", 30.75, 1.228e12, "3-D torus", TPU),
        Chip("v5e", "TPU v5 lite", 15.75, 0.819e12, "2-D torus, 1600 Gbit/s a chip", TPU, others=("TPU v5e",)),
        Chip("v5p", "TPU v5", 95.74, 2.765e12, "3-D torus, 4800 Gbit/s a chip", TPU, others=("TPU v5p",)),
        Chip("v6e", "TPU v6 lite", 31.25, 1.640e12, "2-D torus, 3200 Gbit/s a chip", TPU, others=("TPU v6e",)),
        Chip("a100", "NVIDIA A100-SXM4-80GB", 0.75 * 79.3, 2.039e12, "NVLink 600 GB/s", Band(0.12, 0.22, 0.40)),
        Chip("h100", "NVIDIA H100 80GB HBM3", 0.75 * 79.6, 3.35e12, "NVLink 900 GB/s", HOPPER),
        Chip("h200", "NVIDIA H200", 0.75 * 140.4, 4.80e12, "NVLink 900 GB/s", HOPPER),
    )
}
CPU_FLOPS_PER_CORE = Band(5e9, 30e9, 60e9)
"""What a core delivers; on a CPU this stands for peak times utilisation."""

FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
V3 = {4: "2x2", 16: "4x4", 64: "8x8", 128: "8x16", 256: "16x16", 512: "16x32", 1024: "32x32"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
GPUS_PER_HOST = 8
EXAMPLES = "v5e-8, v5e-16, v4-8, v5p-64, v6e-8, v3-256, a100x8, h100x8, h200x8 or cpu"


def hardware(name: str) -> Hardware:
    """The hardware of that name.

    Raises:
        UserError: for an unknown kind, or a number of chips that it is not sold in.
    """
    if name == "cpu":
        return _this_machine()
    tpu = re.fullmatch(r"(v3|v4|v5e|v5p|v6e)-(\d+)", name)
    if tpu:
        return _tpu(name, tpu[1], int(tpu[2]))
    gpu = re.fullmatch(r"(a100|h100|h200)x(\d+)", name)
    if gpu:
        count = int(gpu[2])
        if count not in (1, 2, 4, 8) and (count == 0 or count % GPUS_PER_HOST):
            raise UserError(f"hardware '{name}': expected 1, 2, 4 or 8 GPUs, or whole hosts of {GPUS_PER_HOST}")
        return Hardware(name, CHIPS[gpu[1]], count, -(-count // GPUS_PER_HOST))
    raise UserError(f"unknown hardware '{name}': expected a slice such as {EXAMPLES}")


def _tpu(name: str, kind: str, count: int) -> Hardware:
    shapes = FLAT if kind in ("v5e", "v6e") else V3 if kind == "v3" else CUBES
    sold = {chips * CORES_PER_CHIP[kind]: chips for chips in shapes}
    if count not in sold:
        raise UserError(f"hardware '{name}': expected {kind}- and one of {', '.join(map(str, sold))}")
    chips = sold[count]
    # One host holds all chips of a small v5e or v6e slice; every other host, of any slice, holds four.
    per_host = chips if shapes is FLAT and chips <= 8 else 4
    bounds = {1: (1, 1, 1), 4: (2, 2, 1), 8: (2, 4, 1)}[per_host]
    config = "megacore" if kind in ("v4", "v5p") else "default"
    return Hardware(name, CHIPS[kind], chips, chips // per_host, f"{kind}:{shapes[chips]}", config, bounds)


def _this_machine() -> Hardware:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    rate = CPU_FLOPS_PER_CORE * float(cores())
    return Hardware("cpu", Chip("cpu", "cpu", memory, None, "none", rate), chips=1, hosts=1)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
