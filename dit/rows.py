"""Rows of the results table: the one place that names the columns and fills them.

The same names appear in tables, CSV, JSON, frames, plans, status and figures. `gflops`, `train_gflops` and `sampling_gflops` count
one multiply-add as one flop. The score's column is named after its features (`fid`, `fd_digits`, ...) and stands after `num_samples`.
`source` is the study that measured a row, or `paper` for a published one; `citation` then says where it is printed. Over seeds, a
score's column holds the mean, `<score>_sd` beside it the standard deviation of single runs (of n - 1), `n` counts the seeds, and
`recipe` is the hash of all that decides a run's result but its seed.
"""

from __future__ import annotations

from typing import Any

from dit import flops
from dit.config import Evaluation, RunConfig

Row = dict[str, Any]

CELL_COLUMNS = (
    "run",
    "study",
    "block",
    "size",
    "patch_size",
    "seed",
    "image_size",
    "tokens",
    "params",
    "gflops",
    "batch_size",
)
SCORE_COLUMNS = ("step", "images_seen", "train_gflops", "sampling_steps", "sampling_gflops", "cfg_scale", "num_samples")
END_COLUMNS = ("protocol", "status", "source", "reason", "citation")
DEVIATION = "_sd"
COUNT = "n"


def columns(metrics: list[str]) -> list[str]:
    """Every column of the results table, in order, with the scores' columns in their place."""
    return [*CELL_COLUMNS, *SCORE_COLUMNS, *metrics, *END_COLUMNS]


def columns_over_seeds(metrics: list[str]) -> list[str]:
    """The columns of a table of means over seeds, in order."""
    cell = [name for name in CELL_COLUMNS if name not in ("run", "seed")]
    spread = [name for metric in metrics for name in (metric, metric + DEVIATION)]
    return ["recipe", *cell, *SCORE_COLUMNS, *spread, COUNT, "protocol", "source", "citation"]


def cell_row(run: RunConfig, study: str) -> Row:
    """The columns that are known before anything runs."""
    return {
        "run": run.run,
        "study": study,
        "block": run.model.block,
        "size": run.model.size,
        "patch_size": run.model.patch_size,
        "seed": run.seed,
        "image_size": run.data.image_size,
        "tokens": run.model.tokens,
        "params": flops.params(run.model),
        "gflops": flops.gflops(run.model),
        "batch_size": run.batch_size,
    }


def step_columns(run: RunConfig, step: int) -> Row:
    """How far training is: step, images seen, and training compute in Gflops."""
    return {"step": step, "images_seen": step * run.batch_size, "train_gflops": flops.train_gflops(run, step)}


def planned_row(run: RunConfig, study: str, status: str = "planned") -> Row:
    """A cell at the end of its training, before it has run."""
    return {**cell_row(run, study), **step_columns(run, run.steps), "status": status, "source": study, "reason": None}


def score_row(run: RunConfig, study: str, evaluation: Evaluation, score: float, protocol: str) -> Row:
    """A measured score, complete with what it cost and under which protocol it was taken."""
    return {
        **cell_row(run, study),
        **step_columns(run, evaluation.step),
        "sampling_steps": evaluation.sampling_steps,
        "sampling_gflops": flops.sampling_gflops(run.model, evaluation.sampling_steps, evaluation.cfg_scale),
        "cfg_scale": evaluation.cfg_scale,
        "num_samples": evaluation.num_samples,
        evaluation.metric: score,
        "protocol": protocol,
        "status": "done",
        "source": study,
        "reason": None,
    }
