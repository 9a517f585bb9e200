"""Scores and losses of a study as pandas frames, one call each; the published numbers in the same columns.

>>> table = results("runs/demo")      # one row per score, one per failed run
>>> table = results("paper")          # the paper's own numbers
>>> curves = losses("runs/demo")      # one row per logged training step

Columns are those of `dit.rows`: `gflops`, `train_gflops` and `sampling_gflops` count one multiply-add as one flop. A failed run is a
row with status and reason and no score; a run that is planned or under way has the rows of the scores taken so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import published
from analysis.frames import Frame, frame
from analysis.protocols import Protocol
from analysis.query import filter_rows
from dit import rows as columns_of
from dit.errors import UserError
from dit.rows import Row, cell_row, step_columns
from dit.store import FAILED, RunStore, load_study, read_json

PUBLISHED: dict[str, Callable[[], list[Row]]] = {"paper": published.rows, "baselines": published.baselines}
_FIXED = columns_of.columns([])
_LOSS_COLUMNS = ("run", "study", "block", "size", "patch_size", "seed")


@dataclass(frozen=True)
class StudyResults:
    """Everything that a study has on record about its scores.

    `protocols` and `floors` (half of the real set scored against the other half) are by the hash in column `protocol`; `identities`
    holds the identity hash of each run; `samples` the file of first samples by (run, step, protocol). `sizes`, `patches` and `blocks`
    are those of the whole study, in order of growth, whatever `table` was filtered to.
    """

    name: str
    table: Frame
    protocols: dict[str, Protocol]
    floors: dict[str, float]
    identities: dict[str, str]
    sizes: tuple[str, ...]
    patches: tuple[int, ...]
    samples: dict[tuple[str, int, str], Path] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def metrics(self) -> list[str]:
        """The columns that hold scores."""
        return [name for name in self.table.columns if name not in _FIXED]

    def where(self, expression: str | None) -> StudyResults:
        """The same study, its rows filtered; a UserError if the expression is not one."""
        return self if expression is None else replace(self, table=filter_rows(self.table, expression))


def collect(source: str | Path) -> StudyResults:
    """What is on record in a study's folder; "paper" and "baselines" are the published numbers (a folder of that name: "./paper").

    Raises:
        UserError: if there is no study, or it has neither a score nor a failed run yet.
    """
    if str(source) in PUBLISHED:
        return _published(str(source))
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f"no folder {folder}: expected one that `dit sweep` wrote, or 'paper' for the published numbers"
        )
    study = load_study(folder)
    rows: list[Row] = []
    protocols: dict[str, Protocol] = {}
    floors: dict[str, float] = {}
    samples: dict[tuple[str, int, str], Path] = {}
    for run in study.runs:
        store = RunStore(folder, run)
        for path in sorted((store.path / "evals").glob("*.json")):
            value = read_json(path)
            if not {"row", "protocol"} <= value.keys():
                raise UserError(f"{path} is not an evaluation: expected its row and protocol; delete it to score again")
            row = value["row"]
            rows.append(row)
            protocols.setdefault(row["protocol"], value["protocol"])
            if value.get("floor") is not None:
                floors.setdefault(row["protocol"], value["floor"])
            images = store.path / "samples" / f"{path.stem}.npz"
            if images.is_file():
                samples[row["run"], row["step"], row["protocol"]] = images
        status = store.status()
        if status["state"] == FAILED:
            rows.append(
                {
                    **cell_row(run, study.name),
                    **step_columns(run, status.get("step", 0)),
                    **{"status": FAILED, "source": study.name, "reason": status.get("reason")},
                }
            )
    if not rows:
        raise UserError(
            f"no results in {folder}: none of its {len(study.runs)} runs has a score yet; run the study with `dit sweep`, "
            f"or follow it with `dit status {folder}`"
        )
    cells = {(run.model.size, run.model.patch_size): run for run in study.runs}
    growth = sorted(cells, key=lambda cell: cells[cell].model.depth * cells[cell].model.hidden_size ** 2)
    return StudyResults(
        name=study.name,
        table=_table(rows),
        protocols=protocols,
        floors=floors,
        identities={run.run: run.hash for run in study.runs},
        sizes=tuple(dict.fromkeys(size for size, _ in growth)),
        patches=tuple(sorted({patch for _, patch in cells}, reverse=True)),
        samples=samples,
        folder=folder,
    )


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
    folder = Path(source)
    study = load_study(folder)
    rows: list[Row] = []
    for run in study.runs:
        row = cell_row(run, study.name)
        cell = {name: row[name] for name in _LOSS_COLUMNS}
        rows.extend({**cell, **logged} for logged in RunStore(folder, run).metrics())
    return frame(rows) if rows else frame([], [*_LOSS_COLUMNS, "step", "loss"])


def _table(rows: list[Row]) -> Frame:
    metrics = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in _FIXED]
    table = frame(rows, columns_of.columns(metrics))
    return table.astype({name: "float64" for name in metrics})


def _published(source: str) -> StudyResults:
    rows = PUBLISHED[source]()
    return StudyResults(
        name=source,
        table=_table(rows),
        protocols=published.protocols(),
        floors={},
        identities={},
        sizes=("S", "B", "L", "XL"),
        patches=(8, 4, 2),
    )
