"""Runs logged in Weights & Biases made into a study's folder, which every other verb reads.

Each field of a run is looked for under the name given with `--map FIELD=COLUMN`, then under the usual ones of `USUAL`; `--set
FIELD=VALUE` states one that was never logged. A run that this package logged carries its whole configuration, which is taken as it is.
What a protocol leaves unsaid is None, as in the published rows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.wandb_sources import FINISHED, LoggedRun, flat
from dit.design.config import DATASETS, Evaluation, OptimConfig, RunConfig, digest, from_json, model_config
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

USUAL: dict[str, tuple[str, ...]] = {
    "step": ("step", "train/step", "global_step", "trainer/global_step", "train_steps", "_step"),
    "loss": ("loss", "train/loss", "train_loss", "train loss", "Train Loss"),
    "mse": ("mse", "train/mse"),
    "vb": ("vb", "train/vb"),
    "grad_norm": ("grad_norm", "train/grad_norm", "train/gradient_norm"),
    "images_per_s": ("images_per_s",),
    "fid": ("fid", "FID", "fid50k", "eval/fid", "val/fid", "eval/fid50k"),
    "sfid": ("sfid", "sFID", "eval/sfid"),
    "inception_score": ("inception_score", "is", "eval/inception_score", "eval/is"),
    "precision": ("precision", "eval/precision"),
    "recall": ("recall", "eval/recall"),
    "block": ("block", "block_type", "model.block"),
    "size": ("size", "model_size", "model.size"),
    "patch_size": ("patch_size", "patch", "model.patch_size"),
    "ladder": ("ladder", "model.ladder"),
    "dataset": ("dataset", "data.name"),
    "image_size": ("image_size", "data.image_size"),
    "seed": ("seed", "global_seed"),
    "batch_size": ("batch_size", "global_batch_size"),
    "learning_rate": ("learning_rate", "lr", "optim.learning_rate"),
}
LOGGED = ("loss", "mse", "vb", "grad_norm", "images_per_s")
PROTOCOL = ("num_samples", "sampler", "sampling_steps", "cfg_scale", "ema", "decoder", "reference", "sample_seed")
CELL = ("block", "size", "patch_size", "ladder", "dataset", "image_size", "seed", "batch_size", "learning_rate")
_MODEL_NAME = re.compile(r"DiT[-_ ]?(?P<size>XL|S|B|L)[-_/ ](?P<patch_size>\d+)")


@dataclass(frozen=True)
class Fields:
    """Where each field is: under another name (`named`), or stated (`stated`, as text)."""

    named: Mapping[str, str] = field(default_factory=dict)
    stated: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {*CELL, *PROTOCOL}
        for name in self.stated:
            if name not in known:
                raise UserError(f"--set {name}: expected one of {', '.join([*CELL, *PROTOCOL])}")

    def of(self, name: str, values: Mapping[str, Any]) -> Any:
        """The field's value; None if there is none."""
        if name in self.stated:
            return _value(self.stated[name])
        names = (self.named[name],) if name in self.named else (*USUAL.get(name, ()), name)
        return next((values[one] for one in names if one in values), None)

    def is_metric(self, name: str) -> bool:
        """Whether a mapped name is one of a run's logged columns that has no name of its own here."""
        return name not in (*CELL, *PROTOCOL, *SCORES, "step") and of_column(name) is None


def import_runs(logged: Sequence[LoggedRun], fields: Fields, study: str, origin: str, out: Path) -> Study:
    """Write the runs as a study into `out`, whole or not at all.

    Raises:
        UserError: if `out` is there already, or for what cannot be mapped, naming the columns there are.
    """
    if out.exists():
        raise UserError(f"{out} is already there: choose another --out")
    _check_named(logged, fields)
    runs: dict[str, LoggedRun] = {}
    configs: list[RunConfig] = []
    for one in logged:
        config = _config(one, fields)
        if config.run in runs:
            raise UserError(
                f"runs '{runs[config.run].name}' and '{one.name}' are both {config.run}: tell them apart with --map seed=COLUMN, "
                "or leave one out with --only"
            )
        runs[config.run] = one
        configs.append(config)
    made = Study(study, f"Imported from wandb: {origin}.", tuple(configs))
    with whole(out) as beside:
        save_study(beside, made)
        for config, one in zip(configs, runs.values()):
            _write_run(RunStore(beside, config), one, fields, study)
    return made


def _check_named(logged: Sequence[LoggedRun], fields: Fields) -> None:
    columns = list(dict.fromkeys(name for run in logged for name in run.columns()))
    settings = list(dict.fromkeys(name for run in logged for name in flat(run.config)))
    there = f"columns: {', '.join(columns) or 'none'}; configuration: {', '.join(settings) or 'none'}"
    for name, there_as in fields.named.items():
        if there_as not in columns and there_as not in settings:
            raise UserError(f"--map {name}={there_as}: no run has it; {there}")
    if not any(
        fields.of(name, row) is not None for run in logged for row in run.rows for name in _measured(row, fields)
    ):
        raise UserError(
            f"no loss and no score is found: name one, as in --map loss=COLUMN or --map fid=COLUMN; {there}"
        )


def _measured(row: Mapping[str, Any], fields: Fields) -> list[str]:
    """Fields of a history row that may hold a loss or a score."""
    own = [name for name in row if of_column(name)]
    mapped = [name for name in fields.named if fields.is_metric(name) or of_column(name)]
    return list(dict.fromkeys([*LOGGED, *SCORES, *own, *mapped]))


def _config(one: LoggedRun, fields: Fields) -> RunConfig:
    """The configuration of a run: its own if this package logged it, else what the fields tell."""
    steps = max((step for step, _ in _by_step(one, fields)), default=0)
    if isinstance(one.config.get("model"), dict) and isinstance(one.config.get("data"), dict):
        return from_json({name: value for name, value in one.config.items() if name != "protocols" and name[0] != "_"})
    config = flat(one.config)
    named = _MODEL_NAME.search(f"{config.get('model', '')} {one.name}")
    config = {**(named.groupdict() if named else {}), **config}
    values = {name: fields.of(name, config) for name in CELL}
    if str(values["dataset"]) not in DATASETS and values["image_size"] is not None:
        values["dataset"] = f"imagenet{_whole(one, 'image_size', values['image_size'])}"
    for name in ("block", "size", "patch_size", "dataset", "batch_size"):
        if values[name] is None:
            raise UserError(
                f"run '{one.name}' does not tell its {name}: give --map {name}=COLUMN or --set {name}=VALUE; its configuration "
                f"has {', '.join(config) or 'nothing'}"
            )
    for name in ("block", "size", "dataset"):
        if not isinstance(values[name], str):
            raise UserError(f"run '{one.name}': {name} is {values[name]!r}, expected a name: see --map and --set")
    if values["dataset"] not in DATASETS:
        raise UserError(f"unknown dataset '{values['dataset']}': expected --set dataset={'|'.join(DATASETS)}")
    data = DATASETS[values["dataset"]]
    patch_size, batch_size, seed = (
        _whole(one, name, values[name] or 0) for name in ("patch_size", "batch_size", "seed")
    )
    model = model_config(values["block"], str(values["size"]), patch_size, data, values["ladder"] or "dit")
    rate = values["learning_rate"]
    optim = OptimConfig() if rate is None else replace(OptimConfig(), learning_rate=_real(one, "learning_rate", rate))
    return RunConfig(model, data, max(steps, 1), batch_size, seed, optim=optim)


def _write_run(store: RunStore, one: LoggedRun, fields: Fields, study: str) -> None:
    """Metrics, scores and status of one run, and what wandb said of it."""
    store.create()
    write_json(store.path / "imported.json", {"source": one.source, "name": one.name, "config": one.config})
    rows = _by_step(one, fields)
    extra = [name for name in fields.named if fields.is_metric(name)]
    merged: dict[int, Row] = {}
    for step, row in rows:
        found = {name: _number(fields.of(name, row)) for name in dict.fromkeys([*LOGGED, *extra])}
        merged.setdefault(step, {}).update({name: value for name, value in found.items() if value is not None})
    with closing(store.metrics_writer(1)) as metrics:
        for step in sorted(step for step, row in merged.items() if row):
            metrics.write({"step": step, **merged[step], "train_gflops": step_columns(store.run, step)["train_gflops"]})
    places: Counter[tuple[int, str]] = Counter()
    for step, row in rows:
        _write_scores(store, one, step, row, fields, study, places)
    failed = one.state in ("failed", "crashed", "killed")
    state = FAILED if failed else DONE if one.state == FINISHED else RUNNING
    store.set_status(
        state,
        step=max((step for step, _ in rows), default=0),
        attempt=1,
        metrics=metrics.end,
        **({"reason": f"{one.state} in wandb"} if failed else {}),
    )


def _write_scores(
    store: RunStore,
    one: LoggedRun,
    step: int,
    row: Mapping[str, Any],
    fields: Fields,
    study: str,
    places: Counter[tuple[int, str]],
) -> None:
    """The evaluation files of one history row, one for the metrics of each features: FID with the scores beside it, and others likewise.

    Args:
        places: how many scores of that name and step came before; counted up here.
    """
    families: dict[str, list[str]] = {"fid": list(SCORES)}
    for name in dict.fromkeys((*row, *fields.named)):
        if (found := of_column(name)) and name not in SCORES:
            features = name.removeprefix(found.column_stem).removeprefix("_") if name != found.name else ""
            families.setdefault(column("fid", features), []).append(name)
    for metric, names in families.items():
        scores = {name: _number(fields.of(name, row)) for name in names}
        scores = {name: value for name, value in scores.items() if value is not None}
        if not scores:
            continue
        declared = [e for e in store.run.evaluations if e.metric == metric and e.step == step]
        evaluation = next(iter(declared[places[step, metric] :]), None)
        places[step, metric] += 1
        protocol = _protocol(one, row, fields, metric, evaluation)
        steps, cfg_scale = protocol["sampling_steps"], protocol["cfg_scale"]
        value = {
            **cell_row(store.run, study),
            **step_columns(store.run, step),
            "sampling_steps": steps,
            "nfe": steps,
            "sampling_gflops": sampling_gflops(store.run.model, steps, 1.0 if cfg_scale is None else cfg_scale)
            if steps
            else None,
            "cfg_scale": cfg_scale,
            "num_samples": protocol["num_samples"],
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
            f"run '{one.name}' does not tell over how many samples its {metric} is: give --set num_samples=50000"
        )
    for name in ("num_samples", "sampling_steps", "sample_seed"):
        stated[name] = None if stated[name] is None else _whole(one, name, stated[name])
    if stated["cfg_scale"] is not None:
        stated["cfg_scale"] = _real(one, "cfg_scale", stated["cfg_scale"])
    features = "inception" if metric == "fid" else metric.removeprefix("fd_")
    return {"features": features, "extractor_sha256": None, "reference_sha256": None, "cfg_channels": None, **stated}


def _protocols(one: LoggedRun) -> dict[str, dict[str, Any]]:
    """The protocols by their hash that this package logs with a run; none of another's."""
    text = one.config.get("protocols")
    try:
        known = json.loads(text) if isinstance(text, str) else None
    except ValueError as error:
        raise UserError(f"run '{one.name}': its protocols are not JSON ({error}): export it again") from error
    return {key: value for key, value in known.items() if isinstance(value, dict)} if isinstance(known, dict) else {}


def _by_step(one: LoggedRun, fields: Fields) -> list[tuple[int, dict[str, Any]]]:
    """The rows that hold a loss or a score, each with its training step, which all of them must log under one name.

    wandb's own `_step` counts calls where a trainer logs its step beside it, so the two are never mixed.
    """
    there = one.columns()
    usual = (fields.named["step"],) if "step" in fields.named else USUAL["step"]
    column = next((name for name in usual if name in there), None)
    found = []
    for row in one.rows:
        if not any(_number(fields.of(name, row)) is not None for name in _measured(row, fields)):
            continue
        if column not in row:
            raise UserError(
                f"a row of run '{one.name}' has no {column or 'step'}: give --map step=COLUMN; its columns are {', '.join(row)}"
            )
        found.append((_whole(one, "step", row[column]), row))
    return found


def _whole(one: LoggedRun, name: str, value: Any) -> int:
    number = _real(one, name, value)
    if number != int(number):
        raise UserError(f"run '{one.name}': {name} is {value!r}, expected a whole number: see --map and --set")
    return int(number)


def _real(one: LoggedRun, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"run '{one.name}': {name} is {value!r}, expected a number: see --map and --set")
    return number


def _number(value: Any) -> float | int | None:
    """A finite number as it is; None for anything else (wandb logs pictures and tables too)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _value(text: str) -> Any:
    """A stated value: number, true or false, or text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
