"""Rows of the results table: the one place that names the columns and fills them.

The same names appear in tables, CSV, JSON, frames, plans, status and figures. `gflops`, `train_gflops` and `sampling_gflops` count
one multiply-add as one flop. `nfe` is how often the sampler calls the model for an image; a guided call is one.
Scores' columns stand after `num_samples`, named after metric and features: `fid`, `fd_digits`,
`precision_digits` (see `dit.design.metrics`).
`source` is the study that measured a row, or `paper` for a published one; `citation` then says where it is printed. Over seeds, a
score's column holds the mean, `<score>_sd` beside it the standard deviation of single runs (of n - 1), `n` counts the seeds, and
`recipe` is the hash of all that decides a run's result but its seed. A study that has runs of one block, size and patch size with several
recipes has a column `variant` more, which says in words what they differ in: such runs are never averaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from dit.design import flops
from dit.design.config import Evaluation, RunConfig, digest, to_json
from dit.design.guidance import from_json_values
from dit.design.metrics import column, from_record
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


def columns(metrics: list[str], variants: bool = False) -> list[str]:
    """Every column of the results table, in order, with the scores' columns in their place; `variants`: of a study that has them."""
    return [*CELL_COLUMNS, *[VARIANT] * variants, *SCORE_COLUMNS, *metrics, *END_COLUMNS]


def columns_over_seeds(metrics: list[str], variants: bool = False) -> list[str]:
    """The columns of a table of means over seeds, in order."""
    cell = [name for name in (*CELL_COLUMNS, *[VARIANT] * variants) if name not in ("run", "seed")]
    spread = [name for metric in metrics for name in (metric, metric + DEVIATION)]
    return ["recipe", *cell, *SCORE_COLUMNS, *spread, COUNT, "protocol", "source", "citation"]


def variants(runs: Iterable[RunConfig]) -> dict[str, str]:
    """What tells each run, by its name, from others of its block, size and patch size, as `learning_rate=0.001`; the seed does not count.

    Every run of a study names the same fields. Empty where no two runs of a cell differ in more than their seed.
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
    short = {name: name.removesuffix(".name").rpartition(".")[2] for name in sorted(apart)}
    if not apart:
        return {}
    return {
        run: ", ".join(f"{word}={one[name]}" for name, word in short.items() if name in one)
        for run, one in fields.items()
    }


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


def cell_row(run: RunConfig, study: str, variant: str | None = None) -> Row:
    """The columns that are known before anything runs; `variant` where the study has several (see `variants`)."""
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
        **({} if variant is None else {VARIANT: variant}),
    }


def step_columns(run: RunConfig, step: int) -> Row:
    """How far training is: step, images seen, and training compute in Gflops."""
    return {"step": step, "images_seen": step * run.batch_size, "train_gflops": flops.train_gflops(run, step)}


def planned_row(run: RunConfig, study: str, status: str = "planned", variant: str | None = None) -> Row:
    """A cell at the end of its training, before it has run."""
    cell = cell_row(run, study, variant)
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
