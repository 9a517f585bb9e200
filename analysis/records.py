"""What a study's folder holds, as frames made by way of the cache: its cells, its scores and failures, its logged steps.

Files are those of `dit.store.study`; a torn last line is dropped and the highest attempt's row of a step wins, as there.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.cache import collected
from analysis.frames import COUNTS, Frame, frame
from analysis.protocols import TRAINING_LOSS, metric
from dit.design.config import RunConfig
from dit.design.rows import (
    CELL_COLUMNS,
    END_COLUMNS,
    Row,
    cell_row,
    outdated,
    own_columns,
    recipe,
    recorded_row,
    step_columns,
    varied,
)
from dit.errors import UserError
from dit.store.files import NO_DIGEST
from dit.store.study import FAILED, RunStore, know_parts, load_study, vouched_evaluation

HASH, RECIPE, STEPS, GROWTH = "hash", "recipe", "steps", "growth"
"""Columns of `cells` besides those of the results table: identity hash, hash of the identity less its seed, steps asked for, and depth
times width squared of the model; and those of `dit.design.rows.varied`, where the study has any."""
OF_CELLS = (HASH, RECIPE, STEPS, GROWTH)
PROTOCOL, FLOOR, SAMPLES, VOUCHED, OWN = "protocol_json", "floor", "samples", "vouched", "own_metrics"
"""Columns of `scores` besides those of the results table: protocol as JSON text, floor, name of the file of first samples, whether the
row's file has a digest, and as JSON text `dit.design.rows.own_columns`."""
DAMAGED = "damaged"
"""The status of a row in the place of a file that cannot be read; its reason names the file."""
LOSS_CELL = ("run", "study", "block", "size", "patch_size", "seed")
"""Columns that lead each logged row."""


def cells(folder: Path) -> Frame:
    """The cells that a study asks for, one row each, in its order.

    Raises:
        UserError: if there is no study.
    """

    def read(_: str) -> list[Row]:
        study = load_study(folder)
        apart = varied(study.runs)
        return [
            {
                **cell_row(run, study.name, apart.get(run.run)),
                HASH: run.hash,
                RECIPE: recipe(run),
                STEPS: run.steps,
                GROWTH: run.model.growth,
            }
            for run in study.runs
        ]

    know_parts(folder)
    table, _ = collected(folder, "cells", ["study"], lambda _: [folder / "study.json"], read)
    return table if len(table) else frame([], [*CELL_COLUMNS, HASH, RECIPE, STEPS, GROWTH])


def scores(folder: Path, runs: list[str]) -> Frame:
    """A row for each score of the runs, with what else its file holds, and one for each failed run and each damaged file."""
    config = _configs(folder)

    def files(run: str) -> list[Path]:
        return [folder / "runs" / run / part for part in ("evals", "samples", "status.json")]

    def read(name: str) -> list[Row]:
        run, study = config(name)
        store = RunStore(folder, run)
        rows: list[Row] = []
        for path in sorted((store.path / "evals").glob("*.json")):
            try:
                value, vouched = vouched_evaluation(path)
                value["row"] = recorded_row(run, study, value)
                if trouble := _trouble(value, cell_row(run, study)):
                    raise UserError(f"{path} is no evaluation of {name}: {trouble}; delete it to score again")
            except (OSError, UserError) as error:
                rows.append({**cell_row(run, study), "status": DAMAGED, "reason": str(error)})
                continue
            images = store.path / "samples" / f"{path.stem}.npz"
            taken = value.get("evaluation", {})
            own = own_columns(taken.get("metrics", ()), taken.get("features", ""))
            beside = {
                OWN: json.dumps(own) if own else None,
                PROTOCOL: json.dumps(value["protocol"]),
                FLOOR: value.get("floor"),
                SAMPLES: images.name if images.is_file() else None,
                VOUCHED: int(vouched),
            }
            calls = value["row"].get("sampling_steps")  # before there was `nfe`, samplers called the model once a step
            rows.append({"nfe": calls, **value["row"], **beside})
        try:
            status = store.status()
        except (OSError, UserError) as error:
            return [*rows, {**cell_row(run, study), "status": DAMAGED, "reason": str(error)}]
        if status["state"] == FAILED:
            failed = {"status": FAILED, "source": study, "reason": status.get("reason")}
            rows.append({**cell_row(run, study), **step_columns(run, status.get("step", 0)), **failed})
        return rows

    table, _ = collected(folder, "scores", runs, files, read)
    gaps = [name for name in ("protocol", PROTOCOL, FLOOR, SAMPLES, VOUCHED, OWN) if name not in table.columns]
    table = table.assign(**dict.fromkeys(gaps))
    if table[OWN].notna().any():
        declared = {one for run in load_study(folder).runs for part in run.evaluations for one in part.metrics}
        for at, text in table[OWN].dropna().items():
            table.loc[at, list(outdated(json.loads(text), declared))] = None
    return table.drop(columns=OWN)


_TEXTS = (*(name for name in CELL_COLUMNS if name in ("run", "study", "block", "size")), *END_COLUMNS)
_NUMBERS = (int, float, type(None))


def _trouble(value: dict[str, Any], cell: Row) -> str | None:
    """What is wrong with an evaluation of a cell, in a few words."""
    row, protocol = value["row"], value["protocol"]
    for name in ("run", "block", "size", "patch_size", "seed", "image_size", "batch_size"):
        if row.get(name) != cell[name]:
            return f"{name} is {row.get(name)!r}, the run's is {cell[name]!r}"
    for name, one in row.items():
        kinds = (str, type(None)) if name in _TEXTS else (int, type(None)) if name in COUNTS else _NUMBERS
        if type(one) not in kinds:
            return f"{name} is {one!r}, of another kind than it should be"
    if (
        type(row.get("step")) is not int
        or type(row.get("protocol")) is not str
        or type(value.get("floor")) not in _NUMBERS
    ):
        return "its step, protocol or floor is missing"
    of_samples = protocol.get("features") != TRAINING_LOSS
    if type(protocol.get("features")) is not str or (of_samples and type(protocol.get("num_samples")) is not int):
        return "its protocol does not tell features and num_samples"
    return None if metric(protocol) in row else f"it has no {metric(protocol)}, which its protocol is of"


def statuses(folder: Path, known: Frame) -> Frame:
    """The runs in `known`, each with how far it is: `state`, `step`, `attempt`, `loss` and `reason`."""
    config = _configs(folder)
    columns = ("state", "step", "attempt", "loss", "reason")

    def read(name: str) -> list[Row]:
        try:
            status = RunStore(folder, config(name)[0]).status()
        except (OSError, UserError) as error:
            status = {"state": DAMAGED, "reason": str(error)}
        return [{column: status.get(column) for column in columns}]

    table, _ = collected(folder, "runs", list(known["run"]), lambda run: [folder / "runs" / run / "status.json"], read)
    return pd.concat([known.drop(columns=[RECIPE, GROWTH]), table], axis=1)


def logged(folder: Path, known: Frame) -> Frame:
    """Every logged step of the runs in `known`, led by the cell it belongs to; rows that are damaged are left out, and that is said."""
    config = _configs(folder)

    def read(name: str) -> list[Row]:
        try:
            return RunStore(folder, config(name)[0]).metrics()
        except (OSError, UserError) as error:
            return [{"step": 0, DAMAGED: str(error)}]

    table, counts = collected(
        folder,
        "losses",
        list(known["run"]),
        lambda run: [folder / "runs" / run / part for part in ("metrics", "status.json")],
        read,
    )
    if table.empty:
        return frame([], [*LOSS_CELL, "step", "loss"])
    lead = known[[name for name in LOSS_CELL if name not in table.columns]]
    table = pd.concat([lead.take(np.repeat(np.arange(len(known)), counts)).reset_index(drop=True), table], axis=1)
    if DAMAGED not in table:
        return table
    damaged = table[DAMAGED].notna()
    say_left_out(folder, list(table.loc[damaged, DAMAGED]), "runs' rows")
    return table[~damaged].drop(columns=DAMAGED).reset_index(drop=True)


def say_left_out(folder: Path, reasons: list[str], what: str, unvouched: int = 0) -> None:
    """Tell on standard error, in a line, how much was left out and why, and how much has no digest; nothing if all is well."""
    said = [f"{len(reasons)} {what} left out, damaged or unreadable ({reasons[0]})"] if reasons else []
    said += [f"{unvouched} {what} have {NO_DIGEST}"] if unvouched else []
    if said:
        print(f"{'; '.join(said)}: `dit verify {folder}` tells more", file=sys.stderr)


def _configs(folder: Path) -> Callable[[str], tuple[RunConfig, str]]:
    """Finds a run's configuration, and its study's name; the study's file is read when the first is asked for."""

    @functools.cache
    def by_name() -> dict[str, tuple[RunConfig, str]]:
        study = load_study(folder)
        return {run.run: (run, study.name) for run in study.runs}

    return lambda name: by_name()[name]
