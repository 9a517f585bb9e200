"""How long figures and report of a study take: 48 cells × 3 seeds, 8 scores and 100 logged rows each, as `dit figures` draws them.

    python tests/benchmarks/figures.py [FOLDER]

Prints seconds of wall clock and of processor time for each figure, for all together (the bound is 30 s), for verifying them and for the
report. FOLDER is a study to draw instead of the made-up one.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))

from synthetic_study import cells, write_study

from analysis.figures.registry import FIGURES, draw_all
from analysis.figures.verification import verify
from analysis.report.page import write_report
from analysis.results import collect

STEPS = (10, 20, 40, 80, 160, 320, 640, 1000)


def made_up(folder: Path) -> Path:
    """The study: all blocks, sizes and patch sizes with three seeds."""
    runs = cells(seeds=(0, 1, 2), sampling=(8, 16, 64))
    whole = [
        replace(
            run,
            evaluations=tuple(replace(run.evaluations[0], step=step) for step in STEPS)
            + tuple(one for one in run.evaluations if one.sampling_steps != 32),
        )
        for run in runs
    ]
    return write_study(folder / "demo", tuple(whole))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall clock and of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Draw, verify, report, print."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else made_up(Path(scratch))
        study = collect(folder)
        out = Path(scratch) / "figures"
        skipped: dict[str, str] = {}

        def draw(name: str) -> None:
            for outcome in draw_all(study, out, [name]):
                if outcome.skipped:
                    skipped[name] = outcome.skipped

        rows = [(name, *timed(lambda name=name: draw(name)), skipped.get(name, "")) for name in FIGURES]
        rows.append(("all figures", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
        rows.append(("verify", *timed(lambda: list(verify(study, out))), ""))
        page = Path(scratch) / "report.html"
        rows.append(("report", *timed(lambda: write_report(study, page)), f"{page.stat().st_size / 1e6:.2f} MB"))
    print(tabulate(rows, headers=("figure", "wall s", "processor s", ""), floatfmt=".2f"))


if __name__ == "__main__":
    main()
