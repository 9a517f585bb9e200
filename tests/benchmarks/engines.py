"""What an engine costs per cell: `python tests/benchmarks/engines.py [--cells 8] [--repeats 3] [--engines local,slurm,ray]`, a table.

Every engine runs the same study of cells of one step each in two places at once (two workers, two nodes, two processors). A place's time
that no cell's lease covers is the engine's: waiting to be scheduled, starting a process, importing JAX, being noticed. Two sizes of study
tell the cost per cell from what is paid once. Given are the median and, in brackets, the least and the most of the repeats. Slurm and Ray
are started here, before the clock; those that are not installed are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the clusters that the tests share
sys.path.remove(str(Path(__file__).parent))  # where a benchmark would pass for the package of its name

import ray_cluster
import slurm_cluster
from cluster_study import environment

from analysis.tables import render
from dit.store.lease import attempts, run_files
from dit.store.study import RunStore, load_study

STUDY = '''"""Cells of one step."""
from dit.design.config import DATASETS, RunConfig, model_config
D = DATASETS["digits"]
def runs():
    return [RunConfig(model_config("adaln", "S", 8, D, ladder="nano"), D, 1, 4, seed) for seed in range({cells})]
'''
PLACES, FEW = 2, 2
COLUMNS = ("engine", "cells", "wall_s", "in_cells_s", "engine_s", "engine_s_per_cell", "more_s_per_cell")


@contextlib.contextmanager
def started(engine: str) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The engine's options and the environment of its commands."""
    if engine == "local":
        yield ["--workers", str(PLACES)], environment()
    elif engine == "slurm":
        with slurm_cluster.slurm(**environment()) as settings:
            # A node each: its two processors are the machine's own.
            yield ["--engine", "slurm", "--cpus-per-host", "2", "--poll-every", "1"], settings
    else:
        with ray_cluster.head(**environment()) as cluster:
            yield ["--engine", "ray", "--address", cluster.url, "--python", sys.executable], cluster.settings


def measure(options: list[str], settings: dict[str, str], cells: int, folder: Path) -> dict[str, float]:
    """One sweep: its time, and what of it no cell's lease covers."""
    folder.mkdir()
    study, out = folder / "one.py", folder / "out"
    study.write_text(STUDY.format(cells=cells))
    began = time.monotonic()
    command = [sys.executable, "-m", "dit", "sweep", str(study), "--out", str(out), *options]
    subprocess.run(command, env=settings, check=True, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - began
    held = sum(a.held_s for run in load_study(out).runs for a in attempts(run_files(RunStore(out, run).path)))
    spent = wall * PLACES - held
    return {"wall_s": wall, "in_cells_s": held, "engine_s": spent, "engine_s_per_cell": spent / cells}


def row(engine: str, cells: int, measured: list[dict[str, float]]) -> dict[str, str | int]:
    """The table's row for repeats of one sweep."""
    return {"engine": engine, "cells": cells} | {
        name: spread([one[name] for one in measured]) for name in COLUMNS if name in measured[0]
    }


def spread(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cells", type=int, default=8, help="cells of the larger study, an even number (default: 8; the smaller has 2)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="sweeps of each size (default: 3)")
    parser.add_argument("--engines", default="local,slurm,ray")
    args = parser.parse_args()
    lacking = {"slurm": slurm_cluster.missing(), "ray": ray_cluster.missing()}
    rows = []
    with tempfile.TemporaryDirectory(prefix="dit-engines-") as name:
        for engine in args.engines.split(","):
            if lacking.get(engine):
                print(f"{engine} is left out: {lacking[engine]}", file=sys.stderr)
                continue
            with started(engine) as (options, settings):
                measure(options, settings, FEW, Path(name) / f"{engine}-first")  # fills the caches
                few, many = [], []
                for repeat in range(args.repeats):
                    for cells, measured in ((FEW, few), (args.cells, many)):
                        measured.append(measure(options, settings, cells, Path(name) / f"{engine}-{cells}-{repeat}"))
                        print(engine, cells, measured[-1], file=sys.stderr, flush=True)
            more = [(b["engine_s"] - a["engine_s"]) / (args.cells - FEW) for a, b in zip(few, many, strict=True)]
            rows += [row(engine, FEW, few), {**row(engine, args.cells, many), "more_s_per_cell": spread(more)}]
    print(render(rows, list(COLUMNS), "table"), end="")


if __name__ == "__main__":
    main()
