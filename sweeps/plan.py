"""What a study will cost, before anything runs. Gflops count one multiply-add as one flop."""

from __future__ import annotations

from dataclasses import dataclass

from dit.design import flops
from dit.design.config import RunConfig
from dit.design.rows import Row, planned_row, varied
from dit.store.study import Study

COLUMNS = (
    "run",
    "block",
    "size",
    "patch_size",
    "seed",
    "tokens",
    "params",
    "gflops",
    "batch_size",
    "step",
    "train_gflops",
)


@dataclass(frozen=True)
class Total:
    """Compute of a set of cells in Gflops: training, and sampling for the evaluations."""

    cells: int
    train_gflops: float
    sampling_gflops: float


def plan(study: Study, runs: tuple[RunConfig, ...]) -> list[Row]:
    """One row per cell, at the end of its training."""
    apart = varied(study.runs)
    return [planned_row(run, study.name, apart=apart.get(run.run)) for run in runs]


def total(runs: tuple[RunConfig, ...]) -> Total:
    """Compute of all cells together."""
    return Total(
        len(runs),
        sum(flops.train_gflops(run, run.steps) for run in runs),
        sum(flops.scoring_gflops(run) for run in runs),
    )
