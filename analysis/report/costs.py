"""Planned against actual: training compute asked for and done, time and speed as logged, for each cell and in total.

Gflops count one multiply-add as one flop. A run's time is its images over its logged images per second, row by row; compilation,
sampling and scoring are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.frames import Frame
from analysis.report.tables import Table, table
from analysis.results import StudyResults
from dit.design import flops
from dit.design.blocks import block_label
from dit.store.study import FAILED, RunStore, load_study

_COLUMNS = (
    *("block", "size", "patch_size", "runs", "planned Gflops", "done Gflops", "done %"),
    *("train s", "images/s", "Gflops/s"),
)


@dataclass(frozen=True)
class Costs:
    """A row per cell, and totals: runs, cells, training compute planned and done (Gflops), planned sampling, seconds of training."""

    table: Table
    runs: int
    cells: int
    failed: int
    unfinished: int
    planned_gflops: float
    done_gflops: float
    sampling_gflops: float
    train_s: float


def costs(study: StudyResults, logged: Frame) -> Costs | None:
    """What the study's chosen runs were to cost and have cost; None for published numbers, or where no run is chosen.

    `logged` is `analysis.results.losses` of the folder.
    """
    if study.folder is None:
        return None
    chosen = study.runs
    runs_of = [run for run in load_study(study.folder).runs if run.run in chosen]
    if not runs_of:
        return None
    seconds, speed = _seconds(logged, {run.run: run.batch_size for run in runs_of})
    rows, failed, unfinished, sampling = [], 0, 0, 0.0
    for run in runs_of:
        status = RunStore(study.folder, run).status()
        failed += status["state"] == FAILED
        unfinished += status["step"] < run.steps
        sampling += flops.scoring_gflops(run)
        rows.append(
            {
                **{"block": block_label(run.model.block), "size": run.model.size, "patch_size": run.model.patch_size},
                "planned": flops.train_gflops(run, run.steps),
                "done": flops.train_gflops(run, min(status["step"], run.steps)),
                "seconds": seconds.get(run.run, float("nan")),
                "speed": speed.get(run.run, float("nan")),
            }
        )
    runs = pd.DataFrame(rows)
    cells = runs.groupby(["block", "size", "patch_size"], sort=False).agg(
        **{
            "runs": ("planned", "size"),
            "planned Gflops": ("planned", "sum"),
            "done Gflops": ("done", "sum"),
            "train s": ("seconds", lambda values: values.sum(min_count=1)),
            "images/s": ("speed", "median"),
            "timed": ("done", lambda values: values[runs.loc[values.index, "seconds"].notna()].sum()),
        }
    )
    cells["done %"] = 100 * cells["done Gflops"] / cells["planned Gflops"]
    cells["Gflops/s"] = cells["timed"] / cells["train s"]
    return Costs(
        table=table(cells.reset_index().to_dict("records"), list(_COLUMNS)),
        runs=len(runs),
        cells=len(cells),
        failed=failed,
        unfinished=unfinished,
        planned_gflops=float(sum(runs["planned"])),
        done_gflops=float(sum(runs["done"])),
        sampling_gflops=sampling,
        train_s=float(np.nansum(runs["seconds"])),
    )


def _seconds(logged: Frame, batch: dict[str, int]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of training and median images per second of each run; rows that were not timed count at the run's median."""
    if logged.empty or "images_per_s" not in logged or logged["images_per_s"].isna().all():
        return {}, {}
    steps = logged.groupby("run")["step"].diff().fillna(logged["step"]).astype(float)
    medians = logged.groupby("run")["images_per_s"].transform("median")
    spent = steps * logged["run"].map(batch) / logged["images_per_s"].fillna(medians)
    by_run = spent.groupby(logged["run"]).sum(min_count=1)
    speeds = logged.groupby("run")["images_per_s"].median()
    return by_run.dropna().to_dict(), speeds.dropna().to_dict()
