"""Where the page's numbers come from: runs with their hashes, code revisions and versions they ran under, and this page's own."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from dataclasses import dataclass
from typing import Any

from analysis.provenance import rows_digest
from analysis.report.tables import Table, table
from analysis.results import StudyResults
from analysis.tables import plain
from dit import __version__
from dit.store.study import RunStore, load_study, read_json

_PACKAGES = ("numpy", "pandas", "scipy")


@dataclass(frozen=True)
class Origin:
    """The runs, what they ran under (one row per distinct environment), and (name, value) pairs of the page."""

    runs: Table
    environments: Table | None
    page: tuple[tuple[str, str], ...]


def origin(study: StudyResults, created: str) -> Origin:
    """The provenance of a study's page made at `created` (ISO 8601)."""
    rows = [{key: plain(value) for key, value in row.items()} for row in study.table.to_dict("records")]
    page = [
        ("page made", created),
        ("dit", __version__),
        ("Python", platform.python_version()),
        *((name, importlib.metadata.version(name)) for name in _PACKAGES),
        *(("rows chosen", one) for one in study.filters),
        ("SHA-256 of the results table", rows_digest(rows)),
        ("Gflops", "one multiply-add is one flop"),
    ]
    if study.folder is None:
        sources = [{"run": row["run"], "source": row["citation"] or row["source"]} for row in rows]
        unique = [dict(pair) for pair in dict.fromkeys(tuple(one.items()) for one in sources)]
        return Origin(table(unique, ["run", "source"]), None, tuple(page))
    statuses, environments, chosen = [], Counter(), study.runs
    for run in (one for one in load_study(study.folder).runs if one.run in chosen):
        store = RunStore(study.folder, run)
        status = store.status()
        statuses.append(
            {
                "run": run.run,
                "hash": run.hash,
                "state": status["state"],
                "step": status.get("step"),
                "of": run.steps,
                "attempts": status.get("attempt"),
                "goodput": status.get("goodput"),
            }
        )
        for path in sorted(store.path.glob("environment-*.json")):
            environments[_environment(read_json(path))] += 1
    made_under = [{**dict(one), "attempts": count} for one, count in environments.most_common()]
    columns = list(dict.fromkeys(name for row in made_under for name in row))
    return Origin(
        table(statuses, ["run", "hash", "state", "step", "of", "attempts", "goodput"]),
        table(made_under, columns) if made_under else None,
        tuple(page),
    )


def _environment(value: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What matters of an environment file, as pairs that can be counted."""
    packages = value.get("packages") or {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    devices = value.get("devices") or []
    told = {
        "git revision": value.get("git") or "not a checkout",
        "devices": ", ".join(f"{count} × {name}" for name, count in Counter(map(str, devices)).items()),
        "python": value.get("python"),
        "versions": versions,
        "platform": value.get("platform"),
    }
    return tuple((name, str(one)) for name, one in told.items() if one)
