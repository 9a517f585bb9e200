"""The fits of a study as sentences, tables and the methods box; every number comes from `analysis.fits`, and a refusal keeps its reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.fits.blocks import BlockComparison
from analysis.fits.conclusions import Conclusions, conclude
from analysis.fits.correlation import Correlation, Correlations
from analysis.fits.fit import LawFit, Refusal
from analysis.fits.frontier import Frontier
from analysis.fits.isoflop import IsoFlop
from analysis.fits.record import Interval, Parameter
from analysis.fits.sampling import SamplingLaw
from analysis.fits.validation import Validation
from analysis.forecast import ScoredForecast, score_all
from analysis.report.tables import Table, table
from analysis.results import StudyResults
from dit.design.blocks import block_label
from dit.errors import UserError


@dataclass(frozen=True)
class Part:
    """A titled part: sentences, a table where there is one, and what a reader must know beside it."""

    title: str
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fits:
    """All fits of the page, the methods box (topic, text), and what could not be fitted with the reason."""

    parts: tuple[Part, ...]
    methods: tuple[tuple[str, str], ...]
    refused: tuple[tuple[str, str], ...]
    words: tuple[str, ...]


NONE = Fits((), (), (), ())


def fits(study: StudyResults) -> Fits:
    """Every fit that the study carries; where nothing can be fitted, the reason alone."""
    try:
        found = conclude(study)
    except UserError as reason:
        return Fits((), (), (("fits", str(reason)),), ())
    parts = [
        *([_laws(found.laws), _parameters(found.laws[0])] if found.laws else []),
        _validation(found.validation),
        *_made(found.correlations, _correlations),
        *_made(found.blocks, _blocks),
        *_made(found.frontier, _frontier),
        *(part for one in found.isoflops for part in _made(one, _isoflop)),
        *_made(found.sampling, _sampling),
        *forecasts(study),
    ]
    refusals = [one for one in (*found.refusals, *_parts_of(found)) if isinstance(one, Refusal)]
    return Fits(
        parts=tuple(parts),
        methods=() if found.methods is None else found.methods.items,
        refused=tuple(dict.fromkeys((one.form, one.reason) for one in refusals)),
        words=_words(found),
    )


def _parts_of(found: Conclusions) -> list[Any]:
    return [found.correlations, found.blocks, found.frontier, *found.isoflops, found.sampling]


def _made(one: Any, make: Any) -> Iterable[Part]:
    return () if isinstance(one, Refusal) else (make(one),)


def _words(found: Conclusions) -> tuple[str, ...]:
    """The conclusions in one sentence each, for the summary."""
    words = []
    if not isinstance(found.correlations, Refusal):
        words.append(f"Gflops or parameters ({block_label(found.correlations.block)}): {found.correlations.said}.")
    if found.laws:
        law = found.laws[0]
        held_out = next((one for one in found.validation.forms if one.form == law.form), None)
        said = ""
        if held_out is not None and held_out.median_error is not None and held_out.max_error is not None:
            median, largest = 100 * held_out.median_error, 100 * held_out.max_error
            said = f"; on sizes held out it is off by {median:.1f} % in the median, {largest:.3g} % at most"
        words.append(f"The chosen law is {law.equation} with {_values(law)}{said}.")
    if not isinstance(found.blocks, Refusal):
        words += [_multiplier_words(found.blocks)]
    if not isinstance(found.sampling, Refusal) and found.sampling.said:
        words.append(found.sampling.said)
    return tuple(words)


def _multiplier_words(blocks: BlockComparison) -> str:
    told = [
        f"{block_label(one.block)} needs {one.multiplier:.3g} times ({one.interval}) the compute"
        if one.multiplier is not None
        else f"{block_label(one.block)}: {one.said}"
        for one in blocks.multipliers
    ]
    told += dict.fromkeys(f"each {one.said}" for one in blocks.multipliers if one.said and one.multiplier is not None)
    return f"For the score of {block_label(blocks.reference)}, {'; '.join(told)}."


def _values(law: LawFit) -> str:
    return ", ".join(_parameter(one) for one in law.parameters)


def _parameter(one: Parameter) -> str:
    if one.value is None:
        return f"{one.name} not determined ({one.said})"
    between = [] if one.interval is None else [str(one.interval)]
    remarks = "; ".join([*between, *([one.remark] if one.remark else [])])
    return f"{one.name} = {one.value:.4g}" + (f" ({remarks})" if remarks else "")


def _between(one: Interval | None) -> str | None:
    return None if one is None else str(one)


def _laws(laws: tuple[LawFit, ...]) -> Part:
    """Every form with its data and residuals; the chosen one, which stands first, is told in words."""
    rows = [
        {
            "form": law.form,
            "law": law.equation,
            "scores": law.points,
            "runs": law.runs,
            "cells": law.cells,
            "residuals %": 100 * law.residual_sd,
            "parameters": "; ".join(_parameter(one) for one in law.parameters),
        }
        for law in laws
    ]
    chosen = laws[0]
    told = (
        f"Chosen: {chosen.form}, {chosen.equation}, with {_values(chosen)}. Noise between trainings: {_noise(chosen)}."
    )
    notes = tuple(f"{law.form}: {note.text}" for law in laws for note in law.notes)
    return Part("Laws", (told,), table(rows, list(rows[0])), notes)


def _parameters(law: LawFit) -> Part:
    """The chosen law's parameters with their meaning."""
    rows = [
        {
            "parameter": one.name,
            "value": one.value,
            "95 % interval": _between(one.interval),
            "meaning": one.meaning,
            "said": one.said,
        }
        for one in law.parameters
    ]
    return Part(
        f"Parameters of {law.form}", (), table(rows, ["parameter", "value", "95 % interval", "meaning", "said"])
    )


def _noise(law: LawFit) -> str:
    sd = law.noise.relative_sd
    return law.noise.source if sd is None else f"{100 * sd:.2g} % ({law.noise.source})"


def _validation(validation: Validation) -> Part:
    rows = [
        {
            "form": f"{one.form} (chosen)" if one.form == validation.chosen else one.form,
            "law": one.equation,
            "median error %": _percent(one.median_error),
            "largest error %": _percent(one.max_error),
            "one cell left out: median %": _percent(one.leave_one_out_median),
            "one size left out: median %": _percent(one.leave_one_size_out_median),
            "folds": ", ".join(f"{'+'.join(fold.fitted_on)}→{fold.predicted}" for fold in one.folds) or None,
        }
        for one in validation.forms
    ]
    notes = tuple(f"{one.form}: {refusal.reason}" for one in validation.forms for refusal in one.refusals)
    return Part("Held-out error of each form", (validation.reason,), table(rows, list(rows[0]) if rows else []), notes)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _correlations(found: Correlations) -> Part:
    kinds = [one for one in vars(found).values() if isinstance(one, Correlation)]
    rows = [
        {
            "of": one.x,
            "with": one.y,
            "given": one.given,
            "kind": one.kind,
            "value": one.value,
            "95 % interval": _between(one.interval),
            "cells": one.cells,
        }
        for one in kinds
    ]
    return Part(
        f"Correlations, {block_label(found.block)} after {found.step:,} steps",
        (found.said,),
        table(rows, list(rows[0])),
    )


def _blocks(found: BlockComparison) -> Part:
    rows = [
        {
            "block": block_label(one.block),
            "compute for the same score": one.multiplier,
            "95 % interval": _between(one.interval),
            "score at the same compute": one.score_ratio,
            "its interval": _between(one.score_ratio_interval),
            "cells": one.cells,
            "said": one.said,
        }
        for one in found.multipliers
    ]
    words = f"Relative to {block_label(found.reference)}: {found.equation}, {_parameter(found.exponent)}."
    columns = list(rows[0]) if rows else []
    return Part("Blocks as multipliers of compute", (words,), table(rows, columns), tuple(n.text for n in found.notes))


def _frontier(found: Frontier) -> Part:
    rows = [
        {
            "train Gflops": one.train_gflops,
            "best cell": f"{one.size}/{one.patch_size}",
            "block": block_label(one.block),
            "params": one.params,
            found.metric: one.score,
            "how sure %": _percent(one.probability),
            "cells compared": one.candidates,
        }
        for one in found.optimal
    ]
    on = [f"{block_label(gap.block)} {gap.cell}" for gap in found.gaps if gap.on_frontier]
    words = (
        f"{len(found.points)} scores are on the frontier: no score of at most the same training compute is better. "
        f"Cells on it: {', '.join(on)}."
    )
    return Part("Frontier: the best cell for each budget", (words,), table(rows, list(rows[0]) if rows else []))


def _isoflop(found: IsoFlop) -> Part:
    rows = [
        {
            "train Gflops": one.train_gflops,
            "sizes": ", ".join(one.sizes),
            "best N": one.optimum_params,
            "95 % interval": _between(one.optimum_interval),
            found.metric: one.optimum_score,
            "N by the law": one.parametric_params,
            "rejected": one.rejected,
        }
        for one in found.budgets
    ]
    words = f"N_opt against compute: {_parameter(found.exponent)}."
    title = f"isoFLOP, {block_label(found.block)}, patch {found.patch_size}"
    return Part(title, (words,), table(rows, list(rows[0]) if rows else []), tuple(one.text for one in found.notes))


def _sampling(found: SamplingLaw) -> Part:
    rows = [
        {
            "smaller": one.smaller,
            "larger": one.larger,
            "smaller at most": one.smaller_at_most,
            "larger at most": one.larger_at_most,
            "ratio": one.ratio,
            "95 % interval": _between(one.interval),
            "bought back": {True: "yes", False: "no", None: "not told apart"}[one.bought_back],
            "said": one.said,
        }
        for one in found.buy_back
    ]
    words = f"{found.equation}: {_parameter(found.amplitude)}, {_parameter(found.exponent)}."
    columns = list(rows[0]) if rows else []
    return Part("What sampling steps buy", (words,), table(rows, columns), tuple(one.text for one in found.notes))


def forecasts(study: StudyResults) -> list[Part]:
    """Forecasts that were frozen in the study's folder, against what has been measured since; no part where there are none.

    Raises:
        UserError: for a file that is no forecast.
    """
    folder = None if study.folder is None else study.folder / "forecasts"
    if folder is None or not any(folder.glob("*.json")):
        return []
    scored = score_all(study, folder)
    rows = [
        {
            "frozen": one.created,
            "of": one.target,
            "cell": cell.cell.replace(cell.block, block_label(cell.block), 1),
            "step": cell.step,
            "forecast": cell.forecast,
            "95 % interval": _between(cell.prediction),
            "measured": cell.measured,
            "error %": 100 * cell.error,
            "forward error %": _percent(cell.forward_error),
            "in the interval": "yes" if cell.inside else "no",
        }
        for one in scored
        for cell in one.cells
    ]
    return [Part("Forecasts", tuple(map(_forecast_words, scored)), table(rows, list(rows[0])) if rows else None)]


def _forecast_words(one: ScoredForecast) -> str:
    kind = "made in retrospect" if one.retrospective else "frozen before training"
    waiting = f"; not measured yet: {', '.join(one.pending)}" if one.pending else ""
    wrong = f"; {one.trouble}" if one.trouble else ""
    return f"{one.target}, {kind}, {one.created}{waiting}{wrong}."
