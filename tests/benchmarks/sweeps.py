"""What sweeping costs besides the cells: planning and reading 2,000 of them, claiming one, and going from one to the next.

    python tests/benchmarks/sweeps.py [--cells 2000] [--local 8]

Wall-clock and processor seconds, Python's start included for `plan` and `status`. The gap of the local engine is the time from a cell's
end to the same worker's next claim, on cells of one training step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).parents[1]))  # the made-up study that the tests share
sys.path.remove(str(Path(__file__).parent))  # where this file would pass for the package of its name

from synthetic_study import cells, write_run

from dit.store.lease import attempts, run_files
from dit.store.study import DONE, RunStore, Study, load_study, save_study
from sweeps.ledger import Ledger

MANY = '''"""How long does it take?"""
import sys
sys.path.insert(0, {tests!r})
from synthetic_study import cells
def runs():
    return cells(seeds=range(1 + {count} // 48), sampling=())[:{count}]
'''
SHORT = '''"""Cells of one step."""
from dit.design.config import DATASETS, RunConfig, model_config
D = DATASETS["digits"]
def runs():
    return [RunConfig(model_config("adaln", "S", 8, D, ladder="nano"), D, 1, 4, seed) for seed in range({count})]
'''


def command(*arguments: str) -> tuple[float, float]:
    """Wall-clock and processor seconds of a `dit` command."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "dit", *arguments], check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, spent


def reading(folder: Path, count: int) -> list[list[object]]:
    """Plan so many cells, then read the status of a study of as many, seven tenths of them done."""
    study = folder / "many.py"
    study.write_text(MANY.format(tests=str(Path(__file__).parents[1]), count=count))
    runs = cells(seeds=tuple(range(1 + count // 48)), sampling=())[:count]
    save_study(folder / "out", Study("many", "", runs))
    for run in runs[: 7 * count // 10]:
        write_run(folder / "out", "many", run, images=False)
    plan, status = command("plan", str(study)), command("status", str(folder / "out"))
    return [[f"dit plan, {count} cells", *plan], [f"dit status, {count} cells", *status]]


def claiming(folder: Path, count: int = 200) -> list[object]:
    """Claim, look at the fence once, end."""
    runs = cells(seeds=tuple(range(5)), sampling=())[:count]
    save_study(folder / "claims", Study("claims", "", runs))
    ledger = Ledger(folder / "claims")
    start, spent = time.perf_counter(), time.process_time()
    for run in runs:
        with ledger.claim(run) as lease:  # type: ignore[union-attr]
            lease.check()
            lease.end(DONE)
    return ["claim and end a cell", (time.perf_counter() - start) / count, (time.process_time() - spent) / count]


def stepping(folder: Path, count: int) -> list[object]:
    """The local engine's gap between two cells, median over the cells of two workers."""
    study, out = folder / "short.py", folder / "short"
    study.write_text(SHORT.format(count=count))
    command("sweep", str(study), "--out", str(out), "--workers", "2")
    spans: dict[int, list[tuple[float, float]]] = {}
    for run in load_study(out).runs:
        place = RunStore(out, run).path
        (attempt,) = attempts(run_files(place))
        end = (place / "attempts" / "0001.json").stat().st_mtime
        spans.setdefault(attempt.owner["pid"], []).append((end - attempt.held_s, end))
    gaps = [later[0] - earlier[1] for held in spans.values() for earlier, later in zip(sorted(held), sorted(held)[1:])]
    return ["local engine, from one cell to the next", statistics.median(gaps), ""]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--local", type=int, default=8, help="cells of the local engine's part; 0 leaves it out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = [*reading(Path(scratch), args.cells), claiming(Path(scratch))]
        if args.local:
            rows.append(stepping(Path(scratch), args.local))
    print(tabulate(rows, headers=["", "wall s", "processor s"], floatfmt=".4f"))


if __name__ == "__main__":
    main()
