"""Tables of the page: columns with a meaning, and rows whose cells hold a value to sort by and a text to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.comparable import at_common_step
from analysis.figures.drawing import Scores, over_seeds
from analysis.frames import Frame
from analysis.protocols import describe
from analysis.results import StudyResults
from analysis.tables import plain
from dit.design.blocks import block_label
from dit.design.metrics import is_better_higher, label_of, of_column

MOST_ROWS = 3000
_CELL = ["block", "size", "patch_size"]
_CONSTANT = ("study", "source")
_MINOR = ("tokens", "params", "images_seen", "nfe", "sampling_gflops", "num_samples", "cfg_scale", "protocol", "status")
_HEADS = {
    "patch_size": ("patch", "patch size"),
    "params": ("params", "trainable parameters"),
    "gflops": ("Gflops", "one forward pass for one image; one multiply-add is one flop"),
    "train_gflops": ("train Gflops", "Gflops · batch · steps · 3; one multiply-add is one flop"),
    "sampling_gflops": ("sampling Gflops", "to sample one image; one multiply-add is one flop"),
    "sampling_steps": ("sampling steps", "steps of the sampler"),
    "nfe": ("model calls", "of the sampler for one image; a guided call is one"),
    "num_samples": ("samples", "how many samples were scored"),
    "cfg_scale": ("guidance", "scale of classifier-free guidance; 1 is none"),
    "images_seen": ("images", "images seen in training"),
    "batch_size": ("batch", "batch size"),
    "goodput": ("goodput", "share of the time of all attempts that went into steps which no later attempt did again"),
}


@dataclass(frozen=True)
class Column:
    """A column: its name in the results table, head, meaning, and whether it holds numbers; a `minor` one is not printed on paper."""

    name: str
    head: str
    meaning: str
    numeric: bool
    minor: bool = False


@dataclass(frozen=True)
class Cell:
    """What to read, and what to sort by where that differs from the text (numbers at full precision)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the page; `constants` are columns that hold one value throughout, as (head, text); `more` rows were left out."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    constants: tuple[tuple[str, str], ...] = ()
    more: int = 0


def table(rows: list[dict[str, Any]], names: list[str], fold: bool = False) -> Table:
    """Rows as a table, columns without any value left out; `fold`: columns with one value throughout become `constants`."""
    values = {name: [plain(row.get(name)) for row in rows] for name in names}
    kept = [name for name in names if any(value is not None for value in values[name])]
    fixed = [name for name in kept if fold and len(rows) > 1 and len(set(map(str, values[name]))) == 1]
    columns = tuple(_column(name, values[name]) for name in kept if name not in fixed)
    return Table(
        columns=columns,
        rows=tuple(tuple(cell(values[one.name][index]) for one in columns) for index in range(len(rows))),
        constants=tuple((_column(name, values[name]).head, cell(values[name][0]).text) for name in fixed),
    )


def cell(value: Any) -> Cell:
    """A value as a cell."""
    value = plain(value)
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(written(value), number)


def written(value: Any) -> str:
    """A plain value as text: whole numbers in groups of three, others with four significant digits, nothing for a gap."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if not 1e-4 <= abs(value) < 1e6:
            return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return str(value)


def _column(name: str, values: list[Any]) -> Column:
    head, meaning = _HEADS.get(name) or (name.replace("_", " "), _of_metric(name))
    numeric = all(isinstance(value, int | float) for value in values if value is not None)
    return Column(name, head, meaning, numeric, name in _MINOR)


def _of_metric(name: str) -> str:
    """What a metric's column holds; empty for any other column."""
    if of_column(name) is None:
        return ""
    return f"{label_of(name)}; {'higher' if is_better_higher(name) else 'lower'} is better"


def cell_table(shown: Scores) -> Table:
    """One row per cell at the last step that most runs share: mean over seeds, standard deviation and number of seeds, best first."""
    rows = at_common_step(shown.rows)
    fixed = rows.groupby(_CELL)[["params", "gflops", "train_gflops"]].first().reset_index()
    means = over_seeds(rows, _CELL, shown.metric).merge(fixed, on=_CELL)
    means = means.sort_values("mean", kind="stable").rename(columns={"mean": shown.metric, "n": "seeds"})
    means["block"] = means["block"].map(block_label)
    return table(means.to_dict("records"), [*_CELL, "params", "gflops", "train_gflops", shown.metric, "sd", "seeds"])


def score_table(study: StudyResults) -> Table:
    """Every score and every failure; beyond `MOST_ROWS`, each run's last score under each protocol."""
    rows = study.table
    if len(rows) > MOST_ROWS:
        rows = rows.sort_values("step", kind="stable").groupby(["run", "protocol"], dropna=False).tail(1).sort_index()
    kept = rows.head(MOST_ROWS)
    first = [*_CELL, "seed", "step", *study.metrics, "gflops", "train_gflops"]
    rest = [name for name in study.table.columns if name not in (*first, *_CONSTANT, "run")]
    named = kept.assign(block=kept["block"].map(block_label, na_action="ignore"))
    made = table(named.to_dict("records"), [*first, *rest, "run"], fold=True)
    return Table(made.columns, made.rows, made.constants, more=len(study.table) - len(kept))


def protocol_table(study: StudyResults) -> Table:
    """The protocols under which scores were taken, with how many scores and the floor of each."""
    counts = study.table["protocol"].value_counts()
    rows = [
        {
            "protocol": key,
            "in words": describe(study.protocols[key]),
            "features": str(study.protocols[key].get("features")).partition("@")[0],
            "reference": study.protocols[key].get("reference"),
            "scores": int(count),
            "floor": study.floors.get(key),
        }
        for key, count in counts.items()
    ]
    return table(rows, ["protocol", "in words", "features", "reference", "scores", "floor"])


def failures(study: StudyResults) -> Table:
    """The runs that failed: where, and why."""
    failed = study.table[study.table["status"] == "failed"]
    return table(failed.to_dict("records"), ["run", *_CELL, "seed", "step", "reason"])


def cells_of(rows: Frame) -> int:
    """How many cells (block, size, patch size) the rows are of."""
    return len(rows.drop_duplicates(_CELL))
