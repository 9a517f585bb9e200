"""The methods box of a fit: what a reader needs to redo it (the checklist of Li et al., arXiv:2502.18969), filled in by the code."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.fit import LawFit
from analysis.fits.observations import Observations
from analysis.fits.record import Record
from analysis.fits.validation import Validation


@dataclass(frozen=True)
class MethodsBox(Record):
    """(topic, text) in reading order: form, N and D, Gflops convention, data range, loss, optimiser, starts, tolerance, bootstrap, noise,
    held-out error."""

    items: tuple[tuple[str, str], ...]


def methods_box(fit: LawFit, observations: Observations, validation: Validation | None) -> MethodsBox:
    """The box of one fit."""
    raise NotImplementedError
