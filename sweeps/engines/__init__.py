"""The engines by name: modules with `declare(parser)`, `check(args)`, `resources(args, run)` and `make(folder, args, listen)`.

A module imports its scheduler's library inside `make`, so that every engine's options can be listed where none is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

from dit.config import RunConfig
from dit.errors import UserError
from sweeps.engine import Engine, Listener, Resources

ENGINES = ("local", "ray", "slurm")


def available() -> list[str]:
    """The engines that this installation has."""
    return [name for name in ENGINES if importlib.util.find_spec(f"sweeps.engines.{name}")]


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare `--engine` and every engine's own options."""
    parser.add_argument("--engine", choices=available(), default="local", help="where cells run (default: local)")
    for name in available():
        importlib.import_module(f"sweeps.engines.{name}").declare(parser)


def check(name: str, args: argparse.Namespace) -> None:
    """Refuse what that engine cannot do, before anything is written.

    Raises:
        UserError: naming the option, its value and what was expected.
    """
    importlib.import_module(f"sweeps.engines.{name}").check(args)


def make(name: str, folder: Path, args: argparse.Namespace, listen: Listener) -> Engine:
    """The engine of that name for the study in `folder`; what happens to cells goes to `listen`.

    Raises:
        UserError: for an engine that is not installed, cannot be reached, or refuses its options.
    """
    if name not in available():
        raise UserError(f"no engine '{name}' here: expected one of {', '.join(available())}")
    return importlib.import_module(f"sweeps.engines.{name}").make(folder, args, listen)


def resources(name: str, args: argparse.Namespace, run: RunConfig) -> Resources:
    """What a cell's command needs under that engine's options."""
    return importlib.import_module(f"sweeps.engines.{name}").resources(args, run)
