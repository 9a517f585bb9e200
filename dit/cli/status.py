"""Show where a study stands: each cell's state, step, loss, speed, best score and time left, stale workers, and what failed last.

States: planned, queued (an engine has it), running, trained, evaluated, done, failed, retryable (preempted, or lost with its worker: it
goes on when next claimed), cancelled. Goodput is the share of the time of all attempts at a cell, killed ones too, that went into steps
which no later attempt had to do again. With --watch the table is drawn anew every two seconds until all cells have ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from dit.design.metrics import in_order, of_column
from dit.hosts.terminal import steer
from dit.store.study import DONE, hidden_runs


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder")
    parser.add_argument("--where", help="only cells satisfying this, such as \"status == 'failed'\"")
    parser.add_argument(
        "--by", metavar="FIELD", help="cells grouped by this field of the runs, with a count for each value"
    )
    parser.add_argument("--watch", action="store_true", help="go on showing it until all cells have ended")
    parser.add_argument(
        "--json",
        action="store_true",
        help="a list of rows on standard output and nothing else; with --watch, one a line",
    )


def run(args: argparse.Namespace) -> None:
    """Print the status once, or until the study has ended."""
    from dit.design.rows import VARIANT, varied
    from dit.store.archives import opened
    from sweeps.ledger import ENDED, Ledger
    from sweeps.status import axis, status_rows

    ledger = Ledger(opened(args.folder))
    if hidden := hidden_runs(ledger.folder, ledger.runs):
        print(f"{len(hidden)} finished runs in the folder are not in study.json: {hidden[0]}", file=sys.stderr)
    apart = [name for name in next(iter(varied(ledger.study.runs).values()), {}) if name != VARIANT]
    by = axis(ledger.study.runs, args.by)[0] if args.by else apart[0] if len(apart) == 1 else None
    apart = [by, *(name for name in apart if name != by)] if by else apart
    while True:
        rows = status_rows(ledger, by)
        shown = _chosen(rows, args.where)
        if args.json:
            print(json.dumps(shown) if args.watch else json.dumps(shown, indent=1), flush=True)
        else:
            if args.watch and sys.stdout.isatty():
                steer(sys.stdout, "\x1b[2J\x1b[H")
            print(f"{_table(shown, apart)}\n{_totals(rows)}{_by_value(rows, by)}", flush=True)
        if not args.watch or all(row["status"] in ENDED for row in rows):
            return
        time.sleep(2)


def _chosen(rows: list[dict[str, Any]], where: str | None) -> list[dict[str, Any]]:
    if where is None:
        return rows
    from dit.design.query import select

    chosen = {row["run"] for row in select(rows, where)}
    return [row for row in rows if row["run"] in chosen]


def _by_value(rows: list[dict[str, Any]], by: str | None) -> str:
    """A line for each value of the field that rows are grouped by: how many of its cells are done."""
    if by is None:
        return ""
    values = dict.fromkeys(row[by] for row in rows)
    of = {value: [row["status"] == DONE for row in rows if row[by] == value] for value in values}
    return "".join(f"\n{by} {value}: {sum(done)} of {len(done)} done" for value, done in of.items())


def _table(rows: list[dict[str, Any]], apart: list[str]) -> str:
    from tabulate import tabulate

    metrics = in_order({key for row in rows for key in row if of_column(key)})
    shown = [
        {
            "run": row["run"],
            **{name: row[name] for name in apart},
            "status": row["status"] + ("?" if row["stale"] else ""),
            "step": f"{row['step']}/{row['steps']}",
            "loss": row["loss"],
            "images/s": row["images_per_s"],
            **{f"best {metric}": row.get(metric) for metric in metrics},
            "left": _duration(row["left_s"]) if row["status"] != DONE else "",
            "attempts": row["attempts"],
            "goodput": row["goodput"],
            "worker": row["worker"] or row["engine"],
            "reason": (row["reason"] or "")[:80],
        }
        for row in rows
    ]
    used = [name for name in (shown[0] if shown else ()) if any(row[name] not in (None, "") for row in shown)]
    return tabulate([{name: row[name] for name in used} for row in shown], headers="keys", floatfmt=".4g")


def _totals(rows: list[dict[str, Any]]) -> str:
    from sweeps.ledger import STATES
    from sweeps.status import summary

    total = summary(rows)
    parts = [f"{total.states.get(DONE, 0)} of {total.cells} done"]
    parts += [f"{total.states[state]} {state}" for state in STATES if state != DONE and state in total.states]
    if total.left_s != 0:
        workers = (
            f" with {total.workers} worker{'s' * (total.workers != 1)}" if total.workers else " of one worker's time"
        )
        parts.append(f"time left {_duration(total.left_s)}" + (workers if total.left_s is not None else ""))
    if total.goodput is not None:
        parts.append(f"goodput {100 * total.goodput:.1f} %")
    lines = [", ".join(parts)]
    lines += [f"stale: {one}" for one in total.stale]
    lines += [f"last failure: {total.last_failure}"] * bool(total.last_failure)
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    from dit.duration import duration

    return "unknown" if seconds is None else duration(seconds)
