"""What one cell needs of a cluster: from the study's own file and from the command line, for every engine alike.

A study's file may define `resources(run)`: a dictionary with `hardware` (a slice or GPUs by name, as `dit plan` takes it), fields of
`sweeps.engine.Resources`, and `slurm`, a dictionary of sbatch's long options. An option on the command line wins over it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from dit.design.config import RunConfig
from dit.errors import UserError
from sweeps.engine import Resources

Declared = Callable[[RunConfig], Mapping[str, Any]]
"""A study's own `resources(run)`."""

FIELDS = ("hardware", "hosts", "chips_per_host", "cpus_per_host", "accelerator", "topology", "memory_gb", "slurm")
GPUS = ("a100", "h100", "h200")


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options that the engines of clusters share."""
    group = parser.add_argument_group("what a cell needs (engines ray and slurm)")
    group.add_argument(
        "--hardware", metavar="NAME", help="accelerators of one cell, such as v5e-8, v5p-64, h200x8 or cpu"
    )
    group.add_argument("--hosts", "--nodes", type=int, metavar="N", help="hosts of one cell (default: 1)")
    group.add_argument("--gpus-per-host", type=int, metavar="N", help="GPUs of one cell on each host, of any kind")
    group.add_argument(
        "--cpus-per-host", type=int, metavar="N", help="processors of one cell on each host (default: 1)"
    )
    group.add_argument("--memory-gb", type=float, metavar="GB", help="memory of one cell on each host")
    group.add_argument(
        "--python", metavar="PATH", help="the interpreter on the cluster's machines that has dit installed"
    )


def resources(args: argparse.Namespace, run: RunConfig, declared: Declared | None = None) -> Resources:
    """What a cell's command needs: the study's `resources(run)`, with the options that were given in their place.

    Raises:
        UserError: for what no cluster can give, naming where it was asked for.
    """
    where = f"resources() of the study for {run.run}"
    needs = Resources() if declared is None else _checked(_from_study(declared(run), where), where)
    given: dict[str, Any] = {}
    if args.hardware is not None:
        given = slice_of(args.hardware)
        if args.hosts not in (None, given["hosts"]) and given["platform"] != "cpu":
            raise UserError(f"--hosts {args.hosts}: {args.hardware} has {given['hosts']}, leave --hosts out")
    if args.gpus_per_host is not None:
        if args.hardware is not None:
            raise UserError(
                f"--gpus-per-host {args.gpus_per_host}: --hardware {args.hardware} says it already, leave one out"
            )
        given |= {"platform": "gpu" if args.gpus_per_host else "cpu", "chips_per_host": args.gpus_per_host}
    options = {"hosts": args.hosts, "cpus_per_host": args.cpus_per_host, "memory_gb": args.memory_gb}
    given |= {name: value for name, value in options.items() if value is not None}
    return _checked(dataclasses.replace(needs, **given), "the command line")


def slice_of(name: str) -> dict[str, Any]:
    """Platform, accelerator, hosts, chips per host and topology of the hardware of that name.

    Raises:
        UserError: for a name that is none.
    """
    from sweeps.hardware import hardware

    machine = hardware(name)
    kind = machine.chip.kind
    if kind == "cpu":
        return {"platform": "cpu", "accelerator": "", "hosts": 1, "chips_per_host": 0, "topology": ""}
    return {
        "platform": "gpu" if kind in GPUS else "tpu",
        "accelerator": kind,
        "hosts": machine.hosts,
        "chips_per_host": machine.chips // machine.hosts,
        "topology": (machine.topology or "").partition(":")[2],
    }


def _from_study(value: Any, where: str) -> Resources:
    if not isinstance(value, Mapping) or not value.keys() <= set(FIELDS):
        raise UserError(f"{where} gave {value!r}: expected a dictionary with any of {', '.join(FIELDS)}")
    fields = dict(value)
    scheduler = fields.pop("slurm", {})
    if not isinstance(scheduler, Mapping):
        raise UserError(f"{where} gave slurm={scheduler!r}: expected a dictionary of sbatch's options")
    name = fields.pop("hardware", None)
    base = {} if name is None else slice_of(str(name))
    if name is None and fields.get("chips_per_host"):
        base["platform"] = "gpu"
    pairs = tuple((str(option), str(setting)) for option, setting in scheduler.items())
    return Resources(**{**base, **fields, "scheduler": pairs})


def _checked(needs: Resources, where: str) -> Resources:
    """The same, if a cluster could give it."""
    for name, least in (("hosts", 1), ("cpus_per_host", 1), ("chips_per_host", 0)):
        value = getattr(needs, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"{name} is {value!r} in {where}: expected a whole number of at least {least}")
    if not isinstance(needs.memory_gb, int | float) or not 0 <= needs.memory_gb < float("inf"):
        raise UserError(f"memory_gb is {needs.memory_gb!r} in {where}: expected a number of gigabytes")
    if needs.topology and not re.fullmatch(r"\d+(x\d+){1,2}", str(needs.topology)):
        raise UserError(f"topology is {needs.topology!r} in {where}: expected such as 2x4 or 2x2x4")
    return needs
