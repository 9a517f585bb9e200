"""What an engine is: it decides where and when a cell's command runs, and knows nothing else.

Every engine launches the same process, `dit worker --study DIR --cell ID`. The truth about a cell is in the study's folder
(`sweeps.ledger`), never in an engine: that a command is gone says nothing of its cell until the ledger is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

PENDING, RUNNING, GONE = "pending", "running", "gone"
CommandState = Literal["pending", "running", "gone"]
"""Of a submitted command: waiting for a place, running, or ended however it ended."""

DONE, USAGE, SOME_FAILED, STOPPED = 0, 2, 3, 75
"""Exit codes of `dit worker` and `dit sweep`; 75 (EX_TEMPFAIL) means preempted or cancelled with the state saved: run it again."""

Listener = Callable[[dict[str, Any]], None]
"""Takes events: `started`, `step`, `score`, `scored`, `warning`, `failed`, `died`, `finished`, each with its `run`.

Workers also tell the local engine that they are `ready`, or `refused` to begin at all and why."""


@dataclass(frozen=True)
class Resources:
    """What one cell's command needs. `chips_per_host` 0 is whatever the host has; `memory_gb` 0 is the engine's default.

    `scheduler` is what the engine's scheduler is told besides, as pairs of an option and its setting.
    """

    platform: Literal["cpu", "gpu", "tpu"] = "cpu"
    hosts: int = 1
    chips_per_host: int = 0
    cpus_per_host: int = 1
    accelerator: str = ""
    topology: str = ""
    memory_gb: float = 0.0
    scheduler: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class CellTask:
    """One cell as an engine sees it: its run's name, the command (a list of arguments, never a shell's line) and its needs."""

    cell: str
    command: tuple[str, ...]
    resources: Resources = field(default_factory=Resources)


class Engine(Protocol):
    """Places commands. `name` is the engine's on the command line; `detached` says that its commands outlive this process.

    `reports` says that it passes on what its commands tell; where it does not, the ledger is read to follow them.
    """

    name: str
    detached: bool
    reports: bool

    def submit(self, cells: Sequence[CellTask]) -> None:
        """Take the cells' commands, in order of urgency. A cell whose command is pending or running is not taken twice.

        Raises:
            UserError: if the engine cannot be reached or refuses them.
        """
        ...

    def poll(self, timeout_s: float = 1.0) -> dict[str, CommandState]:
        """The state of every submitted cell's command, waiting `timeout_s` at most for something to happen."""
        ...

    def cancel(self, cells: Sequence[str]) -> None:
        """End these cells' commands: SIGTERM first, so that they save, then by force."""
        ...

    def detail(self, cell: str) -> str:
        """How the cell's last command ended, in a few words for a person (`exit code -9`); empty where unknown."""
        ...

    def close(self) -> None:
        """Let go of what this process holds; a detached engine's commands go on."""
        ...


def worker_command(
    folder: Path, cell: str | None = None, python: str = sys.executable, options: Sequence[str] = ()
) -> tuple[str, ...]:
    """The command that works on a study: on the one cell, or on whatever is left to claim.

    With -P, so that a folder `sweeps` or `dit` where it is started is not taken for the package. Whoever makes the command has written or
    confirmed the study's arguments.
    """
    chosen = () if cell is None else ("--cell", cell)
    return (
        python,
        "-P",
        "-m",
        "dit",
        "worker",
        "--study",
        str(folder.absolute()),
        "--trust-arguments",
        *chosen,
        *options,
    )
