"""How a study's runs are carried out, on the command line and in the study's folder: the same for every engine's workers.

`dit sweep` writes `DIR/arguments.json`; `dit worker` reads it, and its own options win where a host differs (another path to the data).
A file that came with a folder does not choose what is read. `DIR/arguments.seal` holds the time of the file's last change by the file
system's own clock, which no copy or archive keeps and every host that mounts the folder sees: without it what the file says of paths and
of Weights & Biases, and all that it says if it is another user's, must be confirmed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from dit.design.config import RunArguments
from dit.errors import UserError
from dit.store.study import SCHEMA_VERSION, read_json, write_json

CADENCE = ("log_every", "checkpoint_every")
PATHS = ("data", "vae", "inception", "reference")
SEAL = "arguments.seal"
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


def declare_trust(parser: argparse.ArgumentParser) -> None:
    """Declare the option that confirms what a folder says."""
    parser.add_argument(
        "--trust-arguments", action="store_true", help="take arguments.json as it is, though it came with the folder"
    )


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


def of(args: argparse.Namespace, folder: Path) -> RunArguments:
    """The arguments that the options give, those recorded in the study's folder where they are silent.

    Raises:
        UserError: as `given` and `load` do, or if a recorded value that would be taken must first be confirmed.
    """
    recorded = load(folder)
    doubtful = {
        name: value
        for name, value in _doubtful(folder, recorded).items()
        if not args.trust_arguments and getattr(args, name, None) is None
    }
    if doubtful:
        said = ", ".join(f"{name}={value!r}" for name, value in doubtful.items())
        raise UserError(
            f"{folder / 'arguments.json'} was not written here by you, and says {said}: "
            "confirm it with --trust-arguments, or give options of your own"
        )
    return given(args, recorded)


def _doubtful(folder: Path, recorded: RunArguments) -> dict[str, Any]:
    """What the recorded arguments say beyond the defaults and is not known to be this user's word."""
    path, default = folder / "arguments.json", dataclasses.asdict(RunArguments())
    values = {name: value for name, value in dataclasses.asdict(recorded).items() if value != default[name]}
    if not values or path.lstat().st_uid != os.geteuid():
        return values
    sealed = read_json(folder / SEAL) if (folder / SEAL).exists() else None
    return {} if sealed == _seal(path) else {name: values[name] for name in ("wandb", *PATHS) if name in values}


def _seal(path: Path) -> dict[str, int]:
    return {"schema_version": SCHEMA_VERSION, "changed_ns": path.lstat().st_ctime_ns}


def save(folder: Path, arguments: RunArguments) -> None:
    """Record them in the study's folder as this user's word; one that holds the same is not touched."""
    path = folder / "arguments.json"
    value = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(arguments)}
    if not path.exists() or read_json(path) != value:
        write_json(path, value)
    if not (folder / SEAL).exists() or read_json(folder / SEAL) != _seal(path):
        write_json(folder / SEAL, _seal(path))


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
