"""Show where a study stands: state, step, loss and best score of each cell, and what failed.

With --watch the table is drawn anew every two seconds until all cells have ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from dit.rows import planned_row
from dit.store import DONE, FAILED, load_study


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the study's folder")
    parser.add_argument("--watch", action="store_true", help="go on showing it until all cells have ended")
    parser.add_argument("--json", action="store_true", help="a list of rows on standard output and nothing else")


def run(args: argparse.Namespace) -> None:
    """Print the status once, or until the study has ended."""
    while True:
        rows = status_rows(args.folder)
        if args.json:
            print(json.dumps(rows, indent=1))
        else:
            if args.watch and sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print(_table(rows))
        if not args.watch or all(row["status"] in (DONE, FAILED) for row in rows):
            return
        time.sleep(2)


def status_rows(folder: Path) -> list[dict[str, Any]]:
    """A row per cell: the columns of the results table as far as training has come, with `loss` and the best scores."""
    from sweeps.sweep import statuses

    study = load_study(folder)
    rows = []
    for cell in statuses(study, folder):
        run, status = cell["run"], cell["status"]
        state = DONE if cell["done"] else status["state"]
        row = planned_row(run, study.name, "running" if state == DONE and not cell["done"] else state)
        step = status["step"]
        progress = {
            "step": step,
            "images_seen": step * run.batch_size,
            "train_gflops": row["train_gflops"] * step / run.steps,
        }
        rows.append(
            {
                **row,
                **progress,
                **cell["best"],
                "loss": status.get("loss"),
                "reason": status.get("reason"),
                "steps": run.steps,
            }
        )
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    from tabulate import tabulate

    metrics = sorted({key for row in rows for key in row if key.startswith("fd_") or key == "fid"})
    shown = [
        {
            "run": row["run"],
            "status": row["status"],
            "step": f"{row['step']}/{row['steps']}",
            "loss": row["loss"],
            **{f"best {metric}": row.get(metric) for metric in metrics},
            "reason": (row["reason"] or "")[:80],
        }
        for row in rows
    ]
    counts = Counter(row["status"] for row in rows)
    summary = f"{counts[DONE]} of {len(rows)} done" + "".join(
        f", {count} {state}" for state, count in sorted(counts.items()) if state != DONE
    )
    return f"{tabulate(shown, headers='keys', floatfmt='.4g')}\n{summary}"
