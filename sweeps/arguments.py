"""How a study's runs are carried out, on the command line and in the study's folder: the same for every engine's workers.

`dit sweep` writes `DIR/arguments.json`; `dit worker` reads it, and its own options win where a host differs (another path to the data).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from dit.design.config import RunArguments
from dit.errors import UserError
from dit.store.study import SCHEMA_VERSION, read_json, write_json

CADENCE = ("log_every", "checkpoint_every")
PATHS = ("data", "vae", "inception", "reference")
HARDWARE = ("mesh", "remat", "accumulate", "steps_per_dispatch")


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the options; one that is not given stays None."""
    default = RunArguments()
    parser.add_argument("--wandb", choices=("off", "offline", "online"), help="mirror runs in Weights & Biases")
    parser.add_argument("--log-every", type=int, help=f"steps per logged row (default: {default.log_every})")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        help=f"steps per checkpoint, besides evaluations (default: {default.checkpoint_every})",
    )
    hardware = parser.add_argument_group("how one run uses its devices (no result depends on it, but for rounding)")
    hardware.add_argument(
        "--mesh", help="devices along data, fsdp and tensor, such as data=4,fsdp=2 (default: all as data)"
    )
    hardware.add_argument(
        "--remat",
        choices=("auto", "none", "dots", "full"),
        help="what the backward pass computes again instead of keeping it (default: auto, as little as fits the memory)",
    )
    hardware.add_argument(
        "--accumulate", type=int, help="parts that a batch is taken in, one after another (default: 1)"
    )
    hardware.add_argument(
        "--steps-per-dispatch", type=int, help="training steps given to a device at once (default: several if short)"
    )
    paths = parser.add_argument_group("for studies on latents")
    paths.add_argument("--data", help="encoded images: the folder of `dit encode`, or its gs:// path")
    paths.add_argument("--vae", help="autoencoder that decodes samples to be scored")
    paths.add_argument("--inception", help="Inception weights (default: as `dit evaluate` finds them)")
    paths.add_argument("--reference", help="statistics of the real images: ADM's batch, or a file of `dit reference`")


def given(args: argparse.Namespace, base: RunArguments | None = None) -> RunArguments:
    """The arguments that the options give, `base` (the defaults) where they are silent.

    Raises:
        UserError: for a cadence below 1.
    """
    for name in CADENCE:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a positive whole number")
    values = {name: getattr(args, name) for name in ("wandb", *CADENCE, *HARDWARE, *PATHS)}
    return dataclasses.replace(
        base or RunArguments(), **{name: value for name, value in values.items() if value is not None}
    )


def save(folder: Path, arguments: RunArguments) -> None:
    """Record them in the study's folder; one that holds the same is not touched."""
    path = folder / "arguments.json"
    value = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(arguments)}
    if not path.exists() or read_json(path) != value:
        write_json(path, value)


def load(folder: Path) -> RunArguments:
    """The recorded arguments, the defaults where the folder has none.

    Raises:
        UserError: for a name or a kind of value that this version does not know.
    """
    path = folder / "arguments.json"
    if not path.exists():
        return RunArguments()
    value = read_json(path)
    known: dict[str, Any] = dataclasses.asdict(RunArguments())
    given = {name: one for name, one in value.items() if name != "schema_version"} if isinstance(value, dict) else None
    if given is None or any(name not in known or type(one) is not type(known[name]) for name, one in given.items()):
        raise UserError(
            f"{path} does not hold run arguments of this version: delete it, and sweep again with your options"
        )
    return RunArguments(**given)
