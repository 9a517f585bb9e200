"""The scores that a law is fitted to: one protocol, one row per score, each with its cell, its run and what it cost.

N is `params` (trainable parameters, frozen position embedding excluded), D is `images_seen`, T is `tokens` (image tokens per image), C is
`train_gflops` (Gflops of one forward pass x batch x steps x 3). One multiply-add is one flop throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from analysis import averages, protocols
from analysis.comparable import MAIN_BLOCK, common_step
from analysis.fits.record import HIDDEN, Record
from analysis.frames import Frame
from analysis.protocols import Protocol
from analysis.results import StudyResults
from analysis.seeds import require_one_variant
from dit.errors import UserError

VARIABLES = {
    "train_gflops": "C, training compute in Gflops (forward Gflops x batch x steps x 3; one multiply-add is one flop)",
    "params": "N, trainable parameters",
    "images_seen": "D, images seen in training (batch x steps)",
    "tokens": "T, image tokens per image",
}
CELL = ("block", "size", "patch_size", "image_size")


@dataclass(frozen=True)
class Observations(Record):
    """Scores under one protocol, less what `apart_from` left free. `rows`: their slice of the results table, with a fresh index.

    `left_out` counts the study's scores under other protocols; `young` says what was done with those of averages too young to tell;
    `training`: how the runs were trained, as the record has it.
    """

    study: str
    rows: Frame = field(**HIDDEN)
    metric: str
    label: str
    protocol: Protocol
    left_out: int = 0
    of_table: ClassVar[bool] = False
    young: str | None = None
    training: str = "not recorded"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def score(self) -> np.ndarray:
        """The scores, n floats."""
        return self.column(self.metric)

    def column(self, name: str) -> np.ndarray:
        """A numeric column, n floats."""
        return self.rows[name].to_numpy(dtype=float, na_value=np.nan)

    def labels(self, name: str) -> np.ndarray:
        """A column of names, n strings."""
        return self.rows[name].astype(str).to_numpy(dtype=object)

    @cached_property
    def cells(self) -> np.ndarray:
        """Number of the cell (block, size, patch size, image size) of each row: seeds and steps of one cell share it."""
        return self.rows.groupby(list(CELL), dropna=False, sort=False).ngroup().to_numpy()

    @cached_property
    def runs(self) -> np.ndarray:
        """Number of the run (cell and seed) of each row: the points of one training curve share it."""
        return self.rows.groupby(["run"], sort=False).ngroup().to_numpy()

    @property
    def sizes(self) -> list[str]:
        """Sizes in order of their parameters."""
        return [str(size) for size in self.rows.groupby("size")["params"].max().sort_values().index]

    def at(self, mask: np.ndarray) -> Observations:
        """The same protocol, fewer rows."""
        return replace(self, rows=self.rows[np.asarray(mask, dtype=bool)].reset_index(drop=True))

    def of_block(self, block: str) -> Observations:
        """One block's rows."""
        return self.at((self.rows["block"] == block).to_numpy())

    @cached_property
    def common(self) -> np.ndarray:
        """Mask (n,) of the rows at the common step of `analysis.comparable`."""
        return (self.rows["step"] == common_step(self.rows)).to_numpy(dtype=bool)

    def at_common_step(self) -> Observations:
        """The rows at the common step."""
        return self.at(self.common)

    def by_block(self) -> Iterator[tuple[str, Observations]]:
        """Each block with its rows, most cells first."""
        counts = self.rows.groupby("block")["size"].size().sort_values(ascending=False, kind="stable")
        for block in counts.index:
            yield str(block), self.of_block(block)


def observe(study: StudyResults, apart_from: tuple[str, ...] = ()) -> Observations:
    """A study's scores under its main protocol (see `analysis.protocols.main_protocol`); filter first with `study.where(...)`.

    Raises:
        UserError: if there is no score, if two protocols have equal claims (both are named), a score is not a positive number, or runs of
            a cell differ in more than their seed.
    """
    rows = protocols.main_protocol(study.table, study.protocols, apart_from)
    protocol = protocols.require_one_protocol(rows, study.protocols, apart_from)
    metric = protocols.metric(protocol)
    rows = rows[rows[metric].notna() & rows["block"].notna()].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"no score of a cell under protocol {protocol}: expected rows with block, size and Gflops")
    require_one_variant(rows)
    wrong = rows[~(rows[metric] > 0)]
    if len(wrong):
        raise UserError(
            f"{metric} of run {wrong['run'].iloc[0]} is {wrong[metric].iloc[0]}: laws are fitted to logarithms and need scores above 0; "
            f'leave it out, as in --where "{metric} > 0"'
        )
    left_out = int(study.table["protocol"].notna().sum()) - len(rows)
    rows, young = _without_young(study, rows, protocol)
    training = averages.described(study, rows)
    return Observations(study.name, rows, metric, protocols.metric_label(protocol), protocol, left_out, young, training)


def _without_young(study: StudyResults, rows: Frame, protocol: Protocol) -> tuple[Frame, str | None]:
    """The rows less those of averages that are too young, unless all are or they are asked for; and what to say of them."""
    young = averages.too_young(study, rows, protocol)
    if not young.any():
        return rows, None
    said = (
        f"{int(young.sum())} of {len(rows)} scores are of a moving average younger than 5 / (1 - decay) steps, which still holds the "
        "initial weights"
    )
    if study.with_young_averages:
        return rows, f"{said}: used, as asked for"
    if young.all():
        return rows, f"{said}: there are no others, so the laws are of these"
    return rows[~young].reset_index(drop=True), f"{said}: left out (--with-young-averages uses them)"


def main_block(observations: Observations) -> str:
    """The block whose laws are fitted unless told: adaLN-Zero where it has three cells, else the block with the most cells."""
    cells = observations.rows.drop_duplicates(list(CELL))["block"].value_counts()
    return MAIN_BLOCK if cells.get(MAIN_BLOCK, 0) >= 3 else str(cells.index[0])
