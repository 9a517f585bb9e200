"""The engines by name: modules with `declare(parser)`, `check(args)`, `resources(args, run, declared)` and `make(folder, args, listen)`.

An engine is an entry point of the group `dit.engines`, so that an installed package may bring one. A module imports its scheduler's
library inside `make`, so that every engine's options can be listed where none is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

from dit.design.config import RunConfig
from sweeps.engine import Engine, Listener, Resources
from sweeps.engines import needs

GROUP = "dit.engines"
OURS = ("local", "ray", "slurm")
_FOUND = {point.name: point for point in importlib.metadata.entry_points(group=GROUP) if point.name not in OURS}
ENGINES = (*OURS, *sorted(_FOUND))


def _engine(name: str) -> Any:
    """The engine's module; ours need no installed package."""
    return importlib.import_module(f"sweeps.engines.{name}") if name in OURS else _FOUND[name].load()


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare `--engine` and every engine's own options."""
    parser.add_argument("--engine", choices=ENGINES, default="local", help="where cells run (default: local)")
    needs.declare(parser)
    for name in ENGINES:
        _engine(name).declare(parser)


def check(name: str, args: argparse.Namespace) -> None:
    """Refuse what that engine cannot do, before anything is written.

    Raises:
        UserError: naming the option, its value and what was expected.
    """
    _engine(name).check(args)


def make(name: str, folder: Path, args: argparse.Namespace, listen: Listener) -> Engine:
    """The engine of that name for the study in `folder`; what happens to cells goes to `listen`.

    Raises:
        UserError: for an engine that is not installed, cannot be reached, or refuses its options.
    """
    return _engine(name).make(folder, args, listen)


def resources(name: str, args: argparse.Namespace, run: RunConfig, declared: needs.Declared | None = None) -> Resources:
    """What a cell's command needs under that engine's options, and by the study's own `resources(run)`."""
    return _engine(name).resources(args, run, declared)
