"""Rows of the results table: the one place that names the columns and fills them.

The same names appear in tables, CSV, JSON, frames, plans, status and figures. `gflops`, `train_gflops` and `sampling_gflops` count
one multiply-add as one flop. `nfe` is how often the sampler calls the model for an image; a guided call is one.
Scores' columns stand after `num_samples`, named after metric and features: `fid`, `fd_digits`,
`precision_digits` (see `dit.design.metrics`).
`source` is the study that measured a row, or `paper` for a published one; `citation` then says where it is printed. Over seeds, a
score's column holds the mean, `<score>_sd` beside it the standard deviation of single runs (of n - 1), `n` counts the seeds, and
`recipe` is the hash of all that decides a run's result but its seed. A study that has runs of one block, size and patch size with several
recipes has a column `variant` more, which says in words what they differ in, and one for each such field (`learning_rate`): such runs are
never averaged.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from dit.design import flops
from dit.design.config import Evaluation, RunConfig, digest, to_json
from dit.design.guidance import from_json_values
from dit.design.metrics import column, from_record, of_column
from dit.errors import UserError

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
SCORE_COLUMNS = (
    "step",
    "images_seen",
    "train_gflops",
    "sampling_steps",
    "nfe",
    "sampling_gflops",
    "cfg_scale",
    "num_samples",
)
END_COLUMNS = ("protocol", "status", "source", "reason", "citation")
VARIANT = "variant"
DEVIATION = "_sd"
COUNT = "n"


def columns(metrics: list[str], apart: Sequence[str] = ()) -> list[str]:
    """Every column of the results table, in order, with the scores' columns in their place; `apart`: those that `varied` adds."""
    return [*CELL_COLUMNS, *apart, *SCORE_COLUMNS, *metrics, *END_COLUMNS]


def columns_over_seeds(metrics: list[str], apart: Sequence[str] = ()) -> list[str]:
    """The columns of a table of means over seeds, in order."""
    cell = [name for name in (*CELL_COLUMNS, *apart) if name not in ("run", "seed")]
    spread = [name for metric in metrics for name in (metric, metric + DEVIATION)]
    return ["recipe", *cell, *SCORE_COLUMNS, *spread, COUNT, "protocol", "source", "citation"]


def varied(runs: Iterable[RunConfig]) -> dict[str, Row]:
    """What tells each run, by its name, from others of its block, size and patch size: the columns that its row has more.

    `variant` says it in words, as `learning_rate=0.001`; then each field has a column (see `field_columns`), the same for every run.
    The seed does not count. Empty where no two runs of a cell differ in more than that.
    """
    fields: dict[str, dict[str, Any]] = {}
    cells: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        fields[run.run] = recipe_fields(run)
        cells[run.model.block, run.model.size, run.model.patch_size].append(fields[run.run])
    apart = {name for cell in cells.values() for name in cell[0] if any(one[name] != cell[0][name] for one in cell)}
    if "data.name" in apart:  # what follows from the data set
        apart -= {name for name in apart if name.startswith("data.") and name != "data.name"}
        apart -= {"model.input_size", "model.in_channels", "model.num_classes"}
    if not apart:
        return {}
    columns = field_columns({name for one in fields.values() for name in one})
    ordered = sorted(apart, key=lambda name: (not name.endswith(".name"), name))  # a part before what is set of it
    own = [name for name in ordered if columns[name] not in CELL_COLUMNS]
    return {
        run: {
            VARIANT: ", ".join(f"{_last(name)}={one[name]}" for name in sorted(apart) if name in one),
            **{columns[name]: _scalar(one.get(name)) for name in own},
        }
        for run, one in fields.items()
    }


def field_columns(names: Iterable[str]) -> dict[str, str]:
    """The column of each flat field: its last word, or all its words where another field, column or metric has that one."""
    ordered = sorted(names)
    last = Counter(map(_last, ordered))
    taken = {"run", "study", "recipe", VARIANT, COUNT, *SCORE_COLUMNS, *END_COLUMNS}

    def column(name: str) -> str:
        word = _last(name)
        if last[word] == 1 and word not in taken and of_column(word) is None:
            return word
        return name.replace(".", "_") if "." in name else f"train_{name}"

    return {name: column(name) for name in ordered}


def field_of(runs: Iterable[RunConfig], name: str) -> tuple[str, dict[str, Any]] | None:
    """A field's column and its value in each run, by the run's name; None where the runs have no such field.

    `name` is the column's, the field's last word, or the whole `optim.learning_rate`.
    """
    fields = {run.run: recipe_fields(run) for run in runs}
    columns = field_columns({field for one in fields.values() for field in one})
    found = [field for field, column in columns.items() if name in (column, field)]
    found += [field for field in columns if _last(field) == name]
    if not found:
        return None
    return columns[found[0]], {run: _scalar(one.get(found[0])) for run, one in fields.items()}


def _last(name: str) -> str:
    return name.removesuffix(".name").rpartition(".")[2]


def _scalar(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else json.dumps(value)


def recipe(run: RunConfig) -> str:
    """Hash of all that decides a run's result but its seed: runs of one recipe may be averaged."""
    return digest({name: value for name, value in run.identity.items() if name != "seed"})


def recipe_fields(run: RunConfig) -> dict[str, Any]:
    """What `recipe` is the hash of, flat: `optim.learning_rate`. Fields at their defaults are there too."""
    whole = {name: value for name, value in to_json(run).items() if name not in ("seed", "steps", "evaluations")}
    return {
        f"{name}.{part}" if part else name: value
        for name, values in whole.items()
        for part, value in (values.items() if isinstance(values, dict) else [("", values)])
    }


def cell_row(run: RunConfig, study: str, apart: Row | None = None) -> Row:
    """The columns that are known before anything runs; `apart`: the run's of `varied`, where the study has such."""
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
        **(apart or {}),
    }


def step_columns(run: RunConfig, step: int) -> Row:
    """How far training is: step, images seen, and training compute in Gflops."""
    return {"step": step, "images_seen": step * run.batch_size, "train_gflops": flops.train_gflops(run, step)}


def planned_row(run: RunConfig, study: str, status: str = "planned", apart: Row | None = None) -> Row:
    """A cell at the end of its training, before it has run."""
    cell = cell_row(run, study, apart)
    return {**cell, **step_columns(run, run.steps), "status": status, "source": study, "reason": None}


def score_row(run: RunConfig, study: str, evaluation: Evaluation, scores: dict[str, Any], protocol: str) -> Row:
    """Measured scores by their columns, complete with what they cost and under which protocol they were taken."""
    return {
        **cell_row(run, study),
        **step_columns(run, evaluation.step),
        "sampling_steps": evaluation.sampling_steps,
        "nfe": flops.model_calls(run, evaluation)[0],
        "sampling_gflops": flops.drawing_gflops(run, evaluation),
        "cfg_scale": evaluation.cfg_scale,
        "num_samples": evaluation.num_samples,
        **scores,
        "protocol": protocol,
        "status": "done",
        "source": study,
        "reason": None,
    }


def recorded_row(run: RunConfig, study: str, value: dict[str, Any]) -> Row:
    """The row of an evaluation's file: joined here with the cell's columns, or whole in it, as files of the first kind and imports have it.

    Raises:
        UserError: for an evaluation that is none of this version's.
    """
    if "row" in value:
        return value["row"]
    return score_row(run, study, recorded_evaluation(value), value["scores"], digest(value["protocol"]))


def recorded_evaluation(value: dict[str, Any]) -> Evaluation:
    """The evaluation that a file tells of, with the metrics that were taken.

    Raises:
        UserError: if it is none of this version's.
    """
    try:
        return Evaluation(**from_record(from_json_values(value["evaluation"])))
    except (TypeError, KeyError) as error:
        raise UserError(f"not an evaluation of this version: {error}") from error


def own_columns(metrics: Iterable[str], features: str) -> dict[str, str]:
    """Columns of metrics of the user's own, each with the metric as `name@source`."""
    return {column(one, features): one for one in metrics if "@" in one}


def outdated(columns: dict[str, str], declared: Iterable[str]) -> set[str]:
    """Those `own_columns` that were taken by other code than the metrics of their names have now."""
    now = {one.partition("@")[0]: one for one in declared}
    return {name for name, one in columns.items() if now.get(one.partition("@")[0], one) != one}


def recorded_metrics(value: dict[str, Any]) -> tuple[str, ...]:
    """The metrics that an evaluation's file holds; of one of the first kind the Fréchet distance counts alone."""
    return ("fid",) if "row" in value else tuple(value["evaluation"].get("metrics", ()))
