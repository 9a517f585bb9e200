"""All fits of a study at once: what `dit fit` prints and the report shows. What cannot be fitted is a `Refusal` with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from analysis import protocols
from analysis.fits.blocks import BlockComparison, compare_blocks
from analysis.fits.correlation import Correlations, correlations
from analysis.fits.fit import LOSS, REPLICATES, LawFit, NotIdentified, Refusal, fit_law
from analysis.fits.frontier import Frontier, frontier
from analysis.fits.isoflop import IsoFlop, isoflop
from analysis.fits.laws import forms_for
from analysis.fits.methods import MethodsBox, methods_box
from analysis.fits.observations import Observations, main_block, observe
from analysis.fits.optimum import Optimum, optimum
from analysis.fits.record import Note, Record
from analysis.fits.sampling import SamplingLaw, sampling_law
from analysis.fits.validation import Validation, validate
from analysis.results import StudyResults
from dit.errors import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Conclusions(Record):
    """A study's fits under its main protocol; `laws` holds every form that could be fitted for `block`, the chosen one first.

    `left_out` counts the scores under other protocols; `methods` is the box of the first law.
    """

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
    optimum: Optimum | Refusal
    sampling: SamplingLaw | Refusal
    methods: MethodsBox | None
    refusals: tuple[Refusal, ...]
    notes: tuple[Note, ...]


def conclude(
    study: StudyResults, *, block: str | None = None, replicates: int = REPLICATES, loss: str = LOSS
) -> Conclusions:
    """Every fit that the study carries; filter first with `study.where(...)`.

    Raises:
        UserError: if no protocol is the main one (both are named), there is no score, or no score of `block`.
    """
    return conclude_from(observe(study), sampling_of(study, replicates), block=block, replicates=replicates, loss=loss)


def conclude_from(
    observations: Observations,
    sampling: SamplingLaw | Refusal,
    *,
    block: str | None = None,
    replicates: int = REPLICATES,
    loss: str = LOSS,
) -> Conclusions:
    """Every fit of these scores, those of a table included (`analysis.fits.table`).

    Raises:
        UserError: if there is no score of `block`.
    """
    chosen = main_block(observations) if block is None else block
    present = sorted(set(observations.labels("block")))
    if chosen not in present:
        raise UserError(f"no score of block '{chosen}': expected one of {', '.join(present)}")
    ours = observations.of_block(chosen)
    validation = validate(ours, loss=loss)
    laws, refusals = _laws(ours, validation, loss, replicates)
    with_images = next((law for law in laws if "images_seen" in law.variables and "params" in law.variables), None)
    patches = sorted({int(patch) for patch in ours.rows["patch_size"]}, reverse=True)
    return Conclusions(
        study=observations.study,
        metric=observations.metric,
        label=observations.label,
        protocol=observations.protocol,
        scores=len(observations),
        left_out=observations.left_out,
        block=chosen,
        laws=laws,
        validation=validation,
        correlations=_of_cells(observations, "correlations", lambda: correlations(observations, chosen)),
        blocks=_of_cells(observations, "blocks", lambda: compare_blocks(observations, replicates)),
        frontier=_or_refusal("frontier", lambda: frontier(observations)),
        isoflops=tuple(
            _or_refusal(f"isoflop at patch {patch}", lambda patch=patch: isoflop(ours, chosen, patch, law=with_images))
            for patch in patches
        ),
        optimum=_or_refusal("optimum", lambda: _optimum(laws)),
        sampling=sampling,
        methods=methods_box(laws[0], observations, validation) if laws else None,
        refusals=refusals,
        notes=_notes(observations, present, chosen),
    )


def sampling_of(study: StudyResults, replicates: int = REPLICATES) -> SamplingLaw | Refusal:
    """The sampling law of the runs that were scored at several numbers of sampling steps, or why there is none."""
    table = study.table[study.table["protocol"].notna()]
    if len(table):
        family = protocols.families(table, study.protocols, apart_from=("sampling_steps",))
        table = table[table.groupby([family, "run", "step"])["sampling_steps"].transform("nunique") > 1]
    if table.empty:
        return Refusal("sampling", "no run was scored at several numbers of sampling steps")
    varied = replace(study, table=table)
    return _or_refusal("sampling", lambda: sampling_law(observe(varied, apart_from=("sampling_steps",)), replicates))


def _laws(
    observations: Observations, validation: Validation, loss: str, replicates: int
) -> tuple[tuple[LawFit, ...], tuple[Refusal, ...]]:
    """Every form that the data determine, the chosen one first, and the others with their reason."""
    laws, refusals = [], []
    for form in forms_for(observations):
        try:
            laws.append(fit_law(observations, form, loss=loss, replicates=replicates))
        except NotIdentified as reason:
            refusals.append(Refusal(form, str(reason)))
    laws.sort(key=lambda law: law.form != validation.chosen)
    return tuple(laws), tuple(refusals)


def _optimum(laws: tuple[LawFit, ...]) -> Optimum:
    """That of the law of N and D alone, else of N, T and D."""
    able = [law for law in laws if {"params", "images_seen"} <= set(law.variables) and law.estimate.form.additive]
    if not able:
        raise NotIdentified("no law of N and D could be fitted")
    return optimum(min(able, key=lambda law: len(law.variables)))


def _of_cells(observations: Observations, name: str, fit: Callable[[], Result]) -> Result | Refusal:
    """A fit to the cells of a study at one training step, which a table does not have."""
    return Refusal(name, "a table has no common training step") if observations.of_table else _or_refusal(name, fit)


def _or_refusal(name: str, fit: Callable[[], Result]) -> Result | Refusal:
    try:
        return fit()
    except NotIdentified as reason:
        return Refusal(name, str(reason))


def _notes(observations: Observations, present: list[str], block: str) -> tuple[Note, ...]:
    found = []
    if observations.left_out:
        found.append(
            Note(
                "protocol",
                f"{observations.left_out} scores under other protocols are left out, never mixed in (--where picks)",
            )
        )
    if observations.young:
        found.append(Note("young", observations.young))
    if len(present) > 1:
        found.append(
            Note("block", f"laws are of block {block}; the others enter the block comparison and the frontier")
        )
    return tuple(found)
