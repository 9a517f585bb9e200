"""List a study's cells before anything runs; with --hardware, also what they will need, take and cost there.

Gflops count one multiply-add as one flop; training compute is Gflops x batch x steps x 3. With --hardware the exit code is 2 if a cell does
not fit. What the figures rest on, and how far they were off where it is known: docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dit.errors import UserError

BILL_ONLY = ("memory", "mesh", "remat", "precision", "budget", "prices", "probe", "save_probes")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("study", help="a study's name, its folder, or the path of a Python file with runs()")
    parser.add_argument("--where", help="only cells satisfying this, such as \"size == 'S' and patch_size == 2\"")
    parser.add_argument("--sort", help="column to sort by")
    parser.add_argument("--descending", action="store_true", help="largest first")
    parser.add_argument("--columns", help="comma-separated columns to show")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "markdown", "latex"), default="table", help="(default: table)"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    group = parser.add_argument_group("the bill on given hardware")
    group.add_argument(
        "--hardware", help="v5e-8, v5e-16, v4-8, v5p-64, v6e-8, v3-256, a100x8, h100x8, h200x8, ... or cpu"
    )
    group.add_argument(
        "--memory",
        choices=("auto", "compiled", "analytic"),
        help="memory by compiling each cell's step ahead of time (TPUs, with libtpu; minutes), or counted; "
        "auto (the default) shows what has been compiled before and counts the rest",
    )
    group.add_argument(
        "--verify-memory", action="store_const", const="compiled", dest="memory", help="the same as --memory compiled"
    )
    group.add_argument(
        "--mesh", help="devices along data, fsdp and tensor, such as data=4,fsdp=2 (default: all as data)"
    )
    group.add_argument("--remat", choices=("auto", "none", "dots", "full"), help="what is recomputed (default: auto)")
    group.add_argument("--precision", choices=("float32", "bfloat16"), help="plan the cells as if they declared this")
    group.add_argument(
        "--budget", help="choose the cells that it pays for: 500usd, 300h (of the hardware) or 2400chip-h"
    )
    group.add_argument("--prices", type=Path, metavar="FILE", help="TOML file of prices instead of the package's own")
    group.add_argument(
        "--probe",
        type=Path,
        action="append",
        metavar="DIR",
        help="take speed from runs in this study's folder, or from a probe file",
    )
    group.add_argument("--save-probes", type=Path, metavar="FILE", help="write the measured speeds to a probe file")


def run(args: argparse.Namespace) -> int:
    """Print the plan; totals go to standard error."""
    from sweeps.study import declared, subset

    study = declared(args.study, check=bool(args.hardware))
    runs = subset(study, args.where)
    style = "json" if args.json else args.format
    if args.hardware:
        return _bill(args, study.name, runs, style)
    for name in BILL_ONLY:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --hardware, such as --hardware v5e-8")
    from analysis import tables
    from dit.design.rows import VARIANT
    from sweeps.plan import COLUMNS, plan, total

    rows = plan(study, runs)
    shown = [name for name in rows[0] if style == "json" or name in (*COLUMNS, VARIANT)]
    columns = _columns(args, rows, shown)
    print(tables.render(rows, columns, style), end="")
    bill = total(runs)
    print(
        f"{bill.cells} cell{'s' * (bill.cells != 1)}: {bill.train_gflops:.3e} Gflops of training (Gflops x batch x steps x 3), "
        f"{bill.sampling_gflops:.3e} Gflops of sampling for their scores",
        file=sys.stderr,
    )
    return 0


def _columns(args: argparse.Namespace, rows: list[dict[str, Any]], default: list[str]) -> list[str]:
    """Sort the rows, and the columns to show.

    Raises:
        UserError: for an unknown column.
    """
    columns = [name.strip() for name in args.columns.split(",")] if args.columns else default
    for name in [*columns, *([args.sort] if args.sort else [])]:
        if name not in rows[0]:
            raise UserError(f"unknown column '{name}': expected one of {', '.join(rows[0])}")
    if args.sort:
        rows.sort(key=lambda row: (row[args.sort] is None, row[args.sort]), reverse=args.descending)
    return columns


BAND_COLUMNS = ("step_ms", "hours", "chip_hours", "usd")
SHOWN = (
    "block", "size", "patch_size", "seed", "variant", "params", "gflops", "train_exaflops", "precision", "remat", "memory_gib",
    "memory_from", "fits", "step_ms", "chip_hours", "usd", "time_from",
)  # fmt: skip


def _bill(args: argparse.Namespace, study: str, runs: tuple[Any, ...], style: str) -> int:
    """Print the bill on the given hardware; 2 if a cell does not fit."""
    import dataclasses

    from analysis import tables
    from sweeps.bill import Budget, Settings, bill, choose, compile_missing
    from sweeps.hardware import hardware
    from sweeps.prices import load_prices
    from sweeps.probes import load_probes, save_probes

    machine = hardware(args.hardware)
    budget = Budget.parse(args.budget) if args.budget else None
    if args.save_probes and not args.probe:
        raise UserError("--save-probes needs --probe DIR, where the speeds are measured")
    probes = load_probes(args.probe or [], machine)
    settings = Settings(
        machine,
        args.mesh or "",
        args.remat or "auto",
        args.memory or "auto",
        load_prices(args.prices).get(machine.chip.kind),
        probes,
        args.study,
    )
    settings.shape  # noqa: B018  # refuse a mesh of another size before anything is compiled
    if args.precision:
        runs = tuple(dataclasses.replace(run, precision=args.precision) for run in runs)
    if args.save_probes:
        save_probes(args.save_probes, probes)
    if settings.memory == "compiled":
        compile_missing(runs, settings, lambda text: print(text, file=sys.stderr, flush=True))
    rows = bill(study, runs, settings)
    if budget:
        for row, chosen in zip(rows, choose(rows, budget)):
            row["chosen"] = chosen
    shown = [
        name for name in SHOWN if name in rows[0] and not (name == "seed" and len({row["seed"] for row in rows}) == 1)
    ]
    columns = _columns(
        args, rows, list(rows[0]) if style in ("json", "csv") else [*shown, *(["chosen"] if budget else [])]
    )
    notes = _notes(rows, settings, args.budget)
    if style == "json":
        print(json.dumps(_as_json(study, rows, columns, settings, notes), indent=1, allow_nan=False))
    elif style == "csv":
        print(tables.render(rows, columns, style), end="")
    else:
        print(tables.render([_readable(row) for row in rows], columns, style))
    print("\n".join(notes), file=sys.stdout if style in ("table", "markdown") else sys.stderr)
    misfits = [row for row in rows if not row["fits"]]
    for row in misfits:
        print(f"dit plan: {row['run']} does not fit on {machine.name}: {row['why_not']}", file=sys.stderr)
    return 2 if misfits else 0


def _as_json(
    study: str, rows: list[dict[str, Any]], columns: list[str], settings: Any, notes: list[str]
) -> dict[str, Any]:
    from analysis.tables import plain
    from sweeps.bill import total

    machine, price = settings.hardware, settings.price
    return {
        "study": study,
        "hardware": {
            "name": machine.name,
            "chips": machine.chips,
            "hosts": machine.hosts,
            "memory_gib_per_device": machine.chip.memory_gib,
            "interconnect": machine.chip.interconnect,
            "usd_per_chip_hour": None if price is None else price.usd.expected,
            "price_as_of": None if price is None else price.as_of.isoformat(),
            "price_source": None if price is None else price.source,
        },
        "cells": [{name: plain(row[name]) for name in columns} for row in rows],
        "total": total([row for row in rows if row["fits"]]),
        "chosen": total([row for row in rows if row["chosen"]]) if "chosen" in rows[0] else None,
        "notes": notes,
    }


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """The row with each band in its one column, and words for truths."""
    words = {name: "yes" if row[name] else "no" for name in ("fits", "chosen") if name in row}
    return row | words | {name: _band(row, name) for name in BAND_COLUMNS}


def _band(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "unknown"
    return f"{_short(row[name])} ({_short(row[f'{name}_low'])} to {_short(row[f'{name}_high'])})"


def _short(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _notes(rows: list[dict[str, Any]], settings: Any, budget: str | None) -> list[str]:
    """What the figures rest on, and their sums."""
    from sweeps.compiled import versions

    notes = [
        "Exaflops count likewise, as the paper does. Peaks and utilisation count two to a multiply-add: FLOPs = 2 x exaflops.",
        f"{_machine(settings.hardware)} for programs; mesh {settings.shape}.",
    ]
    sources = Counter(row["memory_from"] for row in rows)
    if compiled := sources["compiled"]:
        packages = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
        notes.append(f"Memory of {compiled} cells: the training step compiled ahead of time ({packages}).")
    if counted := sources["analytic"]:
        notes.append(
            f"Memory of {counted} cells: counted, not compiled (analytic); --memory compiled verifies it for TPUs."
        )
    if heavier := [row["run"] for row in rows if row["fits"] and row["remat_auto"] not in (None, row["remat"])]:
        notes.append(
            f"Train with the remat shown: left to itself, training keeps more than fits for {', '.join(heavier)}."
        )
    notes += _time_notes(rows, settings)
    if settings.price:
        price = settings.price
        spread = f" ({price.usd.low:g} to {price.usd.high:g})" if price.usd.low < price.usd.high else ""
        dollars = f"{price.usd.expected:g} USD{spread} a chip and hour"
        notes.append(f"Price: {dollars}, as of {price.as_of}: {price.source}.")
    else:
        notes.append(
            f"Price: none known for {settings.hardware.chip.kind}; put one in a file and give it with --prices."
        )
    notes.append(f"Total of {_sums(rows, 'fits')}.")
    if budget:
        notes.append(f"{budget} buys, cheapest cells first, {_sums(rows, 'chosen')}.")
    return notes


def _machine(machine: Any) -> str:
    """What the hardware is, up to its memory."""
    from sweeps.hardware import cores

    if machine.chip.kind == "cpu":
        return f"cpu: this machine, {cores()} cores, {machine.chip.memory_gib:.2f} GiB"
    chips = f"{machine.chips} chip{'s' * (machine.chips > 1)} ({machine.chip.interconnect})"
    hosts = f"{machine.hosts} host{'s' * (machine.hosts > 1)}"
    return f"{machine.name}: {chips} on {hosts}, {machine.chip.memory_gib:.2f} GiB a device"


def _time_notes(rows: list[dict[str, Any]], settings: Any) -> list[str]:
    sources = Counter(row["time_from"] for row in rows)
    use = settings.hardware.chip.utilisation
    said = {
        "probe": "measured: the median of logged images per second, its tenth and ninetieth percentile",
        "other probes": "not measured; the utilisation that measured cells reached on this hardware, lowest to highest",
        "stated": "not measured; "
        + (
            f"a stated {use.expected:.1%} of peak ({use.low:.1%} to {use.high:.1%}), from published rates"
            if settings.hardware.chip.kind != "cpu"
            else f"a stated {use.expected / 1e9:.0f}e9 FLOP/s ({use.low / 1e9:.0f} to {use.high / 1e9:.0f}) of all cores"
        ),
    }
    return [f"Time of {count} cells: {said[source]}." for source, count in sources.items()] + [
        "Hours include sampling for the declared scores; not compilation, input, checkpoints, decoding and feature extraction."
    ]


def _sums(rows: list[dict[str, Any]], which: str) -> str:
    from sweeps.bill import total

    sums = total([row for row in rows if row[which]])
    cost = "" if sums["usd"] is None else f", {_band(sums, 'usd')} USD"
    training = f"{sums['train_exaflops']:.4g} exaflops of training ({sums['train_exaflops_two_per_mac']:.4g}e18 FLOPs)"
    return (
        f"{sums['cells']} of {len(rows)} cells: {training} and {sums['sampling_exaflops']:.4g} of sampling, "
        f"{_band(sums, 'hours')} hours of the hardware one cell after another, {_band(sums, 'chip_hours')} chip-hours{cost}"
    )
