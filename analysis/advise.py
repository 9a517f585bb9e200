"""Advice on what to train next: cells that cannot reach the frontier, and the run that narrows a forecast most per unit of compute.

The next run is an optimal design: with J the derivatives of log scores by the parameters and V their covariance (what the law misses in
a cell, shared by its runs; retraining noise, shared by the scores of a run; resampling noise), the forecast's variance at the target
is g' (J' V^-1 J)^-1 g. Each candidate adds its rows; what it takes off the variance is divided by its training Gflops (one multiply-add is
one flop; drawing samples for its scores not counted). Parameters at a bound are held. Atkinson, Donev & Tobias 2007 (c-optimality).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fits.fit import LOSS, LawFit, NotIdentified, fit_law
from analysis.fits.frontier import Frontier, frontier
from analysis.fits.laws import FORMS
from analysis.fits.noise import RETRAINING_OVER_RESAMPLING, noise_of
from analysis.fits.observations import VARIABLES, Observations, main_block, observe
from analysis.fits.record import Interval, Note, Record
from analysis.fits.validation import Validation, validate
from analysis.results import StudyResults
from analysis.targets import Target, of_cell, planned_targets, select
from dit.design.rows import Row
from dit.errors import UserError

_LONGER = 2
_LEAST_SD = 1e-4


@dataclass(frozen=True)
class Hopeless(Record):
    """A cell above the frontier: its score / frontier score at equal compute where it comes closest, or at its planned end."""

    cell: str
    train_gflops: float
    ratio: float
    interval: Interval
    measured: bool
    said: str


@dataclass(frozen=True)
class Candidate(Record):
    """A run that could come next. `kind`: planned, new (a size of the ladder), seed or longer.

    sd are relative, of the law at the target, before and after; `reduction_per_gflop` is of the variance of the log score.
    """

    kind: str
    cell: str
    step: int
    cost_gflops: float
    sd_before: float
    sd_after: float
    reduction_per_gflop: float


@dataclass(frozen=True)
class Advice(Record):
    """`hopeless`: cells whose whole interval lies above the frontier; `undecided`: above it, but not beyond the interval.

    `candidates` for the forecast of `target` by `form`, best per Gflop first; `largest` takes most off whatever it costs.
    """

    study: str
    target: str
    form: str
    form_reason: str
    hopeless: tuple[Hopeless, ...]
    undecided: tuple[Hopeless, ...]
    candidates: tuple[Candidate, ...]
    largest: Candidate | None
    notes: tuple[Note, ...]


def advise(study: StudyResults, target: str | None = None, loss: str = LOSS) -> Advice:
    """Advice for a study; `target` as in `forecast.freeze` (default: the dearest cell of the main block without its last score).

    Raises:
        UserError: if nothing can be fitted to the target's block, the target names no cell, or its scores are all there.
    """
    observations = observe(study)
    targets = planned_targets(study, observations)
    aim = _aim(observations, targets, target)
    laws: dict[str, tuple[LawFit, Validation]] = {}
    for block, ours in observations.by_block():
        needed = noise_of(observations).relative_sd is None or _has_open(observations, targets, block)
        if block != aim.cell[0] and not needed:
            continue
        try:
            laws[block] = _law(ours, loss)
        except NotIdentified as reason:
            if block == aim.cell[0]:
                raise UserError(f"no law for block {block}, so no advice for {aim.name}: {reason}") from reason
    if aim.cell[0] not in laws:
        raise UserError(f"no score of block '{aim.cell[0]}' yet: nothing to advise from")
    law, validation = laws[aim.cell[0]]
    edge = frontier(observations)
    found = _above(observations, targets, laws, edge)
    design = _Design(law, aim, observations.of_block(aim.cell[0]))
    candidates = sorted(
        _candidates(design, [one for one in targets if one.cell[0] == aim.cell[0]]),
        key=lambda one: -one.reduction_per_gflop,
    )
    notes = list(law.notes)
    notes += [Note("young", observations.young)] if observations.young else []
    if _scored(observations, aim, design.step):
        notes.append(
            Note("target", f"{aim.name} has its score already: the law there can still be narrowed, the score is known")
        )
    if law.noise.relative_sd is None:
        notes.append(
            Note(
                "noise",
                "second seeds cannot be valued, and intervals of measured ratios are of the scatter about the block's law: noise "
                f"{law.noise.source}",
            )
        )
    return Advice(
        study=study.name,
        target=f"{aim.name} at step {design.step}",
        form=law.form,
        form_reason=validation.reason,
        hopeless=tuple(one for one in found if one.interval.low > 1),
        undecided=tuple(one for one in found if one.interval.low <= 1 < one.ratio),
        candidates=tuple(candidates),
        largest=min(candidates, key=lambda one: one.sd_after, default=None),
        notes=tuple(notes),
    )


def _aim(observations: Observations, targets: list[Target], target: str | None) -> Target:
    """The cell whose forecast is to be narrowed: unless told, one of the main block without its last score, the study's own first."""
    if target is not None:
        chosen = select(targets, target)
        ours = [one for one in chosen if one.cell[0] == main_block(observations)]
        return max(ours or chosen, key=lambda one: one.row["train_gflops"])
    block = main_block(observations)
    ours = [one for one in targets if one.cell[0] == block]
    unscored = [one for one in ours if not _scored(observations, one, one.steps[-1])]
    return max(unscored or ours, key=lambda one: (one.status != "not in the study", one.row["train_gflops"]))


def _has_open(observations: Observations, targets: list[Target], block: str) -> bool:
    """Whether the study plans a cell of the block that has not its last score yet."""
    ours = [one for one in targets if one.cell[0] == block and one.status != "not in the study"]
    return any(not _scored(observations, one, one.steps[-1]) for one in ours)


def _scored(observations: Observations, target: Target, step: int) -> bool:
    rows = observations.rows[of_cell(observations, target.cell)]
    return bool((rows["step"] == step).any())


def _law(observations: Observations, loss: str) -> tuple[LawFit, Validation]:
    """The validated form fitted, else the first form that can be."""
    validation = validate(observations, loss=loss)
    names = [validation.chosen] if validation.chosen else ["surface+images", "surface", "power"]
    reason = NotIdentified("no form")
    for name in names:
        try:
            return fit_law(observations, name, loss=loss), validation
        except NotIdentified as error:
            reason = error
    raise reason


def _above(
    observations: Observations, targets: list[Target], laws: dict[str, tuple[LawFit, Validation]], edge: Frontier
) -> list[Hopeless]:
    """Cells above the frontier where they come closest: measured, or forecast for what they have still to train."""
    found = []
    gaps = {(one.block, one.size, one.patch_size): one for one in edge.gaps}
    seen = set()
    for target in targets:
        block, size, patch, _ = target.cell
        if target.cell in seen or target.status == "not in the study":
            continue
        seen.add(target.cell)
        gap = gaps.get((block, size, patch))
        if gap is not None and gap.on_frontier:
            continue
        law, validation = laws.get(block, (None, None))
        ahead = _forecast_ratio(target, law, validation, edge, observations)
        if gap is None and ahead is None:
            continue
        if gap is not None and (ahead is None or ahead[0] >= gap.ratio):
            between = gap.interval
            if between is None:
                half = 1.96 * np.sqrt(2) * (law.estimate.new_run_sd if law else np.inf)
                between = Interval(gap.ratio * np.exp(-half), gap.ratio * np.exp(half))
            said = f"measured at {gap.train_gflops:.3g} training Gflops"
            if ahead is not None:
                said += f", forecast {ahead[0]:.3f} times at its planned end"
                between = Interval(min(between.low, ahead[1].low), max(between.high, ahead[1].high))
            found.append(Hopeless(target.name, gap.train_gflops, gap.ratio, between, True, said))
        elif ahead is not None:
            said = "forecast for its planned end"
            found.append(Hopeless(target.name, ahead[2], ahead[0], ahead[1], False, said))
    return sorted(found, key=lambda one: -one.ratio)


def _forecast_ratio(
    target: Target, law: LawFit | None, validation: Validation | None, edge: Frontier, observations: Observations
) -> tuple[float, Interval, float] | None:
    """Forecast / frontier score at the cell's planned end, with prediction interval; None where it is measured or no law reaches it."""
    step = target.steps[-1]
    if law is None or validation is None or _scored(observations, target, step):
        return None
    if FORMS[law.form].steps == "common" and step != int(law.estimate.data.rows["step"].iloc[0]):
        return None
    row = target.at(step)
    best = edge.at(row["train_gflops"])
    if best is None:
        return None
    columns = {name: np.array([float(row[name])]) for name in VARIABLES}
    one = law.predict(columns, validation.of(law.form).rms_error or 0.0)[0]
    between = Interval(one.prediction.low / best.score, one.prediction.high / best.score)
    return one.score / best.score, between, float(row["train_gflops"])


class _Design:
    """Variance of the law at the target, from the rows there are and those that a candidate adds."""

    def __init__(self, law: LawFit, aim: Target, observations: Observations):
        form, estimate = FORMS[law.form], law.estimate
        self.law, self.aim, self.observations = law, aim, observations
        self.common = None if form.steps == "all" else int(estimate.data.rows["step"].iloc[0])
        self.step = self.common if self.common in aim.steps and self.common else aim.steps[-1]
        lower, _ = form.bounds()
        self._free = estimate.theta > lower
        if form.additive:  # an exponent whose amplitude is at its bound has no derivative
            terms, first = len(form.variables), int(form.irreducible)
            self._free[first + terms :] &= self._free[first : first + terms]
        noise = law.noise.sd
        part = 1 / (1 + RETRAINING_OVER_RESAMPLING**2)
        self._point, self._run = max(noise**2 * part, _LEAST_SD**2), noise**2 * (1 - part)
        self._cell = max(law.residual_sd**2 - noise**2, 0.0)
        data = estimate.data
        self._rows = {
            cell: (self.derivatives(rows_of), rows_of.runs)
            for cell, rows_of in ((one, data.at(data.cells == one)) for one in range(data.cells.max() + 1))
        }
        self._place = {
            tuple(
                data.rows.loc[np.flatnonzero(data.cells == one)[0], ["block", "size", "patch_size", "image_size"]]
            ): one
            for one in range(data.cells.max() + 1)
        }
        self._information = {cell: self._of(*rows) for cell, rows in self._rows.items()}
        self._total = sum(self._information.values(), np.zeros((self._free.sum(), self._free.sum())))
        self._aim = self._derivatives_at([aim.at(self.step)])[0]
        self.variance = self._variance(self._total)

    def derivatives(self, data: Observations) -> np.ndarray:
        """Derivatives (n, free) of log scores by the free parameters."""
        return self._derivatives_at(data.rows.to_dict("records"))

    def _derivatives_at(self, rows: list[Row]) -> np.ndarray:
        estimate = self.law.estimate
        u = np.log([[float(row[name]) for name in self.law.variables] for row in rows]) - estimate.centers
        return estimate.form.jacobian(estimate.theta[None], u)[0][:, self._free]

    def _of(self, derivatives: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Information of one cell's rows."""
        covariance = self._cell + self._run * (runs[:, None] == runs) + self._point * np.eye(len(runs))
        return derivatives.T @ np.linalg.solve(covariance, derivatives)

    def _variance(self, information: np.ndarray) -> float:
        return float(self._aim @ np.linalg.pinv(information, rcond=1e-12, hermitian=True) @ self._aim)

    def after(self, target: Target, steps: list[int], run: str | None) -> float:
        """Variance once the cell has scores at these steps, of a new run (None) or of the run that it has."""
        added = self._derivatives_at([target.at(step) for step in steps])
        place = self._place.get(target.cell)
        if place is None:
            return self._variance(self._total + self._of(added, np.zeros(len(steps), dtype=int)))
        derivatives, runs = self._rows[place]
        number = runs.max() + 1 if run is None else runs[0]
        both = np.concatenate([derivatives, added]), np.concatenate([runs, np.full(len(steps), number)])
        return self._variance(self._total - self._information[place] + self._of(*both))


def _candidates(design: _Design, targets: list[Target]) -> list[Candidate]:
    """Planned cells, sizes of the ladder, second seeds and longer runs; not the target itself."""
    found = []
    seen = set()
    for target in targets:
        if target.cell == design.aim.cell or target.cell in seen:
            continue
        seen.add(target.cell)
        observations = design.observations
        steps = [step for step in target.steps if design.common in (None, step)]
        if not steps:
            continue
        done = [step for step in steps if _scored(observations, target, step)]
        if not done:
            kind = "new" if target.status == "not in the study" else "planned"
            found.append(_candidate(design, kind, target, steps, None, target.at(steps[-1])["train_gflops"]))
            continue
        if design.law.noise.relative_sd is not None:
            found.append(_candidate(design, "seed", target, done, None, target.at(done[-1])["train_gflops"]))
        if design.common is None:
            step = _LONGER * done[-1]
            cost = target.at(step)["train_gflops"] - target.at(done[-1])["train_gflops"]
            found.append(_candidate(design, "longer", target, [step], "same", cost))
    return found


def _candidate(design: _Design, kind: str, target: Target, steps: list[int], run: str | None, cost: float) -> Candidate:
    after = min(design.after(target, steps, run), design.variance)
    return Candidate(
        kind,
        target.name,
        steps[-1],
        float(cost),
        float(np.sqrt(design.variance)),
        float(np.sqrt(after)),
        (design.variance - after) / float(cost),
    )
