"""Which cells an engine has taken and not yet begun: one file per engine process, so that each has one writer.

    DIR/queues/<engine>-<host>-<pid>.json   engine, owner, detached, and each cell's handle (empty for local)
    DIR/queues/<engine>.json                the same of a scheduler that outlives its client, as whoever asked it last wrote it

A queue says where a cell waits; it never decides a cell's state against the cell's own folder. The queue of a process that is gone from
this host does not count unless its engine is detached.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit.store.lease import is_gone, this_process
from dit.store.study import SCHEMA_VERSION, read_json, write_json


@dataclass
class Queue:
    """The cells that one engine process has in hand."""

    folder: Path
    engine: str
    detached: bool = False
    owner: dict[str, Any] = field(default_factory=this_process)

    @property
    def path(self) -> Path:
        """The queue's file."""
        process = "" if self.detached else f"-{socket.gethostname()}-{os.getpid()}"
        return self.folder / "queues" / f"{self.engine}{process}.json"

    def save(self, cells: Mapping[str, str]) -> None:
        """Record the cells in hand, each with the engine's handle for it."""
        value = {"engine": self.engine, "detached": self.detached, "owner": self.owner, "cells": dict(cells)}
        write_json(self.path, {"schema_version": SCHEMA_VERSION, **value})

    def close(self) -> None:
        """Nothing is in hand any more."""
        self.path.unlink(missing_ok=True)


def queues(folder: Path) -> list[dict[str, Any]]:
    """The queues of the study that still count: `engine`, `detached`, `owner`, `cells`."""
    found = []
    for path in sorted((folder / "queues").glob("*.json")):
        value = read_json(path)
        if not isinstance(value, dict):
            continue
        owner, cells = value.get("owner"), value.get("cells")
        if isinstance(owner, dict) and isinstance(cells, dict) and (value.get("detached") or not is_gone(owner)):
            found.append(value)
    return found


def queued_cells(folder: Path) -> dict[str, str]:
    """Each queued cell's engine."""
    return {cell: str(queue.get("engine")) for queue in queues(folder) for cell in queue["cells"]}
