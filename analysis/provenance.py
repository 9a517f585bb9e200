"""The sidecar of a figure: which study, runs, rows and protocols made it, with a hash that changes when a row does."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.tables import plain
from dit import __version__
from dit.config import digest
from dit.rows import Row
from dit.store import SCHEMA_VERSION, write_json


def rows_digest(rows: list[Row]) -> str:
    """SHA-256 of a figure's rows (64 hexadecimal digits), independent of their order."""
    return digest(sorted(rows, key=repr), length=64)


def figure_rows(rows: Frame, metric: str) -> list[Row]:
    """The rows behind a figure: run, step, protocol, score and source (of a published score: where it is printed)."""
    return [
        {
            "run": plain(row["run"]),
            "step": plain(row["step"]),
            "protocol": plain(row["protocol"]),
            "metric": metric,
            "value": plain(row[metric]),
            "source": plain(row.get("citation")) or plain(row.get("source")),
        }
        for row in rows.to_dict("records")
    ]


def write_sidecar(
    path: Path, study: StudyResults, name: str, caption: str, rows: Frame, metric: str, extra: dict[str, Any]
) -> None:
    """Write the sidecar of figure `name`; `extra` is what that figure adds (a correlation, hashes of sample files)."""
    shown = figure_rows(rows, metric)
    used = [key for key in dict.fromkeys(row["protocol"] for row in shown) if key is not None]
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "figure": name,
            "caption": caption,
            "study": study.name,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "dit_version": __version__,
            "convention": "one multiply-add is one flop",
            "rows_sha256": rows_digest(shown),
            "protocols": {key: study.protocols[key] for key in used},
            "floors": {key: study.floors[key] for key in used if key in study.floors},
            "runs": [
                {"run": run, "hash": study.identities.get(run)} for run in dict.fromkeys(row["run"] for row in shown)
            ],
            "rows": shown,
            **extra,
        },
    )
