"""Scores as mean, standard deviation and count over seeds, and the refusal to average what differs in more."""

from __future__ import annotations

from collections.abc import Mapping

from analysis.frames import Frame, frame
from dit.design.rows import COUNT, DEVIATION, VARIANT, columns_over_seeds
from dit.errors import UserError


def over_seeds(table: Frame, metrics: list[str], recipes: Mapping[str, str]) -> Frame:
    """One row for each cell, step and protocol: the mean of each score over its seeds, `<score>_sd` and `n`.

    The standard deviation is that of single runs (divided by n - 1; a gap where n is 1). Runs that differ in more than their seed are
    different cells even where no column of the table shows it. Rows without a score (failed runs) are left out, and so not counted.

    Args:
        recipes: a run's identity less its seed; a run that is not there is a cell of its own.
    """
    columns = columns_over_seeds(metrics, VARIANT in table)
    scored = table[table[metrics].notna().any(axis=1)] if metrics else table[:0]
    if scored.empty:
        return frame([], columns)
    scored = scored.assign(recipe=scored["run"].map(lambda run: recipes.get(run, run)))
    scored = scored.drop_duplicates(["recipe", "step", "protocol", "seed"])  # a paper may print one score in two tables
    groups = scored.groupby(["recipe", "step", "protocol"], sort=False, dropna=False)
    means = groups[metrics].mean()
    deviations = groups[metrics].std().add_suffix(DEVIATION)
    counts = groups.size().rename(COUNT)
    rest = groups[[name for name in scored.columns if name not in metrics]].first()
    lead = rest.drop(columns=["recipe", "step", "protocol"]).join([means, deviations, counts]).reset_index()
    return lead[columns].astype({COUNT: "Int64"})


def require_one_variant(rows: Frame) -> None:
    """Check that runs of one block, size and patch size differ in their seed alone.

    Raises:
        UserError: naming two variants of one cell, and how to pick one.
    """
    if VARIANT not in rows.columns:
        return
    for cell, found in rows.groupby(["block", "size", "patch_size"], sort=False)[VARIANT]:
        several = found.unique()
        if len(several) > 1:
            block, size, patch = cell  # type: ignore[misc]  # grouped by three columns
            raise UserError(
                f"{block} {size}/{patch} was trained with {several[0]} and with {several[1]}: no mean is taken over what differs in "
                f"more than the seed; pick one, as in --where \"{VARIANT} == '{several[0]}'\""
            )
