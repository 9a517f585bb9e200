"""Reads what wandb wrote offline, by its file format alone: LevelDB's log framing around protocol buffers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """What one .wandb file holds, in the shape of a run of wandb's API."""

    id: str = ""
    name: str = ""
    group: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    state: str = "running"

    def scan_history(self) -> Iterator[dict[str, Any]]:
        """As wandb's own."""
        return iter(self.rows)


def offline_run(path: Path) -> OfflineRun:
    """The run in a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    found = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.id, found.name, found.group, found.project = (
                    run.run_id,
                    run.display_name,
                    run.run_group,
                    run.project,
                )
                found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            case "metric":
                found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "history":
                items = record.history.item
                found.rows.append(
                    {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
                )
            case "exit":
                found.exit_code = record.exit.exit_code
                found.state = "failed" if found.exit_code else "finished"
    return found


def _records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    place, whole = 7, b""  # after wandb's own header
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""
