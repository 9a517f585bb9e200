"""How fast training goes, and how much of the hardware and of the time it uses.

Model FLOP utilisation counts two operations per multiply-add and three forward passes a step, whatever is recomputed, over the peak of the
devices in the precision of the run. A device or precision that is not in the table is `unknown`, never guessed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dit.design.config import Precision, RunConfig
from dit.design.flops import BACKWARD_FACTOR, macs

if TYPE_CHECKING:
    from dit.train.step import Advance

PEAK_FLOPS: dict[str, dict[Precision, float]] = {
    # Per JAX device, dense; on TPU v2 and v3 a device is one of a chip's two cores. Google Cloud's TPU pages.
    "TPU v2": {"bfloat16": 22.5e12},
    "TPU v3": {"bfloat16": 61.5e12},
    "TPU v4": {"bfloat16": 275e12},
    "TPU v5 lite": {"bfloat16": 197e12},
    "TPU v5": {"bfloat16": 459e12},
    "TPU v6 lite": {"bfloat16": 918e12},
    # NVIDIA's data sheets; float32 without TF32.
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA A100 80GB PCIe": {"bfloat16": 312e12, "float32": 19.5e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA H100 PCIe": {"bfloat16": 756e12, "float32": 51e12},
    "NVIDIA H200": {"bfloat16": 989e12, "float32": 67e12},
    "NVIDIA L4": {"bfloat16": 121e12, "float32": 30.3e12},
    "Tesla V100-SXM2-16GB": {"float32": 15.7e12},
    "Tesla V100-SXM2-32GB": {"float32": 15.7e12},
}

TIMINGS = ("images_per_s", "mfu", "step_s", "compile_s", "elapsed_s", "goodput")
"""Columns of a metric row that depend on the machine and its load; all others follow from the run."""


def peak_flops(device_kind: str, precision: Precision) -> float | None:
    """Operations per second of one device at best, two per multiply-add; `None` where the table does not say."""
    return PEAK_FLOPS.get(device_kind, {}).get(precision)


def utilisation(run: RunConfig, images_per_s: float, devices: list[Any]) -> float | str:
    """Model FLOP utilisation, a share of 1, or "unknown"."""
    peaks = [peak_flops(device.device_kind, run.precision) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if len(known) < len(peaks):
        return "unknown"
    return 2 * BACKWARD_FACTOR * macs(run.model) * images_per_s / sum(known)


class Meter:
    """Times one attempt at a run, from its creation on: compiling, steps, and everything between.

    Goodput is the share of that time that the steps themselves took.
    """

    def __init__(self, run: RunConfig, devices: list[Any]):
        self._run, self._devices = run, devices
        self._started = time.perf_counter()
        self._compile_s = self._productive_s = 0.0

    def compile(self, advance: Advance, leaves: list[Any], batch: tuple[Any, Any]) -> float:
        """Trace and compile, unless this process has done so before, so that the call that follows is a step and nothing else; seconds."""
        began = time.perf_counter()
        advance.compile(leaves, *batch)
        seconds = time.perf_counter() - began
        self._compile_s += seconds
        return seconds

    def columns(self, steps: int, done: int, timed: int, seconds: float, first_s: float) -> dict[str, Any]:
        """Columns of a row of `steps` steps, of which this attempt did `done`: `timed` of them one after another in `seconds`, and those of
        a loop's first dispatch in `first_s`.

        `step_s` is what the row's steps took; those of an attempt before count as long as this one's.
        """
        if not timed:
            rate, mfu, seconds = None, None, 0.0
        else:
            rate = timed * self._run.batch_size / seconds
            mfu = utilisation(self._run, rate, self._devices)
        spent = first_s + seconds
        self._productive_s += spent
        elapsed = time.perf_counter() - self._started
        goodput = min(1.0, self._productive_s / elapsed) if elapsed else None
        times = {"compile_s": round(self._compile_s, 3), "elapsed_s": round(elapsed, 3)}
        return {"images_per_s": rate, "mfu": mfu, "step_s": spent * steps / done, **times, "goodput": goodput}
