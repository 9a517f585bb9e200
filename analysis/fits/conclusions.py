"""All fits of a study at once: what `dit fit` prints and the report shows. What cannot be fitted is a `Refusal` with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.fits.blocks import BlockComparison
from analysis.fits.correlation import Correlations
from analysis.fits.fit import LawFit, Refusal
from analysis.fits.frontier import Frontier
from analysis.fits.isoflop import IsoFlop
from analysis.fits.methods import MethodsBox
from analysis.fits.record import Note, Record
from analysis.fits.sampling import SamplingLaw
from analysis.fits.validation import Validation
from analysis.results import StudyResults


@dataclass(frozen=True)
class Conclusions(Record):
    """A study's fits under its main protocol; `laws` holds every form that could be fitted for `block`, the chosen one first."""

    study: str
    metric: str
    label: str
    protocol: dict
    scores: int
    left_out: int
    block: str
    laws: tuple[LawFit, ...]
    validation: Validation
    correlations: Correlations | Refusal
    blocks: BlockComparison | Refusal
    frontier: Frontier | Refusal
    isoflops: tuple[IsoFlop | Refusal, ...]
    sampling: SamplingLaw | Refusal
    methods: MethodsBox | None
    refusals: tuple[Refusal, ...]
    notes: tuple[Note, ...]


def conclude(
    study: StudyResults, *, block: str | None = None, replicates: int = 1000, loss: str = "huber"
) -> Conclusions:
    """Every fit that the study carries; filter first with `study.where(...)`.

    Raises:
        UserError: if no protocol is the main one (both are named), or there is no score.
    """
    raise NotImplementedError
