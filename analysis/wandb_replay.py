"""A study's rows replayed into Weights & Biases, for those who like to look at them there.

One wandb run for each run of the study, under its hash and grouped by the study, with its whole configuration and the protocols of its
scores. Training compute is the x-axis of the scores, the step that of the rest. Rows go in by step, so nothing is logged live and nothing
of a study depends on it; `dit import-wandb` reads them back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from analysis.results import StudyResults
from analysis.tables import plain
from dit.design.config import RunConfig, to_json
from dit.design.rows import Row
from dit.errors import UserError
from dit.store.study import FAILED, RunStore, load_study

SCORE_PARTS = ("sampling_steps", "nfe", "sampling_gflops", "cfg_scale", "num_samples", "protocol")
"""What is logged with each score besides its step and training compute."""


def replay(
    study: StudyResults, mode: Literal["offline", "online"], project: str, entity: str | None, folder: Path
) -> Iterator[str]:
    """Replay every run that has a row, and give its name when it is done.

    Args:
        folder: where wandb keeps what it has written; it adds a folder `wandb` there.

    Raises:
        UserError: for published numbers, or if wandb refuses.
    """
    if study.folder is None:
        raise UserError(f"'{study.name}' is no study's folder: expected one to replay")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb
    from wandb import errors

    folder.mkdir(parents=True, exist_ok=True)
    scores = {run: rows.to_dict("records") for run, rows in study.table.groupby("run")}
    for run in load_study(study.folder).runs:
        store = RunStore(study.folder, run)
        rows = list(_rows(store.metrics(), scores.get(run.run, []), study.metrics))
        if not rows:
            continue
        try:
            mirror = wandb.init(
                project=project,
                entity=entity,
                group=study.name,
                name=run.run,
                id=run.hash,
                resume="never",
                mode=mode,
                dir=str(folder),
                config=_config(run, study, scores.get(run.run, [])),
                settings=wandb.Settings(console="off", x_disable_stats=True),
            )
            mirror.define_metric("*", step_metric="step")
            for metric in study.metrics:
                mirror.define_metric(metric, step_metric="train_gflops")
            for row in rows:
                mirror.log(row)
            status = store.status()
            mirror.summary.update({name: status.get(name) for name in ("state", "reason") if status.get(name)})
            mirror.finish(exit_code=1 if status["state"] == FAILED else 0)
        except (errors.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"wandb refuses run {run.run} ({reason}): see `wandb login`, or --mode offline") from error
        yield run.run
    wandb.teardown()  # a run that failed is not waited for: what it wrote is whole once its writer has ended


def _config(run: RunConfig, study: StudyResults, scores: list[Row]) -> dict[str, Any]:
    """The run's configuration, and the protocols of its scores as JSON text by their hash."""
    used = dict.fromkeys(row["protocol"] for row in scores if plain(row["protocol"]) is not None)
    return {**to_json(run), "protocols": json.dumps({key: study.protocols[key] for key in used})}


def _rows(logged: list[Row], scores: list[Row], metrics: list[str]) -> Iterator[Row]:
    """Logged steps and scores by step, a score after its step's row, without what is missing."""
    measured = [row for row in scores if any(plain(row[name]) is not None for name in metrics)]
    names = ("step", "train_gflops", *metrics, *SCORE_PARTS)
    shown = [{name: plain(row[name]) for name in names} for row in measured]
    for row in sorted([*logged, *shown], key=lambda row: row["step"]):
        yield {name: value for name, value in row.items() if value is not None}
