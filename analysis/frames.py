"""Rows as pandas frames, and the name under which the type checker knows a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from dit.design.rows import Row
from dit.errors import UserError

if TYPE_CHECKING:
    # pandas' own annotations make every selection "Series or DataFrame or array", which no line below could then use.
    Frame = Any
else:
    Frame = pd.DataFrame

COUNTS = (
    *("patch_size", "seed", "image_size", "tokens", "params", "batch_size"),
    *("step", "images_seen", "sampling_steps", "nfe", "num_samples"),
)


def frame(rows: list[Row], columns: list[str] | None = None) -> Frame:
    """Rows as a frame: whole numbers stay whole (nullable `Int64`) where some rows lack them, other gaps are NaN."""
    table = pd.DataFrame(rows, columns=columns)
    return table.astype({name: "Int64" for name in COUNTS if name in table.columns})


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """FIELD=... options as a dictionary."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(
                f"{option} {text}: expected FIELD=..., as in {option} {'loss=train/loss' if option == '--map' else 'seed=0'}"
            )
        found[name] = value
    return found
