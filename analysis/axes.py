"""A field of a study's runs as an axis: its values, the study's part for each, and what the scores' protocols may then differ in.

A field is a column of the results table that tells runs apart (`learning_rate`, `block`, `variant`), any other field of a run by its short
name, or a part of the scores' protocol (`sampler`). Scores of two protocols share an axis only where it is that part, or an
objective, which has samplers of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.frames import Frame
from analysis.seeds import CELL
from analysis.tables import plain
from dit.design.parts import nearest
from dit.design.rows import VARIANT, field_columns, field_of, recipe_fields
from dit.errors import UserError
from dit.store.study import load_study

if TYPE_CHECKING:
    from analysis.results import StudyResults

_COLUMNS = (*CELL, "image_size", "batch_size", "sampling_steps", "cfg_scale")
_SAMPLER = ("sampler", "sampler_options", "sampler_source")
_BESIDE = {"objective": _SAMPLER, "sampler": _SAMPLER}
"""Parts of the protocol that go with a field."""
_NEVER = ("features", "num_samples", "metric", "reference", "resize", "extractor")
"""Parts of the protocol that make another score."""


@dataclass(frozen=True)
class Axis:
    """`field` is a column of the study's rows; `values` those it has, in order; `parts` of the protocol may differ along it."""

    field: str
    study: StudyResults
    values: tuple[Any, ...]
    parts: tuple[str, ...] = ()

    def condition(self, value: Any) -> str:
        """The expression that chooses a value's rows."""
        return f"{self.field} == {value!r}"

    def name(self, value: Any) -> str:
        """The value with the field, as `learning_rate=0.001`; a variant says that itself."""
        return str(value) if self.field == VARIANT else f"{self.field}={value}"

    def slug(self, value: Any) -> str:
        """The value's name as part of a file's."""
        return re.sub(r"[^\w.=+, -]", "_", self.name(value))

    def split(self) -> dict[Any, StudyResults]:
        """The study's part for each value."""
        return {value: self.study.where(self.condition(value)) for value in self.values}


def axis_of(study: StudyResults, by: str | None = None, alone: bool = True) -> Axis | None:
    """The axis of a field, or of the one in which runs of a cell differ; None if they differ in none.

    Args:
        alone: whether runs of one cell and value may differ in their seed only.

    Raises:
        UserError: if there is no such field, it has one value, or runs differ in others too.
    """
    if by := by or study.by:
        return axis_by(study, by, alone)
    own = fields_apart(study)
    if len(own) > 1:
        raise UserError(_choice(study, own))
    return _axis(study, own[0]) if own else None


def axis_by(study: StudyResults, by: str, alone: bool = True) -> Axis:
    """The axis of a field, as `axis_of` finds it.

    Raises:
        UserError: as it does.
    """
    axis = _axis(study, by)
    if len(axis.values) < 2:
        known = ", ".join(fields_apart(study)) or "their seed alone"
        said = f"is {axis.values[0]!r} in every run" if axis.values else "has no value in any run"
        raise UserError(f"--by {by}: {axis.field} {said}; runs of one cell differ in {known}")
    if alone:
        for part in axis.split().values():
            if rest := fields_apart(part):
                raise UserError(_choice(part, [axis.field, *rest]))
    return axis


def fields_apart(study: StudyResults) -> list[str]:
    """The fields in which runs of one cell differ, less those that follow from another one."""
    names = [name for name in study.apart if name != VARIANT]
    rows = _rows(study, [*CELL, *names])
    if not len(rows):
        return []
    groups = rows.groupby(list(CELL), dropna=False)
    found = [name for name in names if groups[name].nunique(dropna=False).max() > 1]

    def follows(name: str, other: str) -> bool:
        return rows.groupby(other, dropna=False)[name].nunique(dropna=False).max() == 1

    return [
        name
        for place, name in enumerate(found)
        if not any(
            follows(name, other) and (before < place or not follows(other, name))
            for before, other in enumerate(found)
            if other != name
        )
    ]


def with_fields(study: StudyResults, rows: Frame, expression: str) -> Frame:
    """The rows with a column more for each field of a run, or part of the protocol, that an expression names and they lack."""
    more = {}
    for name in dict.fromkeys(re.findall(r"[^\W\d]\w*", expression)):
        if name not in rows.columns and (found := _values(study, rows, name)) is not None:
            more[name] = found
    return rows.assign(**more)


def _axis(study: StudyResults, by: str) -> Axis:
    """The axis of a field, its column in the study's rows.

    Raises:
        UserError: if there is none.
    """
    if by in _NEVER:
        raise UserError(f'--by {by}: scores of another {by} are other scores; pick one, as in --where "{by} == ..."')
    known = field_of(load_study(study.folder).runs, by) if study.folder else None
    field = by if by in (*study.apart, *_COLUMNS) or known is None else known[0]
    if field not in (*study.apart, *_COLUMNS):
        made = [_values(study, rows, by) for rows in (study.table, study.waiting)]
        if made[0] is None:
            names = (*study.apart, *_COLUMNS, *_parts(study), *_known(study))
            some = ", ".join([*fields_apart(study), *CELL])
            raise UserError(f"--by {by}: no such field{nearest(by, names)}; expected one of a run's, such as {some}")
        table, waiting = (rows.assign(**{field: one}) for rows, one in zip((study.table, study.waiting), made))
        study = replace(study, table=table, waiting=waiting, apart=(*study.apart, field))
    rows = _rows(study, [field]) if known else study.table[study.table["protocol"].notna()]
    values = list(dict.fromkeys(map(plain, rows[field].tolist())))
    if all(isinstance(value, int | float) for value in values):
        values.sort()
    parts = {*_BESIDE.get(field, ()), field, by} & set(_parts(study))
    return Axis(field, study, tuple(values), tuple(sorted(parts)))


def _values(study: StudyResults, rows: Frame, name: str) -> list[Any] | None:
    """A run's field, or a part of the protocol, for each row; None where there is no such thing."""
    if study.folder and (found := field_of(load_study(study.folder).runs, name)) is not None:
        return [found[1].get(run) for run in rows["run"]]
    if name not in _parts(study):
        return None
    keys = rows["protocol"] if "protocol" in rows else [None] * len(rows)
    said = [study.protocols[key].get(name) if isinstance(key, str) else None for key in keys]
    return [value if value is None or isinstance(value, str | bool | int | float) else repr(value) for value in said]


def _parts(study: StudyResults) -> list[str]:
    return list(dict.fromkeys(key for protocol in study.protocols.values() for key in protocol))


def _known(study: StudyResults) -> list[str]:
    runs = load_study(study.folder).runs if study.folder else ()
    return list(field_columns({name for run in runs for name in recipe_fields(run)}).values())


def _rows(study: StudyResults, names: list[str]) -> Frame:
    """These columns of all runs, those without a score yet too."""
    return pd.concat(
        [one.reindex(columns=names).astype(object) for one in (study.table, study.waiting)], ignore_index=True
    )


def _choice(study: StudyResults, names: list[str]) -> str:
    first, other = names[:2]
    value = plain(_rows(study, [other])[other].iloc[0])
    listed = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"runs of one cell differ in {listed}: choose what to group by and fix the rest, as in "
        f'--by {first} --where "{other} == {value!r}", or take every combination with --by {VARIANT}'
    )
