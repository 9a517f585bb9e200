"""What one component of a model costs: the unit that every family's closed form is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Count:
    """Multiply-adds per image and trainable parameters of one component."""

    macs: int
    params: int
