"""Metrics as records: what each is taken of, which way is better, what it is called, and under which column it stands.

Of the FID Inception's features a column has the metric's own name (`fid`, `precision`); of any others it has the metric's `stem` and the
features' name (`fd_digits`, `precision_digits`), so that what is not FID is never called so. A part of a user's own is written
`name@source` in a configuration, so that changed code is another metric. Nothing here imports JAX.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dit.design.parts import Part, find, latest, names, nearest, written
from dit.errors import UserError

NEEDS = ("pooled", "real_pooled", "spatial", "real_spatial", "logits", "features", "reference", "manifolds", "seed")
"""What a metric may be taken of, in the order that it likes: Gaussians of pooled and of spatial features, sums of class probabilities,
pooled features of single images (N, F) and (R, F), neighbourhoods of both, and the seed of sub-samples."""
INCEPTION = "inception"


@dataclass(frozen=True)
class Metric(Part):
    """A score of samples.

    Args:
        of: takes what `needs` names, in that order, and returns a number, or an array whose mean is the score and whose standard
            deviation is its spread. "module:attribute", or a function of the user's own; then `(features (N, F), reference (R, F))`.
        better: which way samples get better.
        label: its name on an axis.
        short: another name that is accepted for it.
        stem: begins its columns for features other than the FID Inception's; its name if empty.
        interval: "module:attribute" of a bootstrap interval, where it has one.
        noise: relative standard deviation over trainings from other seeds, where it is known.
    """

    word: ClassVar[str] = "metric"
    of: str | Callable[..., Any] = ""
    needs: tuple[str, ...] = ("features", "reference")
    better: Literal["lower", "higher"] = "lower"
    label: str = ""
    short: str = ""
    stem: str = ""
    interval: str = ""
    noise: float | None = None

    def __post_init__(self) -> None:
        require_name(self)
        if self.better not in ("lower", "higher"):
            raise UserError(f"metric '{self.name}': better is {self.better!r}, expected 'lower' or 'higher'")
        for need in self.needs:
            if need not in NEEDS:
                raise UserError(
                    f"metric '{self.name}' needs {need!r}: expected some of {', '.join(NEEDS)}{nearest(need, NEEDS)}"
                )
        for other in metrics():
            taken = {other.name, other.short, other.stem} - {""}
            if not other.source and other.name != self.name and {self.name, self.column_stem} & taken:
                raise UserError(f"metric '{self.name}' would stand where '{other.name}' does: choose another name")
        object.__setattr__(self, "label", self.label or self.name)
        super().__post_init__()

    @property
    def column_stem(self) -> str:
        """What its columns begin with for features other than the FID Inception's."""
        return self.stem or self.name

    @property
    def keeps_features(self) -> bool:
        """Whether pooled features of the single samples have to be kept for it."""
        return bool({"features", "manifolds"} & set(self.needs))


def require_name(part: Part) -> None:
    """Refuse a name that would make no column.

    Raises:
        UserError: for a name that is no word of letters, digits and underscores.
    """
    if not isinstance(part.name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", part.name):
        raise UserError(f"{part.word} {part.name!r}: expected a name of letters, digits and '_'")


def metrics() -> list[Metric]:
    """All metrics, the package's first; of several sources of a name the one made last."""
    return [one for name in names(Metric) if (one := latest(Metric, name))]


ADM = ("fid", "sfid", "inception_score", "precision", "recall")
"""The metrics of the ADM suite, which the paper prints and `dit evaluate` takes unless told."""

NOISE = 0.013
"""Relative standard deviation of FID over trainings from other seeds (arXiv:2606.20536)."""
_FRECHET = "dit.score.metrics.frechet:frechet_distance"
Metric(
    "fid",
    of=_FRECHET,
    needs=("pooled", "real_pooled"),
    label="FID",
    stem="fd",
    interval="dit.score.scores:frechet_interval",
    noise=NOISE,
)
Metric("sfid", of=_FRECHET, needs=("spatial", "real_spatial"), label="sFID", stem="sfd")
Metric(
    "inception_score",
    of="dit.score.metrics.inception_score:InceptionScore.scores",
    needs=("logits",),
    better="higher",
    label="Inception Score",
    short="is",
    stem="is",
)
for _name, _label in (("precision", "Precision"), ("recall", "Recall")):
    Metric(
        _name,
        of=f"dit.score.metrics.precision_recall:PrecisionRecall.{_name}.fget",
        needs=("manifolds",),
        better="higher",
        label=_label,
        interval=f"dit.score.scores:{_name}_interval",
    )
Metric("kid", of="dit.score.scores:kid_of_subsets", needs=("reference", "features", "seed"), label="KID")
Metric(
    "fid_infinity",
    of="dit.score.scores:extrapolated",
    needs=("features", "real_pooled", "seed"),
    label="FID∞",
    stem="fd_infinity",
)


def _full(name: Any) -> Any:
    return next((one.name for one in metrics() if one.short == name and name), name)


def metric(name: str) -> Metric:
    """The metric of that name, short name or `name@source`.

    Raises:
        UserError: if there is none, with the nearest name there is.
    """
    return find(Metric, _full(name))


def canonical(chosen: Iterable[str | Metric]) -> tuple[str, ...]:
    """The metrics of an evaluation as a configuration writes them, the Fréchet distance first, which is always taken.

    Raises:
        UserError: for a name that is no metric's.
    """
    if isinstance(chosen, str):
        raise UserError(f"metrics is {chosen!r}: expected a sequence of names, as ({chosen!r},)")
    return tuple(dict.fromkeys(["fid", *(written(Metric, _full(one)) for one in chosen)]))


def from_record(fields: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's fields as JSON gives them back, their list of metrics a tuple again."""
    return fields | {"metrics": tuple(fields.get("metrics", ("fid",)))}


def column(name: str, features: str) -> str:
    """The column of a metric (its name, or `name@source`) of some features (likewise; "" or "inception": the FID Inception's)."""
    name, features = name.partition("@")[0], features.partition("@")[0]
    if features in ("", INCEPTION):
        return name
    stem = next((one.column_stem for one in metrics() if one.name == name), name)
    return f"{stem}_{features}"


def of_column(name: str) -> Metric | None:
    """The metric that a column of the results table is of; None for a column that is of none, such as the training loss."""
    found = [one for one in metrics() if name == one.name or name.startswith(f"{one.column_stem}_")]
    return max(found, key=lambda one: (name == one.name, len(one.column_stem)), default=None)


def is_better_higher(name: str) -> bool:
    """Whether higher values of a column are better."""
    found = of_column(name)
    return found is not None and found.better == "higher"


def label_of(name: str) -> str:
    """A column's name on an axis: FID only for the FID Inception's features."""
    found = of_column(name)
    if found is None or name == found.name:
        return name if found is None else found.label
    features = name.removeprefix(f"{found.column_stem}_")
    return f"{found.label.replace('FID', 'FD')} ({features} features)"


def in_order(columns: Iterable[str]) -> list[str]:
    """Columns of metrics in the order of the metrics, others last."""
    known = [one.name for one in metrics()]
    found = {name: of_column(name) for name in columns}
    return sorted(found, key=lambda name: (known.index(one.name) if (one := found[name]) else len(known), name))
