"""The engines by name: modules with `declare(parser)`, `check(args)`, `resources(args, run, declared)` and `make(folder, args, listen)`.

A module imports its scheduler's library inside `make`, so that every engine's options can be listed where none is installed.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from dit.design.config import RunConfig
from sweeps.engine import Engine, Listener, Resources
from sweeps.engines import needs

ENGINES = ("local", "ray", "slurm")


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare `--engine` and every engine's own options."""
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where cells run (default: local)")
    needs.declare(parser)
    for name in ENGINES:
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
    return importlib.import_module(f"sweeps.engines.{name}").make(folder, args, listen)


def resources(name: str, args: argparse.Namespace, run: RunConfig, declared: needs.Declared | None = None) -> Resources:
    """What a cell's command needs under that engine's options, and by the study's own `resources(run)`."""
    return importlib.import_module(f"sweeps.engines.{name}").resources(args, run, declared)
