"""The bill of a study on given hardware: memory, step time, chip-hours and dollars per cell, each with a band, and what a budget buys.

Time is taken from a probe (see `sweeps.probes`) where the same model, batch and precision has been measured on the hardware; where other
cells have, from the spread of the utilisation they reached; else from the stated utilisation of `sweeps.hardware`. A step then costs

    2 · 3 · multiply-adds · batch · (4/3 if blocks are recomputed) / (peak · utilisation)  +  40 bytes a parameter / memory bandwidth,

the second term being AdamW, gradient and moving average in float32, which every data-parallel chip does for itself. Sampling for the
declared scores costs 2 · multiply-adds · steps at the same rate. Not in the bill: compilation, input, checkpoints, decoding, features.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dit.design import flops
from dit.design.config import RunConfig, model_from_json
from dit.design.rows import Row, planned_row, varied
from dit.design.topology import MeshShape, parse_mesh
from dit.errors import UserError
from sweeps import compiled
from sweeps.hardware import Band, Hardware
from sweeps.memory import Need, estimate, step_bytes
from sweeps.prices import Price
from sweeps.probes import Key, Probe, key_of

STATE_TRAFFIC = 40
"""Bytes moved per parameter and step: four float32 arrays read and written, the gradient written and read."""
BAND_COLUMNS = ("step_ms", "hours", "chip_hours", "usd")
Memory = Literal["auto", "compiled", "analytic"]


@dataclass(frozen=True)
class Settings:
    """How a study would be run. `memory` "auto" takes compiled figures where there are any kept, and counts the rest.

    `study` is the file that makes the cells' own parts, where they have some.
    """

    hardware: Hardware
    mesh: str = ""
    remat: str = "auto"
    memory: Memory = "auto"
    price: Price | None = None
    probes: dict[Key, Probe] = field(default_factory=dict)
    study: str = ""

    @property
    def shape(self) -> MeshShape:
        """The mesh: all devices as data unless said otherwise.

        Raises:
            UserError: if it does not take all devices of the hardware.
        """
        shape = parse_mesh(self.mesh) or MeshShape(data=self.hardware.devices)
        if shape.devices != self.hardware.devices:
            raise UserError(
                f"a mesh of {shape} takes {shape.devices} devices, {self.hardware.name} has {self.hardware.devices}: make them equal"
            )
        return shape


def bill(study: str, runs: tuple[RunConfig, ...], settings: Settings) -> list[Row]:
    """One row per cell: the plan's columns, then memory, time and cost; `None` stands for what is not known."""
    rates = _measured_rates(runs, settings)
    steps = [dataclasses.replace(run, seed=0, steps=1, evaluations=()) for run in runs]
    needs = {step: memory_of(step, settings) for step in set(steps)}  # cells of the same step share its memory
    apart = varied(runs)
    return [_row(study, run, settings, needs[step], rates, apart.get(run.run)) for run, step in zip(runs, steps)]


def _row(study: str, run: RunConfig, settings: Settings, need: Need, rates: list[float], apart: Row | None) -> Row:
    hardware = settings.hardware
    row: Row = planned_row(run, study, apart=apart)
    row |= {
        "precision": run.precision,
        "train_exaflops": row["train_gflops"] / 1e9,
        "train_exaflops_two_per_mac": 2 * row["train_gflops"] / 1e9,
        "sampling_exaflops": flops.scoring_gflops(run) / 1e9,
        "hardware": hardware.name,
        "mesh": str(settings.shape),
        "remat": need.remat,
        "remat_auto": need.auto,
        "memory_gib": None if need.needed is None else need.needed / 2**30,
        "memory_limit_gib": hardware.chip.memory_gib,
        "memory_from": need.source,
        "fits": need.fits,
        "why_not": need.why_not,
        **_seen(run, settings, need),
    }
    step, rate, source = step_time(run, settings, need.remat, rates)
    hours = step * (run.steps / 3600) + _sampling_hours(run, rate)
    chip_hours = hours * hardware.chips
    cost = chip_hours * settings.price.usd if settings.price else None
    for name, band in zip(BAND_COLUMNS, (step * 1e3, hours, chip_hours, cost)):
        row[name] = None if band is None else band.expected
        row[f"{name}_low"], row[f"{name}_high"] = (None, None) if band is None else (band.low, band.high)
    return row | {"time_from": source}


def _seen(run: RunConfig, settings: Settings, need: Need) -> Row:
    """The count beside the memory, and of a compiled step its parts and what its text shows; `None` for what was not compiled."""
    counted = None if need.needed is None else step_bytes(run, settings.shape, need.remat) / 2**30
    report = need.report or {}
    parts = report.get("bytes", {})
    return {
        "counted_gib": counted,
        "arguments_gib": parts["arguments"] / 2**30 if parts else None,
        "temporaries_gib": parts["temporaries"] / 2**30 if parts else None,
        "collectives": _listed(report["collectives"]) if parts else None,
        "host_callbacks": len(report["host_callbacks"]) if parts else None,
        "attention": _attention(report["attention"]) if report else None,
        "compile_s": report.get("compile_s"),
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _attention(told: dict[str, dict[str, int]]) -> str:
    return f"{_listed(told['products'])}; softmax {' '.join(told['softmax'])}"


def memory_of(run: RunConfig, settings: Settings) -> Need:
    """Memory of one device under the mesh and policy: compiled where asked for or kept, else counted."""
    shape, hardware = settings.shape, settings.hardware
    limit = int(hardware.chip.memory_gib * 2**30)
    counted = estimate(run, shape, settings.remat, limit, on_cpu=hardware.chip.kind == "cpu")
    if counted.needed is None or settings.memory == "analytic":
        return counted
    arguments = (run, hardware, settings.mesh, settings.remat)
    report = (
        compiled.compiled(*arguments, settings.study) if settings.memory == "compiled" else compiled.kept(*arguments)
    )
    if report is None:
        return counted
    why = None if report["fits"] else f"needs {report['needed'] / 2**30:.1f} GiB of {hardware.chip.memory_gib:.2f}"
    return Need(report["remat"], report["needed"], "compiled", report["fits"], report["auto"], why, report)


def compile_missing(runs: tuple[RunConfig, ...], settings: Settings, tell: Callable[[str], None]) -> None:
    """Compile the step of every cell that has not been compiled before, smallest models first; `tell` hears how far it is.

    Raises:
        UserError: if steps cannot be compiled for the hardware here.
    """
    compiled.require_compiler(settings.hardware)
    arguments = (settings.hardware, settings.mesh, settings.remat)
    possible = [run for run in runs if run.batch_size % settings.shape.batch_shards == 0]
    missing = [run for run in possible if compiled.kept(run, *arguments) is None]
    for number, run in enumerate(sorted(missing, key=lambda run: flops.macs(run.model)), start=1):
        started = time.monotonic()
        report = compiled.compiled(run, *arguments, settings.study)
        said = f"{report['needed'] / 2**30:.2f} GiB with remat {report['remat']}, {time.monotonic() - started:.0f} s"
        tell(f"compiled {number} of {len(missing)}: {run.run}: {said}")


def step_time(run: RunConfig, settings: Settings, remat: str, rates: list[float]) -> tuple[Band, Band, str]:
    """Seconds of a step, FLOP/s (two to a multiply-add) of the whole hardware, and where both come from.

    Args:
        rates: FLOP/s that other cells of the study reached where they were measured.
    """
    hardware = settings.hardware
    operations = 2 * flops.BACKWARD_FACTOR * flops.macs(run.model) * run.batch_size
    probe = settings.probes.get(key_of(run))
    if probe is not None:
        seconds = Band(*(run.batch_size / getattr(probe.images_per_s, end) for end in ("high", "expected", "low")))
        return seconds, _inverse(seconds, operations), "probe"
    if rates:
        rate, source = Band(min(rates), statistics.median(rates), max(rates)), "other probes"
    else:
        stated = hardware.flops(run.precision)
        if stated is None:
            raise UserError(f"no peak of {hardware.name} in {run.precision} is known: give a measured run with --probe")
        rate, source = stated, "stated"
    recomputed = 4 / 3 if remat == "full" and source == "stated" else 1.0
    seconds = _inverse(rate, operations * recomputed)
    if source == "stated" and hardware.chip.bandwidth:
        update = STATE_TRAFFIC * flops.params(run.model) / settings.shape.fsdp / settings.shape.tensor
        seconds = seconds + Band(1.0, 1.0, 1.0) * (update / hardware.chip.bandwidth)
    return seconds, rate, source


def _inverse(band: Band, amount: float) -> Band:
    return Band(amount / band.high, amount / band.expected, amount / band.low)


def _sampling_hours(run: RunConfig, rate: Band) -> Band:
    return _inverse(rate, 2e9 * flops.scoring_gflops(run)) * (1 / 3600)


def _measured_rates(runs: tuple[RunConfig, ...], settings: Settings) -> list[float]:
    """FLOP/s of every probe of the hardware in the precisions of the study."""
    precisions = {run.precision for run in runs}
    rates = []
    for probe in settings.probes.values():
        if probe.precision in precisions:
            model = model_from_json(probe.model)
            rates.append(2 * flops.BACKWARD_FACTOR * flops.macs(model) * probe.images_per_s.expected)
    return rates


def total(rows: list[Row]) -> dict[str, Any]:
    """Sums over cells, each end of a band by itself; a sum over something unknown is `None`."""
    sums: dict[str, Any] = {"cells": len(rows), "fit": sum(row["fits"] for row in rows)}
    names = ["train_exaflops", "train_exaflops_two_per_mac", "sampling_exaflops"]
    names += [f"{name}{end}" for name in BAND_COLUMNS[1:] for end in ("_low", "", "_high")]
    for name in names:
        values = [row[name] for row in rows]
        sums[name] = None if any(value is None for value in values) else sum(values)
    return sums


@dataclass(frozen=True)
class Budget:
    """An amount of "usd", "hours" (of the hardware, one cell after another) or "chip_hours"."""

    amount: float
    column: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that `500usd`, `300h` or `2400chip-h` names.

        Raises:
            UserError: for anything else.
        """
        for suffix, column in (("usd", "usd"), ("chip-h", "chip_hours"), ("h", "hours")):
            if text.endswith(suffix):
                try:
                    amount = float(text.removesuffix(suffix))
                except ValueError:
                    break
                if 0 < amount < float("inf"):
                    return cls(amount, column)
        raise UserError(f"budget '{text}': expected dollars, hours or chip-hours, such as 500usd, 300h or 2400chip-h")


def choose(rows: list[Row], budget: Budget) -> list[bool]:
    """Which cells to run: the cheapest by expected cost, equal ones in the study's order, as long as their sum is within the budget.

    No other choice buys more cells. Cells that do not fit the memory are left out.

    Raises:
        UserError: if the budget is in dollars and the hardware has no price.
    """
    if any(row[budget.column] is None for row in rows):
        raise UserError(
            "a budget in usd needs the chip's price: add it to a file given with --prices, or give hours such as 300h"
        )
    chosen, spent = [False] * len(rows), 0.0
    for index in sorted((i for i, row in enumerate(rows) if row["fits"]), key=lambda i: rows[i][budget.column]):
        spent += rows[index][budget.column]
        if spent > budget.amount:
            break
        chosen[index] = True
    return chosen
