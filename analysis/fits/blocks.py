"""Block type as a multiplier of compute: how many times the compute of the reference block a block needs for the same score.

All blocks share E, A and the exponent; block b follows E + A (C / m_b)^-a, so m_b > 1 costs more. Fitted to the cells (size and patch size)
that all of them have, at the common training step, by least squares of log scores: what the law misses in a cell of all blocks then
cancels in their differences, in the estimate and in its resamples, which move a cell of all blocks together.
To plot: `BlockMultiplier.multiplier` as a dot with `interval`; 1 is the reference.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import t as student

from analysis.comparable import MAIN_BLOCK
from analysis.fits import bootstrap, varpro
from analysis.fits.fit import REPLICATES, LawFit, NotIdentified, fit_law
from analysis.fits.laws import LOOSE_EXPONENT, MAX_EXPONENT, Form
from analysis.fits.noise import Noise, noise_of
from analysis.fits.observations import Observations
from analysis.fits.record import LEVEL, Interval, Note, Parameter, Record, interval
from analysis.fits.refine import Problem, minimise
from analysis.fits.steps import StepFactor, step_factors
from analysis.fits.validation import cell_means

EQUATION = "L = E + A (C / m)^-a, one m for each block"
_LEAST_CELLS = 3
_WITH_E = Form("blocks", EQUATION, ("train_gflops",), (4,), irreducible=True)
_WITHOUT_E = Form("blocks", "L = A (C / m)^-a, one m for each block", ("train_gflops",), (3,))


@dataclass(frozen=True)
class BlockMultiplier(Record):
    """`multiplier` (None with `said` where it is not determined), from `cells` that both blocks share.

    `score_ratio` is the geometric mean of block / reference over those cells.
    """

    block: str
    multiplier: float | None
    interval: Interval | None
    score_ratio: float
    score_ratio_interval: Interval | None
    cells: int
    own_exponent: Parameter | None
    said: str | None


@dataclass(frozen=True)
class BlockComparison(Record):
    """All blocks against `reference` (adaLN-Zero where it is there)."""

    reference: str
    equation: str
    exponent: Parameter
    multipliers: tuple[BlockMultiplier, ...]
    steps: tuple[StepFactor, ...]
    notes: tuple[Note, ...]


def compare_blocks(observations: Observations, replicates: int = REPLICATES) -> BlockComparison:
    """Multipliers of all blocks at the common training step.

    Raises:
        NotIdentified: if there is one block only, the reference has no exponent of its own, or no block shares a cell with it.
    """
    noise = noise_of(observations)
    data = observations.at_common_step()
    place = pd.Series(list(zip(data.rows["size"], data.rows["patch_size"], data.rows["image_size"])))
    cells = {block: set(place[data.rows["block"] == block]) for block in dict.fromkeys(data.labels("block"))}
    if len(cells) < 2:
        raise NotIdentified("comparing blocks needs two of them, there is one")
    reference = MAIN_BLOCK if MAIN_BLOCK in cells else max(cells, key=lambda name: len(cells[name]))
    shared = {block: cells[block] & cells[reference] for block in cells if block != reference}
    if not any(shared.values()):
        raise NotIdentified(
            f"no block shares a cell (size and patch size) with {reference} at the common training step"
        )
    together, common = _together(shared, cells[reference])
    law = fit_law(data.of_block(reference), "power", replicates=replicates)
    found: dict[str, np.ndarray] = {}
    points: dict[str, float] = {}
    exponent, equation, notes = law.parameters[1], law.equation, []
    if together:
        rows = data.at(place.isin(common).to_numpy() & np.isin(data.labels("block"), [reference, *together]))
        exponent, equation, points, found, notes = _joint(rows, [reference, *together], noise, replicates)
    lacking = _lack_of_fit(rows, [reference, *together], noise, points, found) if together else None
    multipliers = []
    for block in shared:
        if shared[block]:
            ours = common if block in together else shared[block]
            logs = _log_ratios(data, place, block, reference, ours)
            if block not in together:
                points[block], found[block] = _from_few(logs, law, noise)
            one = _multiplier(block, points[block], found[block], logs, noise, data, block in together)
            gated = lacking is not None and block in together
            multipliers.append(replace(one, multiplier=None, interval=None, said=lacking) if gated else one)
    steps: tuple[StepFactor, ...] = ()
    try:
        steps = step_factors(observations, reference)
    except NotIdentified as reason:
        notes.append(Note("one_step", str(reason)))
    notes += _exponents_differ(law, multipliers)
    return BlockComparison(reference, equation, exponent, tuple(multipliers), steps, tuple(notes))


def _lack_of_fit(
    data: Observations, blocks: list[str], noise: Noise, points: dict[str, float], found: dict[str, np.ndarray]
) -> str | None:
    """Why no multiplier is to be had: without one size or patch size the law that the blocks share gives another."""
    for column in ("patch_size", "size"):
        for level in sorted(set(data.rows[column])):
            rest = data.at((data.rows[column] != level).to_numpy())
            if len(set(zip(rest.labels("size"), rest.labels("patch_size")))) <= _LEAST_CELLS:
                continue
            for block, value in _joint(rest, blocks, noise, 2)[2].items():
                between = interval(found[block])
                if between is not None and value not in between:
                    return (
                        f"lack of fit: without {column.replace('_', ' ')} {level} the multiplier of {block} is {value:.3g}, "
                        f"with it {points[block]:.3g} ({between})"
                    )
    return None


def _together(shared: dict[str, set], reference: set) -> tuple[list[str], set]:
    """The blocks that can be fitted together, those with most cells first, and the cells that they all share."""
    together, common = [], set(reference)
    for block in sorted(shared, key=lambda name: -len(shared[name])):
        if len(common & shared[block]) >= _LEAST_CELLS:
            together.append(block)
            common &= shared[block]
    return together, common


def _joint(
    data: Observations, blocks: list[str], noise: Noise, replicates: int
) -> tuple[Parameter, str, dict[str, float], dict[str, np.ndarray], list[Note]]:
    """One exponent for all blocks: it, the equation, multipliers by block, their replicates, and notes."""
    places = data.rows.groupby(["size", "patch_size", "image_size"], sort=False).ngroup().to_numpy()
    form = _WITH_E if places.max() + 1 > _LEAST_CELLS else _WITHOUT_E
    group = np.array([blocks.index(block) for block in data.labels("block")])
    log_compute, target = np.log(data.column("train_gflops"))[:, None], np.log(data.score)
    center, scale = log_compute.mean(0), np.exp(target.mean())
    problem = Problem(form, log_compute - center, group=group, delta=np.inf, groups=len(blocks))
    target, weights = target - np.log(scale), np.ones(len(target))
    starts = varpro.starts(form, problem.u, target, weights, groups=len(blocks))
    theta, loss, _ = minimise(problem, starts, target, weights)
    best = theta[np.argmin(loss)]
    residual = target - form.log_score(best[None], problem.u, group)[0]
    moved = bootstrap.perturbations(
        residual, places, data.cells, data.runs, form.size, noise.sd, replicates, np.random.default_rng(0)
    )
    spread = form.natural(bootstrap.resample(problem, best, moved), center, scale)
    natural = form.natural(best[None], center, scale)[0]
    first = form.size
    between = interval(spread[:, first - 1])
    loose = between is not None and between.high > LOOSE_EXPONENT
    said = f"hardly identified: the interval of a reaches its bound {MAX_EXPONENT:g}" if loose else None
    exponent = Parameter("a", float(natural[first - 1]), between, said, "exponent of C, shared")
    notes = [Note("at_bound", f"the exponent that the blocks share is {said}")] if said else []
    if form.irreducible and best[0] <= 0:
        notes.append(
            Note("at_bound", "E is at its bound 0: the shared law has no irreducible score that these data show")
        )
    points = {block: float(natural[first + at]) for at, block in enumerate(blocks[1:])}
    found = {block: spread[:, first + at] for at, block in enumerate(blocks[1:])}
    return exponent, form.equation, points, found, notes


def _log_ratios(data: Observations, place: pd.Series, block: str, reference: str, shared: set) -> pd.DataFrame:
    """For each shared cell, logs of score and compute of the block over the reference (seeds averaged), and seeds of either."""
    parts = []
    for name in (block, reference):
        rows = cell_means(data.at(((data.rows["block"] == name) & place.isin(shared)).to_numpy()))
        seeds = data.rows[data.rows["block"] == name].groupby(["size", "patch_size", "image_size"])["run"].nunique()
        part = rows.rows.set_index(["size", "patch_size", "image_size"])
        parts.append(
            pd.DataFrame({"score": np.log(part[data.metric]), "compute": np.log(part["train_gflops"]), "seeds": seeds})
        )
    both = parts[0].join(parts[1].add_suffix("_reference")).dropna()
    both["ratio"] = both["score"] - both["score_reference"]
    both["cost"] = both["compute"] - both["compute_reference"]
    return both


def _from_few(logs: pd.DataFrame, law: LawFit, noise: Noise) -> tuple[float, np.ndarray]:
    """Multiplier from paired scores of few cells and the reference's own exponent: m = (C_b / C) (L_b / L)^(1/a), and its replicates."""
    exponent = law.parameters[1].value
    assert exponent is not None  # a power law is not bounded
    rng = np.random.default_rng(0)
    replicates = law.estimate.replicates[:, 1]
    sd = noise.sd * np.sqrt((1 / logs["seeds"] + 1 / logs["seeds_reference"]).sum()) / len(logs)
    ratio, cost = logs["ratio"].mean(), logs["cost"].mean()
    moved = ratio + sd * rng.standard_normal(len(replicates))
    return float(np.exp(cost + ratio / exponent)), np.exp(cost + moved / np.maximum(replicates, 1e-3))


def _multiplier(
    block: str,
    point: float,
    replicates: np.ndarray,
    logs: pd.DataFrame,
    noise: Noise,
    data: Observations,
    together: bool,
) -> BlockMultiplier:
    """One block's record: few cells and missing noise are said."""
    count = len(logs)
    noise_sd = noise.sd * np.sqrt((1 / logs["seeds"] + 1 / logs["seeds_reference"]).sum()) / count
    half = 1.96 * noise_sd
    if count >= _LEAST_CELLS:
        scatter = logs["ratio"].std(ddof=1) / np.sqrt(count)
        half = max(half, scatter * student.ppf((1 + LEVEL) / 2, count - 1))
    middle = logs["ratio"].mean()
    own, said = None, None
    with contextlib.suppress(NotIdentified):
        own = fit_law(data.of_block(block), "power", replicates=len(replicates)).parameters[1]
    if not together:
        names = ", ".join(f"{size}/{patch}" for size, patch, _ in logs.index)
        said = f"rests on {count} cell{'s' * (count > 1)} ({names}) and the reference's exponent: how it varies over cells is not known"
    known = together or half > 0
    return BlockMultiplier(
        block=block,
        multiplier=point,
        interval=interval(replicates) if known else None,
        score_ratio=float(np.exp(middle)),
        score_ratio_interval=Interval(float(np.exp(middle - half)), float(np.exp(middle + half))) if half > 0 else None,
        cells=count,
        own_exponent=own,
        said=said,
    )


def _exponents_differ(law: LawFit, multipliers: list[BlockMultiplier]) -> list[Note]:
    """Said where a block's own exponent lies apart from the reference's, so that one multiplier cannot hold at every compute."""
    ours, apart = law.parameters[1].interval, []
    for one in multipliers:
        theirs = None if one.own_exponent is None else one.own_exponent.interval
        if ours and theirs and (theirs.low > ours.high or theirs.high < ours.low):
            apart.append(f"{one.block} ({theirs})")
    if not apart:
        return []
    return [
        Note(
            "exponents",
            f"own exponents of {', '.join(apart)} lie apart from the reference's ({ours}): the multiplier changes with compute",
        )
    ]
