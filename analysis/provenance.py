"""The sidecar of a figure: which study, runs, rows, protocols, code and parameters made it, each with a hash that changes when it does."""

from __future__ import annotations

import ast
import datetime
import functools
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import analysis
from analysis.frames import Frame
from analysis.results import StudyResults
from analysis.tables import plain
from dit import __version__
from dit.design.config import digest
from dit.design.rows import Row
from dit.store.study import SCHEMA_VERSION, write_json

_ROOT = Path(analysis.__file__).parents[1]
# These read the rows; what they read is compared row by row, so a change in them makes no figure stale by itself.
_READERS = {"analysis", *(f"analysis.{name}" for name in ("frames", "provenance", "results", "tables"))}


@dataclass(frozen=True)
class Made:
    """How a figure was made: its name and caption, the style and row filter it was drawn with, the hash of the code, and its files."""

    name: str
    caption: str
    style: str
    where: str | None
    code_sha256: str
    files: tuple[Path, ...]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_digest(rows: list[Row]) -> str:
    """SHA-256 of a figure's rows (64 hexadecimal digits), independent of their order."""
    return digest(sorted(rows, key=repr), length=64)


def code_digest(*modules: str) -> str:
    """SHA-256 (64 hexadecimal digits) of the sources of these modules and all that they import of `analysis`, less what only reads rows."""
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in seen and name not in _READERS:
            source, imported = _source(name)
            seen[name] = hashlib.sha256(source).hexdigest()
            waiting += imported
    return digest(seen, length=64)


@functools.cache
def _source(module: str) -> tuple[bytes, tuple[str, ...]]:
    """A module's source, and the modules of `analysis` that it imports."""
    source = (_path(module) or _ROOT).read_bytes()
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return source, tuple(name for name in dict.fromkeys(found) if name.startswith("analysis.") and _path(name))


def _path(module: str) -> Path | None:
    base = _ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


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


def write_sidecar(path: Path, study: StudyResults, made: Made, rows: Frame, metric: str, extra: dict[str, Any]) -> None:
    """Write a figure's sidecar; `extra` is what that figure adds (a correlation, hashes of sample files)."""
    shown = figure_rows(rows, metric)
    used = [key for key in dict.fromkeys(row["protocol"] for row in shown) if key is not None]
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "figure": made.name,
            "caption": made.caption,
            "study": study.name,
            "style": made.style,
            "where": made.where,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "dit_version": __version__,
            "matplotlib_version": importlib.metadata.version("matplotlib"),
            "convention": "one multiply-add is one flop",
            "code_sha256": made.code_sha256,
            "files_sha256": {file.name: file_digest(file) for file in made.files},
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
