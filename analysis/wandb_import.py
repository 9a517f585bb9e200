"""Runs logged in Weights & Biases made into a study's folder, which every other verb reads.

Each field of a run is looked for under the name given with `--map FIELD=COLUMN`, then under the usual ones of `analysis.wandb_fields`;
`--set FIELD=VALUE` states one that was never logged. A run that this package logged carries its whole configuration, which is taken as it
is. What a protocol leaves unsaid is None, as in the published rows. A loss that stops being finite is a failure with its step, never a
number; what is not taken is said on standard error.
"""

from __future__ import annotations

import functools
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis.protocols import TRAINING_LOSS
from analysis.wandb_fields import (
    LOGGED,
    PROTOCOL,
    Fields,
    how_to_tell,
    lacking,
    logged_counts,
    not_finite,
    number,
    places,
    real_number,
    run_config,
    whole_number,
)
from analysis.wandb_sources import FINISHED, LoggedRun, flat
from dit.design.config import Evaluation, RunConfig, digest
from dit.design.flops import sampling_gflops
from dit.design.metrics import ADM as SCORES
from dit.design.metrics import column, of_column
from dit.design.rows import Row, cell_row, step_columns
from dit.errors import UserError
from dit.store.files import whole
from dit.store.study import (
    DONE,
    FAILED,
    RUNNING,
    SCHEMA_VERSION,
    RunStore,
    Study,
    save_study,
    write_json,
)

_FAILED = ("failed", "crashed", "killed", "preempting", "preempted")


def import_runs(logged: Sequence[LoggedRun], fields: Fields, study: str, origin: str, out: Path) -> Study:
    """Write the runs as a study into `out`, whole or not at all.

    Raises:
        UserError: if `out` is there already, or for what cannot be mapped, naming the columns there are.
    """
    if out.exists():
        raise UserError(f"{out} is already there: choose another --out")
    _scores_among.cache_clear()  # metrics of a user's own may have come since
    _check_told(logged, fields)
    histories = [_history(one, fields) for one in logged]
    runs: dict[str, LoggedRun] = {}
    configs: list[RunConfig] = []
    for one, history in zip(logged, histories):
        config = run_config(one, fields, max((step for step, _ in history.rows), default=0))
        if config.run in runs:
            first = runs[config.run]
            raise UserError(
                f"runs {first.label} and {one.label} of {first.source} and {one.source} are both {config.run}: tell them apart with "
                "--map seed=COLUMN, or leave one out with --only"
            )
        runs[config.run] = one
        configs.append(config)
    made = Study(study, f"Imported from {origin}.", tuple(configs))
    with whole(out) as beside:
        save_study(beside, made)
        for config, one, history in zip(configs, logged, histories):
            _write_run(RunStore(beside, config), one, history, fields, study)
    return made


def _check_told(logged: Sequence[LoggedRun], fields: Fields) -> None:
    """Check that every run tells what a row needs; all that is missing is named at once."""
    columns = list(dict.fromkeys(name for run in logged for name in run.columns()))
    settings = list(dict.fromkeys(name for run in logged for name in flat(run.config)))
    there = f"columns: {', '.join(columns) or 'none'}; configuration: {', '.join(settings) or 'none'}"
    for name, there_as in fields.named.items():
        if there_as not in columns and there_as not in settings:
            raise UserError(f"--map {name}={there_as}: no run has it; {there}")
    told = {
        name
        for run in logged
        for row in run.rows
        for name in _measured(row, fields)
        if fields.of(name, row) is not None
    }
    trouble = [] if told else ["no loss and no score is found: name one, as in --map loss=COLUMN or --map fid=COLUMN"]
    missing: dict[str, LoggedRun] = {}
    for one in logged:
        rows = [row for row in one.rows if _is_measured(row, fields)]
        without = ["step"] if rows and _step_column(one, fields) is None else []
        scored = any(
            number(fields.of(name, row)) is not None for row in rows for name in _measured(row, fields)[len(LOGGED) :]
        )
        if scored and not _protocols(one) and not one.config.get("evaluations"):
            places = [flat(one.config), *rows]
            without += ["num_samples"] * all(fields.of("num_samples", values) is None for values in places)
        missing = {**dict.fromkeys([*without, *lacking(one, fields)], one), **missing}
    if missing:
        one = next(iter(missing.values()))
        trouble.append(f"run {one.label} does not tell its {', '.join(missing)}: {how_to_tell(list(missing))}")
    if trouble:
        raise UserError("; ".join([*trouble, there]))


def _measured(row: Mapping[str, Any], fields: Fields) -> list[str]:
    """Fields of a history row that may hold a loss or a score."""
    mapped = [name for name in fields.named if fields.is_metric(name) or of_column(name)]
    return list(dict.fromkeys([*LOGGED, *SCORES, *_scores_among(tuple(row)), *mapped]))


@functools.lru_cache(maxsize=1024)
def _scores_among(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those names under which scores stand; asked of every row, and rows have the same names."""
    return tuple(name for name in names if of_column(name) or name == TRAINING_LOSS)


def _write_run(store: RunStore, one: LoggedRun, history: History, fields: Fields, study: str) -> None:
    """Metrics, scores and status of one run, and what wandb said of it."""
    store.create()
    told = {"source": one.source, "name": one.name, "id": one.id, "config": _as_json(one.config)}
    counts = _counts(store.run, one, history, fields)
    write_json(store.path / "imported.json", told)
    extra = [name for name in fields.named if fields.is_metric(name)]
    merged: dict[int, Row] = {}
    for step, row in history.rows:
        found = {name: number(fields.of(name, row)) for name in dict.fromkeys([*LOGGED, *extra])}
        merged.setdefault(step, {}).update({name: value for name, value in found.items() if value is not None})
    with closing(store.metrics_writer(1)) as metrics:
        for step in sorted(step for step, row in merged.items() if row):
            metrics.write(
                {
                    "step": step,
                    **merged[step],
                    **counts,
                    "train_gflops": _progress(store.run, step, counts)["train_gflops"],
                }
            )
    before: Counter[tuple[int, str]] = Counter()
    for step, row in history.rows:
        _write_scores(store, one, step, row, fields, study, before, counts)
    reasons = [history.diverged[1]] if history.diverged else []
    reasons += [f"{one.state} in wandb"] if one.state in _FAILED else []
    step = history.diverged[0] if history.diverged else max((step for step, _ in history.rows), default=0)
    state = FAILED if reasons else DONE if one.state == FINISHED else RUNNING
    store.set_status(
        state, step=step, attempt=1, metrics=metrics.end, **({"reason": "; ".join(reasons)} if reasons else {})
    )
    for note in dict.fromkeys([*one.notes, *history.notes]):
        print(f"run {one.label}: {note}", file=sys.stderr)


def _as_json(value: Any) -> Any:
    """The value with text for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(name): _as_json(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_json(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _counts(run: RunConfig, one: LoggedRun, history: History, fields: Fields) -> Row:
    """Parameters and Gflops as the run logged them, which its rows keep; where ours are others, that is said."""
    found, ours = logged_counts(one, fields), cell_row(run, "")
    for name, value in found.items():
        if abs(value - ours[name]) > 0.005 * ours[name]:
            history.notes.append(f"its own {name}, {value:.12g}, are kept; ours for this cell are {ours[name]:.12g}")
    return found


def _progress(run: RunConfig, step: int, counts: Row) -> Row:
    """How far training is, its compute by the run's own Gflops where it logged them."""
    ours = step_columns(run, step)
    share = counts["gflops"] / cell_row(run, "")["gflops"] if "gflops" in counts else 1.0
    return {**ours, "train_gflops": ours["train_gflops"] * share}


def _write_scores(
    store: RunStore,
    one: LoggedRun,
    step: int,
    row: Mapping[str, Any],
    fields: Fields,
    study: str,
    before: Counter[tuple[int, str]],
    counts: Row,
) -> None:
    """The evaluation files of one history row, one for the metrics of each features: FID with the scores beside it, and others likewise.

    Args:
        before: how many scores of that name and step came before; counted up here.
        counts: parameters and Gflops that the run logged.
    """
    families: dict[str, list[str]] = {"fid": list(SCORES), TRAINING_LOSS: [TRAINING_LOSS]}
    for name in dict.fromkeys((*_scores_among(tuple(row)), *fields.named)):
        if (found := of_column(name)) and name not in SCORES:
            features = name.removeprefix(found.column_stem).removeprefix("_") if name != found.name else ""
            families.setdefault(column("fid", features), []).append(name)
    for metric, names in families.items():
        scores = {name: number(fields.of(name, row)) for name in names}
        scores = {name: value for name, value in scores.items() if value is not None}
        if not scores:
            continue
        declared = [e for e in store.run.evaluations if e.metric == metric and e.step == step]
        evaluation = next(iter(declared[before[step, metric] :]), None)
        before[step, metric] += 1
        protocol = _protocol(one, row, fields, metric, evaluation)
        steps, cfg_scale = protocol.get("sampling_steps"), protocol.get("cfg_scale")
        value = {
            **cell_row(store.run, study),
            **counts,
            **_progress(store.run, step, counts),
            "sampling_steps": steps,
            "nfe": steps,
            "sampling_gflops": sampling_gflops(store.run.model, steps, 1.0 if cfg_scale is None else cfg_scale)
            if steps
            else None,
            "cfg_scale": cfg_scale,
            "num_samples": protocol.get("num_samples"),
            **scores,
            "protocol": digest(protocol),
            "status": "done",
            "source": study,
            "reason": None,
            "citation": one.source or None,
        }
        path = store.path / "evals" / f"{step:08d}-{value['protocol']}.json"
        write_json(path, {"schema_version": SCHEMA_VERSION, "row": value, "protocol": protocol, "floor": None})


def _protocol(
    one: LoggedRun, row: Mapping[str, Any], fields: Fields, metric: str, evaluation: Evaluation | None
) -> dict[str, Any]:
    """The protocol that the row names, if this package logged it; else what is stated or was declared, the rest unsaid."""
    known = _protocols(one)
    if str(row.get("protocol")) in known:
        return known[str(row["protocol"])]
    config = flat(one.config)
    stated = {name: fields.of(name, row) for name in PROTOCOL}
    stated = {name: fields.of(name, config) if value is None else value for name, value in stated.items()}
    if evaluation is not None:
        stated = {name: getattr(evaluation, name, None) if value is None else value for name, value in stated.items()}
    if stated["num_samples"] is None:
        raise UserError(
            f"run {one.label} does not tell over how many samples its {metric} is: give --set num_samples=50000"
        )
    for name in ("num_samples", "sampling_steps", "sample_seed"):
        stated[name] = None if stated[name] is None else whole_number(one, name, stated[name])
    if stated["cfg_scale"] is not None:
        stated["cfg_scale"] = real_number(one, "cfg_scale", stated["cfg_scale"])
    features = "inception" if metric == "fid" else metric.removeprefix("fd_")
    return {"features": features, "extractor_sha256": None, "reference_sha256": None, "cfg_channels": None, **stated}


def _protocols(one: LoggedRun) -> dict[str, dict[str, Any]]:
    """The protocols by their hash that this package logs with a run; none of another's."""
    text = one.config.get("protocols")
    try:
        known = json.loads(text) if isinstance(text, str) else None
    except ValueError as error:
        raise UserError(f"run {one.label}: its protocols are not JSON ({error}): export it again") from error
    return {key: value for key, value in known.items() if isinstance(value, dict)} if isinstance(known, dict) else {}


@dataclass
class History:
    """Rows that hold a loss or a score, each with its training step; the step from which the loss is not finite to the end, and in what
    words; and what should be said of the rest."""

    rows: list[tuple[int, dict[str, Any]]]
    diverged: tuple[int, str] | None
    notes: list[str]


def _is_measured(row: Mapping[str, Any], fields: Fields) -> bool:
    """Whether a row holds a loss or a score, finite or not."""
    return any(
        number(value) is not None or not_finite(value)
        for value in (fields.of(name, row) for name in _measured(row, fields))
    )


def _step_column(one: LoggedRun, fields: Fields) -> str | None:
    """The column of a run's rows that says it is the training step.

    wandb's own `_step` counts calls where a trainer logs its step beside it, so it is the last choice.

    Raises:
        UserError: if two say so and differ.
    """
    there = tuple(one.columns())
    if "step" in fields.named:
        return fields.named["step"] if fields.named["step"] in there else None
    column, *others = [*places("step", there), None]
    for other in others:
        differ = [
            row
            for row in one.rows
            if other != "_step" and None not in (row.get(column), row.get(other)) and row[column] != row[other]
        ]
        if differ:
            raise UserError(
                f"run {one.label} logs {column} {differ[0][column]} beside {other} {differ[0][other]}: choose the training step with "
                f"--map step={column} or --map step={other}"
            )
    return column


def _history(one: LoggedRun, fields: Fields) -> History:
    """The rows of a run that hold a loss or a score, by a step that all of them log under one name and that never goes back."""
    column = _step_column(one, fields)
    found: list[tuple[int, dict[str, Any]]] = []
    for row in one.rows:
        if not _is_measured(row, fields):
            continue
        if column not in row:
            raise UserError(
                f"a row of run {one.label} has no {column or 'step'}: give --map step=COLUMN; its columns are {', '.join(row)}"
            )
        if (step := whole_number(one, "step", row[column])) < 0:
            raise UserError(f"run {one.label}: step is {step}, expected 0 or more: give --map step=COLUMN")
        found.append((step, row))
    in_order = sorted(found, key=lambda item: item[1]["_step"] if isinstance(item[1].get("_step"), int) else 0)
    if "step" not in fields.named and all("_step" in row for _, row in found):
        for (before, _), (after, _) in pairwise(in_order):
            if after < before:
                raise UserError(
                    f"run {one.label}: {column} goes back from {before} to {after}: if it counts within an epoch, name the training step "
                    f"with --map step=COLUMN; if training was resumed there, give --map step={column}"
                )
    return History(found, *_divergence(one, found, fields))


def _divergence(
    one: LoggedRun, rows: list[tuple[int, dict[str, Any]]], fields: Fields
) -> tuple[tuple[int, str] | None, list[str]]:
    """Where the loss stopped being finite for good, and notes on other numbers that are not.

    A table that pandas filled up has NaN where nothing was logged: such a row has a value in a column that is empty beside every loss.
    """
    beside = {
        name
        for _, row in rows
        if number(fields.of("loss", row)) is not None
        for name in row
        if number(row[name]) is not None
    }

    def is_gap(row: Mapping[str, Any], value: Any) -> bool:
        return (
            isinstance(value, float)
            and value != value
            and any(number(row[name]) is not None for name in set(row) - beside)
        )

    def is_beside_another(row: Mapping[str, Any], value: Any) -> bool:
        return value != value and any(number(fields.of(name, row)) is not None for name in _measured(row, fields))

    notes: list[str] = []
    losses = [(step, fields.of("loss", row), row) for step, row in rows]
    bad = [(step, value) for step, value, row in losses if not_finite(value) and not (beside and is_gap(row, value))]
    last = max((step for step, value, _ in losses if number(value) is not None), default=-1)
    after = sorted((step, f"{float(value)}") for step, value in bad if step > last)
    if before := [step for step, _ in bad if step <= last]:
        notes.append(
            f"its loss is not finite at {len(before)} step(s), the first {min(before)}, and finite again later: those are left out"
        )
    for name in dict.fromkeys(name for _, row in rows for name in _measured(row, fields)[len(LOGGED) :]):
        values = [(step, fields.of(name, row), row) for step, row in rows]
        wrong = [step for step, value, row in values if not_finite(value) and not is_beside_another(row, value)]
        if wrong:
            notes.append(f"{name} is not finite at step {', '.join(map(str, wrong))}: left out")
    if not after:
        return None, notes
    return (
        after[0][0],
        f"not finite at step {after[0][0]}: loss {after[0][1]}; logged to step {max(step for step, _ in rows)}",
    ), notes
