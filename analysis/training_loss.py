"""The training loss as a score: a study as if it had been scored by it, so that every fit can be made of it too.

Far from the end of training the loss tells cells apart that a distance between samples does not: every cell sees the same examples, noise
and timesteps, and nothing is sampled. It is a mean of noisy steps, of the weights as they were, not of their average. Lower is better;
between patch sizes and blocks it compares, because the images and the noise are the same.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from analysis.frames import Frame
from analysis.protocols import TRAINING_LOSS
from analysis.results import StudyResults, losses
from dit.design.config import digest
from dit.errors import UserError

WINDOW = 0.1
"""Share of the study's last scored step over which losses are averaged, up to each scored step."""

_OF_SAMPLES = ("sampling_steps", "nfe", "sampling_gflops", "cfg_scale", "num_samples")


def as_scores(study: StudyResults) -> StudyResults:
    """The study with `training_loss` in the place of its scores, at the steps that were scored; without scores, at each window's end.

    The logged loss is a mean over blocks of steps; blocks that end within the window before the step are averaged.

    Raises:
        UserError: if there are no logged losses, as for the published numbers.
    """
    if study.folder is None:
        raise UserError(f"'{study.name}' has no logged losses: give a study's folder")
    scored = study.table[study.table["protocol"].notna()].drop_duplicates(["run", "step"])
    logged = losses(study.folder).dropna(subset=["loss"])
    if logged.empty:
        raise UserError(f"no loss was logged in {study.folder}: nothing can be fitted to it")
    width = max(1, round(WINDOW * int((logged if scored.empty else scored)["step"].max())))
    scored = _at_windows(study, logged, width) if scored.empty else scored
    at = scored[["run", "step"]].merge(logged[["run", "step", "loss"]], on="run", suffixes=("", "_logged"))
    within = at[(at["step_logged"] <= at["step"]) & (at["step_logged"] > at["step"] - width)]
    mean = within.groupby(["run", "step"], sort=False)["loss"].mean()
    if mean.empty:
        raise UserError(f"no loss was logged within {width} steps before a scored step: log more often (--log-every)")
    protocol = {"features": TRAINING_LOSS, "window_steps": width}
    key = digest(protocol)
    rows = scored.drop(columns=study.metrics).set_index(["run", "step"], drop=False)
    rows = rows.loc[rows.index.isin(mean.index)]
    rows[TRAINING_LOSS] = pd.Series(mean, dtype="float64").reindex(rows.index).to_numpy()
    rows["protocol"] = key
    rows[list(_OF_SAMPLES)] = None
    return dataclasses.replace(
        study, table=rows.reset_index(drop=True), protocols={key: protocol}, floors={}, samples={}
    )


def _at_windows(study: StudyResults, logged: Frame, width: int) -> Frame:
    """A row for each run and each end of a window that its losses reach; counts that were logged with them stay."""
    cells = pd.concat([study.waiting, study.table]).drop_duplicates("run").assign(status="done", reason=None)
    last = logged.sort_values("step").drop_duplicates("run", keep="last").set_index("run")
    counts = last.reindex(columns=["params", "gflops"]).dropna(axis=1, how="all")
    ends = pd.DataFrame({"end": range(width, int(last["step"].max()) + 1, width)})
    rows = cells.merge(ends, how="cross")
    rows = rows[rows["end"] <= rows["run"].map(last["step"])].assign(step=lambda rows: rows["end"]).drop(columns="end")
    for name in counts.columns:
        logged_count = rows["run"].map(counts[name])
        rows[name] = np.where(logged_count.notna(), logged_count, rows[name])
    share = (last["train_gflops"] / last["step"]).reindex(rows["run"]).to_numpy()
    rows = rows.assign(
        images_seen=rows["step"] * rows["batch_size"], train_gflops=rows["step"] * share, source=study.name
    )
    return rows.reset_index(drop=True)
