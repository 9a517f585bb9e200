"""The summary of a study in sentences, each with its numbers; what the rows do not carry is left unsaid."""

from __future__ import annotations

import math

from analysis import protocols
from analysis.comparable import MAIN_BLOCK, at_common_step
from analysis.figures.compute import log_correlation
from analysis.figures.drawing import Scores, over_seeds
from analysis.frames import Frame
from analysis.paired import Effect
from analysis.report.costs import Costs
from analysis.report.tables import cells_of, written
from analysis.results import StudyResults
from analysis.seeds import mean_and_deviation
from dit.design.blocks import block_label
from dit.duration import duration

_CELL = ["block", "size", "patch_size"]


def summary(study: StudyResults, shown: Scores | None, cost: Costs | None, found: Effect | None = None) -> list[str]:
    """Sentences in reading order: what was run, what came out best (or, where given, what a field did), blocks, compute, cost."""
    words = [_extent(study, cost)]
    if found is not None:
        return [*words, *found.sentences, *_cost(cost)]
    if shown is None:
        return [*words, "No score is on record yet.", *_cost(cost)]
    last = at_common_step(shown.rows)
    means = over_seeds(last, [*_CELL, "gflops", "train_gflops"], shown.metric).sort_values("mean", kind="stable")
    words.append(_best(shown, last, means))
    words += _blocks(shown, means)
    words += _compute(shown, means)
    words += _seeds(means)
    if shown.floor is not None:
        words.append(
            f"The real set scored against itself gives {shown.floor:.4g}: scores near it cannot be told from real images."
        )
    return [*words, *_cost(cost)]


def _extent(study: StudyResults, cost: Costs | None) -> str:
    scored = study.table[study.table["protocol"].notna()]
    under = scored["protocol"].nunique()
    runs, cells = (cost.runs, cost.cells) if cost else (scored["run"].nunique(), cells_of(study.table))
    words = f"{runs} runs of {cells} cells with {len(scored):,} scores under {under} protocol{'s' * (under != 1)}"
    if cost is None:
        return f"{words}."
    failed = f", {cost.failed} failed" if cost.failed else ", none failed"
    return f"{words}; {cost.runs - cost.unfinished} runs reached their last step{failed}."


def _best(shown: Scores, last: Frame, means: Frame) -> str:
    best = means.iloc[0]
    name = f"{block_label(best['block'])} {best['size']}/{best['patch_size']}"
    step = int(last["step"].iloc[0])
    return (
        f"After {step:,} training steps the best of {len(means)} cells is {name} with {shown.label} {_mean(best)}, "
        f"for {written(float(best['train_gflops']))} Gflops of training."
    )


def _mean(row: Frame) -> str:
    if math.isnan(row["sd"]):
        return f"{row['mean']:.4g}" + ("" if row["n"] == 1 else f" (n = {row['n']})")
    return f"{mean_and_deviation(row['mean'], row['sd'])} (mean ± s.d., n = {row['n']} seeds)"


def _blocks(shown: Scores, means: Frame) -> list[str]:
    """The blocks at the largest cell that has most of them, and how often the best one is best."""
    several = means.groupby(["size", "patch_size"])["block"].transform("nunique")
    if several.empty or several.max() < 2:
        return []
    full = means[several == several.max()]
    largest = full.loc[full["gflops"].astype(float).idxmax()]
    cell = full[(full["size"] == largest["size"]) & (full["patch_size"] == largest["patch_size"])].sort_values("mean")
    ranking = ", ".join(
        f"{block_label(one['block'])} {mean_and_deviation(one['mean'], one['sd'])}" for _, one in cell.iterrows()
    )
    first = full.sort_values("mean").groupby(["size", "patch_size"])["block"].first()
    winner = first.value_counts()
    blocks = f"Blocks at {largest['size']}/{largest['patch_size']}: {ranking}."
    if len(first) > 1:
        best = block_label(str(winner.index[0]))
        blocks += (
            f" {best} is best in {int(winner.iloc[0])} of {len(first)} cells that have {int(several.max())} blocks."
        )
    return [blocks]


def _compute(shown: Scores, means: Frame) -> list[str]:
    words = []
    for block in [MAIN_BLOCK, *(one for one in means["block"].unique() if one != MAIN_BLOCK)]:
        rows = means[means["block"] == block]
        if len(rows) >= 3:
            r = log_correlation(rows["gflops"], rows["mean"])
            words.append(f"{block_label(block)} {r:.2f}".replace("-0", "−0"))
    if not words:
        return []
    beside = " (the paper reports −0.93 for adaLN-Zero on ImageNet)" if shown.metric != "fid" else ""
    return [f"Correlation of log Gflops with the score: {', '.join(words)}{beside}."]


def _seeds(means: Frame) -> list[str]:
    several = means[means["n"] > 1]
    if several.empty:
        return ["Every cell has one seed: differences between cells carry no uncertainty of their own."]
    spread = float((several["sd"] / several["mean"]).median())
    return [
        f"{len(several)} of {len(means)} cells have several seeds; the median standard deviation between them is "
        f"{100 * spread:.2g} % of the mean."
    ]


def _cost(cost: Costs | None) -> list[str]:
    if cost is None:
        return []
    share = 100 * cost.done_gflops / cost.planned_gflops if cost.planned_gflops else 0.0
    words = (
        f"Training took {written(cost.done_gflops)} of {written(cost.planned_gflops)} planned Gflops ({share:.3g} %)"
    )
    timed = f" and {duration(cost.train_s)} of training time by the log" if cost.train_s else ""
    return [f"{words}{timed}. One multiply-add is one flop."]


def protocol_words(study: StudyResults, shown: Scores) -> str:
    """The main protocol in a few words."""
    keys = shown.rows["protocol"].unique()
    return "; ".join(protocols.describe(study.protocols[key]) for key in keys)
