"""Which of a study's scores are held against each other: one block where one is shown, and one training step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.frames import Frame

MAIN_BLOCK = "adaln_zero"
"""The block of the paper's scaling figures, and the one that others are compared with."""


def common_step(rows: Frame) -> int:
    """The latest training step at which at least half as many runs were scored as at any: a failed or longer run does not decide it."""
    runs = rows.groupby("step")["run"].nunique()
    return int(runs.index[runs >= 0.5 * runs.max()].max())


def at_common_step(rows: Frame) -> Frame:
    """The rows at the common step."""
    return rows[rows["step"] == common_step(rows)]
