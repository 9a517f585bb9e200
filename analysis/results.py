"""Scores and losses of a study as pandas frames, one call each; the published numbers in the same columns.

>>> table = results("runs/demo")      # one row per score, one per failed run
>>> table = results("paper")          # the paper's own numbers
>>> curves = losses("runs/demo")      # one row per logged training step

Columns are those of `dit.design.rows`: `gflops`, `train_gflops` and `sampling_gflops` count one multiply-add as one flop. A failed run is a
row with status and reason and no score; a run that is planned or under way has the rows of the scores taken so far.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import field as of_field
from analysis import published, records
from analysis.frames import Frame, frame
from analysis.protocols import Protocol
from analysis.seeds import over_seeds
from dit.design import rows as columns_of
from dit.design.metrics import in_order
from dit.design.query import filter_rows
from dit.design.rows import VARIANT, Row
from dit.errors import UserError
from dit.store.archives import SUFFIX, opened
from dit.store.study import hidden_runs

PUBLISHED: dict[str, tuple[Callable[[], list[Row]], Callable[[], dict[str, Protocol]]]] = {
    "paper": (published.rows, published.protocols),
    "baselines": (published.baselines, published.protocols),
    "field": (of_field.rows, of_field.protocols),
}
_FIXED = (*columns_of.columns([], variants=True), *of_field.COLUMNS)


@dataclass(frozen=True)
class StudyResults:
    """Everything that a study has on record about its scores.

    `protocols` and `floors` (half of the real set scored against the other half) are by the hash in column `protocol`; `identities`
    holds the identity hash of each run, `recipes` that of its identity less the seed, which runs of one cell share; `samples` the file
    of first samples by (run, step, protocol). `sizes` and `patches` are those of the whole study, in order of growth, whatever `table`
    was filtered to. `waiting` has the runs without a row yet, under the same columns, and is filtered with it; `filters` says how.
    `with_young_averages`: laws use scores of averages that still hold the first weights (`analysis.averages`).
    """

    name: str
    table: Frame
    protocols: dict[str, Protocol]
    floors: dict[str, float]
    identities: dict[str, str]
    recipes: dict[str, str]
    sizes: tuple[str, ...]
    patches: tuple[int, ...]
    samples: dict[tuple[str, int, str], Path] = field(default_factory=dict)
    folder: Path | None = None
    waiting: Frame = field(default_factory=lambda: frame([], ["run"]))
    filters: tuple[str, ...] = ()
    with_young_averages: bool = False

    @property
    def runs(self) -> set[str]:
        """The runs that the rows are of, and those without a row yet that the filter, if any, does not leave out."""
        return {*self.table["run"], *self.waiting["run"]}

    @property
    def metrics(self) -> list[str]:
        """The columns that hold scores."""
        return [name for name in self.table.columns if name not in _FIXED]

    def over_seeds(self) -> Frame:
        """The table's scores as means over seeds, with standard deviation and count: one row for each cell, step and protocol."""
        return over_seeds(self.table, self.metrics, self.recipes)

    def where(self, expression: str | None) -> StudyResults:
        """The same study, its rows filtered; a UserError if the expression is not one."""
        if expression is None:
            return self
        table = filter_rows(self.table, expression)
        waiting = filter_rows(self.waiting, expression) if len(self.waiting) else self.waiting
        return replace(self, table=table, waiting=waiting, filters=(*self.filters, expression))


def collect(source: str | Path, unscored: bool = False) -> StudyResults:
    """What is on record in a study's folder; "paper", "baselines" and "field" are published numbers (a folder of that name: "./paper").

    Raises:
        UserError: if there is no study, or it has neither a score nor a failed run yet, unless `unscored` studies are meant too.
    """
    if str(source) in PUBLISHED:
        return _published(str(source))
    folder = study_folder(source)
    cells = records.cells(folder)
    table = records.scores(folder, list(cells["run"]))
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, "run", "step", "status", "reason"])))
    damaged = table["status"] == records.DAMAGED
    unvouched = int((table[records.VOUCHED] == 0).sum())
    records.say_left_out(folder, list(table.loc[damaged, "reason"]), "rows", unvouched)
    if hidden := hidden_runs(folder, set(cells["run"])):
        print(f"{len(hidden)} finished runs in the folder are not in study.json: {hidden[0]}", file=sys.stderr)
    if len(table) and damaged.all():
        raise UserError(f"no results in {folder}: every row is damaged ({table['reason'].iloc[0]})")
    table = table[~damaged].reset_index(drop=True)
    if table.empty and not unscored:
        raise UserError(
            f"no results in {folder}: none of its {len(cells)} runs has a score yet; run the study with `dit sweep`, "
            f"follow it with `dit status {folder}`, or fit its losses with `dit fit {folder} --of training_loss`"
        )
    growth = cells.sort_values(records.GROWTH, kind="stable")
    scored = table.dropna(subset=["protocol"])
    protocols = scored.drop_duplicates("protocol")
    floors = scored.dropna(subset=[records.FLOOR]).drop_duplicates("protocol")
    sampled = scored.dropna(subset=[records.SAMPLES])
    if (cells[VARIANT] != "").any():
        table[VARIANT] = table["run"].map(dict(zip(cells["run"], cells[VARIANT])))
    whole = _table(table.drop(columns=[records.PROTOCOL, records.FLOOR, records.SAMPLES, records.VOUCHED]))
    waiting = cells[~cells["run"].isin(table["run"])].reindex(columns=whole.columns)
    return StudyResults(
        name=cells["study"].iloc[0],
        table=whole,
        protocols={key: json.loads(text) for key, text in zip(protocols["protocol"], protocols[records.PROTOCOL])},
        floors=dict(zip(floors["protocol"], floors[records.FLOOR].tolist())),
        identities=dict(zip(cells["run"], cells[records.HASH])),
        recipes=dict(zip(cells["run"], cells[records.RECIPE])),
        sizes=tuple(growth["size"].unique()),
        patches=tuple(sorted(cells["patch_size"].unique().tolist(), reverse=True)),
        samples={
            (run, step, protocol): Path(f"{folder}/runs/{run}/samples/{name}")
            for run, step, protocol, name in zip(
                sampled["run"], sampled["step"].tolist(), sampled["protocol"], sampled[records.SAMPLES]
            )
        },
        folder=folder,
        waiting=waiting.astype(whole.dtypes.to_dict()) if len(whole) else waiting,
    )


def study_folder(source: str | Path) -> Path:
    """The folder of that name, or the one that an archive of a study is unpacked to.

    Raises:
        UserError: if there is none.
    """
    folder = opened(Path(source))
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: expected one that `dit sweep` wrote, an archive of one ({SUFFIX}), "
            "or 'paper' for the published numbers"
        )
    return folder


def output_folder(source: str | Path, study: StudyResults) -> Path:
    """Where figures and report go unless told: the study's folder; beside an archive; `runs/paper` for published numbers."""
    if str(source).endswith(SUFFIX):
        return Path(str(source).removesuffix(SUFFIX))
    return study.folder or Path("runs") / source


def results(source: str | Path) -> Frame:
    """The results table of a study's folder, or of "paper": one row per score and per failed run.

    Raises:
        UserError: as `collect` does.
    """
    return collect(source).table


def losses(source: str | Path) -> Frame:
    """Logged training rows of all runs of a study's folder: the cell, `step`, `loss` and what else was logged with it.

    Raises:
        UserError: if there is no study.
    """
    folder = study_folder(source)
    return records.logged(folder, records.cells(folder))


def _table(table: Frame) -> Frame:
    """Rows under the results table's columns, in their order."""
    metrics = in_order(name for name in table.columns if name not in _FIXED)
    columns = columns_of.columns(metrics, VARIANT in table)
    columns += [name for name in of_field.COLUMNS if name in table and name not in columns]
    table = table.reindex(columns=columns).infer_objects()
    return table.astype({name: "float64" for name in metrics})


def _published(source: str) -> StudyResults:
    rows, protocols = PUBLISHED[source]
    return StudyResults(
        name=source,
        table=_table(frame(rows())),
        protocols=protocols(),
        floors={},
        identities={},
        recipes={},
        sizes=("S", "B", "L", "XL"),
        patches=(8, 4, 2),
    )
